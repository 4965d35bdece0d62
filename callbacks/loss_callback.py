"""What every callback shares that acts on the training loss now and then: which loss, when, and how it is resumed.

- Every `every_n_steps` optimizer steps the loss, averaged over micro-batches and over ranks, is handed to `on_loss`. It
  is the same number on every rank, so replicas decide alike and stay equal without any broadcast.
- Validation and sanity-check losses never enter.
- Losses are kept as they come, a 0-dim tensor for each micro-batch on its device; nothing is computed and nothing is
  synchronised until the mean is needed, so a step costs about a microsecond.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from cubelet.common.checks import check_at_least, check_choice

from .base import StatefulCallback
from .reporting import due

Average = Literal["step", "interval"]


def loss_of(outputs: Any) -> Tensor | None:
    """Return the loss in what `training_step` returned, a tensor or a mapping with "loss"; None where there is none."""
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        return None
    return loss.detach().reshape(())


class LossAccumulator:
    """Losses of micro-batches, and their mean over ranks."""

    def __init__(self) -> None:
        self._losses: list[Tensor | float] = []
        self._scale = 1.0

    def add(self, trainer: Any, module: Any, outputs: Any) -> None:
        """Keep the loss of a micro-batch; NaN stands for none, so that every rank keeps equally many."""
        loss = loss_of(outputs)
        # In automatic optimization Lightning hands on the loss divided by the number of micro-batches in a window.
        self._scale = float(trainer.accumulate_grad_batches) if module.automatic_optimization else 1.0
        self._losses.append(math.nan if loss is None else loss)

    def clear(self) -> None:
        self._losses.clear()

    def mean(self, trainer: Any, device: torch.device) -> float | None:
        """Return the mean of the finite losses kept since the last call, over all ranks; None where no rank had one.

        Collective and a host read: call it on every rank at the same step, and rarely.
        """
        losses = self._stacked(device)
        self.clear()
        finite = losses.isfinite()
        pair = torch.stack((torch.where(finite, losses, 0).sum(), finite.sum().to(losses.dtype)))
        total, count = trainer.strategy.reduce(pair, reduce_op="sum").tolist()
        return total / count * self._scale if count else None

    def gather(self, module: Any) -> dict[str, Any]:
        """Return what is kept on every rank, as plain numbers. Collective."""
        losses = self._stacked(module.device)
        rows = module.all_gather(losses).reshape(-1, len(losses)) if len(losses) else losses[None]
        return {"losses": rows.tolist(), "scale": self._scale}

    def restore(self, kept: dict[str, Any], rank: int) -> None:
        """Keep again what `gather` saw on a rank (with other numbers of ranks, what one of them had)."""
        self._losses = list(kept["losses"][rank % len(kept["losses"])])
        self._scale = kept["scale"]

    def _stacked(self, device: torch.device) -> Tensor:
        """(losses,) in float64, in float32 on accelerators, some of which have no other."""
        dtype = torch.float64 if device.type == "cpu" else torch.float32
        kept = [torch.as_tensor(loss, dtype=dtype, device=device) for loss in self._losses]
        return torch.stack(kept) if kept else torch.empty(0, dtype=dtype, device=device)


class LossCallback(StatefulCallback):
    """Base of callbacks that act on the loss; a subclass has `acts` and `on_loss`.

    Args:
        every_n_steps: optimizer steps between two calls of `on_loss`.
        average: "step", the loss of the optimizer step at hand (all its micro-batches); "interval", the mean over all
            steps since the last call, which is less noisy.
        strict: raise instead of staying idle when there is nothing to act on.

    Raises:
        ValueError: a bad argument.

    Example:
        >>> class Print(LossCallback):
        ...     def acts(self):
        ...         return True
        ...     def on_loss(self, trainer, module, loss):
        ...         print(f"step {trainer.global_step}: {loss:.3f}")
        >>> callback = Print(every_n_steps=100, average="interval", strict=False)
    """

    def __init__(self, *, every_n_steps: int, average: Average, strict: bool) -> None:
        super().__init__()
        check_at_least("every_n_steps", every_n_steps, 1)
        check_choice("average", average, Average)
        self.every_n_steps = every_n_steps
        self.average = average
        self.strict = strict
        self._loss = LossAccumulator()
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
