"""Adaptive attention span: every head learns how far back it looks.

Sukhbaatar et al. 2019, https://arxiv.org/abs/1905.07799.

A key at distance δ gets log m(δ) added to its score, m(δ) = clamp((R + z − δ)/R, 0, 1), where z = span · max_span ·
clamp(span_scale, 0, 1) is the head's span and R the width of the ramp on which m falls to 0. Choices:

- m is a bias per head and distance, so the sliding-window kernel does the work: O(s·(max_span + ramp)), no (s, s)
  scores. Not causal, the span reaches both ways.
- The clamp lets gradients pass: a span that an optimizer step pushed past 0 or 1 can return (models/bounded.py).
- `span`, one number for all heads, is a buffer: a controller or a refiner writes it in place between steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from cubelet.models.bounded import bounded
from cubelet.models.kernels.routing import can_read_values

from .base import ProjectedAttention
from .masking import AttentionScope, windowed_attention
from .sliding_window import check_window


class AdaptiveSpanAttention(ProjectedAttention):
    """Softmax attention in which each head has a learned, soft span, back and, not causal, ahead.

    Args:
        max_span: largest span in tokens; or one per head (several scales: heads that may look far beside heads that
            may not).
        ramp: R, width in tokens of the soft edge.
        initial_span: where the learned scales start, 0 … 1.
        temperature_slope: τ; a head's scores are divided by 1 − τ·z/max_span, so that wide heads can be sharper.
        span_penalty: weight of the mean span (as a share of max_span) in `penalty()`.
        options: see `ProjectedAttention`.

    Example:
        >>> attention = AdaptiveSpanAttention(32, 4, max_span=16, ramp=4)
        >>> attention(torch.randn(1, 40, 32)).shape, attention.trim()
        (torch.Size([1, 40, 32]), 12)
    """

    accepts_context = False
    is_local = True
    span: Tensor

    def __init__(
        self,
        dims: int,
        heads: int,
        *,
        max_span: int | Sequence[int] = 256,
        ramp: int = 32,
        initial_span: float = 0.5,
        temperature_slope: float = 0.0,
        span_penalty: float = 1e-3,
        **options: Any,
    ) -> None:
        super().__init__(dims, heads, **options)
        spans = [max_span] * heads if isinstance(max_span, int) else list(max_span)
        if len(spans) != heads:
            raise ValueError(f"max_span names {len(spans)} spans for heads {heads}; give one number, or one per head")
        self.max_spans = [check_window(span, "max_span") for span in spans]
        self.ramp = check_window(ramp, "ramp")
        if not 0.0 <= initial_span <= 1.0:
            raise ValueError(f"initial_span {initial_span} is a share of max_span: 0 … 1")
        if not 0.0 <= temperature_slope < 1.0:
            raise ValueError(f"temperature_slope {temperature_slope} must be at least 0 and below 1")
        if span_penalty < 0:
            raise ValueError(f"span_penalty {span_penalty} is negative: it would reward long spans")
        self.initial_span, self.temperature_slope = initial_span, temperature_slope
        self.span_penalty = span_penalty
        self.reach = self.widest = max(self.max_spans) + self.ramp  # distances with m > 0 are below it
        self.span_scale = nn.Parameter(torch.full((heads,), float(initial_span)))
        self.register_buffer("span", torch.ones(()))
        self.register_load_state_dict_post_hook(_after_load)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.constant_(self.span_scale, self.initial_span)
        nn.init.ones_(self.span)

    def set_span(self, span: float | Tensor) -> None:
        """Scale all spans by `span`, 0 … 1, in place, between steps (saved in the state_dict).

        What is computed shrinks with it: in evaluation to the spans, in training to a half, quarter or eighth of the
        largest distance (so a compiled graph has at most four forms), since no span can grow beyond `span`.
        """
        if isinstance(span, Tensor) and span.device.type != "cpu":
            self.span.copy_(span)  # no read-back from the accelerator, so nothing can shrink
            self.reach = self.widest
            return
        value = float(span)
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"span {value} is a share of max_span: 0 … 1")
        self.span.fill_(value)
        self._fit_reach()

    def shares(self) -> Tensor:
        """Each head's span as a share of its max_span: (heads,)."""
        return bounded(self.span_scale) * self.span

    def head_spans(self) -> Tensor:
        """z, each head's span in tokens: (heads,)."""
        shares = self.shares()
        return shares * torch.tensor(self.max_spans, dtype=shares.dtype, device=shares.device)

    def train(self, mode: bool = True) -> Self:
        """As in torch. Evaluation looks no further than today's spans; training as far as they may grow."""
        super().train(mode)
        self._fit_reach()
        return self

    def _fit_reach(self) -> None:
        if self.span_scale.is_meta:
            self.reach = self.widest
        elif self.training:
            most = math.ceil(float(self.span) * max(self.max_spans)) + self.ramp
            self.reach = next(reach for n in (8, 4, 2, 1) if (reach := -(-self.widest // n)) >= min(most, self.widest))
        else:
            self.trim()

    def trim(self, slack: int = 0) -> int:
        """Compute no further than the largest span of today, plus `slack` tokens; returns the distances looked at.

        `eval()`, `set_span` and loading do so by themselves. In training call it now and then with a slack that the
        spans will not outgrow before the next call. Caches made before are refused. `trim(slack=max_span)` undoes it.
        """
        widest = math.ceil(float(self.head_spans().detach().max())) + self.ramp
        self.reach = max(1, min(widest + slack, self.widest))
        return self.reach

    def span_bias(self) -> Tensor:
        """log m(δ) per head for δ = 0 … reach − 1, −inf where m is 0: (heads, reach)."""
        spans = self.head_spans()
        distance = torch.arange(self.reach, device=spans.device, dtype=spans.dtype)
        m = ((self.ramp + spans[:, None] - distance) / self.ramp).clamp(max=1.0)
        inside = m > 0
        return torch.where(inside, m.masked_fill(~inside, 1.0).log(), -torch.inf)

    def penalty(self) -> Tensor:
        return super().penalty() + self.span_penalty * self.shares().mean()

    def cache_window(self) -> int | None:
        return self.reach if self.causal else None

    def attend(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, scope: AttentionScope) -> Tensor:
        if self.temperature_slope:
            temperature = 1.0 - self.temperature_slope * self.shares()
            q = q / temperature[:, None, None].to(q.dtype)
        self._check_reach(scope)
        return self.attend_near(q, k, v, scope, self.reach, self.span_bias())

    def _check_reach(self, scope: AttentionScope) -> None:
        """Notice spans that grew since they were read, as averaged weights may after `eval()`."""
        if self.training or self.reach == self.widest or not can_read_values(self.span_scale):
            return
        before = self.reach
        if self.trim() > before and scope.queries != scope.keys:
            raise RuntimeError(
                f"spans grew from {before} to {self.reach} tokens since the cache was made: make a new one"
            )

    def attend_near(self, q: Tensor, k: Tensor, v: Tensor, scope: AttentionScope, reach: int, bias: Tensor) -> Tensor:
        """Attend to distances below `reach`, with a bias (heads, reach) by distance."""
        window = reach if scope.causal else reach - 1  # not causal, a window leaves the query itself out
        dropout = self.dropout if self.training else 0.0
        return windowed_attention(q, k, v, scope, window, bias=bias, dropout=dropout)


def _after_load(module: nn.Module, _: Any) -> None:
    assert isinstance(module, AdaptiveSpanAttention)
    module._fit_reach()
