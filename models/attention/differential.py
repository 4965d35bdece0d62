"""Differential attention: the difference of two softmax maps, so that what both see without reason cancels.

Ye et al. 2024, https://arxiv.org/abs/2410.05258. Heads 2i and 2i + 1 are a pair; with A₁, A₂ their softmax maps and V
the values of both side by side,

    out_i = (1 − λ₀) · rms_norm((A₁ − λ A₂) V),  λ = exp(λ_q1·λ_k1) − exp(λ_q2·λ_k2) + λ₀.

Both halves of V go through the usual kernel, twice the work of a plain attention's mixing; projections, cache and
masks are those of every other attention.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cubelet.models.kernels.rms_norm import rms_norm

from .base import ProjectedAttention
from .masking import AttentionScope, masked_attention


class DifferentialAttention(ProjectedAttention):
    """Pairs of heads, each the difference of two attentions to the values of both.

    Args:
        heads: even.
        initial_lambda: λ₀; the paper takes 0.8 − 0.6·exp(−0.3·layer), layers counted from 0: 0.2 first, 0.8 deep down.
        options: see `ProjectedAttention`; one key-value head for each head.

    Example:
        >>> attention = DifferentialAttention(32, 4)
        >>> attention(torch.randn(2, 5, 32)).shape
        torch.Size([2, 5, 32])
        >>> with torch.no_grad():
        ...     _ = attention.lambdas.zero_()
        >>> round(attention.factor().item(), 3)  # λ₀ where the learned part says nothing
        0.8
    """

    accepts_rows = True

    def __init__(self, dims: int, heads: int, *, initial_lambda: float = 0.8, **options: Any) -> None:
        super().__init__(dims, heads, **options)
        if heads % 2 or self.kv_heads != heads:
            raise ValueError(
                f"heads {heads}, kv_heads {self.kv_heads}: heads are paired, each with its own keys; give an even "
                "number of heads and leave out kv_heads"
            )
        if not 0.0 <= initial_lambda < 1.0:
            raise ValueError(f"initial_lambda {initial_lambda} must be at least 0 and below 1")
        self.initial_lambda = initial_lambda
        self.lambdas = nn.Parameter(0.1 * torch.randn(4, self.head_dim))  # λ_q1, λ_k1, λ_q2, λ_k2

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.normal_(self.lambdas, std=0.1)

    def factor(self) -> Tensor:
        """λ, 0-dim: how much of the second map is taken away."""
        wide = torch.promote_types(self.lambdas.dtype, torch.float32)
        q1, k1, q2, k2 = self.lambdas.to(wide).unbind(0)  # (c,) each
        return (q1 @ k1).exp() - (q2 @ k2).exp() + self.initial_lambda

    def attend(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, scope: AttentionScope) -> Tensor:
        pairs = self.attend_linear(x, q, k, v, scope).unflatten(1, (-1, 2))  # (b, h / 2, 2, s, c)
        together = pairs.transpose(2, 3).flatten(3)  # (b, h / 2, s, 2 c)
        heads = (1.0 - self.initial_lambda) * rms_norm(together)
        return heads.unflatten(-1, (2, -1)).transpose(2, 3).flatten(1, 2)  # (b, h, s, c)

    def attend_linear(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, scope: AttentionScope) -> Tensor:
        """(A₁ − λ A₂) V, what the norm gets: (b, h, s, c); both heads of a pair have the same map."""
        dropout = self.dropout if self.training else 0.0
        pairs = v.unflatten(1, (-1, 2))  # (b, h / 2, 2, s_k, c)
        maps = [
            masked_attention(q, k, pairs[:, :, half].repeat_interleave(2, dim=1), scope, dropout=dropout)
            for half in range(2)
        ]
        both = torch.cat(maps, dim=-1).unflatten(1, (-1, 2))  # (b, h / 2, 2, s, 2 c)
        difference = both[:, :, 0] - self.factor().to(q.dtype) * both[:, :, 1]  # (b, h / 2, s, 2 c)
        return difference.unflatten(-1, (2, -1)).transpose(2, 3).flatten(1, 2)  # (b, h, s, c)
