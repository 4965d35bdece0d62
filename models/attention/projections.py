"""The projections of `ProjectedAttention` that are not the usual one: of a context, and of queries of some rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from cubelet.models.cache import ContextCache
from cubelet.models.kernels.rms_norm import rms_norm
from cubelet.models.kernels.routing import take_rows
from cubelet.models.rotary.rotation_matrix import right_multiply

if TYPE_CHECKING:
    from .base import ProjectedAttention


def project_context(
    attention: ProjectedAttention,
    x: Tensor,
    context: Tensor,
    key_mask: Tensor | None,
    positions: Tensor | None,
    cache: ContextCache | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of x, keys and values of a context, from the cache where it knows them: each (b, its heads, …, c).

    With `rotate_context` queries are rotated by their positions, and the context's keys by theirs: their rows, counted
    from the first that is not padding.
    """
    cut = attention.heads * attention.head_dim
    weight, bias = attention.qkv.weight, attention.qkv.bias
    q = F.linear(x, weight[:cut], None if bias is None else bias[:cut])
    q = q.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)  # (b, h, s, c)
    rotary = attention.rotary if attention.rotate_context else None
    R, version = (None, None) if rotary is None else (rotary.mixing(), rotary.base_version)
    q = rms_norm(right_multiply(q, R)) if attention.qk_norm else right_multiply(q, R)
    q = q if rotary is None else rotary.apply_positions(q, positions)
    known = None if cache is None else cache.find(context, key_mask, version)
    if known is not None:
        return q, *known
    if key_mask is not None:
        context_rows = context.masked_fill(~key_mask[..., None], 0.0)
    else:
        context_rows = context
    kv = F.linear(context_rows, weight[cut:], None if bias is None else bias[cut:])
    k, v = kv.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2).chunk(2, dim=1)  # (b, g, s_k, c)
    k = rms_norm(right_multiply(k, R)) if attention.qk_norm else right_multiply(k, R)
    if rotary is not None:
        at = None if key_mask is None else (key_mask.cumsum(1) - 1).clamp(min=0)  # (b, s_k)
        k = rotary.apply_key_positions(k, at)
    if cache is not None:
        cache.store(context, key_mask, k, v, version)
    return q, k, v


def _place_heads(
    attention: ProjectedAttention, heads: Tensor, positions: Tensor | None, R: Tensor | None, are_keys: bool
) -> Tensor:
    """Queries or keys (b, s, n, c), as projected → (b, n, s, c), times R, normed and rotated."""
    heads = heads if R is None else right_multiply(heads, R)
    heads = (rms_norm(heads) if attention.qk_norm else heads).transpose(1, 2)  # (b, n, s, c)
    rotary = attention.rotary
    if rotary is not None:
        heads = (rotary.apply_key_positions if are_keys else rotary.apply_positions)(heads, positions)
    if attention.position_scale is not None:
        heads = attention.rotate_on(heads, positions, attention.position_scale)
    return heads


def project_queries(attention: ProjectedAttention, x: Tensor, positions: Tensor | None) -> Tensor:
    """The queries of `project` alone: (b, s, d) → (b, h, s, c)."""
    cut, bias = attention.heads * attention.head_dim, attention.qkv.bias
    heads = F.linear(x, attention.qkv.weight[:cut], None if bias is None else bias[:cut])
    R = None if attention.rotary is None else attention.rotary.mixing()
    return _place_heads(attention, heads.unflatten(-1, (-1, attention.head_dim)), positions, R, False)


def project_rows(
    attention: ProjectedAttention,
    x: Tensor,
    positions: Tensor | None,
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    R: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`project` with queries of some rows alone: two products of unequal lengths, each rotated by itself."""
    if positions is None:
        positions = torch.arange(x.shape[1], device=x.device)
    if positions.ndim == (1 if attention.axes == 1 else 2):
        positions = positions.expand(x.shape[0], *positions.shape)
    cut = attention.heads * attention.head_dim
    q = F.linear(take_rows(x, rows), weight[:cut], None if bias is None else bias[:cut])
    kv = F.linear(x, weight[cut:], None if bias is None else bias[cut:])
    q, kv = (t.unflatten(-1, (-1, attention.head_dim)) for t in (q, kv))  # (b, r, h, c), (b, s, 2 g, c)
    k, v = kv.chunk(2, dim=2)  # (b, s, g, c) each
    q = _place_heads(attention, q, take_rows(positions, rows), R, False)  # (b, h, r, c)
    return q, _place_heads(attention, k, positions, R, True), v.transpose(1, 2)  # (b, g, s, c) each
