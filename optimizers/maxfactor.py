"""MaxFactor: the memory of Adafactor, an update bounded by its largest entry, and one magnitude per row.

For a matrix, V = r·c / max r from running row and column means of g² (weight t^−0.8), u = g/√V divided by its maximum
norm, and the update is sign(u)·rowwise max|u|: the sign of each entry, the size of its row. Since √V factors, u is
never formed on the fast path: max|u| of a row is √(max r / rᵢ)·maxⱼ(|gᵢⱼ|/√cⱼ). Tensors with more axes count as
matrices of their first axis against all others, so that no tensor but vectors has state of its own size.

Floors: each of r and c is at least ε₁² in V. They only matter for rows and columns whose gradients have all been zero.

Source: the research notes of `sine2pi`; factoring after Adafactor, https://arxiv.org/abs/1804.04235.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from cubelet.common.checks import check_fraction

from .base import GroupedOptimizer
from .updates import UPDATE_RULES, Lists, StepInputs, UpdateRule, decay, is_one, scale_, working_dtype

BETA2_DECAY, GAMMA, EPS, CLIP = -0.8, 0.99, (1e-8, 1e-3), 1.0
BATCH = 2**18  # entries of equal matrices that are worked on together: scratch that stays in the cache


def settings(s: StepInputs) -> tuple[float, float, tuple[float, float], float]:
    """Exponent of the second moment's weight, decay for vectors, (ε₁, ε₂), and clipping threshold d."""
    group = s.group
    if "beta2_decay" in group:
        return group["beta2_decay"], group["gamma"], group["eps"], group["d"]
    return BETA2_DECAY, GAMMA, EPS, CLIP


def step_size(param: Tensor, s: StepInputs) -> Tensor:
    """max(ε₂, RMS(w))·min(lr, 1/√t), a 0-dim tensor of the working type."""
    rms = torch.linalg.vector_norm(param, dtype=working_dtype(param.dtype)) / param.numel() ** 0.5
    return rms.clamp_(min=settings(s)[2][1]) * min(s.lr, s.step**-0.5)


def plain_direction(grad: Tensor, row: Tensor, col: Tensor, s: StepInputs) -> Tensor:
    """The bounded update of one tensor, as the formulas stand; updates the second moment. The reference.

    Args:
        grad: (n, ...) gradient.
        row: (n,) running row means of g², or, for vectors and scalars, the running g² itself.
        col: (m,) running column means, m the number of entries per row; empty for vectors and scalars.

    Returns:
        tensor of the gradient's shape and the working type, at most 1 in absolute value.
    """
    beta2_decay, gamma, (eps, _), d = settings(s)
    g = grad.to(working_dtype(grad.dtype))
    if grad.ndim < 2:
        row.mul_(gamma).add_(g * g, alpha=1 - gamma)
        u = g / row.clamp(min=eps * eps).sqrt()
        u = u / u.abs().max().clamp(min=eps)
        return u / clip(u.square().mean(), d)
    g = g.flatten(1)
    weight = s.step**beta2_decay
    row.lerp_(g.square().mean(1), weight)
    col.lerp_(g.square().mean(0), weight)
    r, c = row.clamp(min=eps * eps), col.clamp(min=eps * eps)
    variance = torch.outer(r, c) / r.max()
    u = g / variance.sqrt()
    u = u / u.abs().max().clamp(min=eps)
    update = u.sign() * u.abs().amax(1, keepdim=True) / clip(u.square().mean(), d)
    return update.view(grad.shape)


def clip(mean_square: Tensor, d: float) -> Tensor:
    """max(1, RMS(u)/d)."""
    return (mean_square.sqrt() / d).clamp(min=1)


