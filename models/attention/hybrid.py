"""A sliding window and global attention side by side."""

from __future__ import annotations

from typing import Any

from cubelet.models.rotary import Rotary

from .base import Attention
from .checks import rotary_axes
from .multi_head import MultiHeadAttention
from .parallel import Join, ParallelAttention, copy_rotary
from .sliding_window import SlidingWindowAttention


class HybridAttention(ParallelAttention):
    """local(x) + far(x): a sliding window and full attention, each with its own projections and rotary.

    The local branch costs O(s·window) and its cache holds window − 1 keys; the global branch costs what
    `MultiHeadAttention` costs. `window` and `set_window` are what a controller that follows the loss acts on.

    Args:
        rotary: copied for the second branch.
        causal, dropout: see `Attention`; for both branches.
        window: of the local branch, see `SlidingWindowAttention`.
        join: "sum" or "concat" (then a linear map).
        kv_heads, qk_norm: see `ProjectedAttention`; for both branches.

    Example:
        >>> import torch
        >>> HybridAttention(32, 4, window=16, join="concat")(torch.randn(1, 40, 32)).shape
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
        window: int = 256,
        join: Join = "sum",
        kv_heads: int | None = None,
        qk_norm: bool = False,
    ) -> None:
        super().__init__(dims, heads, join=join, causal=causal, dropout=dropout)
        shared: dict[str, Any] = {"causal": causal, "dropout": dropout, "kv_heads": kv_heads, "qk_norm": qk_norm}
        self.axes = rotary_axes(rotary, self.head_dim)
        far = copy_rotary(rotary)
        self.local = SlidingWindowAttention(dims, heads, rotary=rotary, window=window, **shared)
        self.far = MultiHeadAttention(dims, heads, rotary=far, **shared)

    @property
    def window(self) -> int:
        """Keys that reach a query in the local branch."""
        return self.local.window

    def set_window(self, window: int) -> None:
        """Change the local window between steps (saved in the state_dict); ValueError below 1."""
        self.local.set_window(window)

    def branches(self) -> list[Attention]:
        return [self.local, self.far]
