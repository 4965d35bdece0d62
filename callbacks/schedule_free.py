"""Train and eval mode of optimizers that keep two sets of weights (schedule-free ones), in step with the trainer's."""

from __future__ import annotations

from typing import Any

from .base import StatefulCallback
from .reporting import idle


class ScheduleFreeModes(StatefulCallback):
    """Calls `train()` and `eval()` of every optimizer that has them: averaged weights for validation and checkpoints.

    A schedule-free optimizer trains at one point and evaluates at an average of the points it was at; forgetting the
    switch validates the wrong weights. Other optimizers are left alone.

    Args:
        strict: raise instead of staying idle when no optimizer has both methods.

    Raises:
        ValueError: at fit start, with `strict` and no such optimizer.

    Example:
        >>> ScheduleFreeModes().state_key
        'ScheduleFreeModes{}'

    Source: The Road Less Scheduled, https://arxiv.org/abs/2405.15682.
    """

    def __init__(self, *, strict: bool = False) -> None:
        super().__init__()
        self.strict = strict

    @staticmethod
    def _switch(trainer: Any, mode: str) -> int:
        """Put the optimizers that have modes into one; return their number."""
        chosen = [
            o for o in trainer.optimizers if callable(getattr(o, "train", None)) and callable(getattr(o, "eval", None))
        ]
        for optimizer in chosen:
            getattr(optimizer, mode)()
        return len(chosen)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        if not self._switch(trainer, "train"):
            kinds = ", ".join(sorted({type(o).__name__ for o in trainer.optimizers})) or "none"
            idle(self, f"no optimizer has train() and eval() (optimizers: {kinds})", self.strict)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._switch(trainer, "train")

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self._switch(trainer, "eval")

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        # A checkpoint that is written after a validation holds the averaged weights that were validated.
        if not trainer.sanity_checking:
            return
        self._switch(trainer, "train")

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._switch(trainer, "train")

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._switch(trainer, "eval")
