"""Causal attention with a bias that depends on the key alone, at the price of plain causal attention.

Formula: softmax over j ≤ i of q_i·k_j/√c + b_j. What a whole row shares, softmax does not see: so biases that are
differences f(i) − f(j), as a decay summed over the tokens between, or a slope times a distance, are of this kind. The
fast path appends b to the keys and a constant to the queries as features of their own, so that no (s, s) bias and no
mask is made. Measured in benchmarks/attention.py: 1.1 × causal SDPA, against 5 × with the bias as a matrix.

Rounding is that of float32 at b: scores of |b| = 2,048 are exact to 1e-4. In half precision b is spread over three
features, whose sum is exact to that as well.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .sdpa import sdpa_zero_empty
from .switch import is_switched_off

EXTRA = 8  # features appended, the unused ones 0: heads of a multiple of 8 are what fused kernels are written for


def causal_attention_with_key_bias(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, *, dropout: float = 0.0) -> Tensor:
    """softmax(q kᵀ / √c + bias) v, token i over j ≤ i.

    Args:
        q: (b, h, s, c). k, v: (b, h or a divisor of it, s, c).
        bias: (b or 1, h, s) float, of the keys; at least float32.
        dropout: probability, on the attention weights.
    """
    b, h, s, c = q.shape
    if is_switched_off("key_bias"):
        mask = torch.ones(s, s, dtype=torch.bool, device=q.device).tril()[None, None]
        return sdpa_zero_empty(q, k, v, mask=mask, bias=bias[:, :, None, :], dropout=dropout)
    if k.shape[1] != h:  # the bias makes the keys of every head their own
        k, v = (t.repeat_interleave(h // t.shape[1], dim=1) for t in (k, v))
    parts = _exact_parts((bias * c**0.5).expand(b, h, s), q.dtype)
    ones = q.new_ones(1).expand(b, h, s, len(parts))
    nothing = q.new_zeros(1).expand(b, h, s, EXTRA - len(parts))
    q = torch.cat((q, ones, nothing), dim=-1)  # (b, h, s, c + EXTRA)
    k = torch.cat((k, torch.stack(parts, dim=-1), nothing), dim=-1)
    heads = F.scaled_dot_product_attention(q, k, F.pad(v, (0, EXTRA)), is_causal=True, dropout_p=dropout, scale=c**-0.5)
    return heads[..., :c]


def _exact_parts(x: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Tensors of `dtype` whose sum is x: one, or three of half precision."""
    parts, rest = [], x
    for _ in range(1 if dtype.itemsize >= 4 else 3):
        parts.append(rest.to(dtype))
        rest = rest - parts[-1].to(x.dtype)
    return parts
