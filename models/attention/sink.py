"""Attention with a sink: a learned number per head in the softmax's denominator, so that a head need not attend.

Heads that have nothing to say put their weight on the first tokens ("attention sinks", Xiao et al. 2023,
https://arxiv.org/abs/2309.17453). Here the sink is a key of its own with a learned score and the value zero, as in
gpt-oss (https://arxiv.org/abs/2508.10925); a score of 0 is "softmax off by one". The key stands in front of all others
and reads its score from one more feature of the queries, so torch's fused kernel does the work, gradients included.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import ProjectedAttention
from .masking import AttentionScope

MORE = 8  # features more per head, of which one is used: kernels read whole vectors


class SinkAttention(ProjectedAttention):
    """Σ_j exp(s_j) v_j / (exp(sink_h) + Σ_j exp(s_j)) per head.

    Args:
        options: see `ProjectedAttention`.

    Example:
        >>> attention = SinkAttention(32, 4)
        >>> attention(torch.randn(2, 5, 32)).shape, attention.sink.tolist()
        (torch.Size([2, 5, 32]), [0.0, 0.0, 0.0, 0.0])
    """

    accepts_rows = True

    def __init__(self, dims: int, heads: int, **options: Any) -> None:
        super().__init__(dims, heads, **options)
        self.sink = nn.Parameter(torch.zeros(heads))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.zeros_(self.sink)

    def attend(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, scope: AttentionScope) -> Tensor:
        width, scale = q.shape[-1], q.shape[-1] ** -0.5
        score = (self.sink / scale).to(q.dtype)[:, None, None].expand(*q.shape[:3], 1)  # (b, h, s, 1)
        q = F.pad(torch.cat([q, score], dim=-1), (0, MORE - 1))  # (b, h, s, c + 8)
        k, v = (F.pad(rows, (0, MORE, 1, 0)) for rows in (k, v))  # (b, g, 1 + s_k, c + 8), zeros in front
        reads_score = torch.zeros_like(k[:1, :1, :1])
        reads_score[..., width] = 1.0
        k = torch.cat([reads_score.expand(*k.shape[:2], -1, -1), k[:, :, 1:]], dim=2)
        options: dict[str, Any] = {"scale": scale, "enable_gqa": self.kv_heads != self.heads}
        options["dropout_p"] = self.dropout if self.training else 0.0
        if scope.is_plain and scope.causal:  # a query more in front, for the sink: then plain causality fits again
            heads = F.scaled_dot_product_attention(F.pad(q, (0, 0, 1, 0)), k, v, is_causal=True, **options)
            return heads[:, :, 1:, :width]  # (b, h, s, c)
        mask = scope.allowed(x.device)
        mask = None if mask is None else F.pad(mask, (1, 0), value=True)  # everybody sees the sink: no row is empty
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, **options)[..., :width]  # (b, h, s, c)
