"""Updates over which FAM's α' and ν act: plain momentum, AdamW with α' as its β₁, and Muon for hidden matrices.

- `foreach` is the formula, in list calls (for `foreach=False` one tensor at a time). Its numbers are floats, or, in a
  capturable step, tensors with one number for each tensor: the same lines serve both.
- `fused` makes one pass over the memory with torch's own kernels, only where these are right: on the CPU `_fused_sgd_`
  computes wrong values for half types, and both kernels ignore strides (torch 2.13).
- MaxFactor's updates, of the same form, stand in `maxfactor`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Lists = dict[str, list[Tensor]]
Number = Any  # a float, or a tensor (k,) with one number for each of k tensors

# A step count at which β^t is 0 for every β below 1 - 1e-7: torch's kernel then corrects no bias, and the correction,
# which here depends on the history of α', goes into its lr and eps instead.
_LATE = float(2**30)
_late_steps: dict[torch.device, Tensor] = {}
PIECE = 2**18  # entries that are worked on together: temporaries and what two calls share stay in the cache
FUSED_PIECE = 2**17  # the same for each thread of two fused calls


@dataclass
class StepInputs:
    """What one update of some tensors needs: numbers that change per step, and the group for all other settings.

    Args:
        group: the param group.
        lr: learning rate η.
        alpha: momentum coefficient α'.
        nu: share ν of the momentum in the update; 1 − ν is the fresh gradient's.
        step: count t of these tensors' steps, this one included.
        product: of all α' so far, this step's included.
        scratch: memory of the optimizer that updates may reuse from step to step.
    """

    group: dict[str, Any]
    lr: Number
    alpha: Number = 0.0
    nu: Number = 1.0
    step: Number = 1
    product: Number = 0.0
    scratch: dict[Any, Tensor] = field(default_factory=dict)

    @property
    def shrink(self) -> Number:
        """The factor of decoupled weight decay on the parameters."""
        decoupled = self.group.get("decoupled_weight_decay", True)
        return 1 - self.lr * self.group["weight_decay"] if decoupled and self.group["weight_decay"] else 1.0

    @property
    def coupled(self) -> float:
        """The share of the parameters that coupled weight decay adds to the gradients."""
        return 0.0 if self.group.get("decoupled_weight_decay", True) else self.group["weight_decay"]


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which statistics are kept and updates computed: float32, or float64 for float64 parameters."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def is_one(number: Number) -> bool:
    """Whether a number is known to be 1 (one that only the device knows is not)."""
    return not isinstance(number, Tensor) and number == 1


def scale_(tensors: list[Tensor], factor: Number) -> None:
    """Multiply tensors in place."""
    if isinstance(factor, Tensor) and factor.ndim:
        torch._foreach_mul_(tensors, list(factor.unbind()))
    elif not isinstance(factor, Tensor) and tensors[0].element_size() == 2 and tensors[0].device.type == "cpu":
        # On the CPU torch 2.13 rounds a number to half types first, a 0-dim tensor not.
        torch._foreach_mul_(tensors, torch.tensor(factor, dtype=torch.float64, device="cpu"))
    else:
        torch._foreach_mul_(tensors, factor)


def add_(targets: list[Tensor], tensors: Sequence[Tensor], factor: Number) -> None:
    """Add multiples of tensors in place: target ← target + factor·tensor."""
    if isinstance(factor, Tensor):
        torch._foreach_addcmul_(targets, list(tensors), list(factor.expand(len(targets)).unbind()))
    else:
        torch._foreach_add_(targets, list(tensors), alpha=factor)


def decay(params: list[Tensor], grads: list[Tensor], s: StepInputs) -> list[Tensor]:
    """Apply decoupled weight decay to the parameters. Return gradients with sign and coupled decay (never in place)."""
    if s.group["maximize"]:
        grads = list(torch._foreach_neg(grads))
    if s.coupled:
        grads = list(torch._foreach_add(grads, params, alpha=s.coupled))
    if not is_one(s.shrink):
        scale_(params, s.shrink)
    return grads


def in_pieces(*lists: list[Tensor], size: int = PIECE) -> Iterator[tuple[list[Tensor], ...]]:
    """Cut corresponding lists into calls of about `size` entries; large tensors into flat views where they can be."""
    batch: list[int] = []
    entries = 0
    for k, tensor in enumerate(lists[0]):
        numel = tensor.numel()
        if entries and entries + numel > size:
            yield tuple([tensors[i] for i in batch] for tensors in lists)
            batch, entries = [], 0
        if numel > size and all(tensors[k].is_contiguous() for tensors in lists):
            yield from zip(*[[[part] for part in tensors[k].view(-1).split(size)] for tensors in lists], strict=True)
        else:
            batch.append(k)
            entries += numel
    if batch:
        yield tuple([tensors[i] for i in batch] for tensors in lists)


class UpdateRule:
    """How parameters move, given the numbers of a step. Subclasses write the formula in `foreach`."""

    name = ""
    keys: tuple[str, ...] = ()  # of the state
    full_keys: tuple[str, ...] = ()  # those as large as the parameter
    tracks_step = False  # whether tensors with different step counts need calls of their own
    tracks_product = False  # the same for the product of all α' so far
    has_fused = False

    def rule_for(self, parameter: Tensor, is_hidden: bool) -> UpdateRule:
        """Return the rule by which this parameter is updated."""
        return self

    def state(self, parameter: Tensor) -> dict[str, Tensor]:
        """Return the state of a new parameter."""
        return {key: torch.zeros_like(parameter, memory_format=torch.preserve_format) for key in self.full_keys}

    def can_fuse(self, dtype: torch.dtype, device: torch.device) -> bool:
        """Whether torch's kernel is right for such tensors."""
        return False

    def single(self, params: list[Tensor], grads: list[Tensor], state: Lists, s: StepInputs) -> None:
        """Update one tensor at a time: the reference."""
        for k, (param, grad) in enumerate(zip(params, grads, strict=True)):
            self.foreach([param], [grad], {key: [parts[k]] for key, parts in state.items()}, s)

    def foreach(self, params: list[Tensor], grads: list[Tensor], state: Lists, s: StepInputs) -> None:
        """Update the tensors in list calls."""
        raise NotImplementedError

    def fused(self, params: list[Tensor], grads: list[Tensor], state: Lists, s: StepInputs) -> None:
        """Update the tensors with torch's kernel."""
        raise NotImplementedError


