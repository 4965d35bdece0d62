"""Search for checkpoints: `last` is the newest one that can be read, not the newest file.

A checkpoint is a file, or a folder with a file from each rank (`save_distributed_checkpoint`), whose `meta.pt` holds
what the file holds besides tensors.
"""

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn

# In a checkpoint: True where gradients of an unfinished accumulation window were lost in saving.
OPEN_WINDOW = "accumulation_window_open"
SHARDED_FACTS = "meta.pt"


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Return the checkpoint at `path`, memory-mapped; None where an interrupted copy or a full disk truncated it.

    Of a sharded one only the facts come back: step, hyper-parameters, callbacks, but no tensors.
    """
    sharded = Path(path, SHARDED_FACTS)
    try:
        facts = sharded if sharded.is_file() else path
        checkpoint = torch.load(facts, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile):
        return None
    expected = "global_step" if sharded.is_file() else "state_dict"
    return checkpoint if isinstance(checkpoint, dict) and expected in checkpoint else None


def is_readable(path: str | os.PathLike[str]) -> bool:
    """Return whether `path` is a whole checkpoint."""
    return read_checkpoint(path) is not None


def list_checkpoints(folder: str | os.PathLike[str]) -> list[Path]:
    """Return all checkpoints below a folder, newest first (by modification time), readable or not."""
    files = [p for p in Path(folder).rglob("*.ckpt") if p.is_file()]
    files += [p.parent for p in Path(folder).rglob(SHARDED_FACTS)]
    times = {p: (p / SHARDED_FACTS if p.is_dir() else p).stat().st_mtime_ns for p in files}
    # Of two files written in the same instant (`last.ckpt` beside its twin) the one called last.
    return sorted(files, key=lambda p: (times[p], p.name), reverse=True)


def newest_checkpoint(folder: str | os.PathLike[str]) -> Path | None:
    """Return the newest readable checkpoint below a folder, or None; unreadable ones are warned of.

    One that was written inside an accumulation window is taken only where there is no other.
    """
    inside = None
    for path in list_checkpoints(folder):
        checkpoint = read_checkpoint(path)
        if checkpoint is None:
            rank_zero_warn(f"{path} cannot be read (interrupted while it was written?); trying the one before")
        elif not checkpoint.get(OPEN_WINDOW):
            return path
        else:
            inside = inside or path
    return inside


def best_checkpoint(folder: str | os.PathLike[str]) -> Path | None:
    """Return the checkpoint of the best validation among those of a run's folder, or None.

    The newest checkpoint of the run says which it is; the folder may have moved since.
    """
    newest = newest_checkpoint(folder)
    checkpoint = read_checkpoint(newest) if newest is not None else None
    if newest is None or checkpoint is None:
        return None
    for key, state in checkpoint.get("callbacks", {}).items():
        if key.startswith("ModelCheckpoint") and state.get("best_model_path") and state.get("monitor"):
            best = newest.parent / Path(state["best_model_path"]).name
            if is_readable(best):
                return best
    best = newest.parent / "best.ckpt"
    return best if is_readable(best) else None
