"""Attention to the near past only: linear in the sequence, with a cache that does not grow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..integer_buffers import IntegerBuffer
from .base import ProjectedAttention
from .masking import AttentionScope, windowed_attention


def check_window(window: int, name: str = "window") -> int:
    """The window as an int; ValueError below 1."""
    if isinstance(window, bool) or int(window) != window or window < 1:
        raise ValueError(f"{name} {window} must be a whole number ≥ 1: it counts the query itself")
    return int(window)


class SlidingWindowAttention(ProjectedAttention):
    """Softmax attention within a sliding window (as in Longformer, https://arxiv.org/abs/2004.05150): O(s·w).

    `window` and `set_window` are what a controller that follows the loss acts on.

    Args:
        window: keys that reach a query: itself and the window − 1 before it (not causal: |distance| ≤ window).
        relative_bias: learn a bias per head and distance, zero at the start; causal only. A window that grows past the
            one given here shares the bias of its farthest distance.
        options: see `ProjectedAttention`.

    Example:
        >>> attention = SlidingWindowAttention(32, 4, window=16)
        >>> attention.set_window(8)
        >>> attention(torch.randn(1, 40, 32)).shape
        torch.Size([1, 40, 32])
    """

    accepts_context = False
    is_local = True
    window_rows = IntegerBuffer()

    def __init__(
        self, dims: int, heads: int, *, window: int = 256, relative_bias: bool = False, **options: Any
    ) -> None:
        super().__init__(dims, heads, **options)
        if relative_bias and not self.causal:
            raise ValueError("relative_bias of a window counts distances back: it needs causal=True")
        self.initial_window = self.window = check_window(window)
        # The forward reads the Python number; the buffer is there to be saved with the weights.
        self.window_rows = torch.tensor(window)
        self.register_load_state_dict_post_hook(_read_window)
        self.relative_bias = nn.Parameter(torch.zeros(heads, window)) if relative_bias else None

    def set_window(self, window: int) -> None:
        """Change the window between steps (saved in the state_dict); ValueError below 1.

        A compiled graph is compiled anew, a running cache is refused.
        """
        self.window = check_window(window)
        if not self.window_rows.is_meta:
            self.window_rows = torch.tensor(self.window)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.set_window(self.initial_window)
        if self.relative_bias is not None:
            nn.init.zeros_(self.relative_bias)

    def train(self, mode: bool = True) -> SlidingWindowAttention:
        """As in torch; a copy whose buffers were averaged takes over the window that they say."""
        super().train(mode)
        rows = 0 if self.window_rows.is_meta else int(self.window_rows)
        self.window = rows if rows >= 1 else self.window  # memory behind `to_empty` says nothing yet
        return self

    def cache_window(self) -> int | None:
        return self.window if self.causal else None

    def attend(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, scope: AttentionScope) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        return windowed_attention(q, k, v, scope, self.window, bias=self.relative_bias, dropout=dropout)


def _read_window(module: nn.Module, _: Any) -> None:
    assert isinstance(module, SlidingWindowAttention)
    if not module.window_rows.is_meta:
        module.window = check_window(int(module.window_rows))


LocalAttention = SlidingWindowAttention
"""The name of `SlidingWindowAttention` in 0.1.0."""
