"""CombinedRotary: learned Givens rotations and a learned orthogonal matrix in front of RoPE.

R = (∏ₖ G(iₖ, jₖ, wₖ·θₖ·scale)) · M, then RoPE. The idea is from the research notes of sine2pi (three variants there,
options here). What it can and cannot do: at attention level R is absorbed by the query and key projections, so it adds
nothing to what can be *expressed*, only a different path for the optimizer; learned frequencies are the one option that
does. An experiment therefore needs plain RoPE with folded projections as its control.

Choices:
- Pairs are drawn as random perfect matchings. Rotations on disjoint pairs commute, so all rotations of a matching
  (a level) are one matrix, scattered in one operation; levels are multiplied. No loop over rotations.
- M = anchor · cayley(A − Aᵀ): orthogonal whatever the optimizer does, cheap backward. (The map of
  torch.nn.utils.parametrizations.orthogonal, spelled as 2(I − S)⁻¹ − I: one inverse forward, two products backward.)
- R is composed in float64 (32×32 … 128×128: nothing) and returned in float32, so that ‖RᵀR − I‖ is that of rounding.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from cubelet.common.checks import check_choice

from ..bounded import bounded, direction
from ..integer_buffers import IntegerBuffer
from ..kernels.switch import full_precision
from .base import Rotary, wide_dtype
from .pairs import adjacent_pairs, check_pairs, random_pairs
from .rotation_matrix import cayley, givens_places, givens_product
from .scaling import Scaling


class CombinedRotary(Rotary):
    """Learned rotations R, then RoPE. Arguments, shapes and errors of `Rotary`, and:

    Args:
        rotations: K, number of Givens rotations; None means c // 2, one perfect matching.
        pairs: "random" (distinct pairs, successive random perfect matchings), "adjacent" ((0,1), (2,3), …, then
            (1,2), …), or a list of (i, j) to be applied in this order. Saved in the state_dict.
        seed: of the random pairs; None draws one from torch's global generator, so that layers differ.
        shared_theta: one angle for all rotations instead of one each.
        matrix: M: "orthogonal" (learned, orthogonal for ever), "fixed" (random orthogonal, a buffer), "none" (M = I),
            or "free" (a learned plain matrix; `penalty()` then returns ‖MᵀM − I‖²).
        theta_scale: learn a common factor of the angles (starts at 1).
        rotation_scale: learn the number of rotations n = rotation_scale·K: rotation k counts clamp(n − k, 0, 1), which
            equals the first n rotations where n is whole. Starts at 1; beyond 0 and 1 it counts as these, and its
            gradient leads back.
        direction: learn a common factor 2σ(·) − 1 in (−1, 1) of the angles (starts at 0.76; at 0 nothing would learn).
        learned_frequencies: multiply θ_m by exp(residual_m), residual learned from 0, so that the base can still move.
        output_scale: None, "sqrt_dims" (the notes' √d, sensible at embedding level only), or a number.
        checkpoint: recompute R in the backward pass instead of keeping its intermediates.
        start: M at initialisation: random orthogonal, or I: then R is I, and a pretrained model does not move.

    Raises:
        ValueError: unknown option, more rotations than there are pairs, a pair with i = j or out of range.

    Example:
        >>> rotary = CombinedRotary(dims=16, heads=2, rotations=6)
        >>> rotary.rotate(torch.randn(1, 2, 5, 8)).shape
        torch.Size([1, 2, 5, 8])
        >>> R = rotary.mixing()
        >>> torch.allclose(R.mT @ R, torch.eye(8), atol=1e-6)
        True
    """

    pairs = IntegerBuffer()
    anchor: Tensor
    _scatter = IntegerBuffer(persistent=False)

    def __init__(
        self,
        dims: int,
        heads: int,
        *,
        base: float = 10_000.0,
        scaling: Scaling | None = None,
        rotations: int | None = None,
        pairs: Literal["random", "adjacent"] | list[tuple[int, int]] = "random",
        seed: int | None = None,
        shared_theta: bool = False,
        matrix: Literal["orthogonal", "fixed", "none", "free"] = "orthogonal",
        theta_scale: bool = True,
        rotation_scale: bool = True,
        direction: bool = False,
        learned_frequencies: bool = False,
        output_scale: Literal["sqrt_dims"] | float | None = None,
        checkpoint: bool = False,
        start: Literal["random", "identity"] = "random",
    ) -> None:
        super().__init__(dims, heads, base=base, scaling=scaling)
        c = self.head_dim
        self.rotations = self._count(rotations, pairs)
        self.matrix, self.seed, self.checkpoint = matrix, seed, checkpoint
        self._wanted_pairs = pairs
        self.output_scale = math.sqrt(dims) if output_scale == "sqrt_dims" else output_scale
        if isinstance(self.output_scale, str):
            raise ValueError(f'output_scale {output_scale!r} is unknown; use None, "sqrt_dims" or a number')

        def scalar(wanted: bool) -> nn.Parameter | None:
            return nn.Parameter(torch.empty(())) if wanted and self.rotations else None

        self.pairs = torch.zeros(self.rotations, 2, dtype=torch.long)
        self._scatter = torch.zeros(4 * self.rotations, dtype=torch.long)
        self.thetas = nn.Parameter(torch.empty(1 if shared_theta else self.rotations)) if self.rotations else None
        self.theta_scale, self.rotation_scale = scalar(theta_scale), scalar(rotation_scale)
        self.direction = scalar(direction)
        self.frequency_residual = nn.Parameter(torch.empty(c // 2)) if learned_frequencies else None
        check_choice("matrix", matrix, ("orthogonal", "fixed", "none", "free"))
        if matrix in ("orthogonal", "fixed"):
            self.register_buffer("anchor", torch.empty(c, c))
        self.skew = nn.Parameter(torch.empty(c, c)) if matrix == "orthogonal" else None
        self.free = nn.Parameter(torch.empty(c, c)) if matrix == "free" else None
        check_choice("start", start, ("random", "identity"))
        self.start = start
        self._levels = 0
        self.has_matrix = self.rotations > 0 or matrix != "none"
        self.table_varies = learned_frequencies
        CombinedRotary.reset_parameters(self)

    def _count(self, rotations: int | None, pairs: object) -> int:
        c = self.head_dim
        if not isinstance(pairs, str):
            listed = check_pairs(pairs, c)
            if rotations not in (None, len(listed)):
                raise ValueError(f"rotations {rotations} but {len(listed)} pairs; leave rotations out")
            return len(listed)
        check_choice("pairs", pairs, ("random", "adjacent"))
        count = c // 2 if rotations is None else rotations
        most = c * (c - 1) // 2 if pairs == "random" or c == 2 else c
        if not 0 <= count <= most:
            raise ValueError(f"rotations {count} is outside 0…{most}: head_dim {c} has only {most} {pairs} pairs")
        return count

    # -- values --

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initial values: angles 0, scales 1, M random orthogonal of determinant 1 (torch's generator)."""
        super().reset_parameters()
        c = self.head_dim
        if not self.pairs.is_meta and self.rotations:
            if self._wanted_pairs == "random":
                seed = int(torch.randint(2**31, ()).item()) if self.seed is None else self.seed
                chosen = random_pairs(c, self.rotations, seed)
            elif self._wanted_pairs == "adjacent":
                chosen = adjacent_pairs(c, self.rotations)
            else:
                chosen = torch.tensor(self._wanted_pairs, dtype=torch.long)
            self.pairs = chosen
        self._index_pairs()
        for name, value in (("thetas", 0), ("theta_scale", 1), ("rotation_scale", 1), ("direction", 2)):
            if getattr(self, name) is not None:
                nn.init.constant_(getattr(self, name), value)
        for name in ("frequency_residual", "skew"):
            if getattr(self, name) is not None:
                nn.init.zeros_(getattr(self, name))
        if self.matrix in ("orthogonal", "fixed"):
            (nn.init.orthogonal_ if self.start == "random" else nn.init.eye_)(self.anchor)
            self.anchor[0] *= torch.linalg.det(self.anchor).sign()
        if self.free is not None:
            (nn.init.orthogonal_ if self.start == "random" else nn.init.eye_)(self.free)

    def _index_pairs(self) -> None:
        """Derive from `pairs` what composing R needs."""
        if self.pairs.is_meta or not self.rotations:
            return
        where, self._levels = givens_places(self.pairs, self.head_dim)
        self._scatter = where.to(self.pairs.device)

    def _loaded(self) -> None:
        super()._loaded()
        self._index_pairs()

    # -- R --

    def angles(self) -> Tensor:
        """Angle of each rotation in radians, gate, scale and direction included: (K,), at least float32."""
        assert self.thetas is not None
        angles = self.thetas.to(torch.promote_types(self.thetas.dtype, torch.float32))
        if self.rotation_scale is not None:
            k = torch.arange(self.rotations, device=angles.device, dtype=angles.dtype)
            count = bounded(self.rotation_scale) * self.rotations
            angles = angles * torch.clamp(count - k, 0, 1)
        if self.theta_scale is not None:
            angles = angles * self.theta_scale
        if self.direction is not None:
            angles = angles * direction(self.direction)
        return angles.expand(self.rotations)

    def _compose(self) -> Tensor:
        if self.checkpoint:
            R = recompute(self._product, use_reentrant=False)
            assert isinstance(R, Tensor)
            return R
        return self._product()

    def _product(self) -> Tensor:
        wide = wide_dtype(self.base.device)
        eye = torch.eye(self.head_dim, device=self.base.device, dtype=wide)
        dtypes = [p.dtype for p in self.parameters(recurse=False)]
        narrow = torch.float64 if torch.float64 in dtypes else torch.float32
        M = self._matrix(eye)
        if not self.rotations:
            assert M is not None
            return M.to(narrow)
        G = givens_product(self.angles().to(wide), self._scatter, self._levels, eye)
        return (G if M is None else G @ M).to(narrow)

    def _matrix(self, eye: Tensor) -> Tensor | None:
        if self.matrix == "none":
            return None
        if self.free is not None:
            return self.free.to(eye.dtype)
        anchor = self.anchor.to(eye.dtype)
        if self.skew is None:
            return anchor
        return cayley(self.skew.to(eye.dtype), anchor, eye)

    def penalty(self) -> Tensor:
        if self.free is None:
            return super().penalty()
        M = self.free.float()
        with full_precision(M.device):
            return (M.mT @ M - torch.eye(self.head_dim, device=M.device)).square().sum()

    # -- frequencies and gain --

    def frequencies(self, length: Tensor | None = None) -> Tensor:
        frequencies = super().frequencies(length)
        if self.frequency_residual is None:
            return frequencies
        return frequencies * self.frequency_residual.to(frequencies.dtype).exp()

    def gain(self) -> float:
        return super().gain() * (1.0 if self.output_scale is None else self.output_scale)