class Momentum(UpdateRule):
    """m ← α'·m + (1−α')·g, w ← w − η·(ν·m + (1−ν)·g), from m = 0. State: one buffer, as large as the parameters."""

    name = "momentum"
    keys = full_keys = ("exp_avg",)
    has_fused = True

    def can_fuse(self, dtype: torch.dtype, device: torch.device) -> bool:
        if device.type == "cpu":
            return dtype in (torch.float32, torch.float64)
        return device.type == "cuda" and dtype.is_floating_point

    def foreach(self, params: list[Tensor], grads: list[Tensor], state: Lists, s: StepInputs) -> None:
        grads, m = decay(params, grads, s), state["exp_avg"]
        scale_(m, s.alpha)
        add_(m, grads, 1 - s.alpha)
        u = m
        if not is_one(s.nu):
            u = [moment.clone() for moment in m]
            scale_(u, s.nu)
            add_(u, grads, 1 - s.nu)
        add_(params, u, -s.lr)

    def fused(self, params: list[Tensor], grads: list[Tensor], state: Lists, s: StepInputs) -> None:
        if s.shrink != 1:
            scale_(params, s.shrink)
        if s.nu != 1 and s.coupled:
            grads = list(torch._foreach_add(grads, params, alpha=-s.coupled if s.group["maximize"] else s.coupled))
        torch._fused_sgd_(
            params, grads, state["exp_avg"], weight_decay=s.coupled if s.nu == 1 else 0.0, momentum=s.alpha,
            lr=s.lr * s.nu, dampening=s.alpha, nesterov=False, maximize=s.group["maximize"], is_first_step=False,
        )  # fmt: skip
        if s.nu != 1:
            add_(params, grads, (s.lr if s.group["maximize"] else -s.lr) * (1 - s.nu))


