"""Position embeddings that are added to the tokens' own: sinusoids that may learn (an idea of sine2pi's notes).

Choices: rows are normalized where they are read, so learning moves directions and not lengths; positions past the table
get the analytic row, so length is no error; checkpointing is of the non-reentrant kind, because the reentrant one gives
no gradient to a table whose input (integers) needs none.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from cubelet.common.checks import check_at_least

from .rotary.base import check_base, wide_dtype


def sinusoids(positions: Tensor, dims: int, base: float = 10_000.0) -> Tensor:
    """Rows sin(p·θ_0), cos(p·θ_0), sin(p·θ_1), … with θ_m = base^(−2m/dims); positions (…,) → (…, dims) float64.

    Vaswani et al. 2017, https://arxiv.org/abs/1706.03762. Float32 on mps, which has no float64.
    """
    wide = wide_dtype(positions.device)
    m = torch.arange(0, dims, 2, device=positions.device, dtype=wide)
    angles = positions.to(wide).unsqueeze(-1) * base ** (m / -dims)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)


class LearnedSinusoidal(nn.Module):
    """A learned table of positions that starts as sin/cos, read with rows of length `scale`. Not to be decayed.

    Args:
        dims: width of the rows, even.
        max_length: rows of the table; positions outside 0…max_length−1 get the analytic row.
        base: of the sinusoids, above 1.
        scale: length of a row; the notes' is 1.
        checkpoint: recompute the rows in the backward pass instead of keeping them.

    Raises:
        ValueError: odd dims, no rows, a base not above 1.

    Example:
        >>> embedding = LearnedSinusoidal(dims=8, max_length=16)
        >>> embedding(torch.tensor([[0, 3, 100]])).shape
        torch.Size([1, 3, 8])
    """

    def __init__(
        self,
        dims: int,
        max_length: int = 2048,
        *,
        base: float = 10_000.0,
        scale: float = 1.0,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        if dims < 2 or dims % 2:
            raise ValueError(f"dims {dims} must be even and at least 2: each frequency takes a sine and a cosine")
        check_at_least("max_length", max_length, 1)
        check_base(base)
        self.dims, self.max_length, self.base, self.scale, self.checkpoint = dims, max_length, base, scale, checkpoint
        self.table = nn.Parameter(torch.empty(max_length, dims))
        LearnedSinusoidal.reset_parameters(self)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The analytic rows."""
        rows = sinusoids(torch.arange(self.max_length, device=self.table.device), self.dims, self.base)
        self.table.copy_(rows)

    def forward(self, positions: Tensor | int) -> Tensor:
        """Integer positions of any shape, or a length s for 0…s−1 → (…, dims) in the table's dtype.

        Raises:
            TypeError: positions that are not integers.
        """
        if isinstance(positions, int):
            positions = torch.arange(positions, device=self.table.device)
        if positions.is_floating_point() or positions.is_complex() or positions.dtype == torch.bool:
            raise TypeError(f"positions must be an integer tensor, got {positions.dtype}; use torch.arange(s)")
        if self.checkpoint:
            rows = recompute(self._rows, positions, use_reentrant=False)
            assert isinstance(rows, Tensor)
            return rows
        return self._rows(positions)

    def _rows(self, positions: Tensor) -> Tensor:
        learned = F.embedding(positions.clamp(0, self.max_length - 1), self.table)
        analytic = sinusoids(positions, self.dims, self.base).to(torch.promote_types(learned.dtype, torch.float32))
        inside = ((positions >= 0) & (positions < self.max_length)).unsqueeze(-1)
        rows = torch.where(inside, learned.to(analytic.dtype), analytic)
        return (self.scale * F.normalize(rows, dim=-1)).to(self.table.dtype)

    def extra_repr(self) -> str:
        return f"dims={self.dims}, max_length={self.max_length}, base={self.base:g}, scale={self.scale:g}"
