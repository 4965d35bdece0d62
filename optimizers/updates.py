"""The updates over which FAM's α' acts: plain momentum, and AdamW with α' as its β₁.

Each base offers three paths. `single` is the reference: one tensor at a time, the formula as one would write it.
`foreach` is the same in list calls. `fused` makes one pass over the memory with torch's own kernels; they are used only
where they are right: on the CPU, `_fused_sgd_` computes wrong values for half types, and both kernels ignore strides
(torch 2.13), so what does not fit goes to `foreach`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
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
    """What one update of some tensors needs: numbers that change per step, and the group for all other settings."""

    group: dict[str, Any]
    lr: float
    alpha: float = 0.0
    step: int = 1
    product: float = 0.0  # of all α' so far, this step's included

    @property
    def weight_decay(self) -> float:
        return self.group["weight_decay"]

    @property
    def maximize(self) -> bool:
        return self.group["maximize"]

    @property
    def decoupled(self) -> bool:
        return self.group.get("decoupled_weight_decay", True)

    @property
    def shrink(self) -> float:
        """The factor of decoupled weight decay on the parameters."""
        return 1 - self.lr * self.weight_decay if self.decoupled else 1.0

    @property
    def coupled(self) -> float:
        """The share of the parameters that coupled weight decay adds to the gradients."""
        return 0.0 if self.decoupled else self.weight_decay


def working(dtype: torch.dtype) -> torch.dtype:
    """The type in which statistics are kept and updates computed: float32, or float64 for float64 parameters."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def scale_(tensors: list[Tensor], factor: float) -> None:
    """Multiplies tensors in place. On the CPU torch 2.13 rounds a number to half types first, a 0-dim tensor not."""
    half = tensors[0].dtype in (torch.bfloat16, torch.float16) and tensors[0].device.type == "cpu"
    torch._foreach_mul_(tensors, torch.tensor(factor, dtype=torch.float64) if half else factor)


def prepared(params: list[Tensor], grads: list[Tensor], call: Call) -> list[Tensor]:
    """Gradients with sign and coupled decay applied (never in place); decoupled decay applied to the parameters."""
    if call.maximize:
        grads = list(torch._foreach_neg(grads))
    if call.coupled:
        grads = list(torch._foreach_add(grads, params, alpha=call.coupled))
    if call.shrink != 1:
        scale_(params, call.shrink)
    return grads


class Momentum:
    """m ← α'·m + (1−α')·g, w ← w − lr·m, from m = 0. State: one buffer, as large as the parameters."""

    keys = ("exp_avg",)
    has_fused = True
    tracks_step = False  # whether tensors with different step counts need calls of their own
    tracks_product = False  # the same for the product of all α' so far

    def state(self, parameter: Tensor) -> dict[str, Tensor]:
        return {key: torch.zeros_like(parameter, memory_format=torch.preserve_format) for key in self.keys}

    def can_fuse(self, dtype: torch.dtype, device: torch.device) -> bool:
        if device.type == "cpu":
            return dtype in (torch.float32, torch.float64)
        return device.type == "cuda" and dtype.is_floating_point

    def single(self, params: list[Tensor], grads: list[Tensor], state: Lists, call: Call) -> None:
        for param, grad, exp_avg in zip(params, grads, state["exp_avg"], strict=True):
            [grad] = prepared([param], [grad], call)
            exp_avg.mul_(call.alpha).add_(grad, alpha=1 - call.alpha)
            param.add_(exp_avg, alpha=-call.lr)

    def foreach(self, params: list[Tensor], grads: list[Tensor], state: Lists, call: Call) -> None:
        grads = prepared(params, grads, call)
        scale_(state["exp_avg"], call.alpha)
        torch._foreach_add_(state["exp_avg"], grads, alpha=1 - call.alpha)
        torch._foreach_add_(params, state["exp_avg"], alpha=-call.lr)

    def fused(self, params: list[Tensor], grads: list[Tensor], state: Lists, call: Call) -> None:
        if call.shrink != 1:
            scale_(params, call.shrink)
        torch._fused_sgd_(
            params, grads, state["exp_avg"], weight_decay=call.coupled, momentum=call.alpha, lr=call.lr,
            dampening=call.alpha, nesterov=False, maximize=call.maximize, is_first_step=False,
        )  # fmt: skip


