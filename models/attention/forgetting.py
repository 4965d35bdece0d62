"""Attention that forgets at a rate it reads from the tokens in between.

Lin et al. 2025, "Forgetting Transformer", https://arxiv.org/abs/2503.02130: every token has a forget gate for each
head, f_l = σ(w_h·x_l + b_h), and the score of query i and key j gets D_ij = Σ_{l = j+1 … i} log f_l. Choices:

- With F the running sum of log f, D_ij = F_i − F_j, and F_i is the same for all keys of a row: softmax does not see it.
  So −F_j is a bias of the keys alone, and a whole sequence costs what plain causal attention costs
  (models/kernels/key_bias.py).
- The cache holds log f of every key beside keys and values; F is summed again, s numbers a head.
- Gates open at the start (b = 5: a key at distance 100 loses half of its weight), so that training begins near plain
  attention. Padding forgets nothing. Everything about gates is in float32 at least.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cubelet.models.kernels.key_bias import causal_attention_with_key_bias
from cubelet.models.linear import Linear, wide_linear

from .base import ProjectedAttention
from .masking import AttentionScope, masked_attention


class ForgettingAttention(ProjectedAttention):
    """softmax(q kᵀ / √c + D) v with D_ij = Σ_{l = j+1 … i} log σ(w_h·x_l + b_h); see the module's docstring.

    It tells near from far by itself: a rotary is possible, and not needed.

    Args:
        gate_bias: b at the start.
        options: see `ProjectedAttention`.

    Example:
        >>> ForgettingAttention(32, 4, kv_heads=2)(torch.randn(1, 7, 32)).shape
        torch.Size([1, 7, 32])
    """

    accepts_context = False
    accepts_noncausal = False
    accepts_rows = True

    def __init__(self, dims: int, heads: int, *, gate_bias: float = 5.0, **options: Any) -> None:
        super().__init__(dims, heads, **options)
        self.forget = Linear(dims, heads, scale=0.1, bias_value=gate_bias)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.forget.reset_parameters()

    def extra_stream_shapes(self) -> list[tuple[int, int]]:
        return [(self.heads, 1)]

    def extra_streams(self, x: Tensor) -> tuple[Tensor, ...]:
        """log f of every token, (b, h, s, 1)."""
        gates = wide_linear(self.forget, x)  # (b, s, h)
        return (F.logsigmoid(gates).transpose(1, 2).unsqueeze(-1),)

    def attend(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, scope: AttentionScope) -> Tensor:
        log_f, dropout = scope.streams[0].squeeze(-1), self.dropout if self.training else 0.0  # (b, h, s_k)
        if scope.key_mask is not None:
            log_f = log_f.masked_fill(~scope.key_mask[:, None], 0.0)
        kept = log_f.to(torch.promote_types(log_f.dtype, torch.float32)).cumsum(-1)
        if scope.is_plain:
            return causal_attention_with_key_bias(q, k, v, -kept, dropout=dropout)
        if scope.rows is None:
            asking = kept[..., scope.keys - scope.queries :]  # (b, h, s)
        else:
            asking = kept.gather(-1, scope.rows[:, None].expand(-1, self.heads, -1))
        bias = asking[..., :, None] - kept[..., None, :]  # (b, h, s, s_k)
        return masked_attention(q, k, v, scope, bias=bias, dropout=dropout)