def row_sizes(squares: Tensor, rows: Tensor, cols: Tensor, s: StepInputs) -> Tensor:
    """The size of each row's update for k equal matrices, (k, n), at most 1.

    Args:
        squares: (k, n, m) g², overwritten.
        rows, cols: (k, n) and (k, m) running means, updated in place.
    """
    beta2_decay, _, (eps, _), d = settings(s)
    weight = s.step**beta2_decay
    rows.lerp_(squares.mean(2), weight)
    cols.lerp_(squares.mean(1), weight)
    squares.mul_(cols.clamp(min=eps * eps).reciprocal_().unsqueeze(1))
    r = rows.clamp(min=eps * eps)
    stretch = r.amax(1, keepdim=True) / r
    largest = squares.amax(2).mul_(stretch)
    bound = largest.amax(1, keepdim=True).clamp_(min=eps * eps)
    sizes = largest.div_(bound).sqrt_()
    if d < 1:  # u is at most 1, so its RMS cannot exceed a larger d
        sizes /= clip((squares.mean(2).mul_(stretch) / bound).mean(1, keepdim=True), d)
    return sizes


def vector_directions(grads: Tensor, squares: Tensor, s: StepInputs) -> tuple[Tensor, Tensor]:
    """For k equal vectors (k, n): g/√v (k, n), and what to multiply it with (k,) so that it is at most 1.

    Args:
        grads: (k, n).
        squares: (k, n) running g², updated in place.
    """
    _, gamma, (eps, _), d = settings(s)
    squares.mul_(gamma).addcmul_(grads, grads, value=1 - gamma)
    u = grads / squares.clamp(min=eps * eps).sqrt_()
    bound = u.abs().amax(1).clamp_(min=eps)
    if d < 1:
        bound *= clip(u.square().mean(1) / bound.square(), d)
    return u, bound.reciprocal_()


