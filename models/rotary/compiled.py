"""Turning pairs inside torch.compile: operators that Inductor does not look into.

Left to itself, Inductor does two costly things with a rotary. It recomputes float64 sines and cosines for every batch
entry and head, because a fused kernel may inline what is cheap to write down; and on the CPU it reads interleaved pairs
one number at a time, because their stride is 2. So the table goes through an operator, which has to be handed finished
memory, and on the CPU so does the product: the complex multiplication of eager code, at the cost of a copy. Tables for
positions 0…s−1 are kept, as in eager code, but found by the values of the frequencies: no base can leave a stale one.
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


_KEPT: OrderedDict[tuple[int, float, torch.dtype], tuple[Tensor, Tensor]] = OrderedDict()


@torch.library.custom_op("cubelet::rotary_table", mutates_args=())
def rotary_table(frequencies: Tensor, length: int, gain: float, dtype: torch.dtype) -> Tensor:
    """gain·(cos, sin) of p·frequencies for p = 0…length−1: (length, n, 2) from (n,)."""
    if frequencies.device.type != "cpu":  # comparing values would wait for the device
        return _make_table(frequencies, length, gain).to(dtype)
    key = (len(frequencies), gain, dtype)
    known = _KEPT.pop(key, None)
    if known is None or len(known[1]) < length or not torch.equal(known[0], frequencies):
        rows = max(64, 1 << (length - 1).bit_length())
        known = (frequencies.detach().clone(), _make_table(frequencies, rows, gain).to(dtype))
    _KEPT[key] = known
    if len(_KEPT) > 8:
        _KEPT.popitem(last=False)
    return known[1][:length].clone()  # compiled code may write over what an operator returned


def _make_table(frequencies: Tensor, length: int, gain: float) -> Tensor:
    angles = torch.arange(length, device=frequencies.device).to(frequencies.dtype)[:, None] * frequencies
    return torch.stack((angles.cos(), angles.sin()), dim=-1) * gain


@rotary_table.register_fake
def _(frequencies: Tensor, length: int, gain: float, dtype: torch.dtype) -> Tensor:
    return frequencies.new_empty((length, frequencies.shape[0], 2), dtype=dtype)


@torch.library.custom_op("cubelet::turn_pairs", mutates_args=())
def _turn(x: Tensor, table: Tensor) -> Tensor:
    """x (b, h, s, c) or (b, s, h, c) times the complex numbers of table (…, c/2, 2), in x's dtype and memory order."""
    out = torch.empty_like(x)
    if x.dtype == table.dtype and _dense_pairs(x) and _dense_pairs(out):
        pairs = [torch.view_as_complex(t.unflatten(-1, (-1, 2))) for t in (x, out)]
        torch.mul(pairs[0], torch.view_as_complex(table), out=pairs[1])
    else:
        out.copy_(turn_pairs(x, torch.view_as_complex(table)))
    return out


def _dense_pairs(x: Tensor) -> bool:
    return x.stride(-1) == 1 and x.storage_offset() % 2 == 0 and all(stride % 2 == 0 for stride in x.stride()[:-1])


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
