"""Keys and values that are only renewed where the content asks for it.

A gate u_t in {0, 1} decides per token whether its key and value are taken or the last taken ones are held:
k'_t = u_t k_t + (1 − u_t) k'_{t−1}, and so for v; the first token of a document is always taken. Choices:

- In parallel: the index of the last taken token is a running maximum, and k' a gather. No loop, causal, cacheable: a
  held key is one row of the cache, however many tokens it is held for (`held_cache.py`), and a decoding step at which
  nothing is taken projects queries alone.
- A held key keeps the rotation of its own position: distances stay true.
- The gate is σ(x w + b) > ½ forward and σ backward (straight-through, https://arxiv.org/abs/1308.3432). Its gradient is
  that of the recurrence, exactly: what a gate changes at its own token stays until the next taken one, so it is a
  running sum that restarts there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cubelet.models.cache import LayerCache
from cubelet.models.kernels.routing import can_read_values, may_skip_rows
from cubelet.models.kernels.sdpa import sdpa_zero_empty
from cubelet.models.linear import Linear, wide_linear

from .base import ProjectedAttention
from .held_cache import HeldCache
from .masking import AttentionScope, count_in_document, masked_attention
from .projections import project_queries


class _ZeroWithSlope(torch.autograd.Function):
    """Zeros shaped like p that have the gradient of p: u = hard + this is the straight-through gate."""

    @staticmethod
    def forward(ctx, p: Tensor) -> Tensor:
        return torch.zeros_like(p)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> Tensor:
        return grads[0]


def last_taken(taken: Tensor) -> Tensor:
    """taken (b, s) bool → (b, s) int64: index of the last taken token ≤ t, −1 before the first."""
    rows = torch.arange(taken.shape[1], device=taken.device)
    return torch.where(taken, rows, -1).cummax(dim=1).values


def hold_last(
    rows: Tensor, taken: Tensor, slope: Tensor | None, before: Tensor, starts: Tensor | None = None
) -> Tensor:
    """rows'_t = rows_t where taken, else rows'_{t−1}; `before` stands at −1.

    Args:
        rows: (b, h, s, c). taken: (b, s) bool. before: (b, h, 1, c).
        slope: (b, s) zeros that carry the gates' gradient, or None.
        starts: (b, s) bool, tokens that begin a document, before which nothing is held; all of them taken.
    """
    if slope is None and rows.shape[2] == 1:
        return torch.where(taken[:, None, :, None], rows, before)
    index = (last_taken(taken) + 1)[:, None, :, None].expand(-1, rows.shape[1], -1, rows.shape[3])
    source = torch.cat([before, rows], dim=2)  # (b, h, 1 + s, c)
    held = source.gather(2, index)
    if slope is None:
        return held
    # d rows'_t / d u_t = rows_t − rows'_{t−1}, which lasts while held: a sum since the last taken token, it included.
    previous = torch.cat([before, held[:, :, :-1]], dim=2)
    if starts is not None:
        previous = previous.masked_fill(starts[:, None, :, None], 0.0)
    gains = torch.cat([torch.zeros_like(before), (slope[:, None, :, None] * (rows - previous)).cumsum(2)], dim=2)
    since = (index - 1).clamp(min=0)
    return held + gains[:, :, 1:] - gains.gather(2, since)


class ContentGatedAttention(ProjectedAttention):
    """Softmax attention over keys and values that are held until the gate takes new ones.

    Args:
        gate_bias: b at the start; positive: most tokens are taken.
        options: see `ProjectedAttention`.

    Example:
        >>> attention = ContentGatedAttention(32, 4, gate_bias=0.0)
        >>> attention.gates(torch.zeros(1, 3, 32))
        tensor([[0.5000, 0.5000, 0.5000]], grad_fn=<SigmoidBackward0>)
    """

    accepts_context = False
    accepts_rows = True

    def __init__(self, dims: int, heads: int, *, gate_bias: float = 1.0, **options: Any) -> None:
        super().__init__(dims, heads, **options)
        self.gate = Linear(dims, 1, bias_value=gate_bias)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.gate.reset_parameters()

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        cache: Any = None,
        **options: Any,
    ) -> Tensor:
        """As `ProjectedAttention.forward`."""
        if context is None and self._is_step(x, cache, options):
            taken = sum(gate > 0.5 for gate in self.gates(x).flatten().tolist())
            if taken in (0, x.shape[0]):
                return self._step(x, positions, cache, taken > 0)
        return super().forward(x, context, positions=positions, cache=cache, **options)

    def _is_step(self, x: Tensor, cache: Any, options: dict[str, Any]) -> bool:
        """Whether x is one token for each row of a cache, behind one that is held, and nothing else is told."""
        if not isinstance(cache, HeldCache) or not cache.is_begun or cache.has_documents or not may_skip_rows():
            return False
        return x.shape == (cache.batch_size, 1, self.dims) and all(value is None for value in options.values())

    def _step(self, x: Tensor, positions: Tensor | None, cache: HeldCache, is_taken: bool) -> Tensor:
        """One token a row, (b, 1, d), whose keys and values all rows take, or none: then they are not made."""
        positions = self._next_positions(x, positions, cache)
        if is_taken:
            q, *kv = self.project(x, positions)  # (b, h, 1, c), (b, g, 1, c), (b, g, 1, c)
        else:
            q, kv = project_queries(self, x, positions), ()
        k, v, bias = cache.step(positions, *kv)
        if k.dtype is not q.dtype:
            k, v = k.to(q.dtype), v.to(q.dtype)
        heads = sdpa_zero_empty(q, k, v, bias=bias)  # (b, h, 1, c)
        return self.out(heads.transpose(1, 2).flatten(2))  # (b, 1, d)

    def gates(self, x: Tensor) -> Tensor:
        """σ(x w + b), (b, s) float32: a token is taken above ½. For monitoring, too."""
        return torch.sigmoid(wide_linear(self.gate, x).squeeze(-1))

    def update_kv(
        self, x: Tensor, k: Tensor, v: Tensor, scope: AttentionScope, cache: LayerCache | None
    ) -> tuple[Tensor, Tensor]:
        gates, real = self.gates(x), scope.key_mask  # (b, s) each
        taken = gates > 0.5
        if real is not None:
            real = real[:, real.shape[1] - x.shape[1] :]
            taken, gates = taken & real, gates * real
        starts = self._starts(x, real, scope.key_documents, cache)
        taken = taken | starts
        scope.taken = taken
        slope = _ZeroWithSlope.apply(gates) if torch.is_grad_enabled() else None
        new = None if scope.key_documents is None else starts
        held = []
        for index, rows in enumerate((k, v)):
            gate_slope = None if slope is None else slope.to(rows.dtype)
            held.append(hold_last(rows, taken, gate_slope, self._before(rows, index, cache), new))
        return held[0], held[1]

    @staticmethod
    def _starts(x: Tensor, real: Tensor | None, documents: Tensor | None, cache: LayerCache | None) -> Tensor:
        """(b or 1, s) bool: the first real token of every document."""
        real = torch.ones_like(x[..., 0], dtype=torch.bool) if real is None else real  # (b, s)
        numbers = torch.zeros_like(real, dtype=torch.long) if documents is None else documents
        first = real & (count_in_document(real, documents) == 1)
        if cache is None or not cache.length:
            return first
        held = torch.ones(x.shape[0], 1, dtype=torch.bool, device=x.device)
        if cache.valid is not None:
            held = cache.valid.any(1, keepdim=True)
        if cache.documents is not None and documents is not None:  # what is held goes on where its document does
            same = cache.documents == documents[:, :1]
            held = (same if cache.valid is None else same & cache.valid).any(1, keepdim=True)
        return first & ~(held & (numbers == numbers[:, :1]))

    @staticmethod
    def _before(rows: Tensor, index: int, cache: LayerCache | None) -> Tensor:
        """What was held last: (b, h, 1, c)."""
        if cache is None or not cache.length:
            return torch.zeros_like(rows[:, :, :1])
        if isinstance(cache, HeldCache):
            return cache.held(index).to(rows.dtype)
        return cache.streams[index][:, :, cache.length - 1 : cache.length].to(rows.dtype)

    def new_cache(self, batch_size: int, max_length: int) -> LayerCache:
        if not can_read_values(self.qkv.weight):  # how many tokens were taken is read at every step
            return super().new_cache(batch_size, max_length)
        weight, shapes = self.qkv.weight, [(self.kv_heads, self.head_dim)] * 2
        return HeldCache(batch_size, max_length, shapes, device=weight.device, dtype=weight.dtype)

    def _remember(self, k: Tensor, v: Tensor, scope: AttentionScope, cache: LayerCache) -> tuple[Tensor, Tensor]:
        if not isinstance(cache, HeldCache) or scope.taken is None:
            return super()._remember(k, v, scope, cache)
        return cache.read(k, v, scope.taken, scope)

    def attend(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, scope: AttentionScope) -> Tensor:
        return masked_attention(q, k, v, scope, dropout=self.dropout if self.training else 0.0)
