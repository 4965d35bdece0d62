"""Multi-head attention on torch's scaled dot-product attention: the baseline of the family.

Options are those that cost nothing when off: grouped-query heads, gain-free qk-norm, a learned bias per distance and
head (Shaw et al. 2018, https://arxiv.org/abs/1803.02155, in the scalar form of T5), a learned scale of positions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..kernels.rotate_pairs import rotate_real
from ..rotary import CombinedRotary, RoPE
from .base import ProjectedAttention
from .view import View, see


class RelativeBias(nn.Module):
    """A learned number per distance and head, zero at the start.

    Args:
        max_distance: D; distances are clamped to −(D−1) … D−1.
        heads: number of heads.
    """

    def __init__(self, max_distance: int, heads: int) -> None:
        super().__init__()
        if max_distance < 1:
            raise ValueError(f"relative_bias {max_distance} must be at least 1: the number of distances told apart")
        self.max_distance = max_distance
        self.table = nn.Parameter(torch.zeros(2 * max_distance - 1, heads))

    def forward(self, distances: Tensor) -> Tensor:
        """Distances (q, k) or (b, q, k), query − key → bias (b or 1, heads, q, k)."""
        reach = self.max_distance - 1
        bias = self.table[distances.clamp(-reach, reach) + reach]
        bias = bias if distances.ndim == 3 else bias[None]
        return bias.movedim(-1, 1)


class MultiHeadAttention(ProjectedAttention):
    """softmax(q kᵀ / √c + bias) v per head, concatenated and projected (https://arxiv.org/abs/1706.03762).

    Args:
        relative_bias: tell apart this many distances by a learned bias; None: no bias.
        positional_scaling: learn a factor of the positions that the rotary sees, 1 at the start.
        others: see `ProjectedAttention`.
    """

    def __init__(
        self,
        dims: int,
        heads: int,
        *,
        rotary: nn.Module | None = None,
        causal: bool = True,
        dropout: float = 0.0,
        kv_heads: int | None = None,
        qk_norm: bool = False,
        bias: bool = False,
        relative_bias: int | None = None,
        positional_scaling: bool = False,
    ) -> None:
        super().__init__(
            dims, heads, rotary=rotary, causal=causal, dropout=dropout, kv_heads=kv_heads, qk_norm=qk_norm, bias=bias
        )
        self.relative_bias = None if relative_bias is None else RelativeBias(relative_bias, heads)
        if positional_scaling and not isinstance(rotary, RoPE | CombinedRotary):
            raise ValueError(
                "positional_scaling scales the positions of a RoPE or CombinedRotary; the rotary is "
                f"{type(rotary).__name__}"
            )
        self.position_scale = nn.Parameter(torch.ones(())) if positional_scaling else None

    def reset_parameters(self) -> None:
        super().reset_parameters()
        scale = getattr(self, "position_scale", None)  # not there yet when the base class calls this
        if scale is not None:
            nn.init.ones_(scale)

    def turn(self, qk: Tensor, positions: Tensor | None) -> Tensor:
        """The rotary's turn by p, then one by (scale − 1)·p in the same planes: together by scale·p.

        Positions stay integers for the rotary, so its tables can be kept, and the gradient of the scale is exact.
        """
        turned = super().turn(qk, positions)
        if self.position_scale is None or self.rotary is None:
            return turned
        if positions is None:
            positions = torch.arange(qk.shape[2], device=qk.device)
        frequencies = self.rotary.frequencies()  # type: ignore[operator]
        rest = positions[..., None] * ((self.position_scale.to(frequencies.dtype) - 1) * frequencies)
        rest = rest if rest.ndim == 2 else rest[:, None]
        wide = torch.promote_types(turned.dtype, torch.float32)
        return rotate_real(turned, rest.cos().to(wide), rest.sin().to(wide))

    def mix(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, view: View) -> Tensor:
        bias = None
        if self.relative_bias is not None:
            if view.context:
                raise ValueError("relative_bias has no meaning for a context: its keys have no distance to the queries")
            bias = self.relative_bias(view.distances(x.device))
        return see(q, k, v, view, bias=bias, dropout=self.dropout if self.training else 0.0)
