"""`CombinedRotary` without folding: the control that says what folding R into the projections saves."""

from typing import Any

from torch import Tensor

from .combined import CombinedRotary
from .rotation_matrix import right_multiply


class UnfoldedCombinedRotary(CombinedRotary):
    """`CombinedRotary` that multiplies activations by R instead of folding R into the projections: the same function,
    at the cost that folding saves. Options are those of `CombinedRotary`.

    Example:
        >>> import torch
        >>> rotary = UnfoldedCombinedRotary(dims=16, heads=2)
        >>> rotary.rotate(torch.randn(1, 2, 5, 8)).shape
        torch.Size([1, 2, 5, 8])
    """

    is_pairwise = False

    def mixing(self) -> Tensor | None:
        """None: nothing that attention could fold."""
        return None

    def apply_positions(self, x: Tensor, positions: Tensor | None = None, **options: Any) -> Tensor:
        """R and the position-dependent part; shapes as in `Rotary.apply_positions`."""
        return super().apply_positions(right_multiply(x, super().mixing()), positions, **options)


Unfolded = UnfoldedCombinedRotary  # the name in 0.1.0
