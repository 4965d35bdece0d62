"""CoPE: attention that counts what it reads instead of tokens.

Golovneva et al. 2024, "Contextual Position Encoding", https://arxiv.org/abs/2405.18719: every score opens a gate
g_ij = σ(q_i·k_j / √c); the position of key j for query i is the sum of the gates from j up to i,
p_ij = Σ_{l = j … i} g_il, and the score gets q_i·e(p_ij), where e(p) interpolates between learned vectors
e_0 … e_{P−1}. Choices:

- q_i·e is computed for the P vectors and looked up at p, never e(p) itself.
- The scores are made for the gates, so softmax goes over them, and no fused kernel makes them again.
- Keys behind the query, padding and other documents have closed gates, so a document in a packed row counts alone.
- In eager code queries go in chunks that look no further than their own last key: half of every (s, s) step is saved.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cubelet.common.checks import check_at_least
from cubelet.models.kernels.switch import full_precision, use_fast_path

from .base import ProjectedAttention
from .masking import AttentionScope

CHUNK = 128  # queries


def contextual_positions(scores: Tensor, allowed: Tensor | None, most: int) -> Tensor:
    """p_ij = Σ_{l ≥ j} σ(scores_il) over allowed keys l, at most `most`: scores (b, h, q, k) → the same shape."""
    gates = scores.sigmoid()
    gates = gates if allowed is None else gates * allowed
    passed = gates.cumsum(-1)
    return (passed[..., -1:] - passed + gates).clamp(max=most)


def look_up(values: Tensor, positions: Tensor) -> Tensor:
    """values (b, h, q, P), linear between whole numbers, read at positions (b, h, q, k) in 0 … P − 1."""
    below = positions.detach().long()
    slopes = F.pad(values.diff(dim=-1), (0, 1))  # (b, h, q, P), the last 0
    return torch.addcmul(values.gather(-1, below), slopes.gather(-1, below), positions - below)


class CoPEAttention(ProjectedAttention):
    """softmax(q kᵀ / √c + q·e(p)) v, positions p counted by gates on the scores; see the module's docstring.

    Args:
        positions: P, the number of learned vectors; what lies further back shares the last one.
        options: see `ProjectedAttention`.

    Raises:
        ValueError: fewer than 2 positions.

    Example:
        >>> CoPEAttention(32, 4, positions=8)(torch.randn(1, 7, 32)).shape
        torch.Size([1, 7, 32])
    """

    accepts_context = False
    accepts_noncausal = False
    accepts_rows = True

    def __init__(self, dims: int, heads: int, *, positions: int = 64, **options: Any) -> None:
        super().__init__(dims, heads, **options)
        check_at_least("positions", positions, 2)
        self.vectors = nn.Parameter(torch.zeros(positions, self.head_dim))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.zeros_(self.vectors)

    def attend(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, scope: AttentionScope) -> Tensor:
        if not use_fast_path("cope_chunks") or scope.rows is not None or scope.queries <= CHUNK:
            return self.attend_chunk(q, k, v, scope)
        before, parts = scope.keys - scope.queries, []
        for start in range(0, scope.queries, CHUNK):
            stop = min(start + CHUNK, scope.queries)
            seen = before + stop
            mask, documents = (None if t is None else t[:, :seen] for t in (scope.key_mask, scope.key_documents))
            asked = None if scope.query_documents is None else scope.query_documents[:, start:stop]
            part = replace(
                scope,
                queries=stop - start,
                keys=seen,
                key_mask=mask,
                query_positions=None,
                key_positions=None,
                query_documents=asked,
                key_documents=documents,
            )
            parts.append(self.attend_chunk(q[:, :, start:stop], k[:, :, :seen], v[:, :, :seen], part))
        return torch.cat(parts, dim=2)  # (b, h, s, c)

    def attend_chunk(self, q: Tensor, k: Tensor, v: Tensor, scope: AttentionScope) -> Tensor:
        """`attend` over all keys of a scope: (b, h, s, c)."""
        wide, allowed = torch.promote_types(q.dtype, torch.float32), scope.allowed(q.device)  # (b or 1, 1, s, s_k)
        if self.kv_heads != self.heads:
            k, v = (t.repeat_interleave(self.heads // self.kv_heads, dim=1) for t in (k, v))  # (b, h, s_k, c)
        with full_precision(q.device):
            scores = q.to(wide) @ k.to(wide).mT * self.head_dim**-0.5  # (b, h, s, s_k)
            at = contextual_positions(scores, allowed, len(self.vectors) - 1)
            scores = scores + look_up(q.to(wide) @ self.vectors.to(wide).mT, at)
            if allowed is None:
                weights = scores.softmax(-1)
            else:  # rows that may attend nothing attend everything, and are zeroed afterwards: no NaN either way
                some = allowed.any(-1, keepdim=True)
                weights = scores.masked_fill(~(allowed | ~some), -torch.inf).softmax(-1) * some
        weights = F.dropout(weights, self.dropout, self.training)
        return weights.to(v.dtype) @ v