def equal_shapes(params: list[Tensor]) -> list[list[int]]:
    """Numbers of tensors with equal shapes, in batches of at most `BATCH` entries."""
    by_shape: dict[torch.Size, list[int]] = {}
    for number, param in enumerate(params):
        by_shape.setdefault(param.shape, []).append(number)
    batches = []
    for shape, numbers in by_shape.items():
        length = max(1, BATCH // max(1, shape.numel()))
        batches += [numbers[start : start + length] for start in range(0, len(numbers), length)]
    return batches


class Factored(UpdateRule):
    """MaxFactor's update without momentum. State: row and column means, float32; vectors a buffer of their own size."""

    name = "maxfactor_without_momentum"
    keys = ("row", "col")
    tracks_step = True

    def state(self, parameter: Tensor) -> dict[str, Tensor]:
        if hasattr(parameter, "to_local"):
            raise RuntimeError(
                f"MaxFactor's row and column statistics need whole matrices, and a {tuple(parameter.shape)} one "
                'is sharded; replicate it (DDP), or use FAM with base="momentum" or base="adamw"'
            )
        if parameter.is_complex():
            raise RuntimeError(f"MaxFactor does not take complex parameters, got {parameter.dtype}")
        matrix = parameter.ndim > 1
        columns = parameter.numel() // max(1, parameter.shape[0]) if matrix else 0
        dtype = working_dtype(parameter.dtype)
        row = torch.zeros(parameter.shape[:1] if matrix else parameter.shape, dtype=dtype, device=parameter.device)
        return {"row": row, "col": torch.zeros(columns, dtype=dtype, device=parameter.device)}

    def single(self, params: list[Tensor], grads: list[Tensor], state: Lists, s: StepInputs) -> None:
        for param, grad, row, col in zip(params, grads, state["row"], state["col"], strict=True):
            size = step_size(param, s)
            [grad] = decay([param], [grad], s)
            direction = plain_direction(grad, row, col, s)
            param.sub_((size * direction).to(param.dtype))

    def foreach(self, params: list[Tensor], grads: list[Tensor], state: Lists, s: StepInputs) -> None:
        """Tensors of equal shape together, so that many small ones cost few calls."""
        dtype = working_dtype(params[0].dtype)
        for numbers in equal_shapes(params):
            batch = [params[i] for i in numbers]
            own = {key: [state[key][i] for i in numbers] for key in state}
            steps = self._steps(batch, s)  # of the weights before they decay
            exact = [grad.to(dtype) for grad in decay(batch, [grads[i] for i in numbers], s)]
            directions, weights = (self._matrices if batch[0].ndim > 1 else self._vectors)(exact, own, s)
            self._apply(batch, directions, weights, steps, own, s)

    @staticmethod
    def _steps(params: list[Tensor], s: StepInputs) -> Tensor:
        """`step_size` of each, (k,)."""
        dtype = working_dtype(params[0].dtype)
        if len(params) == 1:  # over rows and then over those: torch is a quarter faster at it
            rows = (
                torch.linalg.vector_norm(params[0].flatten(1), dim=1, dtype=dtype) if params[0].ndim > 1 else params[0]
            )
            norms = torch.linalg.vector_norm(rows, dtype=dtype).view(1)
        else:
            norms = torch.stack(torch._foreach_norm([param.to(dtype) for param in params]))
        least = settings(s)[2][1]
        size = params[0].numel() ** 0.5
        return norms.clamp_(min=least * size).mul_(min(s.lr, s.step**-0.5) / size)

    def _matrices(self, grads: list[Tensor], state: Lists, s: StepInputs) -> tuple[list[Tensor], Tensor]:
        """Signs of the gradients, in their shape, and the rows' sizes (k, n, 1, ...)."""
        flat = [grad.flatten(1) for grad in grads]
        scratch = scratch_like(flat[0], len(flat), s.scratch)
        parts = list(scratch.unbind())
        for grad, part in zip(flat, parts, strict=True):
            torch.mul(grad, grad, out=part)
        if len(flat) == 1:  # a large one: its state is written in place
            sizes = row_sizes(scratch, state["row"][0].unsqueeze(0), state["col"][0].unsqueeze(0), s)
        else:
            rows, cols = torch.stack(state["row"]), torch.stack(state["col"])
            sizes = row_sizes(scratch, rows, cols, s)
            torch._foreach_copy_(state["row"], list(rows.unbind()))
            torch._foreach_copy_(state["col"], list(cols.unbind()))
        for grad, part in zip(flat, parts, strict=True):
            torch.sign(grad, out=part)
        shape = grads[0].shape
        return [part.view(shape) for part in parts], sizes.view(*sizes.shape, *[1] * (len(shape) - 1))

    def _vectors(self, grads: list[Tensor], state: Lists, s: StepInputs) -> tuple[list[Tensor], Tensor]:
        """The gradients over their running size, and the factors (k, 1 or nothing) that bound them."""
        squares = torch.stack(state["row"])
        u, weights = vector_directions(torch.stack(grads).view(len(grads), -1), squares.view(len(grads), -1), s)
        torch._foreach_copy_(state["row"], list(squares.unbind()))
        return list(u.view(len(grads), *grads[0].shape).unbind()), weights.view(-1, *[1] * grads[0].ndim)

    def _apply(
        self,
        params: list[Tensor],
        directions: list[Tensor],
        weights: Tensor,
        steps: Tensor,
        state: Lists,
        s: StepInputs,
    ) -> None:
        """w ← w − step·weight·direction."""
        weights = weights * steps.view(-1, *[1] * (weights.ndim - 1))
        add_products(params, directions, weights, -1)


def add_products(targets: list[Tensor], tensors: list[Tensor], weights: Tensor, value: float) -> None:
    """target += value · tensor · weight, with one broadcastable weight per tensor; rounds once for half types."""
    if targets[0].dtype == weights.dtype == tensors[0].dtype:
        torch._foreach_addcmul_(targets, tensors, list(weights.unbind()), value=value)
    else:
        for target, tensor, weight in zip(targets, tensors, weights, strict=True):
            target.add_((tensor.to(weight.dtype) * weight).to(target.dtype), alpha=value)


class FactoredMomentum(Factored):
    """m ← α'·m + (1−α')·u with MaxFactor's bounded update u, w ← w − step·(ν·m + (1−ν)·u). With α' = 0 MaxFactor."""

    name = "maxfactor"
    keys = ("exp_avg", "row", "col")
    full_keys = ("exp_avg",)

    def state(self, parameter: Tensor) -> dict[str, Tensor]:
        exp_avg = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return {"exp_avg": exp_avg, **super().state(parameter)}

    def single(self, params: list[Tensor], grads: list[Tensor], state: Lists, s: StepInputs) -> None:
        for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
            size = step_size(param, s)
            [grad] = decay([param], [grad], s)
            direction = plain_direction(grad, state["row"][i], state["col"][i], s)
            exp_avg = state["exp_avg"][i]
            exp_avg.mul_(s.alpha).add_(direction.to(exp_avg.dtype), alpha=1 - s.alpha)
            param.sub_((size * (s.nu * exp_avg + (1 - s.nu) * direction)).to(param.dtype))

    def _apply(
        self,
        params: list[Tensor],
        directions: list[Tensor],
        weights: Tensor,
        steps: Tensor,
        state: Lists,
        s: StepInputs,
    ) -> None:
        """m ← α'·m + (1−α')·weight·direction, w ← w − step·(ν·m + (1−ν)·weight·direction)."""
        scale_(state["exp_avg"], s.alpha)
        add_products(state["exp_avg"], directions, weights, 1 - s.alpha)
        u = state["exp_avg"]
        if not is_one(s.nu):
            u = [moment.to(weights.dtype, copy=True) for moment in u]
            scale_(u, s.nu)
            add_products(u, directions, weights, 1 - s.nu)
        add_products(params, u, steps.view(-1, *[1] * params[0].ndim), -1)


def scratch_like(matrix: Tensor, count: int, scratch: dict[Any, Tensor]) -> Tensor:
    """Scratch for `count` such matrices, reused from call to call: fresh memory that large costs page faults."""
    key, numel = (matrix.device, matrix.dtype), count * matrix.numel()
    known = scratch.get(key)
    if known is None or known.numel() < numel:
        known = scratch[key] = torch.empty(numel, dtype=matrix.dtype, device=matrix.device)
    return known[:numel].view(count, *matrix.shape)


UPDATE_RULES |= {rule.name: rule for rule in (Factored(), FactoredMomentum())}


class MaxFactor(GroupedOptimizer):
    """Factored second moments with updates bounded by their largest entry.

    w ← (1 − lr·decay)·w − step·u, with step = max(ε₂, RMS(w))·min(lr, 1/√t)/max(1, RMS(u)/d). For a matrix
    u = sign(g)·rowwise max|g/√V| over its maximum, V = r·c / max r; for vectors u = g/√v over its maximum norm. State:
    one float per row and one per column (tensors with more axes: first axis against the rest), vectors one per entry.

    Args:
        params: parameters, named parameters, or groups.
        lr: bound on the relative step; may be a tensor.
        beta2_decay: exponent of the weight t^decay of the newest g² in r and c; negative.
        eps: ε₁, floor of √V's factors and of the maximum norm; ε₂, least RMS(w) of the step.
        d: clipping threshold on RMS(u); has no effect from 1 on, since u is at most 1.
        weight_decay: decoupled.
        gamma: decay of the vectors' running g².
        maximize: ascend.
        foreach: False for the tensor-by-tensor reference.

    Raises:
        ValueError: for settings outside their range.
        RuntimeError: in `step`, for sparse gradients, sharded or complex parameters.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.ones(3, 4))
        >>> optimizer = MaxFactor([weight], lr=0.1, weight_decay=0.0)
        >>> weight.grad = torch.ones(3, 4)
        >>> optimizer.step()
        >>> round(weight[0, 0].item(), 3)
        0.9

    Source: the research notes of `sine2pi`; factoring after Adafactor, https://arxiv.org/abs/1804.04235.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.025,
        beta2_decay: float = BETA2_DECAY,
        eps: tuple[float, float] = EPS,
        d: float = CLIP,
        weight_decay: float = 0.01,
        gamma: float = GAMMA,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
    ) -> None:
        defaults = {
            "lr": lr, "beta2_decay": beta2_decay, "eps": eps, "d": d, "weight_decay": weight_decay, "gamma": gamma,
            "maximize": maximize, "foreach": foreach,
        }  # fmt: skip
        super().__init__(params, {**defaults, "fused": None, "base": Factored.name})

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        if group["beta2_decay"] > 0:
            raise ValueError(f"beta2_decay must not be positive (t^decay is a weight), got {group['beta2_decay']}")
        check_fraction("gamma", group["gamma"])
        if len(group["eps"]) != 2 or min(group["eps"]) <= 0:
            raise ValueError(f"eps must be two positive numbers, got {group['eps']}")
        if not group["d"] > 0:
            raise ValueError(f"d must be positive, got {group['d']}")
