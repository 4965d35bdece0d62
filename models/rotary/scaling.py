"""Context-extension scalings: how frequencies change so that a model reads further than it was trained.

Each is a small frozen object that maps (base, head_dim) to frequencies; `gain` multiplies the rotated vectors. The
formulas agree with `transformers.modeling_rope_utils` (tests compare them), but follow a base that moves.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def geometric(base: Tensor, head_dim: int) -> Tensor:
    """base^(−2m/c) for m = 0…c/2−1, in base's dtype and on its device."""
    m = torch.arange(0, head_dim, 2, device=base.device, dtype=base.dtype)
    return base ** (m / -head_dim)


def _check_factor(factor: float, name: str = "factor") -> None:
    if not (math.isfinite(factor) and factor >= 1):
        raise ValueError(f"{name} {factor} must be at least 1 (the new context length over the trained one)")


@dataclass(frozen=True)
class Scaling:
    """No scaling; base class of the others. `factor` is the new context length over the trained one, at least 1."""

    factor: float = 1.0

    def __post_init__(self) -> None:
        _check_factor(self.factor)

    @property
    def gain(self) -> float:
        """Factor on rotated queries and keys each (so squared on scores)."""
        return 1.0

    def frequencies(self, base: Tensor, head_dim: int) -> Tensor:
        """Radians per position, (c/2,), from a 0-dim base."""
        return geometric(base, head_dim)


class LinearScaling(Scaling):
    """Position interpolation: every frequency over `factor` (Chen et al. 2023, https://arxiv.org/abs/2306.15595)."""

    def frequencies(self, base: Tensor, head_dim: int) -> Tensor:
        return geometric(base, head_dim) / self.factor


class NTKScaling(Scaling):
    """NTK-aware: base·factor^(c/(c−2)), which interpolates the lowest frequency by `factor` and keeps the highest."""

    def frequencies(self, base: Tensor, head_dim: int) -> Tensor:
        if head_dim <= 2:
            raise ValueError(f"head_dim {head_dim} has a single frequency; NTK scaling needs at least 4")
        return geometric(base * self.factor ** (head_dim / (head_dim - 2)), head_dim)


@dataclass(frozen=True)
class YaRNScaling(Scaling):
    """YaRN (Peng et al. 2023, https://arxiv.org/abs/2309.00071): slow frequencies interpolated, fast ones kept.

    Args:
        original_length: context length of training, in positions.
        beta_fast, beta_slow: turns within original_length above which a frequency is kept, below which interpolated.
        attention_factor: gain; None means 0.1·ln(factor) + 1.
    """

    original_length: int = 2048
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.beta_slow <= self.beta_fast:
            raise ValueError(f"want 0 < beta_slow <= beta_fast, got {self.beta_slow} and {self.beta_fast}")

    @property
    def gain(self) -> float:
        return 0.1 * math.log(self.factor) + 1 if self.attention_factor is None else self.attention_factor

    def frequencies(self, base: Tensor, head_dim: int) -> Tensor:
        def index(turns: float) -> Tensor:  # the m whose frequency makes this many turns in original_length
            return head_dim * math.log(self.original_length / (turns * 2 * math.pi)) / (2 * base.log())

        low = index(self.beta_fast).floor().clamp(min=0)
        high = index(self.beta_slow).ceil().clamp(max=head_dim - 1)
        high = torch.where(high == low, high + 0.001, high)
        m = torch.arange(head_dim // 2, device=base.device, dtype=base.dtype)
        interpolated = ((m - low) / (high - low)).clamp(0, 1)
        kept = geometric(base, head_dim)
        return kept / self.factor * interpolated + kept * (1 - interpolated)


@dataclass(frozen=True)
class Llama3Scaling(Scaling):
    """Llama 3.1's (https://arxiv.org/abs/2407.21783): by wavelength, with a smooth band between kept and interpolated.

    Args:
        original_length: context length of training, in positions.
        low_frequency_factor: turns within original_length at and below which a frequency is divided by `factor`.
        high_frequency_factor: turns above which it is kept.
    """

    factor: float = 8.0
    original_length: int = 8192
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.low_frequency_factor < self.high_frequency_factor:
            raise ValueError(
                f"want 0 < low_frequency_factor < high_frequency_factor, "
                f"got {self.low_frequency_factor} and {self.high_frequency_factor}"
            )

    def frequencies(self, base: Tensor, head_dim: int) -> Tensor:
        kept = geometric(base, head_dim)
        turns = self.original_length * kept / (2 * math.pi)
        low, high = self.low_frequency_factor, self.high_frequency_factor
        keep = ((turns - low) / (high - low)).clamp(0, 1)
        return kept * keep + kept / self.factor * (1 - keep)
