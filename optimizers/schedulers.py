"""Learning rate schedules: linear warm-up, optional plateau, then cosine, linear or 1−√ decay.

One function of time and one thin scheduler around it. The time unit is whatever `step()` is called for: optimizer steps
or epochs; or epochs while `step()` is called per optimizer step, with `steps_per_epoch`.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from cubelet.common.checks import check_at_least, check_choice

Shape = Literal["cosine", "linear", "sqrt"]


def warmup_decay(
    time: float,
    warmup: float,
    total: float,
    decay_start: float,
    eta_min: float,
    shape: Shape = "cosine",
    start: float = 1.0,
) -> float:
    """Return the factor on the learning rate: up to 1 at `warmup`, 1 until `decay_start`, `eta_min` from `total` on.

    Step `time` (from 0) of the warm-up has the factor (time + start)/(warmup + start): with start 1 no step is made at
    rate 0; start 0 is the schedule of 0.1.0.
    Zero-length phases are steps: with warmup 0 the factor at time 0 is 1; with decay_start = total it falls at once.
    """
    if time < warmup:
        return (time + start) / (warmup + start)
    if time < decay_start:
        return 1.0
    if time >= total:
        return eta_min
    done = (time - decay_start) / (total - decay_start)
    left = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "sqrt": 1 - math.sqrt(done)}[shape]
    return eta_min + (1 - eta_min) * left


class WarmupCosine(LRScheduler):
    """Linear warm-up, optional plateau, decay by a cosine (or linear, or 1−√), and `eta_min` for ever after.

    Args:
        optimizer: the optimizer; each group's own lr is what the factor multiplies.
        warmup: length of the warm-up, to factor 1 at time `warmup`; the first step has 1/(warmup + 1).
        total: time at which the decay ends; later times stay at `eta_min` (a bare cosine would rise again). Must be
            given; None stands for "not said", so that a training module can fill in the length of its run.
        decay_start: end of the plateau at factor 1; by default no plateau (= warmup).
        decay_fraction: instead of `decay_start`, the share of `total` that decays at the end: warm-up, stable, decay
            (WSD), 0.2 for example.
        eta_min: the final factor, as a share of each group's lr (0 to 1).
        shape: "cosine", "linear" or "sqrt" (1 − √ of the share done, which WSD wants).
        steps_per_epoch: if given, the three times are epochs, and `step()` is called once per optimizer step; otherwise
            they count calls of `step()`, per step or per epoch as the caller likes.
        last_epoch: the last time already done, −1 to start.

    Raises:
        ValueError: without `total`; unless 0 ≤ warmup ≤ decay_start ≤ total, 0 ≤ eta_min ≤ 1, steps_per_epoch ≥ 1; with
            both `decay_start` and `decay_fraction`.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        >>> scheduler = WarmupCosine(optimizer, warmup=1, total=8, decay_fraction=0.5, shape="sqrt")
        >>> rates = []
        >>> for _ in range(9):
        ...     rates.append(round(optimizer.param_groups[0]["lr"], 2))
        ...     optimizer.step()
        ...     scheduler.step()
        >>> rates
        [0.5, 1.0, 1.0, 1.0, 1.0, 0.5, 0.29, 0.13, 0.0]

    Source: Loshchilov and Hutter, SGDR, https://arxiv.org/abs/1608.03983; warm-up as in https://arxiv.org/abs/1706.02677;
    WSD https://arxiv.org/abs/2404.06395; its 1−√ decay https://arxiv.org/abs/2405.18392.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup: float = 0,
        total: float | None = None,
        *,
        decay_start: float | None = None,
        decay_fraction: float | None = None,
        eta_min: float = 0.0,
        shape: Shape = "cosine",
        steps_per_epoch: int | None = None,
        last_epoch: int = -1,
    ) -> None:
        if total is None:
            raise ValueError("total is not given; say at which time the decay ends (for example the run's max_steps)")
        if decay_fraction is not None:
            if decay_start is not None or not 0 <= decay_fraction <= 1:
                raise ValueError(
                    f"decay_fraction {decay_fraction} must be between 0 and 1, without decay_start (got {decay_start})"
                )
            decay_start = max(warmup, total * (1 - decay_fraction))
        decay_start = warmup if decay_start is None else decay_start
        if not 0 <= warmup <= decay_start <= total:
            raise ValueError(f"need 0 <= warmup <= decay_start <= total, got {warmup}, {decay_start}, {total}")
        if not 0 <= eta_min <= 1:
            raise ValueError(f"eta_min is a share of the learning rate, between 0 and 1, got {eta_min}")
        check_choice("shape", shape, Shape)
        check_at_least("steps_per_epoch", 1 if steps_per_epoch is None else steps_per_epoch, 1)
        self.warmup, self.decay_start, self.total = warmup, decay_start, total
        self.eta_min, self.steps_per_epoch = eta_min, steps_per_epoch
        self.shape: Shape = shape
        self.start = 1.0
        super().__init__(optimizer, last_epoch)

    def factor(self, time: float) -> float:
        """The factor at a time, counted in calls of `step()`."""
        warmup, total, decay_start = (
            part * (self.steps_per_epoch or 1) for part in (self.warmup, self.total, self.decay_start)
        )
        return warmup_decay(time, warmup, total, decay_start, self.eta_min, self.shape, self.start)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state; one of 0.1.0, whose first step had rate 0, goes on with the rates it would have had."""
        super().load_state_dict({"start": 0.0, **state_dict})

    def get_lr(self) -> list[float | Tensor]:
        """The learning rates of the groups at the current time."""
        factor = self.factor(self.last_epoch)
        return [base * factor for base in self.base_lrs]
