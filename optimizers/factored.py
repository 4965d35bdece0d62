"""MaxFactor: a factored second moment, an update bounded by its largest entry, and one magnitude per row.

For a matrix, V = r·c / max r from running row and column means of g² (weight t^−0.8), u = g/√V divided by its maximum
norm, and the update is sign(u)·rowwise max|u|: the sign of each entry, the size of its row. Since √V factors, u is
never formed on the fast path: max|u| of a row is √(max r / rᵢ)·maxⱼ(|gᵢⱼ|/√cⱼ). Tensors with more axes count as
matrices of their first axis against all others, so that no tensor but vectors has state of its own size.

Floors: each of r and c is at least ε₁² in V. They only matter for rows and columns whose gradients have all been zero.

Source: the research notes of `sine2pi`; factoring after Adafactor, https://arxiv.org/abs/1804.04235.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .updates import Call, Lists, Momentum, prepared, scale_, working

BETA2_DECAY, GAMMA, EPS, CLIP = -0.8, 0.99, (1e-8, 1e-3), 1.0


def settings(call: Call) -> tuple[float, float, tuple[float, float], float]:
    """Exponent of the second moment's weight, decay for vectors, (ε₁, ε₂), and clipping threshold d."""
    group = call.group
    if "beta2_decay" in group:
        return group["beta2_decay"], group["gamma"], group["eps"], group["d"]
    return BETA2_DECAY, GAMMA, EPS, CLIP


def step_size(param: Tensor, call: Call) -> Tensor:
    """max(ε₂, RMS(w))·min(lr, 1/√t), a 0-dim tensor of the working type."""
    rms = torch.linalg.vector_norm(param, dtype=working(param.dtype)) / param.numel() ** 0.5
    return rms.clamp_(min=settings(call)[2][1]) * min(call.lr, call.step**-0.5)


def plain_direction(grad: Tensor, row: Tensor, col: Tensor, call: Call) -> Tensor:
    """The bounded update of one tensor, as the formulas stand; updates the second moment. The reference.

    Args:
        grad: (n, ...) gradient.
        row: (n,) running row means of g², or, for vectors and scalars, the running g² itself.
        col: (m,) running column means, m the number of entries per row; empty for vectors and scalars.

    Returns:
        tensor of the gradient's shape and the working type, at most 1 in absolute value.
    """
    beta2_decay, gamma, (eps, _), d = settings(call)
    g = grad.to(working(grad.dtype))
    if grad.ndim < 2:
        row.mul_(gamma).add_(g * g, alpha=1 - gamma)
        u = g / row.clamp(min=eps * eps).sqrt()
        u = u / u.abs().max().clamp(min=eps)
        return u / clip(u.square().mean(), d)
    g = g.flatten(1)
    weight = call.step**beta2_decay
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


def row_sizes(grad: Tensor, row: Tensor, col: Tensor, call: Call, scratch: Tensor) -> Tensor:
    """The size of each row's update, (n,), for a matrix (n, m); updates the second moment. `scratch` is (n, m)."""
    beta2_decay, _, (eps, _), d = settings(call)
    weight = call.step**beta2_decay
    squares = torch.mul(grad, grad, out=scratch)
    row.lerp_(squares.mean(1), weight)
    col.lerp_(squares.mean(0), weight)
    squares.mul_(col.clamp(min=eps * eps).reciprocal_())
    r = row.clamp(min=eps * eps)
    stretch = r.max() / r
    largest = squares.amax(1).mul_(stretch)
    bound = largest.max().clamp_(min=eps * eps)
    sizes = largest.div_(bound).sqrt_()
    if d < 1:  # u is at most 1, so its RMS cannot exceed a larger d
        sizes /= clip((squares.mean(1).mul_(stretch) / bound).mean(), d)
    return sizes


