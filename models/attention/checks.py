"""Checks of what attention is called with: one sentence with the numbers where something does not fit."""

from __future__ import annotations

import torch
from torch import Tensor

from cubelet.common.contracts import check_contract
from cubelet.models.cache import LayerCache
from cubelet.models.rotary import Rotary


def check_heads(dims: int, heads: int, kv_heads: int | None = None) -> int:
    """Head width; ValueError with the numbers where the arguments do not fit each other."""
    if dims < 1 or heads < 1 or dims % heads:
        raise ValueError(f"dims {dims} cannot be split over heads {heads}: dims must be a positive multiple of heads")
    if kv_heads is not None and (kv_heads < 1 or heads % kv_heads):
        raise ValueError(f"kv_heads {kv_heads} must divide heads {heads}, so that each serves as many queries")
    return dims // heads


# What an attention calls on its rotary.
ROTARY_NEEDS = {
    "head_dim": "features of a head, an int",
    "apply_positions": "(x, positions) → x rotated",
    "apply_key_positions": "the same for keys",
    "mixing": "() → the position-independent factor R (c, c), or None",
    "penalty": "() → 0-dim tensor",
    "is_relative": "whether scores depend on distances alone",
    "position_axes": "numbers that make up a position",
    "base_version": "counts changes of the base",
}


def rotary_axes(rotary: Rotary | None, head_dim: int) -> int:
    """How many axes a rotary's positions have; ValueError where it was made for another head width."""
    if rotary is None:
        return 1
    check_contract("rotary", rotary, ROTARY_NEEDS, "cubelet.models.rotary.Rotary")
    if rotary.head_dim != head_dim:
        raise ValueError(f"the rotary was made for head_dim {rotary.head_dim}; this attention has head_dim {head_dim}")
    return rotary.position_axes


def check_scalable(rotary: Rotary | None) -> None:
    """Refuse `positional_scaling` where positions are not those of one axis, turned in fixed pairs of features."""
    pairwise = rotary is not None and rotary.is_relative and getattr(rotary, "is_pairwise", True)
    if not (pairwise and rotary is not None and rotary.position_axes == 1):
        raise ValueError(
            "positional_scaling scales the positions of a RoPE or CombinedRotary; the rotary is "
            f"{type(rotary).__name__}"
        )


def check_cached_keys(rotary: Rotary, cache: LayerCache, new: int) -> None:
    """RuntimeError where cached keys were rotated otherwise than the `new` ones would be."""
    cache.check_version(rotary.base_version)
    switch = getattr(getattr(rotary, "scaling", None), "switch_length", None)
    if switch is not None and 0 < cache.length <= switch < cache.length + new:
        raise RuntimeError(
            f"beyond {switch} tokens the rotary takes other frequencies, and {cache.length} keys rotated with those of "
            "short calls are cached: make a new cache and read the prompt again"
        )


def check_mask(name: str, mask: Tensor, batch: int, lengths: tuple[int, ...]) -> None:
    """Refuse a mask that is not bool or not (batch, one of lengths)."""
    if mask.dtype != torch.bool:
        raise TypeError(f"{name} has dtype {mask.dtype}; give torch.bool, True = may be attended (mask != 0 converts)")
    check_rows(name, mask, batch, lengths)


def check_rows(name: str, rows: Tensor, batch: int, lengths: tuple[int, ...]) -> None:
    if rows.ndim != 2 or rows.shape[0] != batch or rows.shape[1] not in lengths:
        wanted = " or ".join(str((batch, n)) for n in dict.fromkeys(lengths))
        raise ValueError(f"{name} has shape {tuple(rows.shape)}; expected {wanted}: (batch, keys)")


def check_positions(positions: Tensor, batch: int, length: int, axes: int = 1) -> None:
    """Refuse positions other than integers (s,) or (b, s); for several axes: (s, axes) or (b, s, axes), any dtype."""
    tail = (length,) if axes == 1 else (length, axes)
    if tuple(positions.shape) not in (tail, (batch, *tail)):
        raise ValueError(f"positions have shape {tuple(positions.shape)}; expected {tail} or {(batch, *tail)}")
    if axes == 1 and positions.is_floating_point():
        raise TypeError(f"positions have dtype {positions.dtype}; give integers")
