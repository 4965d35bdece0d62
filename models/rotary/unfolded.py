"""`CombinedRotary` without folding: the control that says what folding R into the projections saves."""

from torch import Tensor

from .base import mix
from .combined import CombinedRotary


class UnfoldedCombinedRotary(CombinedRotary):
    """`CombinedRotary` that multiplies activations by R instead of folding R into the projections: the same function,
    at the cost that folding saves. Options are those of `CombinedRotary`.

    Example:
        >>> import torch
        >>> rotary = UnfoldedCombinedRotary(dims=16, heads=2)
        >>> rotary.rotate(torch.randn(1, 2, 5, 8)).shape
        torch.Size([1, 2, 5, 8])
    """

    def mixing(self) -> Tensor | None:
        """None: nothing that attention could fold."""
        return None

    def turn(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """R and the position-dependent part; shapes as in `Rotary.turn`."""
        return super().turn(mix(x, super().mixing()), positions)


Unfolded = UnfoldedCombinedRotary  # its name in 0.1.0