class Factored(Momentum):
    """MaxFactor's update without momentum. State: row and column means, float32; vectors a buffer of their own size."""

    keys = ("row", "col")
    has_fused = False
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
        dtype = working(parameter.dtype)
        row = torch.zeros(parameter.shape[:1] if matrix else parameter.shape, dtype=dtype, device=parameter.device)
        return {"row": row, "col": torch.zeros(columns, dtype=dtype, device=parameter.device)}

    def can_fuse(self, dtype: torch.dtype, device: torch.device) -> bool:
        return False

    def single(self, params: list[Tensor], grads: list[Tensor], state: Lists, call: Call) -> None:
        for param, grad, row, col in zip(params, grads, state["row"], state["col"], strict=True):
            size = step_size(param, call)
            [grad] = prepared([param], [grad], call)
            direction = plain_direction(grad, row, col, call)
            param.sub_((size * direction).to(param.dtype))

    def foreach(self, params: list[Tensor], grads: list[Tensor], state: Lists, call: Call) -> None:
        vectors = [i for i, param in enumerate(params) if param.ndim < 2]
        for i in range(len(params)):
            if params[i].ndim > 1:
                self._matrix(params[i], grads[i], {key: state[key][i] for key in state}, call)
        if vectors:
            part = {key: [tensors[i] for i in vectors] for key, tensors in state.items()}
            self._vectors([params[i] for i in vectors], [grads[i] for i in vectors], part, call)

    def _matrix(self, param: Tensor, grad: Tensor, state: dict[str, Tensor], call: Call) -> None:
        size = step_size(param, call)
        [grad] = prepared([param], [grad], call)
        flat = grad.flatten(1).to(working(grad.dtype))
        scratch = scratch_like(flat)
        sizes = row_sizes(flat, state["row"], state["col"], call, scratch).mul_(size)
        signs = torch.sign(flat, out=scratch)
        self._apply(param, signs, sizes[:, None], state, call)

    def _apply(self, param: Tensor, signs: Tensor, sizes: Tensor, state: dict[str, Tensor], call: Call) -> None:
        signs, sizes = signs.view(param.shape), sizes.view(-1, *[1] * (param.ndim - 1))
        if param.dtype == signs.dtype:
            param.addcmul_(signs, sizes, value=-1)
        else:
            param.sub_((signs * sizes).to(param.dtype))

    def _vectors(self, params: list[Tensor], grads: list[Tensor], state: Lists, call: Call) -> None:
        directions, sizes = self._vector_directions(params, grads, state, call)
        torch._foreach_mul_(directions, sizes)
        if params[0].dtype != directions[0].dtype:
            directions = [direction.to(params[0].dtype) for direction in directions]
        torch._foreach_sub_(params, directions)

    def _vector_directions(
        self, params: list[Tensor], grads: list[Tensor], state: Lists, call: Call
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Bounded updates of vectors and scalars, and their step sizes; applies decay, updates the second moments."""
        _, gamma, (eps, least), d = settings(call)
        dtype = working(params[0].dtype)
        counts = [param.numel() ** 0.5 for param in params]
        exact = [param.to(dtype) for param in params]
        sizes = torch._foreach_div(torch._foreach_norm(exact), counts)
        torch._foreach_clamp_min_(sizes, least)
        torch._foreach_mul_(sizes, min(call.lr, call.step**-0.5))
        grads = [grad.to(dtype) for grad in prepared(params, grads, call)]
        torch._foreach_mul_(state["row"], gamma)
        torch._foreach_addcmul_(state["row"], grads, grads, value=1 - gamma)
        roots = torch._foreach_sqrt(torch._foreach_clamp_min(state["row"], eps * eps))
        directions = list(torch._foreach_div(grads, roots))
        bounds = torch._foreach_norm(directions, float("inf"))
        torch._foreach_clamp_min_(bounds, eps)
        torch._foreach_div_(directions, bounds)
        if d < 1:
            means = torch._foreach_div(torch._foreach_norm(directions), counts)
            torch._foreach_div_(directions, [clip(mean.square(), d) for mean in means])
        return directions, list(sizes)


class FactoredMomentum(Factored):
    """m ← α'·m + (1−α')·u with MaxFactor's bounded update u, w ← w − step·m. With α' = 0 this is MaxFactor."""

    keys = ("exp_avg", "row", "col")

    def state(self, parameter: Tensor) -> dict[str, Tensor]:
        exp_avg = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return {"exp_avg": exp_avg, **super().state(parameter)}

    def single(self, params: list[Tensor], grads: list[Tensor], state: Lists, call: Call) -> None:
        for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
            size = step_size(param, call)
            [grad] = prepared([param], [grad], call)
            direction = plain_direction(grad, state["row"][i], state["col"][i], call)
            exp_avg = state["exp_avg"][i]
            exp_avg.mul_(call.alpha).add_(direction.to(exp_avg.dtype), alpha=1 - call.alpha)
            param.sub_((size * exp_avg).to(param.dtype))

    def _matrix(self, param: Tensor, grad: Tensor, state: dict[str, Tensor], call: Call) -> None:
        size = step_size(param, call)
        [grad] = prepared([param], [grad], call)
        flat = grad.flatten(1).to(working(grad.dtype))
        scratch = scratch_like(flat)
        sizes = row_sizes(flat, state["row"], state["col"], call, scratch)
        signs = torch.sign(flat, out=scratch).mul_(sizes.mul_(1 - call.alpha)[:, None]).view(param.shape)
        exp_avg = state["exp_avg"].mul_(call.alpha).add_(signs)
        if param.dtype == size.dtype:
            param.addcmul_(exp_avg, size, value=-1)
        else:
            param.sub_((exp_avg * size).to(param.dtype))

    def _vectors(self, params: list[Tensor], grads: list[Tensor], state: Lists, call: Call) -> None:
        directions, sizes = self._vector_directions(params, grads, state, call)
        scale_(directions, 1 - call.alpha)
        scale_(state["exp_avg"], call.alpha)
        torch._foreach_add_(state["exp_avg"], directions)
        torch._foreach_sub_(params, torch._foreach_mul(state["exp_avg"], sizes))


_scratch: dict[tuple[torch.device, torch.dtype], Tensor] = {}


def scratch_like(matrix: Tensor) -> Tensor:
    """A scratch tensor of that shape and type, reused from call to call: fresh memory that large costs page faults."""
    key = (matrix.device, matrix.dtype)
    known = _scratch.get(key)
    if known is None or known.numel() < matrix.numel():
        known = _scratch[key] = torch.empty(matrix.numel(), dtype=matrix.dtype, device=matrix.device)
    return known[: matrix.numel()].view(matrix.shape)
