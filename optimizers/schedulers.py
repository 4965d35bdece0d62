"""Learning rate schedules: linear warm-up, optional plateau, then cosine or linear decay.

One function of time and one thin scheduler around it. The time unit is whatever `step()` is called for: optimizer steps
or epochs; or epochs while `step()` is called per optimizer step, with `steps_per_epoch`.
"""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

Shape = Literal["cosine", "linear"]


def warmup_decay(
    time: float, warmup: float, total: float, decay_start: float, eta_min: float, shape: Shape = "cosine"
) -> float:
    """Factor on the learning rate: rises 0 → 1 until `warmup`, is 1 until `decay_start`, `eta_min` from `total` on.

    Zero-length phases are steps: with warmup 0 the factor at time 0 is 1; with decay_start = total it falls at once.
    """
    if time < warmup:
        return time / warmup
    if time < decay_start:
        return 1.0
    if time >= total:
        return eta_min
    done = (time - decay_start) / (total - decay_start)
    left = 0.5 * (1 + math.cos(math.pi * done)) if shape == "cosine" else 1 - done
    return eta_min + (1 - eta_min) * left


class WarmupCosine(LRScheduler):
    """Linear warm-up, optional plateau, cosine (or linear) decay, and `eta_min` for ever after.

    Args:
        optimizer: the optimizer; each group's own lr is what the factor multiplies.
        warmup: length of the warm-up, from factor 0 at time 0 to 1 at time `warmup`.
        total: time at which the decay ends; later times stay at `eta_min` (a bare cosine would rise again). Must be
            given; None stands for "not said", so that a training module can fill in the length of its run.
        decay_start: end of the plateau at factor 1; by default no plateau (= warmup).
        eta_min: the final factor, as a share of each group's lr (0 to 1).
        shape: "cosine" or "linear" decay.
        steps_per_epoch: if given, the three times are epochs, and `step()` is called once per optimizer step; else they
            count calls of `step()`, per step or per epoch as the caller likes.
        last_epoch: the last time already done, −1 to start.

    Raises:
        ValueError: without `total`; unless 0 ≤ warmup ≤ decay_start ≤ total, 0 ≤ eta_min ≤ 1, steps_per_epoch ≥ 1.

    Source: Loshchilov and Hutter, SGDR, https://arxiv.org/abs/1608.03983; warm-up as in https://arxiv.org/abs/1706.02677.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup: float = 0,
        total: float | None = None,
        *,
        decay_start: float | None = None,
        eta_min: float = 0.0,
        shape: Shape = "cosine",
        steps_per_epoch: int | None = None,
        last_epoch: int = -1,
    ) -> None:
        if total is None:
            raise ValueError("total is not given; say at which time the decay ends (for example the run's max_steps)")
        decay_start = warmup if decay_start is None else decay_start
        if not 0 <= warmup <= decay_start <= total:
            raise ValueError(f"need 0 <= warmup <= decay_start <= total, got {warmup}, {decay_start}, {total}")
        if not 0 <= eta_min <= 1:
            raise ValueError(f"eta_min is a share of the learning rate, between 0 and 1, got {eta_min}")
        if shape not in ("cosine", "linear"):
            raise ValueError(f'shape must be "cosine" or "linear", got {shape!r}')
        if steps_per_epoch is not None and steps_per_epoch < 1:
            raise ValueError(f"steps_per_epoch must be at least 1, got {steps_per_epoch}")
        self.warmup, self.decay_start, self.total = warmup, decay_start, total
        self.eta_min, self.steps_per_epoch = eta_min, steps_per_epoch
        self.shape: Shape = shape
        super().__init__(optimizer, last_epoch)

    def factor(self, time: float) -> float:
        """The factor at a time, counted in calls of `step()`."""
        time = time / (self.steps_per_epoch or 1)
        return warmup_decay(time, self.warmup, self.total, self.decay_start, self.eta_min, self.shape)

    def get_lr(self) -> list[float | Tensor]:
        """The learning rates of the groups at the current time."""
        factor = self.factor(self.last_epoch)
        return [base * factor for base in self.base_lrs]
