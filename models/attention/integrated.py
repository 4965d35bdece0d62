"""Near attention at several scales with learned spans, and gated attention to everything, joined by a linear map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..cache import CacheGroup
from .adaptive_span import AdaptiveSpanAttention
from .base import Attention, rotary_axes
from .content_gated import ContentGatedAttention
from .joined import JoinedAttention, own_rotary
from .span_refiner import SpanRefiner
from .view import View
from .windowed import check_window, see_window


class MultiScaleSpanAttention(AdaptiveSpanAttention):
    """Adaptive spans in groups of heads, each group with a hard window and a largest span of its own.

    Args:
        scales: (window, span) per group: a head looks back at most `window` keys (itself included), and softly as far
            as its learned part of `span`. Groups have heads / len(scales) heads each.
        others: see `AdaptiveSpanAttention`.

    Each group is computed at its own reach, so short scales cost little beside long ones.
    """

    def __init__(
        self,
        dims: int,
        heads: int,
        *,
        rotary: nn.Module | None = None,
        causal: bool = True,
        dropout: float = 0.0,
        scales: Sequence[tuple[int, int]] = ((64, 48), (256, 224)),
        ramp: int = 32,
        initial_span: float = 0.5,
        span_penalty: float = 1e-3,
        qk_norm: bool = False,
    ) -> None:
        if not scales or heads % len(scales):
            raise ValueError(f"{len(scales)} scales do not divide heads {heads}; every scale gets as many heads")
        self.windows = [check_window(window) for window, _ in scales]
        self.group = heads // len(scales)
        spans = [int(span) for _, span in scales for _ in range(self.group)]
        super().__init__(
            dims,
            heads,
            rotary=rotary,
            causal=causal,
            dropout=dropout,
            max_span=spans,
            ramp=ramp,
            initial_span=initial_span,
            span_penalty=span_penalty,
            qk_norm=qk_norm,
        )
        self.reach = self.widest = min(self.reach, max(self.windows))

    def reaches(self) -> list[int]:
        """Keys that each group looks back, its query included."""
        spans = self.max_spans[:: self.group]
        return [min(window, span + self.ramp, self.reach) for window, span in zip(self.windows, spans, strict=True)]

    def mix(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, view: View) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        bias = self.span_bias()
        groups = [t.split(self.group, dim=1) for t in (q, k, v)]
        outs = []
        for index, reach in enumerate(self.reaches()):
            qs, ks, vs = (parts[index] for parts in groups)
            near = view
            if view.queries != view.keys:  # cached: only the keys that this group can see
                keep = min(view.keys, view.queries + reach - 1)
                mask = None if view.key_mask is None else view.key_mask[:, view.keys - keep :]
                ks, vs = ks[:, :, view.keys - keep :], vs[:, :, view.keys - keep :]
                near = replace(view, keys=keep, key_mask=mask)
            table = bias[index * self.group : (index + 1) * self.group, :reach]
            outs.append(see_window(qs, ks, vs, near, reach, bias=table, dropout=dropout))
        return torch.cat(outs, dim=1)


class IntegratedAttention(JoinedAttention):
    """Linear([local(x); far(x)]): multi-scale adaptive spans, and content-gated attention over everything.

    The local branch costs O(s · largest window). It may be refined a fixed number of times, y ← local(x + y), with the
    same weights; each pass has a cache of its own. `refine(loss)` lets a `SpanRefiner` choose the share of the spans
    that is in force (see its protocol).

    Args:
        dims, heads, rotary, dropout: see `Attention`; the rotary is copied for the second branch.
        causal: must be True.
        scales: (window, span) per group of local heads.
        ramp, initial_span, span_penalty: see `AdaptiveSpanAttention`.
        passes: how often the local branch runs, at least 1.
        gate_bias: see `ContentGatedAttention`.
        refiner: arguments for the `SpanRefiner`.
        qk_norm: in both branches.
    """

    accepts_noncausal = False

    def __init__(
        self,
        dims: int,
        heads: int,
        *,
        rotary: nn.Module | None = None,
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
        super().__init__(dims, heads, causal=causal, dropout=dropout, join="concat")
        if passes < 1:
            raise ValueError(f"passes {passes} must be at least 1")
        self.passes = passes
        far_rotary = own_rotary(rotary)
        self.axes = rotary_axes(rotary, self.head_dim)
        self.local = MultiScaleSpanAttention(
            dims,
            heads,
            rotary=rotary,
            dropout=dropout,
            scales=scales,
            ramp=ramp,
            initial_span=initial_span,
            span_penalty=span_penalty,
            qk_norm=qk_norm,
        )
        self.far = ContentGatedAttention(
            dims, heads, rotary=far_rotary, dropout=dropout, gate_bias=gate_bias, qk_norm=qk_norm
        )
        self.refiner = SpanRefiner(**(refiner or {}))

    def refine(self, loss: float) -> float:
        """Between steps, in training: show the refiner the loss, put the span it chooses in force, and return that."""
        span = self.refiner.choose(loss)
        self.local.set_span(span)
        return span

    def branches(self) -> list[Attention]:
        return [self.local, self.far]

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        key_mask: Tensor | None = None,
        positions: Tensor | None = None,
        cache: Any = None,
    ) -> Tensor:
        self._check_inputs(x, context, key_mask, positions, cache)
        parts = [None] * (self.passes + 1) if cache is None else cache.parts
        near = self.local(x, key_mask=key_mask, positions=positions, cache=parts[0])
        for part in parts[1 : self.passes]:
            near = self.local(x + near, key_mask=key_mask, positions=positions, cache=part)
        far = self.far(x, key_mask=key_mask, positions=positions, cache=parts[-1])
        return self.join([near, far])

    def new_cache(
        self,
        batch_size: int,
        max_length: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> CacheGroup:
        where = {"device": device, "dtype": dtype}
        near = [self.local.new_cache(batch_size, max_length, **where) for _ in range(self.passes)]  # type: ignore[arg-type]
        return CacheGroup(*near, self.far.new_cache(batch_size, max_length, device=device, dtype=dtype))
