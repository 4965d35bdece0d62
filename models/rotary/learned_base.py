"""RoPE whose base is a parameter: log B learns with the rest, by the gradient of the loss.

The gradient is the slope that `DynamicBase(mode="probe")` measures from outside, at every step and for nothing, with
the same limit: the weights grow used to the present base, and a base moves no faster than they follow. In 300 steps of
the plain text experiment one base for all layers went from 10 to 5.7, from 10,000 to 4,200 and from 10⁶ to 680,000
(one seed, speed 10, version 0.2).
"""

import math

import torch
from torch import Tensor, nn

from ..bounded import bounded
from .base import Rotary, wide_dtype
from .scaling import Scaling


class LearnedBaseRoPE(Rotary):
    """RoPE with log B = log(base) + speed · shift, where `base_shift` is learned from 0; scores are relative.

    Arguments, shapes and errors as `Rotary`. Each layer's rotary learns its own base; `set_base` moves the one that the
    shift starts from.

    Args:
        speed: nats of log B for each unit of the parameter. An optimizer with normalised steps moves log B by about
            speed · learning rate at each step, and e^0.01 a step would leave every base where it is.

    Raises:
        ValueError: speed not above 0.

    Example:
        >>> rotary = LearnedBaseRoPE(dims=16, heads=2, base=1000.0, speed=10.0)
        >>> with torch.no_grad():
        ...     _ = rotary.base_shift.fill_(-0.1)
        >>> round(float(rotary.learned_base()), 1)  # 1000 / e
        367.9
    """

    table_varies = True

    def __init__(
        self, dims: int, heads: int, *, base: float = 10_000.0, scaling: Scaling | None = None, speed: float = 10.0
    ) -> None:
        super().__init__(dims, heads, base=base, scaling=scaling)
        if not speed > 0:
            raise ValueError(f"speed {speed} must be above 0; it is in nats of log base for each unit of the parameter")
        self.speed = speed
        self.base_shift = nn.Parameter(torch.zeros(()))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.base_shift.zero_()

    def learned_base(self) -> Tensor:
        """B, 0-dim float64, differentiable; kept a hair above 1, from where gradients lead back."""
        wide = wide_dtype(self.base.device)
        logarithm = self.base.to(wide).log() + self.speed * self.base_shift.to(wide)
        return bounded(logarithm, 1e-3, math.inf).exp()

    def frequencies(self, length: Tensor | None = None) -> Tensor:
        return (self.scaling or Scaling()).frequencies(self.learned_base(), self.head_dim, length)  # (c/2,)
