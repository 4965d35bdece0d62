"""Scaled dot-product attention in which a query without any key gets zeros."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sdpa_zero_empty(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
    grouped: bool | None = None,
) -> Tensor:
    """softmax(q kᵀ / √c + bias) v over the keys that `mask` allows.

    Args:
        q: (b, h, s_q, c). k, v: (b, h or a divisor of it, s_k, c).
        mask: bool, broadcastable to (b, h, s_q, s_k), True = may be attended.
        bias: float of the same shape, added to the scaled scores.
        causal: only without mask and bias, and with s_q = s_k.
        dropout: probability, on the attention weights.
        grouped: whether k has fewer heads than q, where the caller knows better than the shapes.

    Returns:
        (b, h, s_q, c); zeros where a row of the mask is empty.
    """
    grouped = q.shape[1] != k.shape[1] if grouped is None else grouped
    if mask is None:
        added = None if bias is None else bias.to(q.dtype)
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=added, is_causal=causal, dropout_p=dropout, enable_gqa=grouped
        )
    # A row that may attend nothing attends everything instead and is zeroed afterwards: no NaN, forward or backward.
    # (A large negative number for "masked" would make such a row a mean over padding.)
    some = mask.any(-1, keepdim=True)
    usable = mask | ~some
    if bias is not None:
        usable = bias.masked_fill(~usable, -torch.inf).to(q.dtype)
    heads = F.scaled_dot_product_attention(q, k, v, attn_mask=usable, dropout_p=dropout, enable_gqa=grouped)
    return heads.masked_fill(~some, 0.0)
