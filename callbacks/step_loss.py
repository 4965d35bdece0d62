"""The training loss of optimizer steps: averaged over the accumulation window and over ranks, read only when asked.

Losses are kept as they come, one 0-dim tensor per micro-batch on its device; nothing is computed and nothing is
synchronised until `mean`, so a step costs about a microsecond.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def loss_of(outputs: Any) -> Tensor | None:
    """The loss in what `training_step` returned: a tensor, a mapping with "loss", or None where there is none."""
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        return None
    return loss.detach().reshape(())


class StepLoss:
    """Collects losses of micro-batches and gives their mean over ranks."""

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
        """Mean of the finite losses kept since the last call, over all ranks; None where no rank had one.

        Collective and a host read: call it on every rank at the same step, and rarely.
        """
        losses = self._stacked(device)
        self.clear()
        finite = losses.isfinite()
        pair = torch.stack((torch.where(finite, losses, 0).sum(), finite.sum().to(losses.dtype)))
        total, count = trainer.strategy.reduce(pair, reduce_op="sum").tolist()
        return total / count * self._scale if count else None

    def gather(self, module: Any) -> dict[str, Any]:
        """What is kept on every rank, as plain numbers. Collective."""
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
