"""Near attention at several scales with learned spans, and gated attention to everything, joined by a linear map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cubelet.common.checks import check_at_least
from cubelet.models.cache import CacheGroup
from cubelet.models.rotary import Rotary

from .adaptive_span import AdaptiveSpanAttention
from .base import Attention, check_input
from .checks import rotary_axes
from .content_gated import ContentGatedAttention
from .masking import AttentionScope
from .parallel import ParallelAttention, copy_rotary
from .sliding_window import check_window
from .span_refiner import SpanRefiner


class MultiScaleSpanAttention(AdaptiveSpanAttention):
    """Adaptive spans in groups of heads, each group with a hard window and a largest span of its own.

    Args:
        scales: (window, span) per group: a head looks back at most `window` keys (itself included; not causal, `window`
            keys to each side), and softly as far as its learned part of `span`. Groups have heads / len(scales) heads.
        options: see `AdaptiveSpanAttention`; one key-value head for each head.

    Each group is computed at its own reach, so short scales cost little beside long ones.

    Example:
        >>> MultiScaleSpanAttention(32, 4, scales=((4, 3), (16, 12)), ramp=2)(torch.randn(1, 40, 32)).shape
        torch.Size([1, 40, 32])
    """

    def __init__(
        self,
        dims: int,
        heads: int,
        *,
        scales: Sequence[tuple[int, int]] = ((64, 48), (256, 224)),
        **options: Any,
    ) -> None:
        if not scales or heads % len(scales):
            raise ValueError(f"{len(scales)} scales do not divide heads {heads}; every scale gets as many heads")
        group = heads // len(scales)
        super().__init__(dims, heads, max_span=[int(span) for _, span in scales for _ in range(group)], **options)
        if self.kv_heads != heads:
            raise ValueError(f"kv_heads {self.kv_heads} must equal heads {heads}: each group of heads has its own keys")
        self.group, self.windows = group, [check_window(window) for window, _ in scales]
        self.reach = self.widest = min(self.widest, max(self.windows) + (not self.causal))

    def reaches(self) -> list[int]:
        """Distances that each group looks at, its query's own (0) included."""
        spans, own = self.max_spans[:: self.group], int(not self.causal)
        return [
            min(window + own, span + self.ramp, self.reach) for window, span in zip(self.windows, spans, strict=True)
        ]

    def attend(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, scope: AttentionScope) -> Tensor:
        self._check_reach(scope)
        bias = self.span_bias()
        groups = [t.split(self.group, dim=1) for t in (q, k, v)]
        outs = []
        for index, reach in enumerate(self.reaches()):
            qs, ks, vs = (parts[index] for parts in groups)
            near = scope
            if scope.queries != scope.keys:  # cached: only the keys that this group can see
                keep = min(scope.keys, scope.queries + reach - 1)
                first = scope.keys - keep
                mask, documents = (
                    None if rows is None else rows[:, first:] for rows in (scope.key_mask, scope.key_documents)
                )
                ks, vs = ks[:, :, first:], vs[:, :, first:]
                near = replace(scope, keys=keep, key_mask=mask, key_documents=documents)
            table = bias[index * self.group : (index + 1) * self.group, :reach]
            outs.append(self.attend_near(qs, ks, vs, near, reach, table))
        return torch.cat(outs, dim=1)


class IntegratedAttention(ParallelAttention):
    """Linear([local(x); far(x)]): multi-scale adaptive spans, and content-gated attention over everything.

    The local branch costs O(s · largest window). It may be refined a fixed number of times, y ← local(x + y), with the
    same weights; each pass has a cache of its own. `refine(loss)` lets a `SpanRefiner` choose the share of the spans
    that is in force (see its protocol).

    Args:
        rotary: copied for the second branch.
        causal, dropout: see `Attention`; for both branches.
        scales: (window, span) per group of local heads.
        ramp, initial_span, span_penalty: see `AdaptiveSpanAttention`.
        passes: how often the local branch runs, at least 1.
        gate_bias: see `ContentGatedAttention`.
        refiner: arguments for the `SpanRefiner`.
        qk_norm: in both branches.

    Example:
        >>> IntegratedAttention(32, 4, scales=((4, 3), (16, 12)), ramp=2)(torch.randn(1, 40, 32)).shape
        torch.Size([1, 40, 32])
    """

    def __init__(
        self,
        dims: int,
        heads: int,
        *,
        rotary: Rotary | None = None,
        causal: bool = True,
        dropout: float = 0.0,
        scales: Sequence[tuple[int, int]] = ((64, 48), (256, 224)),
        ramp: int = 32,
        initial_span: float = 0.5,
        span_penalty: float = 1e-3,
        passes: int = 1,
        gate_bias: float = 1.0,
        refiner: dict[str, Any] | None = None,
        qk_norm: bool = False,
    ) -> None:
        super().__init__(dims, heads, join="concat", causal=causal, dropout=dropout)
        check_at_least("passes", passes, 1)
        self.passes = passes
        far = copy_rotary(rotary)
        self.axes = rotary_axes(rotary, self.head_dim)
        shared: dict[str, Any] = {"causal": causal, "dropout": dropout, "qk_norm": qk_norm}
        self.local = MultiScaleSpanAttention(
            dims,
            heads,
            rotary=rotary,
            scales=scales,
            ramp=ramp,
            initial_span=initial_span,
            span_penalty=span_penalty,
            **shared,
        )
        self.far = ContentGatedAttention(dims, heads, rotary=far, gate_bias=gate_bias, **shared)
        self.refiner = SpanRefiner(**(refiner or {}))

    def refine(self, loss: float) -> float:
        """Between steps, in training: show the refiner the loss, put the span it chooses in force, and return that."""
        span = self.refiner.choose(loss)
        self.local.set_span(span)
        return span

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.refiner.reset_parameters()

    def branches(self) -> list[Attention]:
        return [self.local, self.far]

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        key_mask: Tensor | None = None,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        cache: Any = None,
    ) -> Tensor:
        check_input(x, self.dims, key_mask, documents, cache)
        if context is not None:
            self._check_context(x, context, key_mask, documents)
        parts = [None] * (self.passes + 1) if cache is None else cache.parts
        options = {"key_mask": key_mask, "positions": positions, "documents": documents}
        near = self.local(x, cache=parts[0], **options)
        for part in parts[1 : self.passes]:
            near = self.local(x + near, cache=part, **options)
        return self.join([near, self.far(x, cache=parts[-1], **options)])

    def new_cache(self, batch_size: int, max_length: int) -> CacheGroup:
        near = [self.local.new_cache(batch_size, max_length) for _ in range(self.passes)]
        return CacheGroup(*near, self.far.new_cache(batch_size, max_length))
