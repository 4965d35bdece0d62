"""Checkpoint writing in which a kill, a full disk or a lost folder never costs the checkpoint before.

Lightning writes to a temporary file and moves it, but into the system's temporary folder: moving from there to another
file system is a copy, which a kill cuts in half, and nothing is forced to the disk. Here the temporary file lies beside
the checkpoint, is synchronised, and takes its name in one step.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from cubelet.common.files import write_atomic


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes local checkpoints atomically and durably; remote ones (a path with `://`) as Lightning does.

    Where the disk is full or the folder gone it warns once, keeps the earlier checkpoint and lets training go on, since
    an exception here would reach rank 0 alone and leave the others waiting; `failure` tells, until a later checkpoint
    succeeds. `LastCheckpoint` turns a failure that lasts to the end of the run into an error.
    """

    def __init__(self) -> None:
        super().__init__()
        self.failure: str | None = None

    def save_checkpoint(self, checkpoint: Mapping[str, Any], path: Any, storage_options: Any = None) -> None:
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(dict(checkpoint), path, storage_options)
            return
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        try:
            write_atomic(path, buffer.getbuffer())
        except OSError as error:
            kept = "the one before is untouched" if Path(path).exists() else "none was written yet"
            size = buffer.getbuffer().nbytes / 2**20
            failure = f"cannot write the checkpoint {path} ({size:.1f} MiB): {error.strerror or error}; {kept}"
            if self.failure is None:
                rank_zero_warn(f"{failure}. Training goes on and tries again; free space, or stop and resume elsewhere")
            self.failure = failure
            return
        if self.failure is not None:
            rank_zero_info(f"checkpoints are written again: {path}")
        self.failure = None
