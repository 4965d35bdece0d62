"""CompactRotary: K rotations of adjacent pairs by the same angle 2π/K, nothing learned (the notes' light option)."""

import math

import torch
from torch import Tensor

from .base import Rotary
from .pairs import adjacent_pairs
from .rotation_matrix import givens_places, givens_product
from .scaling import Scaling


class CompactRotary(Rotary):
    """R = ∏ₖ G(adjacent pair k, 2π/K), then RoPE; no parameters. Arguments, shapes and errors as `Rotary`.

    For K ≤ c/2 the pairs are RoPE's own planes, so R only shifts all phases alike and cancels in q·k: scores are
    those of plain RoPE. At embedding level, or with K above c/2, R is a fixed rotation that the next layer can absorb.

    Args:
        rotations: K, at most c; None means c // 2.

    Raises:
        ValueError: K outside 1…c (1 where c = 2).

    Example:
        >>> CompactRotary(dims=16, heads=2).rotate(torch.randn(1, 2, 5, 8)).shape
        torch.Size([1, 2, 5, 8])
    """

    has_matrix = True

    def __init__(
        self,
        dims: int,
        heads: int,
        *,
        base: float = 10_000.0,
        scaling: Scaling | None = None,
        rotations: int | None = None,
    ) -> None:
        super().__init__(dims, heads, base=base, scaling=scaling)
        c = self.head_dim
        self.rotations = c // 2 if rotations is None else rotations
        most = c if c > 2 else 1
        if not 1 <= self.rotations <= most:
            raise ValueError(f"rotations {self.rotations} is outside 1…{most}: head_dim {c} has {most} adjacent pairs")
        self._constant = self._matrix()  # no buffer: it follows from the arguments, whatever was loaded or emptied

    def _matrix(self) -> Tensor:
        with torch.device("cpu"):
            c, K = self.head_dim, self.rotations
            where, levels = givens_places(adjacent_pairs(c, K), c)
            angles = torch.full((K,), 2 * math.pi / K, dtype=torch.float64)
            return givens_product(angles, where, levels, torch.eye(c, dtype=torch.float64)).float()

    def _compose(self) -> Tensor:
        return self._constant.to(self.base.device)
