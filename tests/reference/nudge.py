"""Parameters moved away from their initial values; see `cubelet.testing.subject`."""

import torch

from cubelet.models.rotary import CombinedRotary
from cubelet.testing.subject import nudge

__all__ = ["combined_inside", "nudge"]


def combined_inside(dims: int, heads: int) -> CombinedRotary:
    """A CombinedRotary whose number of rotations lies well inside its bounds, where its gradient is the derivative."""
    rotary = CombinedRotary(dims, heads)
    with torch.no_grad():
        rotary.rotation_scale.fill_(0.6)
    return rotary
