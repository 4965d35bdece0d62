"""A local band and global attention side by side."""

from __future__ import annotations

from torch import nn

from .base import Attention, rotary_axes
from .joined import Join, JoinedAttention, own_rotary
from .local import BandAttention
from .multi_head import MultiHeadAttention


class HybridAttention(JoinedAttention):
    """local(x) + far(x): a sliding window and full attention, each with its own projections and rotary.

    The local branch costs O(s·window) and its cache holds window − 1 keys; the global branch costs what
    `MultiHeadAttention` costs. `window` and `set_window` are what a controller that follows the loss acts on.

    Args:
        dims, heads, causal, dropout: see `Attention`.
        rotary: copied for the second branch.
        window: keys that reach a query in the local branch: itself and the window − 1 before it (not causal:
            |distance| ≤ window).
        join: "sum" or "concat" (then a linear map).
        kv_heads, qk_norm: see `ProjectedAttention`; for both branches.
    """

    def __init__(
        self,
        dims: int,
        heads: int,
        *,
        rotary: nn.Module | None = None,
        causal: bool = True,
        dropout: float = 0.0,
        window: int = 256,
        join: Join = "sum",
        kv_heads: int | None = None,
        qk_norm: bool = False,
    ) -> None:
        super().__init__(dims, heads, causal=causal, dropout=dropout, join=join)
        shared = {"causal": causal, "dropout": dropout, "kv_heads": kv_heads, "qk_norm": qk_norm}
        far_rotary = own_rotary(rotary)
        self.axes = rotary_axes(rotary, self.head_dim)
        self.local = BandAttention(dims, heads, rotary=rotary, window=window, **shared)  # type: ignore[arg-type]
        self.far = MultiHeadAttention(dims, heads, rotary=far_rotary, **shared)  # type: ignore[arg-type]

    @property
    def window(self) -> int:
        """Keys that reach a query in the local branch."""
        return self.local.window

    def set_window(self, window: int) -> None:
        """Change the local window between steps (saved in the state_dict); ValueError below 1."""
        self.local.resize(window)

    def branches(self) -> list[Attention]:
        return [self.local, self.far]
