"""Search for checkpoints: `last` is the newest one that can be read, not the newest file."""

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from cubelet.common.errors import MissingFileError, UnreadableFileError

# Lightning's own words for a checkpoint, handled by the Trainer itself.
PASSED_ON = ("best", "hpc", "registry")
# In a checkpoint: True where gradients of an unfinished accumulation window were lost in saving.
OPEN_WINDOW = "accumulation_window_open"


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    """Return the checkpoint at `path`, memory-mapped; None where an interrupted copy or a full disk truncated it."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile):
        return None
    return checkpoint if isinstance(checkpoint, dict) and "state_dict" in checkpoint else None


def is_readable(path: Path) -> bool:
    """Return whether `path` is a whole checkpoint."""
    return read_checkpoint(path) is not None


def newest_checkpoint(root: str | os.PathLike[str]) -> Path | None:
    """Return the newest readable `*.ckpt` under `root` (by modification time), or None; unreadable ones are warned of.

    One that was written inside an accumulation window is taken only where there is no other.
    """
    files = [p for p in Path(root).rglob("*.ckpt") if p.is_file()]
    inside = None
    # Of two files written in the same instant (`last.ckpt` beside its twin) the one called last.
    for path in sorted(files, key=lambda p: (p.stat().st_mtime_ns, p.name), reverse=True):
        checkpoint = read_checkpoint(path)
        if checkpoint is None:
            rank_zero_warn(f"{path} cannot be read (interrupted while it was written?); trying the one before")
        elif not checkpoint.get(OPEN_WINDOW):
            return path
        else:
            inside = inside or path
    return inside


def resolve_checkpoint(given: str, root: str | os.PathLike[str]) -> str | None:
    """Return the path for a value of `--ckpt_path`.

    Args:
        given: a path, or `last` for the newest valid checkpoint under `root`.

    Returns:
        The path, or None for the words that the Trainer handles itself.

    Raises:
        MissingFileError: no such file, or nothing to resume from.
        UnreadableFileError: the file is no whole checkpoint.
    """
    if given in PASSED_ON or given.startswith("registry:"):
        return None
    if given == "last":
        found = newest_checkpoint(root)
        if found is None:
            raise MissingFileError(
                f"there is no checkpoint under {root} for `last`; start a run without --ckpt_path first"
            )
        rank_zero_info(f"`last` is {found}")
        return str(found)
    path = Path(given)
    if path.is_dir():  # a sharded checkpoint
        return given
    if not path.is_file():
        raise MissingFileError(f"checkpoint {given!r} does not exist; `--ckpt_path last` takes the newest under {root}")
    if not is_readable(path):
        raise UnreadableFileError(
            f"{given} is not a readable checkpoint; `--ckpt_path last` takes the newest valid one"
        )
    return given
