"""Parts that exist only to be compared with."""

from torch import Tensor

from . import CombinedRotary
from .base import mix


class Unfolded(CombinedRotary):
    """`CombinedRotary` that multiplies activations by R instead of folding R into the projections: the same function,
    at the cost that folding saves. Options are those of `CombinedRotary`."""

    def mixing(self) -> Tensor | None:
        """None: nothing that attention could fold."""
        return None

    def turn(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """R and the position-dependent part; shapes as in `Rotary.turn`."""
        return super().turn(mix(x, super().mixing()), positions)