class AdamW(Momentum):
    """AdamW with α' as β₁. The first moment's bias is corrected by one minus the product of all α' so far.

    State: two buffers, as large as the parameters each. The second moment of half types is kept in float32: a bfloat16
    one stops moving at a quarter of its value, since 0.1 % of it is below its resolution.
    """

    keys = ("exp_avg", "exp_avg_sq")
    tracks_step = True
    tracks_product = True

    def state(self, parameter: Tensor) -> dict[str, Tensor]:
        state = super().state(parameter)
        if parameter.dtype in (torch.bfloat16, torch.float16):
            state["exp_avg_sq"] = state["exp_avg_sq"].float()
        return state

    def can_fuse(self, dtype: torch.dtype, device: torch.device) -> bool:
        return device.type in ("cpu", "cuda") and dtype in (torch.float32, torch.float64)

    @staticmethod
    def corrections(call: Call) -> tuple[float, float]:
        """1 − ∏α' and √(1 − β₂^t)."""
        return 1 - call.product, math.sqrt(1 - call.group["beta2"] ** call.step)

    def single(self, params: list[Tensor], grads: list[Tensor], state: Lists, call: Call) -> None:
        first, second = self.corrections(call)
        beta2, eps = call.group["beta2"], call.group["eps"]
        for param, grad, exp_avg, exp_avg_sq in zip(params, grads, state["exp_avg"], state["exp_avg_sq"], strict=True):
            [grad] = prepared([param], [grad], call)
            exp_avg.mul_(call.alpha).add_(grad, alpha=1 - call.alpha)
            exact = grad.to(exp_avg_sq.dtype)
            exp_avg_sq.mul_(beta2).addcmul_(exact, exact, value=1 - beta2)
            denominator = exp_avg_sq.sqrt().div_(second).add_(eps)
            step = exp_avg.to(exp_avg_sq.dtype).div(denominator).mul_(call.lr / first)
            param.sub_(step.to(param.dtype))

    def foreach(self, params: list[Tensor], grads: list[Tensor], state: Lists, call: Call) -> None:
        first, second = self.corrections(call)
        beta2, eps = call.group["beta2"], call.group["eps"]
        grads = prepared(params, grads, call)
        scale_(state["exp_avg"], call.alpha)
        torch._foreach_add_(state["exp_avg"], grads, alpha=1 - call.alpha)
        scale_(state["exp_avg_sq"], beta2)
        exact = [grad.to(working(grad.dtype)) for grad in grads]
        torch._foreach_addcmul_(state["exp_avg_sq"], exact, exact, value=1 - beta2)
        steps = torch._foreach_sqrt(state["exp_avg_sq"])
        torch._foreach_div_(steps, second)
        torch._foreach_add_(steps, eps)
        torch._foreach_reciprocal_(steps)
        torch._foreach_mul_(steps, state["exp_avg"])
        torch._foreach_mul_(steps, call.lr / first)
        torch._foreach_sub_(params, [step.to(param.dtype) for step, param in zip(steps, params, strict=True)])

    def fused(self, params: list[Tensor], grads: list[Tensor], state: Lists, call: Call) -> None:
        first, second = self.corrections(call)
        beta2, eps = call.group["beta2"], call.group["eps"]
        lr = call.lr * second / first
        decay, maximize = call.weight_decay, call.maximize
        if call.coupled:  # the kernel's own decay is decoupled
            grads, decay, maximize = prepared(params, grads, call), 0.0, False
        late = _late_steps.setdefault(params[0].device, torch.tensor(_LATE, device=params[0].device))
        torch._fused_adamw_(
            params, grads, state["exp_avg"], state["exp_avg_sq"], [], [late] * len(params), lr=lr, beta1=call.alpha,
            beta2=beta2, weight_decay=decay * call.lr / lr if lr else 0.0, eps=eps * second, amsgrad=False,
            maximize=maximize,
        )  # fmt: skip
