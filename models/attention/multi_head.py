"""Multi-head attention on torch's scaled dot-product attention: the baseline of the family.

Options are those that cost nothing when off: grouped-query heads, gain-free qk-norm, a learned scale of positions, and
a learned bias per distance and head (Shaw et al. 2018, https://arxiv.org/abs/1803.02155, in the scalar form of T5).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cubelet.common.checks import check_at_least
from cubelet.models.kernels.key_bias import causal_attention_with_key_bias
from cubelet.models.kernels.switch import use_fast_path

from .base import ProjectedAttention
from .masking import AttentionScope, masked_attention
from .score_bias import spread_lags


class RelativeBias(nn.Module):
    """A learned number per distance and head, zero at the start.

    Args:
        max_distance: D; distances are clamped to −(D−1) … D−1.
        heads: number of heads.

    Example:
        >>> RelativeBias(4, heads=2)(torch.tensor([[0, -1], [1, 0]])).shape
        torch.Size([1, 2, 2, 2])
    """

    of_distance_alone = True

    def __init__(self, max_distance: int, heads: int) -> None:
        super().__init__()
        check_at_least("relative_bias", max_distance, 1, "the number of distances told apart")
        self.max_distance = max_distance
        self.table = nn.Parameter(torch.zeros(2 * max_distance - 1, heads))

    def reset_parameters(self) -> None:
        """Zeros."""
        nn.init.zeros_(self.table)

    def forward(self, distances: Tensor) -> Tensor:
        """Distances (q, k) or (b, q, k), query − key → bias (b or 1, heads, q, k)."""
        reach = self.max_distance - 1
        bias = self.table[distances.clamp(-reach, reach) + reach]  # (…, q, k, h)
        bias = bias if distances.ndim == 3 else bias[None]
        return bias.movedim(-1, 1)  # (b or 1, h, q, k)


class MultiHeadAttention(ProjectedAttention):
    """softmax(q kᵀ / √c + bias) v per head, concatenated and projected (https://arxiv.org/abs/1706.03762).

    Args:
        relative_bias: tell apart this many distances by a learned bias; None: no bias.
        score_bias: (heads) → module that maps distances to a bias, instead: see `score_bias.py`.
        options: see `ProjectedAttention`.

    Example:
        >>> from cubelet.models.rotary import RoPE
        >>> attention = MultiHeadAttention(32, 4, rotary=RoPE(32, 4), kv_heads=2)
        >>> attention(torch.randn(2, 5, 32)).shape
        torch.Size([2, 5, 32])
    """

    accepts_rows = True

    def __init__(
        self,
        dims: int,
        heads: int,
        *,
        relative_bias: int | None = None,
        score_bias: Callable[[int], nn.Module] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(dims, heads, **options)
        if relative_bias is not None and score_bias is not None:
            raise ValueError("relative_bias and score_bias take the same place; give one of them")
        self.relative_bias: nn.Module | None = None if relative_bias is None else RelativeBias(relative_bias, heads)
        if score_bias is not None:
            self.relative_bias = score_bias(heads)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.relative_bias is not None:
            self.relative_bias.reset_parameters()  # pyright: ignore[reportCallIssue]

    def attend(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, scope: AttentionScope) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        biased: Any = self.relative_bias
        if biased is None:
            return masked_attention(q, k, v, scope, dropout=dropout)
        if scope.is_context:
            raise ValueError("relative_bias has no meaning for a context: its keys have no distance to the queries")
        if scope.causal and scope.is_plain and scope.counts_rows and hasattr(biased, "of_keys"):
            return causal_attention_with_key_bias(q, k, v, biased.of_keys(scope.keys), dropout=dropout)
        of_lags = scope.counts_rows and scope.rows is None and getattr(biased, "of_distance_alone", False)
        if of_lags and use_fast_path("spread_lags"):
            lags = torch.arange(scope.keys - 1, -scope.queries, -1, device=x.device)
            bias = spread_lags(biased(lags[None])[:, :, 0], scope.queries, scope.keys)  # (1, h, s, s_k)
        else:
            bias = biased(scope.distances(x.device))
        return masked_attention(q, k, v, scope, bias=bias, dropout=dropout)
