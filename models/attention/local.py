"""Attention to the near past only: linear in the sequence, with a cache that does not grow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .base import ProjectedAttention
from .view import View
from .windowed import check_window, see_window


class BandAttention(ProjectedAttention):
    """The branch that `LocalAttention` and `HybridAttention` share; `resize` changes its window.

    Args:
        window: keys that reach a query: itself and the window − 1 before it (not causal: |distance| ≤ window).
        relative_bias: learn a bias per head and distance, zero at the start; causal only. A window that grows past the
            one given here shares the bias of its farthest distance.
        others: see `ProjectedAttention`.
    """

    accepts_context = False
    is_local = True
    window_rows: Tensor

    def __init__(
        self,
        dims: int,
        heads: int,
        *,
        rotary: nn.Module | None = None,
        causal: bool = True,
        dropout: float = 0.0,
        window: int = 256,
        kv_heads: int | None = None,
        qk_norm: bool = False,
        bias: bool = False,
        relative_bias: bool = False,
    ) -> None:
        if relative_bias and not causal:
            raise ValueError("relative_bias of a window counts distances back: it needs causal=True")
        self.initial_window = self.window = check_window(window)
        super().__init__(
            dims, heads, rotary=rotary, causal=causal, dropout=dropout, kv_heads=kv_heads, qk_norm=qk_norm, bias=bias
        )
        # The forward reads the Python number; the buffer is there to be saved with the weights.
        self.register_buffer("window_rows", torch.tensor(window))
        self.register_load_state_dict_post_hook(_read_window)
        self.relative_bias = nn.Parameter(torch.zeros(heads, window)) if relative_bias else None

    def resize(self, window: int) -> None:
        """Change the window between steps; a compiled graph is compiled anew, a running cache is refused."""
        self.window = check_window(window)
        if not self.window_rows.is_meta:
            self.window_rows.fill_(self.window)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if "window_rows" in self._buffers:
            self.resize(self.initial_window)
        if self._parameters.get("relative_bias") is not None:
            nn.init.zeros_(self.relative_bias)  # type: ignore[arg-type]

    def cache_window(self) -> int | None:
        return self.window if self.causal else None

    def mix(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, view: View) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        return see_window(q, k, v, view, self.window, bias=self.relative_bias, dropout=dropout)


def _read_window(module: nn.Module, _: Any) -> None:
    assert isinstance(module, BandAttention)
    if not module.window_rows.is_meta:
        module.window = check_window(int(module.window_rows))


class LocalAttention(BandAttention):
    """Softmax attention within a sliding window (as in Longformer, https://arxiv.org/abs/2004.05150): O(s·w).

    `window` and `set_window` are what a controller that follows the loss acts on. Arguments: see `BandAttention`.
    """

    def set_window(self, window: int) -> None:
        """Change the window between steps (saved in the state_dict); ValueError below 1."""
        self.resize(window)
