"""Attention by forces between tokens instead of dot products.

Each token emits e and receives r, both of width d. The score of head h between query i and key j is

    β_h F + (1 − β_h) T (+ q·k / √c),
    F = (m_h·e_i − m_h·r_j) / (D + ε) · exp(−D / (ℓ √d)),  D = ‖e_i − r_j‖,
    T = w_h1 A + w_h2 A² + w_h3 A³,  A_ij = σ(α_i + β_j) / √(number of tokens that i may see),

α, β linear in e and r, w_h a softmax over hops. Choices:

- Never a tensor of s²·d: D² = ‖e‖² + ‖r‖² − 2 e·r, and the numerator is a difference of two projections.
- ℓ is learned. Distances grow like √d, so without a length scale exp(−D) would be 1e-8 at d = 512 and nothing would
  learn. It is kept within 0.2 … 20, beyond which the falloff is 0 or 1 everywhere and would no longer change with it;
  there, and where β or w are at their ends, gradients still lead back (models/bounded.py). Everything here is in
  float32, autocast or not.
- A is triangular where causal, and padded columns are zero, before powers are taken; the divisor counts only what the
  row may see. So a prefix stands alone and left padding changes nothing.
- The cache holds r, α and β beside keys and values; A is rebuilt from the two vectors, so a step costs O(s²) scalars
  (hops pass through every earlier token).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from cubelet.models.bounded import bounded, mixture, share
from cubelet.models.kernels.switch import full_precision
from cubelet.models.linear import Linear, wide_linear

from .base import ProjectedAttention
from .masking import AttentionScope, masked_attention

HOPS = 3
LOG_LENGTHS = (math.log(0.2), math.log(20.0))


def distances(e: Tensor, r: Tensor) -> Tensor:
    """‖e_i − r_j‖ for e (b, s, d), r (b, n, d): (b, s, n), at least 1e-6."""
    squares = e.square().sum(-1, keepdim=True) + r.square().sum(-1).unsqueeze(1)
    return torch.baddbmm(squares, e, r.mT, alpha=-2.0).clamp_min(1e-12).sqrt()


def edges(alpha: Tensor, beta: Tensor, scope: AttentionScope) -> Tensor:
    """A (b, n, n) over all n keys: σ(α_i + β_j) where i may see j, divided by the root of how many i may see."""
    weights = torch.sigmoid(alpha[:, :, None] + beta[:, None, :])  # (b, n, n)
    n = scope.keys
    allowed = scope.all_keys().allowed(alpha.device)
    if allowed is None:
        return weights / math.sqrt(n)
    seen = allowed.expand(-1, -1, n, n).sum(-1)[:, 0, :, None].clamp(min=1).to(weights.dtype)
    return weights.masked_fill(~allowed[:, 0], 0.0) / seen.sqrt()


class RelativeForceAttention(ProjectedAttention):
    """Scores from forces and hops, see the module's docstring.

    Args:
        dot_product: add the usual q·k / √c. Without it there are no queries and keys, and a rotary has nothing to turn.
        epsilon: ε, keeps near tokens finite.
        options: see `ProjectedAttention`; one key-value head for each head.

    Example:
        >>> RelativeForceAttention(32, 4)(torch.randn(1, 7, 32)).shape
        torch.Size([1, 7, 32])
    """

    accepts_context = False

    def __init__(
        self, dims: int, heads: int, *, dot_product: bool = True, epsilon: float = 1e-3, **options: Any
    ) -> None:
        super().__init__(dims, heads, **options)
        if not dot_product and self.rotary is not None:
            raise ValueError("dot_product=False leaves no queries and keys for the rotary to turn; give rotary=None")
        if self.kv_heads != heads:
            raise ValueError(f"kv_heads {self.kv_heads} must equal heads {heads}: forces act between whole tokens")
        if epsilon <= 0:
            raise ValueError(f"epsilon {epsilon} must be positive: it is what keeps equal tokens finite")
        self.epsilon, self.dot_product = epsilon, dot_product
        if not dot_product:
            self.qkv = Linear(dims, dims, bias=self.qkv.bias is not None)  # values only
        self.emitter, self.receiver = Linear(dims, dims, bias=False), Linear(dims, dims, bias=False)
        self.alpha, self.beta = Linear(dims, 1), Linear(dims, 1, bias=False)
        self.masses = nn.Parameter(torch.randn(heads, dims) * dims**-0.5)
        self.log_length = nn.Parameter(torch.zeros(()))
        self.balance = nn.Parameter(torch.zeros(heads))
        self.hops = nn.Parameter(torch.zeros(heads, HOPS))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        for linear in (self.emitter, self.receiver, self.alpha, self.beta):
            linear.reset_parameters()
        nn.init.normal_(self.masses, std=self.dims**-0.5)
        for parameter in (self.log_length, self.balance, self.hops):
            nn.init.zeros_(parameter)

    def extra_stream_shapes(self) -> list[tuple[int, int]]:
        return [(1, self.dims), (1, 2)]

    def extra_streams(self, x: Tensor) -> tuple[Tensor, ...]:
        e, r = wide_linear(self.emitter, x), wide_linear(self.receiver, x)
        return r.unsqueeze(1), torch.cat([wide_linear(self.alpha, e), wide_linear(self.beta, r)], -1).unsqueeze(1)

    def force(self, x: Tensor, scope: AttentionScope) -> Tensor:
        """β F + (1 − β) T for the queries of x: (b, heads, queries, keys), at least float32."""
        e, r = wide_linear(self.emitter, x), scope.streams[0].squeeze(1)  # (b, s, d), (b, n, d)
        r = r.to(e.dtype)
        with full_precision(x.device):
            # Scalars go to the vectors before the matrices: their gradients are sums over s·d numbers, not over s².
            balance = share(self.balance)[:, None].to(e.dtype)
            masses = balance * self.masses.to(e.dtype)
            pull = (e @ masses.T).mT[..., :, None] - (r @ masses.T).mT[..., None, :]  # (b, h, s, n)
            d = distances(e, r)  # (b, s, n)
            length = bounded(self.log_length.to(e.dtype), *LOG_LENGTHS).exp()
            reach = (length * -math.sqrt(self.dims)).expand(*e.shape[:2], 1)
            falloff = torch.exp(d / reach) / (d + self.epsilon)
            alpha, beta = scope.streams[1].squeeze(1).to(e.dtype).unbind(-1)  # (b, n) each
            every = edges(alpha, beta, scope)  # (b, n, n)
            reached = [every[:, scope.keys - scope.queries :]]  # (b, s, n) each
            for _ in range(HOPS - 1):
                reached.append(reached[-1] @ every)
            hops = (1 - balance) * mixture(self.hops).to(e.dtype)
            return pull * falloff[:, None] + torch.einsum("hn,nbij->bhij", hops, torch.stack(reached))

    def attend(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, scope: AttentionScope) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        return masked_attention(q, k, v, scope, bias=self.force(x, scope), dropout=dropout)

    def project(self, x: Tensor, positions: Tensor | None, rows: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        if self.dot_product:
            return super().project(x, positions, rows)
        v = self.qkv(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        nothing = torch.zeros_like(v)
        return nothing, nothing, v