class AdamW(UpdateRule):
    """AdamW with α' as β₁: w ← w − η·(ν·m/(1 − ∏α') + (1−ν)·g) / (√(v/(1 − β₂ᵗ)) + ε).

    State: two buffers, as large as the parameters each. The second moment of half types is kept in float32: a bfloat16
    one stops moving at a quarter of its value, since 0.1 % of it is below its resolution.
    """

    name = "adamw"
    keys = full_keys = ("exp_avg", "exp_avg_sq")
    tracks_step = tracks_product = has_fused = True

    def state(self, parameter: Tensor) -> dict[str, Tensor]:
        state = super().state(parameter)
        if parameter.dtype in (torch.bfloat16, torch.float16):
            state["exp_avg_sq"] = state["exp_avg_sq"].to(torch.float32)
        return state

    def can_fuse(self, dtype: torch.dtype, device: torch.device) -> bool:
        return device.type in ("cpu", "cuda") and dtype in (torch.float32, torch.float64)

    def foreach(self, params: list[Tensor], grads: list[Tensor], state: Lists, s: StepInputs) -> None:
        lists = (params, grads, state["exp_avg"], state["exp_avg_sq"])
        # Numbers with one entry for each tensor go with whole lists only.
        for part in [lists] if isinstance(s.alpha, Tensor) else in_pieces(*lists):
            self._formula(part, s)

    def _formula(self, lists: tuple[list[Tensor], ...], s: StepInputs) -> None:
        params, grads, m, v = lists
        beta2, dtype = s.group["beta2"], working_dtype(params[0].dtype)
        first, second = 1 - s.product, (1 - beta2**s.step) ** 0.5  # 1 − ∏α' and √(1 − β₂ᵗ)
        g = decay(params, grads, s)
        scale_(m, s.alpha)
        add_(m, g, 1 - s.alpha)
        g = [grad.to(dtype) for grad in g]
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, g, g, value=1 - beta2)
        u = [moment.to(dtype, copy=True) for moment in m]
        scale_(u, s.nu / first)
        if not is_one(s.nu):
            add_(u, g, 1 - s.nu)
        del g
        denominators = list(torch._foreach_sqrt(v))
        scale_(denominators, 1 / second)
        torch._foreach_add_(denominators, s.group["eps"])
        torch._foreach_div_(u, denominators)
        del denominators
        add_(params, u, -s.lr)

    def fused(self, params: list[Tensor], grads: list[Tensor], state: Lists, s: StepInputs) -> None:
        """One pass of torch's kernel, which knows no ν, with a β₁ and a rate that make its step the one with ν.

        u = ν·m'/c + (1−ν)·g with m' = α·m + (1−α)·g and c = 1 − ∏α is scale·(β·m + (1−β)·g) for the two numbers below.
        The kernel leaves β·m + (1−β)·g in m's place; one interpolation with g makes m' of it.
        """
        first, second = 1 - s.product, (1 - s.group["beta2"] ** s.step) ** 0.5
        scale = s.nu / first + 1 - s.nu
        beta = s.nu * s.alpha / (first * scale)
        if s.nu != 1 and beta < 0.25 * s.alpha:  # undoing so small a share of m would cost digits
            self.foreach(params, grads, state, s)
            return
        weight_decay, maximize, lr = s.group["weight_decay"], s.group["maximize"], s.lr * second * scale
        if not s.group["decoupled_weight_decay"]:  # the kernel's own decay is
            grads, weight_decay, maximize = decay(params, grads, s), 0.0, False
        elif s.nu != 1 and maximize:
            grads, maximize = list(torch._foreach_neg(grads)), False
        device = params[0].device
        if device not in _late_steps:
            _late_steps[device] = torch.tensor(_LATE, dtype=torch.float32, device=device)
        late, lists = _late_steps[device], (params, grads, state["exp_avg"], state["exp_avg_sq"])
        for w, g, m, v in [lists] if s.nu == 1 else in_pieces(*lists, size=FUSED_PIECE * torch.get_num_threads()):
            torch._fused_adamw_(
                w, g, m, v, [], [late] * len(w), lr=lr, beta1=beta, beta2=s.group["beta2"],
                weight_decay=weight_decay * s.lr / lr if lr else 0.0, eps=s.group["eps"] * second, amsgrad=False,
                maximize=maximize,
            )  # fmt: skip
            if s.nu != 1:  # while both are in the cache: m + share·(m − g), as SGD with a decay of −1 (lerp is slower)
                torch._fused_sgd_(
                    m, g, [], weight_decay=-1.0, momentum=0.0, lr=s.alpha / beta - 1, dampening=0.0, nesterov=False,
                    maximize=False, is_first_step=False,
                )  # fmt: skip


