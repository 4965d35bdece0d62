"""QuaternionRotary: groups of three features turned about learned axes, or of four by a left and a right quaternion.

The idea is from the research notes of sine2pi; theirs does not depend on the position and is no rotation. Here, for a
group of three, x ← x + sin φ·(u × x) + (1 − cos φ)·u × (u × x) with φ = p·ω·direction (Rodrigues), which is q x q̄ for
the unit quaternion q = (cos φ/2, u sin φ/2); for a group of four, x ← l x r with l = exp(φ_l·u), r = exp(φ_r·v).

Choice: the axis is the same for all positions, so in a frame that holds the axis the rotation is one of pairs: x·F, the
pairs turned as in RoPE, ·Fᵀ. That makes it a true rotation by construction (F is orthogonal to rounding), relative
(turns of one plane add up), and as fast as RoPE where Fᵀ is left out: in q·k it cancels, and F folds into projections.
"""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from ..bounded import direction
from ..kernels.switch import full_precision
from .base import Rotary, wide_dtype
from .rotation_matrix import frames, right_multiply


class QuaternionRotary(Rotary):
    """Rotations in three or four dimensions about learned axes. Shapes and errors as `Rotary`; scores are relative.

    What it can express beyond RoPE: at attention level F is absorbed by the projections, so only the learned directions
    (frequencies) and the untouched axes of groups of three are new.

    Args:
        group: 3 (c // 3 groups, a tail of c mod 3 features is untouched; c may be odd) or 4 (c a multiple of 4).
        direction: learn a factor 2σ(·) − 1 in (−1, 1) of every frequency, which starts at 0.76; False fixes it to 1.
        stay_in_frame: at attention level leave out ·Fᵀ. Scores are the same, the cost is RoPE's once F is folded; the
            rotated vectors themselves are then in the frame's coordinates. The embedding level always returns.

    Frequencies are ω_g = base^(−g/G) for the G = c // 3 groups of three, base^(−2m/c) for the c/2 quaternions of groups
    of four (left and right of group g: m = 2g and 2g + 1).

    Raises:
        ValueError: group not 3 or 4, head_dim smaller than a group, or no multiple of 4 for groups of four.

    Example:
        >>> x = torch.randn(1, 2, 5, 8)
        >>> y = QuaternionRotary(dims=16, heads=2, group=4).rotate(x)
        >>> torch.allclose(x.norm(dim=-1), y.norm(dim=-1), atol=1e-5)
        True
    """

    needs_even = False
    has_matrix = True

    def __init__(
        self,
        dims: int,
        heads: int,
        *,
        base: float = 10_000.0,
        group: int = 3,
        direction: bool = True,
        stay_in_frame: bool = False,
    ) -> None:
        super().__init__(dims, heads, base=base)
        c = self.head_dim
        if group not in (3, 4):
            raise ValueError(f"group {group} is neither 3 (axis and angle) nor 4 (left and right quaternions)")
        if c < group or (group == 4 and c % 4):
            need = "at least 3" if group == 3 else "a multiple of 4"
            raise ValueError(f"head_dim {c} must be {need} for groups of {group} (dims {dims} / heads {heads})")
        self.group, self.groups, self.stay_in_frame = group, c // group, stay_in_frame
        sides = group - 2  # one axis for a group of three, a left and a right one for a group of four
        self.axes = nn.Parameter(torch.empty(sides, self.groups, 3))
        self.direction = nn.Parameter(torch.empty(sides, self.groups)) if direction else None
        self.table_varies = direction
        self._span = (0, 2 * self.groups) if c % 2 else None
        QuaternionRotary.reset_parameters(self)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Axes uniform on the sphere (from torch's generator), directions 0.76."""
        super().reset_parameters()
        nn.init.normal_(self.axes)
        if self.direction is not None:
            nn.init.constant_(self.direction, 2.0)

    def speeds(self) -> Tensor:
        """ω·direction of every quaternion in radians per position: (sides, G) float64."""
        base = self.base.to(wide_dtype(self.base.device))
        sides, groups = self.group - 2, self.groups
        m = torch.arange(sides * groups, device=base.device, dtype=base.dtype)
        speeds = rearrange(base ** (m / -(sides * groups)), "(g side) -> side g", side=sides)
        if self.direction is not None:
            speeds = speeds * direction(self.direction.to(speeds.dtype))
        return speeds

    def frequencies(self, length: Tensor | None = None) -> Tensor:
        """Of every pair in the frame; zeros for axes and tail where they fill whole pairs."""
        speeds = self.speeds()
        if self.group == 4:
            left, right = speeds  # the planes of x ← l x r turn by the sum and by the difference
            return torch.stack((left + right, left - right), dim=-1).flatten()
        rest = 0 if self.head_dim % 2 else self.head_dim // 2 - self.groups
        return torch.cat((speeds[0], speeds.new_zeros(rest)))

    def frame(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """F (c, c) of at least this dtype: columns are planes, two by two, then axes, then the tail."""
        dtype = torch.promote_types(dtype, self.axes.dtype)
        with full_precision(self.axes.device):
            axes = self.axes.to(wide_dtype(self.axes.device))
            if self.group == 4:
                return _spread4(_frames4(*axes)).to(dtype)
            return _spread3(frames(axes[0]), self.head_dim).to(dtype)

    def _compose(self) -> Tensor:
        return self.frame()

    def apply_positions(self, x: Tensor, positions: Tensor | None = None, **options: Any) -> Tensor:
        # Float64 vectors need a frame orthogonal to float64, or scores would move by float32's rounding.
        return self._return(
            super().apply_positions(x, positions, **options), None if self.stay_in_frame else self.frame(x.dtype)
        )

    def rotate(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        F = self.mixing()
        rotated = super().apply_positions(right_multiply(x, F), positions)
        back = None if self.stay_in_frame else self.frame(x.dtype) if F is None or x.dtype == torch.float64 else F
        return self._return(rotated, back)

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        rotated = super().forward(x, positions)
        if not self.stay_in_frame:
            return rotated
        heads = rotated.view(*x.shape[:2], self.heads, self.head_dim)  # (b, s, h, c)
        return self._return(heads, self.frame(x.dtype)).reshape(x.shape)

    @staticmethod
    def _return(x: Tensor, F: Tensor | None) -> Tensor:
        """x · Fᵀ: out of the frame's coordinates."""
        return x if F is None else right_multiply(x, F.mT)


def quaternion_product(a: Tensor, b: Tensor) -> Tensor:
    """Hamilton's product of (..., 4) quaternions, real part first."""
    a0, av = a[..., :1], a[..., 1:]
    b0, bv = b[..., :1], b[..., 1:]
    real = a0 * b0 - (av * bv).sum(-1, keepdim=True)
    return torch.cat((real, a0 * bv + b0 * av + torch.linalg.cross(av, bv)), dim=-1)


def _frames4(left: Tensor, right: Tensor) -> Tensor:
    """Orthonormal (G, 4, 4), rows s, u s, e s, u e s.

    x ← exp(φ u) x exp(ψ v) turns the plane (s, u s) by φ + ψ and the plane (e s, u e s) by φ − ψ. Here
    u, v are the unit axes, s the quaternion with u s = s v, e any unit vector across u: u (e s) = −e u s = −(e s) v.
    """
    imaginary = torch.nn.functional.pad
    frame = frames(left)
    u, e = imaginary(frame[:, 2], (1, 0)), imaginary(frame[:, 0], (1, 0))
    v = imaginary(torch.nn.functional.normalize(right, dim=-1), (1, 0))
    one = torch.zeros_like(u)
    one[:, 0] = 1
    s = torch.nn.functional.normalize(one - quaternion_product(u, v), dim=-1)
    es = quaternion_product(e, s)
    return torch.stack((s, quaternion_product(u, s), es, quaternion_product(u, es)), dim=1)


def _spread4(blocks: Tensor) -> Tensor:
    """(G, k, j) rows of frames → (4G, 4G), coordinates j of each group down, frame vectors k across."""
    return rearrange(torch.diag_embed(blocks.permute(1, 2, 0)), "k j g f -> (g j) (f k)")


def _spread3(blocks: Tensor, head_dim: int) -> Tensor:
    """(G, 3, 3) rows of frames → (c, c): the planes' vectors two by two, then the axes, then the tail's identity."""
    spread = torch.diag_embed(blocks.permute(1, 2, 0))
    planes = rearrange(spread[:2], "k j g f -> (g j) (f k)")
    axes = rearrange(spread[2], "j g f -> (g j) f")
    tail = torch.eye(head_dim - 3 * len(blocks), device=blocks.device, dtype=blocks.dtype)
    return torch.block_diag(torch.cat((planes, axes), dim=1), tail)
