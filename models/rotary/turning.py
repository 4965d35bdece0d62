"""Turning pairs of features by tables of angles: the arithmetic, the check of positions, and the eager cache."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad


def check_positions(positions: Tensor, batch: int, length: int, axes: int = 0, floating: bool = False) -> None:
    """TypeError unless integer (or, if allowed, floating), ValueError unless (s,) or (b, s), with axes (…, axes)."""
    kind = positions.dtype if isinstance(positions, Tensor) else type(positions).__name__
    if not isinstance(positions, Tensor) or positions.is_complex() or (positions.is_floating_point() and not floating):
        raise TypeError(f"positions must be an integer tensor, got {kind}; use torch.arange(s) or positions.long()")
    if positions.dtype == torch.bool:
        raise TypeError("positions are boolean; that is a mask, pass its cumulative sum minus 1 instead")
    last = (axes,) if axes else ()
    if tuple(positions.shape) not in ((length, *last), (batch, length, *last)):
        want = f"{(length, *last)} or {(batch, length, *last)}"
        raise ValueError(f"positions have shape {tuple(positions.shape)}; want {want}")


def turn_pairs(x: Tensor, table: Tensor, start: int = 0) -> Tensor:
    """Multiply interleaved pairs of x (..., c) by a complex table (..., n) that broadcasts; eager code's way.

    Args:
        table: its n columns belong to features start … start + 2n − 1; the others pass unchanged.

    Returns: x's shape and dtype, and x's memory order where all features turn.
    """
    if 2 * table.shape[-1] != x.shape[-1]:
        return _turn_some(x, start, 2 * table.shape[-1], lambda part: turn_pairs(part, table))
    if not torch.is_grad_enabled() and x.dtype == torch.float32 and forward_ad._current_level < 0:
        with suppress(RuntimeError):  # memory that is not in pairs
            return (x.view(torch.complex64) * table).view(torch.float32)  # three operations; they carry no gradients
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    pairs = wide.unflatten(-1, (-1, 2))
    try:
        numbers = torch.view_as_complex(pairs)
    except RuntimeError:  # an odd stride or storage offset, or a last dimension that is not dense
        numbers = torch.view_as_complex(pairs.contiguous())
    return torch.view_as_real(numbers * table).flatten(-2).to(x.dtype)


def turn_pairs_real(x: Tensor, cos: Tensor, sin: Tensor, start: int = 0) -> Tensor:
    """The same in real numbers, tables (..., n): what torch.compile fuses into one pass."""
    if 2 * cos.shape[-1] != x.shape[-1]:
        return _turn_some(x, start, 2 * cos.shape[-1], lambda part: turn_pairs_real(part, cos, sin))
    even, odd = x.unflatten(-1, (-1, 2)).to(cos.dtype).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(x.dtype)


def _turn_some(x: Tensor, start: int, count: int, turn: Callable[[Tensor], Tensor]) -> Tensor:
    end = start + count
    return torch.cat((x[..., :start], turn(x[..., start:end]), x[..., end:]), dim=-1)


def mix(x: Tensor, R: Tensor | None) -> Tensor:
    """x · R over the last dimension, in at least float32, in x's memory order and dtype; x itself where R is None."""
    if R is None:
        return x
    R = R.to(torch.promote_types(x.dtype, torch.float32))
    wide = x.to(R.dtype)
    with torch.autocast(x.device.type, enabled=False):
        if x.ndim == 4 and x.stride(1) < x.stride(2):  # memory of (b, s, h, c) seen as (b, h, s, c): do not copy it
            return _rows_times(wide.transpose(1, 2), R).transpose(1, 2).to(x.dtype)
        return _rows_times(wide, R).to(x.dtype)


def _rows_times(x: Tensor, R: Tensor) -> Tensor:
    """x (..., c) @ R (c, n). On the CPU as a 1×1 convolution over the rows: the same sums by oneDNN instead of MKL,
    whose product of a tall and a tiny matrix takes twice as long on an AMD processor."""
    tall = x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() >= 1 << 16
    if not tall or torch.compiler.is_compiling() or not torch.backends.mkldnn.is_available():
        return x @ R
    pixels = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)
    return F.conv2d(pixels, R.mT[:, :, None, None]).permute(0, 2, 3, 1).reshape(*x.shape[:-1], R.shape[1])


class TableCache:
    """Eager tables of one rotary, and R. Copies and pickles as an empty one: all of it follows from the state."""

    __slots__ = ("by_positions", "key", "last", "mixing", "rows")

    def __init__(self) -> None:
        self.key: Any = None
        self.rows: Tensor | None = None
        self.last: tuple[int, Any, torch.dtype, torch.device, Tensor] | None = None
        self.by_positions: tuple[Any, Tensor, int, Tensor] | None = None
        self.mixing: tuple[list[Tensor], Tensor] | None = None

    def __deepcopy__(self, memo: dict) -> "TableCache":
        return TableCache()

    def __reduce__(self):
        return TableCache, ()
