"""ProjectedRotary: rotate inside a few learned dimensions of every head and leave the rest alone.

The idea is from the research notes of sine2pi; theirs projects down, rotates and projects back, which keeps a tenth of
the vector. Here y = x + (z·R_p − z)·W with z = x·Wᵀ and orthonormal rows W (r × c): orthogonal on the whole, the
identity on the complement of W's rows.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ..kernels.switch import full_precision
from .base import Rotary, wide_dtype
from .rotation_matrix import cayley, frames, right_multiply


class ProjectedRotary(Rotary):
    """Rotation in `rank` learned dimensions. Arguments, shapes and errors as `Rotary`; scores are relative.

    W is the first r rows of cayley(·) · anchor, orthonormal for ever. Its rows form groups of three, each turned by p·ω
    about a learned axis u. What lies along the axis does not change, so only the plane across u is computed: at
    attention level this is RoPE on 2·r/3 learned dimensions, less than plain RoPE can express.
    Frequencies are ω_g = base^(−(g + ½)/G) for the G = r // 3 groups, so that a single group depends on the base too.

    Args:
        rank: r, a multiple of 3 and at most head_dim. The notes' is 3.

    Raises:
        ValueError: rank not a multiple of 3, or above head_dim.

    Example:
        >>> x = torch.randn(1, 2, 5, 8)
        >>> y = ProjectedRotary(dims=16, heads=2, rank=3).rotate(x)
        >>> (torch.linalg.svdvals((y - x)[0, 0]) > 1e-4).sum().item()  # a plane of the eight dimensions moves
        2
    """

    needs_even = False
    is_pairwise = False
    anchor: Tensor

    def __init__(self, dims: int, heads: int, *, base: float = 10_000.0, rank: int = 3) -> None:
        super().__init__(dims, heads, base=base)
        c = self.head_dim
        if rank < 3 or rank % 3 or rank > c:
            raise ValueError(f"rank {rank} must be a multiple of 3, at most head_dim {c} (dims {dims} / heads {heads})")
        self.rank = rank
        self.register_buffer("anchor", torch.empty(c, c))
        self.skew = nn.Parameter(torch.empty(rank, c))
        self.axes = nn.Parameter(torch.empty(rank // 3, 3))
        ProjectedRotary.reset_parameters(self)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """W the first rows of a random orthogonal matrix, axes uniform on the sphere (from torch's generator)."""
        super().reset_parameters()
        nn.init.orthogonal_(self.anchor)
        nn.init.zeros_(self.skew)
        nn.init.normal_(self.axes)

    def frequencies(self, length: Tensor | None = None) -> Tensor:
        """ω of every group, (rank // 3,) float64."""
        base = self.base.to(wide_dtype(self.base.device))
        groups = self.rank // 3
        return base ** ((torch.arange(groups, device=base.device, dtype=base.dtype) + 0.5) / -groups)

    def projection(self) -> Tensor:
        """W (rank, c), orthonormal rows, differentiable, in float64 (float32 on mps)."""
        wide = wide_dtype(self.skew.device)
        eye = torch.eye(self.head_dim, device=self.skew.device, dtype=wide)
        A = nn.functional.pad(self.skew.to(wide), (0, 0, 0, self.head_dim - self.rank))
        return cayley(A, eye, eye)[: self.rank] @ self.anchor.to(wide)

    def planes(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Orthonormal rows (2·rank/3, c), two for each plane that turns; of at least this dtype."""
        with full_precision(self.skew.device):
            W = self.projection().view(-1, 3, self.head_dim)
            planes = (frames(self.axes.to(W.dtype))[:, :2] @ W).flatten(0, 1)
            # The anchor is stored in float32; one Newton-Schulz step makes the rows orthonormal to float64.
            planes = 1.5 * planes - 0.5 * planes @ planes.mT @ planes
        return planes.to(torch.promote_types(dtype, self.skew.dtype))

    def apply_positions(self, x: Tensor, positions: Tensor | None = None, **options: Any) -> Tensor:
        if x.ndim != 4 or x.shape[-1] != self.head_dim:
            raise ValueError(f"x has shape {tuple(x.shape)}; want 4 dimensions, the last of head_dim {self.head_dim}")
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        planes = self.planes(wide.dtype)
        z = right_multiply(wide, planes.mT)  # (b, h, s, 2·rank/3)
        return (wide + right_multiply(super().apply_positions(z, positions, width=z.shape[-1]) - z, planes)).to(x.dtype)
