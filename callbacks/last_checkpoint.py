"""`last.ckpt`, from which an interrupted run goes on.

Lightning's ModelCheckpoint keeps the best weights and is used for that. For going on it has gaps: after a resume it may
save in the middle of an accumulation window, whose gradients are then lost, and a run resumed from what it saved just
before a validation skips that validation. `LastCheckpoint` saves only between optimizer steps, and after the validation
where there is one.
"""

import contextlib
import os
import signal
from typing import Any

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from cubelet.common.checks import check_at_least
from cubelet.common.errors import UserError
from cubelet.common.lightning_internals import is_accumulating, validates_next
from cubelet.common.run_folder import run_location

from .base import StatefulCallback
from .checkpoint_io import AtomicCheckpointIO
from .checkpoints import OPEN_WINDOW
from .signals import Interruption


class CheckpointNotWritten(UserError, RuntimeError):
    """The run ended and its last checkpoint could not be written."""


class LastCheckpoint(StatefulCallback, Checkpoint):
    """Writes `last.ckpt` every N optimizer steps, after validations, at the end, and when the run is told to stop.

    It also makes the trainer write all its checkpoints atomically (see `AtomicCheckpointIO`), unless another way of
    writing was chosen.

    SIGTERM and Ctrl-C: the running step is finished, the checkpoint written, and the run ends by Lightning's own
    SIGTERMException, a SystemExit (status 0, after Ctrl-C 130); a second Ctrl-C stops at once. In a validation the run
    ends when that is over. See `Interruption` for several ranks and for SLURM. An exception between two steps (a logger
    that cannot write) leaves a fresh `last.ckpt` too; one inside a step leaves the one before, since weights and
    optimizer may be halfway.

    Args:
        every_n_steps: optimizer steps between two checkpoints: a kill loses at most so many.
        dirpath: folder; None for `checkpoints/` in the run's folder.
        name: of the file, without `.ckpt`.

    Raises:
        ValueError: `every_n_steps` below 1.
        CheckpointNotWritten: at the end of a run whose last checkpoint could not be written, on all ranks.

    Example:
        >>> callback = LastCheckpoint(every_n_steps=500)
    """

    def __init__(self, every_n_steps: int = 100, dirpath: str | None = None, name: str = "last") -> None:
        super().__init__()
        check_at_least("every_n_steps", every_n_steps, 1)
        self.every_n_steps, self.dirpath, self.name = every_n_steps, dirpath, name
        self.last_model_path = ""
        self._path = ""
        self._saved = -1  # optimizer steps in the newest checkpoint
        self._saving = False
        self._between_steps = True
        self._interruption = Interruption()

    def identity(self) -> dict[str, Any]:
        return {"name": self.name}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        folder = self.dirpath or os.path.join(run_location(trainer), "checkpoints")
        self._path = trainer.strategy.broadcast(os.path.join(folder, f"{self.name}.ckpt"))
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            with contextlib.suppress(NotImplementedError):  # strategies that write by themselves
                trainer.strategy.checkpoint_io = AtomicCheckpointIO()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved = trainer.global_step
        self._saving, self._between_steps = False, True
        self._interruption.watch(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._between_steps = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if is_accumulating(trainer):
            return
        self._between_steps = True
        step = trainer.global_step
        if self._interruption.agreed(trainer):
            # Before a validation that may outlast the time the system grants.
            self._save(trainer)
            self._announce(trainer)
        elif not validates_next(trainer):
            due = step // self.every_n_steps != self._saved // self.every_n_steps
            if due or step == trainer.max_steps:
                self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking and self._between_steps and trainer.global_step:
            self._save(trainer)
            if self._interruption.by is None and self._interruption.agreed(trainer):
                self._announce(trainer)

    @property
    def stopped_by(self) -> str | None:
        """What told this run to stop: "Ctrl-C", "SIGTERM", or None."""
        by = self._interruption.by
        return None if by is None else "Ctrl-C" if by is signal.SIGINT else "SIGTERM"

    def _announce(self, trainer: Trainer) -> None:
        rank_zero_info(
            f"told to stop after step {trainer.global_step} ({self.stopped_by}); {self._path} is written. Go on with "
            "--ckpt_path last"
        )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step != self._saved and self._between_steps:
            self._save(trainer)
        told = getattr(trainer.strategy.checkpoint_io, "failure", None)
        if trainer.strategy.broadcast(told):
            raise CheckpointNotWritten(f"{told or 'rank 0 cannot write checkpoints'}; the end of this run is not saved")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._interruption.unwatch()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._interruption.unwatch()
        if isinstance(exception, SystemExit) and self._interruption.by is signal.SIGINT:
            exception.code = 130  # as shells have it: 128 + the signal's number
        # Saving is collective: with several ranks nobody knows whether the others come here too.
        if trainer.world_size > 1 or trainer.state.fn != "fit" or self._saving or not self._between_steps:
            return
        if 0 <= self._saved < trainer.global_step:
            try:
                self._save(trainer)
            except Exception as error:  # must not hide the first one
                rank_zero_warn(f"no checkpoint of step {trainer.global_step}: {error}")

    def _save(self, trainer: Trainer) -> None:
        if getattr(trainer, "fast_dev_run", False):
            return
        self._saving = True
        # What was logged up to here must not be lost when the run is killed after this checkpoint.
        for logger in trainer.loggers:
            flush = getattr(logger, "flush", None) or getattr(getattr(logger, "experiment", None), "flush", None)
            if callable(flush):
                flush()
        trainer.save_checkpoint(self._path, weights_only=False)
        self._saved, self.last_model_path = trainer.global_step, self._path
        self._saving = False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        # A validation inside a window may save the best weights there; `--ckpt_path last` prefers another file then.
        checkpoint[OPEN_WINDOW] = not self._between_steps

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        for callback in trainer.checkpoint_callbacks:
            state = checkpoint.get("callbacks", {}).get(callback.state_key)
            if state and getattr(callback, "dirpath", None):
                checkpoint["callbacks"][callback.state_key] = relocate_best(state, str(callback.dirpath))  # pyright: ignore[reportAttributeAccessIssue]
        if checkpoint.get(OPEN_WINDOW) and trainer.state.fn == "fit":
            rank_zero_warn(
                f"this checkpoint was written inside an accumulation window of {trainer.accumulate_grad_batches} "
                "batches, whose gradients are lost: the next step differs from an uninterrupted run's. last.ckpt is "
                "written between windows"
            )

    def state_dict(self) -> dict[str, Any]:
        return {"last_model_path": self._path}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.last_model_path = state_dict["last_model_path"]


def relocate_best(state: dict[str, Any], folder: str) -> dict[str, Any]:
    """Return a ModelCheckpoint's state with its paths in `folder`, where the files lie there now.

    Lightning forgets the best score when the folder of a run was renamed, moved, or is named from another working
    directory, and then overwrites the best weights by worse ones.
    """
    old = state.get("dirpath")
    best = state.get("best_model_path")
    if not (old and best) or old == folder or not os.path.exists(os.path.join(folder, os.path.basename(best))):
        return state

    def move(path: str) -> str:
        return os.path.join(folder, os.path.basename(path)) if path else path

    moved = {key: move(state[key]) for key in state if key.endswith("_model_path")}
    scores = {move(path): score for path, score in state.get("best_k_models", {}).items()}
    return state | moved | {"best_k_models": scores, "dirpath": folder}
