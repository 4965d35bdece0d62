"""A folder of the cache that is either not there or whole, however many processes make it at once."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from cubelet.common.errors import DiskError


def build_folder(folder: Path, fill: Callable[[Path], None]) -> Path:
    """Return `folder`, made by `fill` under another name and renamed when it is whole, unless it is there already.

    Args:
        folder: its name should hold a digest of all it depends on, so that it is never out of date.
        fill: writes into the folder that it is given.

    Raises:
        DiskError: it cannot be written.
    """
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.lock"):
            if not folder.is_dir():
                work = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".part", dir=folder.parent))
                try:
                    fill(work)
                    work.chmod(0o755)
                    with contextlib.suppress(OSError):  # another machine was faster; its folder holds the same
                        os.rename(work, folder)
                finally:
                    shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise DiskError(
            f"the cache {folder.parent} cannot be written ({error}); name another one with cache_dir or $CUBELET_CACHE"
        ) from error
    return folder
