"""LieRERotary: rotations by learned generators that need not commute, for positions of several axes.

Ostmeier et al. 2024, "LieRE", https://arxiv.org/abs/2406.10322: the vector at position p (n,) is multiplied by
exp(Σ_a p_a·A_a), A_a learned and skew-symmetric, on blocks of features. Choices:

- Where generators do not commute (blocks above 2, axes above 1), exp(p)·exp(q)ᵀ is not exp(p − q): scores depend on
  both positions. `MixedRotary` is what remains where they do commute.
- The entry between features i and j is scaled by the geometric mean of their frequencies in RoPE, so that a block holds
  fast and slow rotations and the base has its meaning: a generator that joins only the pairs (2m, 2m + 1) is RoPE's.
- Rotations are formed in float64 and applied in float32: (s, c / block, block, block) of them, the same for all heads
  or, with `per_head`, for each its own.
"""

import torch
from torch import Tensor, nn

from ..kernels.skew_exp import skew_exp
from .base import Rotary, check_positions, wide_dtype


class LieRERotary(Rotary):
    """x_p · exp(Σ_a p_a·A_a), A_a learned. Arguments, shapes and errors as `Rotary`, and:

    Positions are (s, n) or (b, s, n), of one axis (s,) or (b, s), and may be floating.

    Args:
        axes: n, at least 1.
        block: features that one generator joins; divides c, 2 … c.
        per_head: generators of its own for every head; there must then be as many heads of keys as of queries.

    Raises:
        ValueError: axes below 1, or a block that does not divide head_dim.

    Example:
        >>> from cubelet.models.rotary import grid_positions
        >>> rotary = LieRERotary(dims=16, heads=2, axes=2, block=4)
        >>> rotary.rotate(torch.randn(1, 2, 12, 8), grid_positions(3, 4)).shape
        torch.Size([1, 2, 12, 8])
    """

    floating_positions = True
    table_varies = True
    is_pairwise = False

    def __init__(
        self, dims: int, heads: int, *, base: float = 100.0, axes: int = 2, block: int = 8, per_head: bool = False
    ) -> None:
        super().__init__(dims, heads, base=base)
        c = self.head_dim
        if axes < 1:
            raise ValueError(f"axes {axes} must be at least 1: the numbers that make up a position")
        if not 2 <= block <= c or c % block:
            raise ValueError(f"block {block} must divide head_dim {c} (dims {dims} / heads {heads}), and be at least 2")
        self.axes = self.position_axes = axes
        self.block, self.per_head = block, per_head
        self.is_relative = axes == 1 or block == 2
        self.generators = nn.Parameter(torch.empty(heads if per_head else 1, axes, c // block, block, block))
        LieRERotary.reset_parameters(self)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Normal entries (torch's generator), so that the fastest rotation is of about one radian per position."""
        super().reset_parameters()
        nn.init.normal_(self.generators, std=(2 * self.block) ** -0.5)

    def skew(self) -> Tensor:
        """A (heads or 1, axes, c/block, block, block) float64, skew-symmetric."""
        base = self.base.to(wide_dtype(self.base.device))
        m = torch.arange(self.head_dim, device=base.device) // 2  # the pair of each feature
        root = (base ** (m / -self.head_dim)).view(-1, self.block, 1)  # (c/block, block, 1), √θ of it
        raw = self.generators.to(base.dtype)
        return (raw - raw.mT) * root * root.mT

    def rotations(self, positions: Tensor) -> Tensor:
        """exp(Σ_a p_a·A_a) at positions (…, n): (…, heads or 1, c/block, block, block) float64."""
        A = self.skew()
        steps = positions.to(A.dtype)
        steps = steps[..., None] if self.axes == 1 else steps
        return skew_exp(torch.einsum("...a,haGij->...hGij", steps, A))

    def _cis(self, positions: Tensor, dtype: torch.dtype, inverse: bool = False) -> Tensor:
        return self.rotations(positions).to(dtype)

    def _default_positions(self, length: int, device: torch.device) -> Tensor:
        if self.axes > 1:
            raise ValueError(
                f"positions of {self.axes} axes have no default; pass (s, {self.axes}), e.g. grid_positions(…)"
            )
        return super()._default_positions(length, device)

    def apply_positions(self, x: Tensor, positions: Tensor | None = None, **options: object) -> Tensor:
        if x.ndim != 4 or x.shape[-1] != self.head_dim:
            raise ValueError(f"x has shape {tuple(x.shape)}; want 4 dimensions, the last of head_dim {self.head_dim}")
        if self.per_head and x.shape[1] != self.heads:
            raise ValueError(f"x has {x.shape[1]} heads; per_head generators need {self.heads}")
        if positions is None:
            positions = self._default_positions(x.shape[2], x.device)
        check_positions(positions, x.shape[0], x.shape[2], self.axes, floating=True)
        wide = torch.promote_types(x.dtype, torch.float32)
        table = self.table_at(positions, wide)  # ([b,] s, heads or 1, c/block, block, block)
        blocks = x.to(wide).unflatten(-1, (-1, self.block))  # (b, h, s, c/block, block)
        batch, head = "b" * (table.ndim == 6), "h" * self.per_head
        table = table if self.per_head else table.squeeze(-4)
        return torch.einsum(f"bhsGi,{batch}s{head}Gij->bhsGj", blocks, table).flatten(-2).to(x.dtype)  # (b, h, s, c)
