"""The updates over which FAM's α' acts: plain momentum, and AdamW with α' as its β₁.

Each base offers three paths. `single` is the reference: one tensor at a time, the formula as one would write it.
`foreach` is the same in list calls. `fused` makes one pass over the memory with torch's own kernels; they are used only
where they are right: on the CPU, `_fused_sgd_` computes wrong values for half types, and both kernels ignore strides
(torch 2.13), so what does not fit goes to `foreach`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Lists = dict[str, list[Tensor]]

# A step count at which β^t is 0 for every β below 1 - 1e-7: torch's kernel then corrects no bias, and the correction,
# which here depends on the history of α', goes into its lr and eps instead.
_LATE = float(2**30)
_late_steps: dict[torch.device, Tensor] = {}


@dataclass
class Call:
    """What one update of some tensors needs, as Python numbers."""

    lr: float
    alpha: float
    weight_decay: float
    decoupled: bool
    maximize: bool
    beta2: float = 0.999
    eps: float = 1e-8
    step: int = 1
    product: float = 0.0  # of all α' so far, this step's included
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def shrink(self) -> float:
        """The factor of decoupled weight decay on the parameters."""
        return 1 - self.lr * self.weight_decay if self.decoupled else 1.0

    @property
    def coupled(self) -> float:
        """The share of the parameters that coupled weight decay adds to the gradients."""
        return 0.0 if self.decoupled else self.weight_decay


def _prepared(params: list[Tensor], grads: list[Tensor], call: Call) -> list[Tensor]:
    """Gradients with sign and coupled decay applied (never in place); decoupled decay applied to the parameters."""
    if call.maximize:
        grads = list(torch._foreach_neg(grads))
    if call.coupled:
        grads = list(torch._foreach_add(grads, params, alpha=call.coupled))
    if call.shrink != 1:
        torch._foreach_mul_(params, call.shrink)
    return grads


class Momentum:
    """m ← α'·m + (1−α')·g, w ← w − lr·m, from m = 0. State: one buffer, as large as the parameters."""

    keys = ("exp_avg",)
    tracks_product = False

    def state(self, parameter: Tensor) -> dict[str, Tensor]:
        return {key: torch.zeros_like(parameter, memory_format=torch.preserve_format) for key in self.keys}

    def can_fuse(self, dtype: torch.dtype, device: torch.device) -> bool:
        if device.type == "cpu":
            return dtype in (torch.float32, torch.float64)
        return device.type == "cuda" and dtype.is_floating_point

    def single(self, params: list[Tensor], grads: list[Tensor], state: Lists, call: Call) -> None:
        for param, grad, exp_avg in zip(params, grads, state["exp_avg"], strict=True):
            [grad] = _prepared([param], [grad], call)
            exp_avg.mul_(call.alpha).add_(grad, alpha=1 - call.alpha)
            param.add_(exp_avg, alpha=-call.lr)

    def foreach(self, params: list[Tensor], grads: list[Tensor], state: Lists, call: Call) -> None:
        grads = _prepared(params, grads, call)
        torch._foreach_mul_(state["exp_avg"], call.alpha)
        torch._foreach_add_(state["exp_avg"], grads, alpha=1 - call.alpha)
        torch._foreach_add_(params, state["exp_avg"], alpha=-call.lr)

    def fused(self, params: list[Tensor], grads: list[Tensor], state: Lists, call: Call) -> None:
        if call.shrink != 1:
            torch._foreach_mul_(params, call.shrink)
        torch._fused_sgd_(
            params, grads, state["exp_avg"], weight_decay=call.coupled, momentum=call.alpha, lr=call.lr,
            dampening=call.alpha, nesterov=False, maximize=call.maximize, is_first_step=False,
        )  # fmt: skip


class AdamW(Momentum):
    """AdamW with α' as β₁. The first moment's bias is corrected by one minus the product of all α' so far.

    State: two buffers, as large as the parameters each.
    """

    keys = ("exp_avg", "exp_avg_sq")
    tracks_product = True

    def can_fuse(self, dtype: torch.dtype, device: torch.device) -> bool:
        return device.type in ("cpu", "cuda") and dtype.is_floating_point

    @staticmethod
    def corrections(call: Call) -> tuple[float, float]:
        """1 − ∏α' and √(1 − β₂^t)."""
        return 1 - call.product, math.sqrt(1 - call.beta2**call.step)

    def single(self, params: list[Tensor], grads: list[Tensor], state: Lists, call: Call) -> None:
        first, second = self.corrections(call)
        for param, grad, exp_avg, exp_avg_sq in zip(params, grads, state["exp_avg"], state["exp_avg_sq"], strict=True):
            [grad] = _prepared([param], [grad], call)
            exp_avg.mul_(call.alpha).add_(grad, alpha=1 - call.alpha)
            exp_avg_sq.mul_(call.beta2).addcmul_(grad, grad, value=1 - call.beta2)
            denominator = exp_avg_sq.sqrt().div_(second).add_(call.eps)
            param.addcdiv_(exp_avg, denominator, value=-call.lr / first)

    def foreach(self, params: list[Tensor], grads: list[Tensor], state: Lists, call: Call) -> None:
        first, second = self.corrections(call)
        grads = _prepared(params, grads, call)
        torch._foreach_mul_(state["exp_avg"], call.alpha)
        torch._foreach_add_(state["exp_avg"], grads, alpha=1 - call.alpha)
        torch._foreach_mul_(state["exp_avg_sq"], call.beta2)
        torch._foreach_addcmul_(state["exp_avg_sq"], grads, grads, value=1 - call.beta2)
        denominators = torch._foreach_sqrt(state["exp_avg_sq"])
        torch._foreach_div_(denominators, second)
        torch._foreach_add_(denominators, call.eps)
        torch._foreach_addcdiv_(params, state["exp_avg"], denominators, value=-call.lr / first)

    def fused(self, params: list[Tensor], grads: list[Tensor], state: Lists, call: Call) -> None:
        first, second = self.corrections(call)
        if call.coupled or not call.lr:  # the kernel's own decay is decoupled, and is divided by the lr below
            grads = _prepared(params, grads, call)
            call = Call(call.lr, call.alpha, 0.0, True, False, call.beta2, call.eps)
        lr = call.lr * second / first
        late = _late_steps.setdefault(params[0].device, torch.tensor(_LATE, device=params[0].device))
        torch._fused_adamw_(
            params, grads, state["exp_avg"], state["exp_avg_sq"], [], [late] * len(params), lr=lr, beta1=call.alpha,
            beta2=call.beta2, weight_decay=call.weight_decay * call.lr / lr if lr else 0.0, eps=call.eps * second,
            amsgrad=False, maximize=call.maximize,
        )  # fmt: skip


BASES: dict[str, Momentum] = {"momentum": Momentum(), "adamw": AdamW()}
