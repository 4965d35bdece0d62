"""Turning pairs inside torch.compile: operators that Inductor does not look into.

Left to itself, Inductor does two costly things with a rotary. It recomputes float64 sines and cosines for every batch
entry and head, because a fused kernel may inline what is cheap to write down; and on the CPU it reads interleaved pairs
one number at a time, because their stride is 2. So the table goes through an operator, which has to be handed finished
memory, and on the CPU so does the product: the complex multiplication of eager code, at the cost of a copy. For
positions 0…s−1 one operator does both, with tables that are kept, as in eager code, but found by the values of the
frequencies: no base can leave a stale one.
"""

from collections import OrderedDict

import torch
from torch import Tensor

from .turning import turn_pairs, turn_pairs_real


@torch.library.custom_op("cubelet::tabulate", mutates_args=())
def tabulate(values: Tensor) -> Tensor:
    """A copy; what it is for is that `values` must exist in memory."""
    return values.clone()


@tabulate.register_fake
def _(values: Tensor) -> Tensor:
    return torch.empty_like(values)


tabulate.register_autograd(lambda ctx, gradient: gradient)


# Defined the plain way: `custom_op` adds checks to each call that take longer than a small turn.
_LIBRARY = torch.library.Library("cubelet", "FRAGMENT")
_LIBRARY.define(
    "turn_steadily(Tensor x, Tensor frequencies, float gain, int head_axis, bool back) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_KEPT: OrderedDict[tuple[int, float, torch.dtype], tuple[Tensor, Tensor, Tensor]] = OrderedDict()


def _steady_table(frequencies: Tensor, length: int, gain: float, dtype: torch.dtype, back: bool) -> Tensor:
    """gain·exp(i·p·frequencies) for p = 0…length−1, or its conjugate: (length, n); kept for a few frequencies."""
    key = (len(frequencies), gain, dtype)
    known = _KEPT.pop(key, None)
    if known is None or len(known[1]) < length or not torch.equal(known[0], frequencies):
        steps = torch.arange(max(64, 1 << (length - 1).bit_length())).to(frequencies.dtype)
        angles = steps[:, None] * frequencies
        table = torch.polar(torch.full_like(angles, gain), angles).to(dtype)
        known = (frequencies.detach().clone(), table, table.conj().resolve_conj())
    _KEPT[key] = known
    if len(_KEPT) > 8:
        _KEPT.popitem(last=False)
    return known[2 if back else 1][:length]


def _turn_steadily(x: Tensor, frequencies: Tensor, gain: float, head_axis: int, back: bool) -> Tensor:
    dtype = torch.complex128 if x.dtype == torch.float64 else torch.complex64
    table = _steady_table(frequencies, x.shape[3 - head_axis], gain, dtype, back)
    return _product(x, table.unsqueeze(1) if head_axis == 2 else table)


def _product(x: Tensor, table: Tensor) -> Tensor:
    """x (…, c) times a complex table (…, c/2), in x's dtype and memory order."""
    out = torch.empty_like(x)
    if x.dtype == table.real.dtype and _dense_pairs(x) and _dense_pairs(out):
        torch.mul(x.view(table.dtype), table, out=out.view(table.dtype))
    else:
        out.copy_(turn_pairs(x, table))
    return out


def _dense_pairs(x: Tensor) -> bool:
    return x.stride(-1) == 1 and x.storage_offset() % 2 == 0 and all(stride % 2 == 0 for stride in x.stride()[:-1])


def _steady_backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
    (frequencies,) = ctx.saved_tensors
    back = torch.ops.cubelet.turn_steadily(gradient, frequencies, ctx.gain, ctx.head_axis, not ctx.back)
    return back, None, None, None, None


def _keep_steady(ctx, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.gain, ctx.head_axis, ctx.back = inputs[2:]


_LIBRARY.impl("turn_steadily", _turn_steadily, "CPU")
torch.library.register_fake("cubelet::turn_steadily", lambda x, *rest: torch.empty_like(x), lib=_LIBRARY)
torch.library.register_autograd("cubelet::turn_steadily", _steady_backward, setup_context=_keep_steady, lib=_LIBRARY)


def turn_steadily(x: Tensor, frequencies: Tensor, gain: float, head_axis: int) -> Tensor:
    """Turn x by gain·exp(i·p·frequencies) at p = 0…s−1, for compiled graphs on the CPU.

    Args:
        x: (b, h, s, c), or (b, s, h, c) with head_axis 2. frequencies: (c/2,), without a gradient.
    """
    return torch.ops.cubelet.turn_steadily(x, frequencies, gain, head_axis, False)


@torch.library.custom_op("cubelet::turn_pairs", mutates_args=())
def _turn(x: Tensor, table: Tensor) -> Tensor:
    """x (b, h, s, c) or (b, s, h, c) times the complex numbers of table (…, c/2, 2), in x's dtype and memory order."""
    return _product(x, torch.view_as_complex(table))


@_turn.register_fake
def _(x: Tensor, table: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("cubelet::turn_pairs_table", mutates_args=())
def _table_gradient(gradient: Tensor, x: Tensor, table: Tensor) -> Tensor:
    """Gradient of the table: gradient · conj(x), summed over what the table was spread over."""
    numbers = [torch.view_as_complex(t.to(table.dtype).unflatten(-1, (-1, 2)).contiguous()) for t in (gradient, x)]
    product = numbers[0] * numbers[1].conj()
    return torch.view_as_real(product.sum_to_size(table.shape[:-1])).contiguous()


@_table_gradient.register_fake
def _(gradient: Tensor, x: Tensor, table: Tensor) -> Tensor:
    return torch.empty_like(table)


def _backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
    x, table = ctx.saved_tensors
    of_x = of_table = None
    if ctx.needs_input_grad[0]:
        of_x = _turn(gradient, table * table.new_tensor((1.0, -1.0)))
    if ctx.needs_input_grad[1]:
        of_table = _table_gradient(gradient, x, table)
    return of_x, of_table


def _keep(ctx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


_turn.register_autograd(_backward, setup_context=_keep)


def turn_pairs_compiled(x: Tensor, table: Tensor, start: int = 0) -> Tensor:
    """`turn_pairs` for compiled graphs, table (…, n, 2) of cosines and sines."""
    if x.device.type != "cpu" or 2 * table.shape[-2] != x.shape[-1]:
        cos, sin = table.unbind(-1)
        return turn_pairs_real(x, cos, sin, start)
    return _turn(x, table)
