"""What every callback shares that acts on the training loss now and then: which loss, when, and how it is resumed.

Every `every_n_steps` optimizer steps the loss, averaged over micro-batches and over ranks, is handed to `on_loss`. It
is the same number on every rank, so replicas decide alike and stay equal without any broadcast. Validation and
sanity-check losses never enter.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from .keyed import KeyedCallback
from .reporting import due
from .step_loss import StepLoss

Average = Literal["step", "interval"]


class LossCallback(KeyedCallback):
    """Base of callbacks that act on the loss.

    Args:
        every_n_steps: optimizer steps between two calls of `on_loss`.
        average: "step", the loss of the optimizer step at hand (all its micro-batches); "interval", the mean over all
            steps since the last call, which is less noisy.
        strict: raise instead of staying idle when there is nothing to act on.

    Raises:
        ValueError: a bad argument.
    """

    def __init__(self, *, every_n_steps: int, average: Average, strict: bool) -> None:
        super().__init__()
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps {every_n_steps} must be at least 1")
        if average not in get_args(Average):
            raise ValueError(f"average {average!r} is unknown; choose one of {', '.join(get_args(Average))}")
        self.every_n_steps = every_n_steps
        self.average = average
        self.strict = strict
        self._loss = StepLoss()
        self._pending: dict[str, Any] | None = None
        self._step = 0

    def acts(self) -> bool:
        """Whether there is something to act on in this fit."""
        raise NotImplementedError

    def on_loss(self, trainer: Any, module: Any, loss: float | None) -> None:
        """React to the mean loss; None where no micro-batch on any rank had one. Runs on every rank."""
        raise NotImplementedError

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self._loss.clear()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._step = trainer.global_step
        if self._pending is not None:
            self._loss.restore(self._pending, trainer.global_rank)
            self._pending = None

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not self.acts():
            return
        self._loss.add(trainer, pl_module, outputs)
        before, self._step = self._step, trainer.global_step
        if before == self._step:  # in the middle of an accumulation window
            return
        if due(before, self._step, self.every_n_steps):
            self.on_loss(trainer, pl_module, self._loss.mean(trainer, pl_module.device))
        elif self.average == "step":
            self._loss.clear()

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        # Losses that wait for their mean differ from rank to rank, and rank 0 alone writes; every rank comes here.
        own = checkpoint.setdefault("callbacks", {}).setdefault(self.state_key, {})
        own["pending"] = self._loss.gather(pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._pending = state_dict.get("pending")
