"""Rotation of pairs inside torch.compile: operators that Inductor does not look into.

Formula: `rotate_real(x, cos, sin)`, that is (e, o) → (e·cos − o·sin, e·sin + o·cos). Left to itself, Inductor does two
costly things with it. It recomputes float64 sines and cosines for every batch entry and head, because a fused kernel
may inline what is cheap to write down; and on the CPU it reads interleaved pairs one number at a time, because their
stride is 2. So the table goes through an operator, which has to be handed finished memory, and on the CPU so does the
product, as the complex multiplication of eager code. For positions 0…s−1 one operator does both, with tables that are
kept and found by the values of the frequencies: no base can leave a stale one.

Measured in benchmarks/rotary.py, q and k (8, 8, 1024, 64), as ratios to copying them: 1.66 / 1.41 forward / both with
the operators, 7 / 10 without. A graph for `torch.export` holds the formula, so that it runs without this package.
"""

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor

from .ops import define_op
from .switch import is_switched_off

Polar = Callable[[Tensor], tuple[Tensor | float, Tensor]]


def rotate_real(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The rotation in real numbers, x (..., c), tables (..., c/2); x's dtype."""
    even, odd = x.unflatten(-1, (-1, 2)).to(cos.dtype).unbind(-1)  # (..., c/2) each
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(x.dtype)


def rotate_in_graph(
    x: Tensor,
    positions: Tensor | None,
    polar: Polar,
    steps: Callable[[int], Tensor],
    steady: bool,
    per_head: bool = False,
) -> Tensor:
    """The rotation of x (b, h, s, c) within a compiled or exported graph.

    Args:
        positions: (s, …) or (b, s, …); None for `steps(s)`.
        polar: positions → radius and angle (…, c/2) of every pair, in the precision of the arithmetic.
        steps: length → default positions.
        per_head: angles have a head axis of their own: (…, h, s, c/2).
        steady: the table has no gradient, a constant radius, and angles proportional to the position.
    """
    fast = not is_switched_off("rotate_pairs") and not torch.compiler.is_exporting()
    if fast and steady and positions is None and x.device.type == "cpu":
        radius, step = polar(steps(2))
        return rotate_steadily(x, step[1], radius, False)
    radius, angles = polar(steps(x.shape[2]) if positions is None else positions)
    table = torch.stack((angles.cos(), angles.sin()), dim=-1)
    table = table * (radius.unsqueeze(-1) if isinstance(radius, Tensor) else radius)
    table = table.to(torch.float64 if x.dtype == torch.float64 else torch.float32)  # (s, c/2, 2) or (b, s, c/2, 2)
    table = tabulate(table) if fast else table
    table = table if table.ndim == 3 or per_head else table.unsqueeze(1)  # the head axis
    if fast and x.device.type == "cpu":
        return rotate_pairs(x, table)
    return rotate_real(x, *table.unbind(-1))


def rotate_complex(x: Tensor, table: Tensor) -> Tensor:
    """x (…, c) times a complex table (…, c/2) in fresh memory of x's dtype and order."""
    out = torch.empty_like(x)
    if x.dtype == table.real.dtype and _has_dense_pairs(x) and _has_dense_pairs(out):
        torch.mul(x.view(table.dtype), table, out=out.view(table.dtype))
        return out
    wide = x.to(table.real.dtype).unflatten(-1, (-1, 2)).contiguous()
    return out.copy_(torch.view_as_real(torch.view_as_complex(wide) * table).flatten(-2))


def _has_dense_pairs(x: Tensor) -> bool:
    return x.stride(-1) == 1 and x.storage_offset() % 2 == 0 and all(stride % 2 == 0 for stride in x.stride()[:-1])


# -- a table in finished memory --

tabulate = define_op(
    "tabulate",
    "(Tensor values) -> Tensor",
    lambda values: values.clone(),
    torch.empty_like,
    backward=lambda ctx, gradient: gradient,
)

# -- rotation at 0…s−1, its table kept --

_TABLES: OrderedDict[tuple[int, float, torch.dtype], tuple[Tensor, Tensor, Tensor]] = OrderedDict()


def _steady_table(frequencies: Tensor, length: int, gain: float, dtype: torch.dtype, inverse: bool) -> Tensor:
    """gain·exp(i·p·frequencies) for p = 0…length−1, or its conjugate: (length, n); kept for a few frequencies."""
    key = (len(frequencies), gain, dtype)
    known = _TABLES.pop(key, None)
    if known is None or len(known[1]) < length or not torch.equal(known[0], frequencies):
        steps = torch.arange(max(64, 1 << (length - 1).bit_length())).to(frequencies.dtype)
        angles = steps[:, None] * frequencies
        table = torch.polar(torch.full_like(angles, gain), angles).to(dtype)
        known = (frequencies.detach().clone(), table, table.conj().resolve_conj())
    _TABLES[key] = known
    if len(_TABLES) > 8:
        _TABLES.popitem(last=False)
    return known[2 if inverse else 1][:length]


def _rotate_steadily(x: Tensor, frequencies: Tensor, gain: float, inverse: bool) -> Tensor:
    dtype = torch.complex128 if x.dtype == torch.float64 else torch.complex64
    return rotate_complex(x, _steady_table(frequencies, x.shape[2], gain, dtype, inverse))


def _steady_backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None, None]:
    (frequencies,) = ctx.saved_tensors
    return rotate_steadily(gradient, frequencies, ctx.gain, not ctx.inverse), None, None, None


def _save_steady(ctx, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.gain, ctx.inverse = inputs[2:]


rotate_steadily = define_op(
    "rotate_steadily",
    "(Tensor x, Tensor frequencies, float gain, bool inverse) -> Tensor",
    _rotate_steadily,
    lambda x, *rest: torch.empty_like(x),
    backward=_steady_backward,
    setup_context=_save_steady,
    keys=("CPU",),
)

# -- rotation by a table --


def _table_gradient(gradient: Tensor, x: Tensor, table: Tensor) -> Tensor:
    """gradient · conj(x), summed over what the table was spread over."""
    numbers = [torch.view_as_complex(t.to(table.dtype).unflatten(-1, (-1, 2)).contiguous()) for t in (gradient, x)]
    product = numbers[0] * numbers[1].conj()
    return torch.view_as_real(product.sum_to_size(table.shape[:-1])).contiguous()


table_gradient = define_op(
    "rotate_pairs_table",
    "(Tensor gradient, Tensor x, Tensor table) -> Tensor",
    _table_gradient,
    lambda gradient, x, table: torch.empty_like(table),
    keys=("CPU",),
)


def _pairs_backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
    x, table = ctx.saved_tensors
    of_x = rotate_pairs(gradient, table * table.new_tensor((1.0, -1.0))) if ctx.needs_input_grad[0] else None
    return of_x, table_gradient(gradient, x, table) if ctx.needs_input_grad[1] else None


rotate_pairs = define_op(
    "rotate_pairs",
    "(Tensor x, Tensor table) -> Tensor",
    lambda x, table: rotate_complex(x, torch.view_as_complex(table)),
    lambda x, table: torch.empty_like(x),
    backward=_pairs_backward,
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
    keys=("CPU",),
)