class Muon(UpdateRule):
    """m ← α'·m + (1−α')·g, w ← w − η·0.2·√max(n, k)·NS(ν·m + (1−ν)·g) for hidden matrices (n, k); AdamW for others.

    NS, five Newton-Schulz steps in bfloat16, brings all singular values near 1
    (https://kellerjordan.github.io/posts/muon). The factor makes the update as large as AdamW's, so that one rate
    serves both (https://arxiv.org/abs/2502.16982). With ν = α' this is `torch.optim.Muon` with nesterov and
    adjust_lr_fn="match_rms_adamw".
    """

    name = "muon"
    keys = full_keys = ("exp_avg",)
    has_fused = True  # for what it leaves to AdamW
    COEFFICIENTS, STEPS, EPS = (3.4445, -4.775, 2.0315), 5, 1e-7

    def rule_for(self, parameter: Tensor, is_hidden: bool) -> UpdateRule:
        if parameter.ndim != 2 or not is_hidden or parameter.is_complex() or min(parameter.shape) == 0:
            return UPDATE_RULES["adamw"]
        if hasattr(parameter, "to_local"):
            raise RuntimeError(
                f"Muon needs whole matrices, and a {tuple(parameter.shape)} one is sharded; replicate it (DDP), or use "
                'base="adamw"'
            )
        return self

    def foreach(self, params: list[Tensor], grads: list[Tensor], state: Lists, s: StepInputs) -> None:
        grads, m = decay(params, grads, s), state["exp_avg"]
        scale_(m, s.alpha)
        add_(m, grads, 1 - s.alpha)
        shapes: dict[torch.Size, list[int]] = {}
        for k, param in enumerate(params):
            shapes.setdefault(param.shape, []).append(k)
        for shape, numbers in shapes.items():
            together = max(1, PIECE // shape.numel())  # small ones share the calls
            for batch in (numbers[start : start + together] for start in range(0, len(numbers), together)):
                u = [m[k].clone() for k in batch]
                if not is_one(s.nu):
                    nu = s.nu[batch] if isinstance(s.nu, Tensor) else s.nu
                    scale_(u, nu)
                    add_(u, [grads[k] for k in batch], 1 - nu)
                updates = [update.to(u[0].dtype) for update in self.orthogonalised(u)]
                add_([params[k] for k in batch], updates, -0.2 * max(shape) ** 0.5 * s.lr)

    @classmethod
    def orthogonalised(cls, matrices: list[Tensor]) -> tuple[Tensor, ...]:
        """Return NS(u) of equally shaped matrices, in bfloat16."""
        a, b, c = cls.COEFFICIENTS
        x = torch.stack([u.to(torch.bfloat16) for u in matrices])  # (k, n, m)
        is_tall = x.shape[1] > x.shape[2]
        x = x.mT if is_tall else x  # the smaller side first
        x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=cls.EPS)
        for _ in range(cls.STEPS):
            gram = x @ x.mT  # (k, n, n)
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        return (x.mT if is_tall else x).unbind()


# MaxFactor's are added in `maxfactor`.
UPDATE_RULES: dict[str, UpdateRule] = {rule.name: rule for rule in (Momentum(), AdamW(), Muon())}
