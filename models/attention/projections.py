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
    attention: ProjectedAttention, x: Tensor, context: Tensor, key_mask: Tensor | None, cache: ContextCache | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of x, keys and values of a context, from the cache where it knows them: each (b, its heads, …, c)."""
    cut = attention.heads * attention.head_dim
    weight, bias = attention.qkv.weight, attention.qkv.bias
    q = F.linear(x, weight[:cut], None if bias is None else bias[:cut])
    q = q.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)  # (b, h, s, c)
    q = rms_norm(q) if attention.qk_norm else q
    known = None if cache is None else cache.find(context, key_mask)
    if known is not None:
        return q, *known
    if key_mask is not None:
        context_rows = context.masked_fill(~key_mask[..., None], 0.0)
    else:
        context_rows = context
    kv = F.linear(context_rows, weight[cut:], None if bias is None else bias[cut:])
    k, v = kv.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2).chunk(2, dim=1)  # (b, g, s_k, c)
    k = rms_norm(k) if attention.qk_norm else k
    if cache is not None:
        cache.store(context, key_mask, k, v)
    return q, k, v


def project_rows(
    attention: ProjectedAttention,
    x: Tensor,
    positions: Tensor | None,
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    R: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`project` with queries of some rows alone: the two products of unequal lengths, each rotated by itattention."""
    if positions is None:
        positions = torch.arange(x.shape[1], device=x.device)
    if positions.ndim == (1 if attention.axes == 1 else 2):
        positions = positions.expand(x.shape[0], *positions.shape)
    cut, parts = attention.heads * attention.head_dim, []
    for inputs, at, of in (
        (take_rows(x, rows), take_rows(positions, rows), slice(0, cut)),
        (x, positions, slice(cut, None)),
    ):
        part = F.linear(inputs, weight[of], None if bias is None else bias[of]).unflatten(-1, (-1, attention.head_dim))
        v = part[:, :, attention.kv_heads :]  # of the second: (b, s, g, c)
        part = part if of.stop else part[:, :, : attention.kv_heads]
        part = part if R is None else right_multiply(part, R)
        part = (rms_norm(part) if attention.qk_norm else part).transpose(1, 2)  # (b, h, r, c), (b, g, s, c)
        if attention.rotary is not None:
            part = (attention.rotary.apply_positions if of.stop else attention.rotary.apply_key_positions)(part, at)
        if attention.position_scale is not None:
            part = attention.rotate_on(part, at, attention.position_scale)
        parts.append(part)
    return parts[0], parts[1], v.transpose(1, 2)
