"""What every block does with its input before anything else."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..attention.base import blank_padding, check_mask


def read_input(x: Tensor, dims: int, key_mask: Tensor | None, cache: Any) -> Tensor:
    """x (b, s, dims) with padded rows zeroed, or NaN in padding would reach the weights' gradients through an MLP.

    Raises:
        ValueError, TypeError: shapes or a mask that do not fit, with the numbers.
    """
    if x.ndim != 3 or x.shape[-1] != dims:
        raise ValueError(f"x has shape {tuple(x.shape)}; expected (batch, tokens, dims {dims})")
    if key_mask is None:
        return x
    past = 0 if cache is None else cache.length
    check_mask("key_mask", key_mask, x.shape[0], (x.shape[1], past + x.shape[1]))
    return blank_padding(x, key_mask)
