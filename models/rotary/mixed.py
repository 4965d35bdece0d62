"""MixedRotary: positions of several axes, mixed by learned frequencies (RoPE-Mixed, STRING, ComRoPE).

- Heo et al. 2024 (https://arxiv.org/abs/2403.13298) rotate every pair of every head by the product of the position with
  a learned frequency vector of its own, instead of giving each axis pairs of its own: diagonals can be told apart.
- STRING (Schenck et al. 2025, https://arxiv.org/abs/2502.02562) and ComRoPE (Yu et al. 2025,
  https://arxiv.org/abs/2506.03737) ask for exp(Σ_a p_a·L_a) with skew-symmetric L_a that commute. All such families are
  rotations of pairs in one orthogonal basis, so both are a learned R in front of these frequencies: `matrix=True`.
"""

from typing import Any

import torch
from torch import Tensor, nn

from .base import Rotary, wide_dtype
from .rotation_matrix import cayley


class MixedRotary(Rotary):
    """Pair m of head h rotates by p·θ_hm, θ_hm (n,) learned. Arguments, shapes and errors as `Rotary`.

    Positions are (s, n) or (b, s, n), and may be floating. Scores depend on differences of positions alone.

    Args:
        axes: n, at least 1.
        matrix: a learned orthogonal R in front, the same for all heads: STRING, or ComRoPE with linear L_a.
        per_head: frequencies of its own for every head; there must then be as many heads of keys as of queries.

    Example:
        >>> from cubelet.models.rotary import grid_positions
        >>> rotary = MixedRotary(dims=16, heads=2, axes=2)
        >>> rotary.rotate(torch.randn(1, 2, 12, 8), grid_positions(3, 4)).shape
        torch.Size([1, 2, 12, 8])
    """

    floating_positions = True
    table_varies = True

    def __init__(
        self, dims: int, heads: int, *, base: float = 100.0, axes: int = 2, matrix: bool = False, per_head: bool = True
    ) -> None:
        super().__init__(dims, heads, base=base)
        if axes < 1:
            raise ValueError(f"axes {axes} must be at least 1: the numbers that make up a position")
        self.axes = self.position_axes = axes
        self.per_head, self.has_matrix, self.is_pairwise = per_head, matrix, not per_head
        c = self.head_dim
        self.directions = nn.Parameter(torch.empty(heads if per_head else 1, c // 2, axes))
        self.skew = nn.Parameter(torch.zeros(c, c)) if matrix else None
        MixedRotary.reset_parameters(self)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Directions uniform on the sphere (torch's generator), lengths 1 before the base's frequencies; R = I."""
        super().reset_parameters()
        nn.init.normal_(self.directions)
        self.directions /= self.directions.norm(dim=-1, keepdim=True)
        if self.skew is not None:
            nn.init.zeros_(self.skew)

    def frequencies(self, length: Tensor | None = None) -> Tensor:
        """θ (heads or 1, c/2, axes); of one axis and shared by the heads (c/2,), as others have it."""
        theta = self.frequency_vectors()
        return theta[0, :, 0] if self.axes == 1 and not self.per_head else theta

    def frequency_vectors(self) -> Tensor:
        """θ (heads or 1, c/2, axes) in radians per unit of position, float64: base^(−2m/c) times the directions."""
        base = self.base.to(wide_dtype(self.base.device))
        m = torch.arange(self.head_dim // 2, device=base.device, dtype=base.dtype)
        return base ** (m / -len(m))[:, None] * self.directions.to(base.dtype)

    def _polar(self, positions: Tensor, inverse: bool = False) -> tuple[Tensor | float, Tensor]:
        frequencies = self.frequency_vectors()
        steps = positions.to(frequencies.dtype)
        steps = steps[..., None] if self.axes == 1 else steps
        angles = steps[..., None, :, :] @ frequencies.mT  # ([b,] h, s, c/2)
        return 1.0, angles if self.per_head else angles.squeeze(-3)

    def apply_positions(self, x: Tensor, positions: Tensor | None = None, **options: Any) -> Tensor:
        if not self.per_head or x.ndim != 4 or x.shape[1] == self.heads:
            return super().apply_positions(x, positions, **options)
        if x.shape[1] % self.heads:
            raise ValueError(f"x has {x.shape[1]} heads; per_head frequencies need a multiple of {self.heads}")
        parts = x.split(self.heads, dim=1)  # queries and keys side by side, as attention passes them
        return torch.cat([Rotary.apply_positions(self, part, positions, **options) for part in parts], dim=1)

    def _default_positions(self, length: int, device: torch.device) -> Tensor:
        if self.axes > 1:
            raise ValueError(
                f"positions of {self.axes} axes have no default; pass (s, {self.axes}), e.g. grid_positions"
            )
        return super()._default_positions(length, device)

    def _compose(self) -> Tensor:
        assert self.skew is not None
        wide = wide_dtype(self.skew.device)
        eye = torch.eye(self.head_dim, device=self.skew.device, dtype=wide)
        return cayley(self.skew.to(wide), eye, eye).to(torch.promote_types(self.skew.dtype, torch.float32))
