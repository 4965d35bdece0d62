"""Files that are wholly old or wholly new, whatever happens while they are written."""

import contextlib
import json
import math
import os
from pathlib import Path
from typing import Any


def write_atomic(path: Path | str, data: bytes | memoryview | str) -> None:
    """Replace the file at `path` by `data` (text as UTF-8); its folder is made where it is missing.

    After any failure or kill the file is what it was; on success it has reached the disk.

    Raises:
        OSError: as the system says; no temporary file is left behind.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, since a move between file systems is a copy that a kill cuts in half; with a suffix of its own,
    # so that it is never taken for the file itself; always the same name, so that a kill leaves one at most.
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            # A file name that is no UTF-8 has half characters in it, which text shows as `\udce9`.
            file.write(data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Bring a folder's names onto the disk: a file that was renamed is there under its new name after a power cut."""
    with contextlib.suppress(OSError):  # some file systems cannot do that for a folder
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_json(path: Path | str, value: Any) -> None:
    """Plain data as JSON, written as `write_atomic` does it; what is not finite becomes null."""
    write_atomic(path, json.dumps(to_finite(value), indent=1))


def to_finite(value: Any) -> Any:
    """Plain data with None for what is not finite, since JSON knows neither NaN nor infinity, and with text as keys.

    Example:
        >>> to_finite({2: [1.0, float("nan")]})
        {'2': [1.0, None]}
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(k): to_finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_finite(v) for v in value]
    return value


def rotate_backup(path: Path) -> Path | None:
    """Rename `name.ext`, if it is there, to the first free of `name.1.ext`, `name.2.ext`, …; return the new path."""
    number = 1
    while path.exists():
        other = path.with_name(f"{path.stem}.{number}{path.suffix}")
        if not other.exists():
            return path.rename(other)
        number += 1
    return None
