"""AxialRotary: positions of several axes (image rows and columns, time and frequency), and what users expect of rotary.

Features are split over the axes; each part is turned by its own axis's position. Options: geometric or linear
frequencies (the notes' grid) or given ranges, learnable or not, NTK rescaling, partial rotary, and xPos scaling (Sun et
al. 2022, https://arxiv.org/abs/2212.10554).
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from cubelet.common.checks import check_choice

from .base import Rotary, wide_dtype


def grid_positions(*lengths: int, prefix: int = 0) -> Tensor:
    """Positions of the cells of a grid in row-major order: grid_positions(h, w) → (prefix + h·w, 2) int64.

    Args:
        prefix: tokens in front that do not rotate (a class token, registers): position 0 on every axis.
    """
    cells = torch.cartesian_prod(*(torch.arange(n) for n in lengths)).view(-1, len(lengths))
    return torch.cat((cells.new_zeros(prefix, len(lengths)), cells))


class AxialRotary(Rotary):
    """Rotary over n axes. Shapes and errors as `Rotary`, but positions are (s, n) or (b, s, n), and may be floating.

    With one axis, positions may also be (s,), (b, s) or None (0…s−1). With more there is no default: see
    `grid_positions`. Scores depend on the differences of positions along each axis.

    Args:
        axes: n.
        rotated: how many features turn, even; None means all from start_index on, less one if that is odd. They are
            split over the axes two by two, the first axes taking what does not divide.
        start_index: the first feature that turns.
        frequencies: "geometric" (base^(−2m/c_a) on the c_a features of an axis) or "linear" (max_frequency·π/2 spread
            evenly from π, as is usual for pixels at positions in [−1, 1]; the base has no effect then).
        max_frequency: of "linear".
        freq_ranges: (highest, lowest) radians per position of each axis, spaced as `frequencies` says; overrides base
            and max_frequency.
        rescale: NTK factor f ≥ 1 on the context length: base·f^(c_a/(c_a−2)) of "geometric" without ranges.
        learned_frequencies: multiply by exp(residual), residual learned from 0, so that the base can still move.
        scale_base: xPos: queries grow and keys shrink by ζ_m^(p/scale_base), ζ_m = (2m/c_r + 0.4)/1.4, so that scores
            decay with distance. Queries must go through `rotate` or `apply_positions`, keys through `rotate_keys` or
            `apply_key_positions`: the same for both gives scores that depend on the sum of positions too, so
            is_relative is False. One axis only; float32 overflows at positions beyond about 60·scale_base.

    Raises:
        ValueError: features that do not fit, unknown or contradictory options.

    Example:
        >>> rotary = AxialRotary(dims=16, heads=2, axes=2)
        >>> rotary.rotate(torch.randn(1, 2, 12, 8), grid_positions(3, 4)).shape
        torch.Size([1, 2, 12, 8])
    """

    needs_even = False
    floating_positions = True

    def __init__(
        self,
        dims: int,
        heads: int,
        *,
        base: float = 10_000.0,
        axes: int = 1,
        rotated: int | None = None,
        start_index: int = 0,
        frequencies: Literal["geometric", "linear"] = "geometric",
        max_frequency: float = 10.0,
        freq_ranges: Sequence[tuple[float, float]] | None = None,
        rescale: float = 1.0,
        learned_frequencies: bool = False,
        scale_base: float | None = None,
    ) -> None:
        super().__init__(dims, heads, base=base)
        c = self.head_dim
        room = c - start_index
        self.rotated = room - room % 2 if rotated is None else rotated
        if start_index < 0 or self.rotated % 2 or not 2 * axes <= self.rotated <= room or axes < 1:
            raise ValueError(
                f"rotated {self.rotated} from start_index {start_index} must be even, at least 2 for each of the "
                f"{axes} axes, and fit into head_dim {c} (dims {dims} / heads {heads})"
            )
        check_choice("frequencies", frequencies, ("geometric", "linear"))
        if freq_ranges is not None and (len(freq_ranges) != axes or not all(a >= b > 0 for a, b in freq_ranges)):
            raise ValueError(f"freq_ranges must be {axes} pairs (highest, lowest) above 0, got {freq_ranges}")
        if not (math.isfinite(rescale) and rescale >= 1):
            raise ValueError(f"rescale {rescale} must be at least 1 (the new context length over the trained one)")
        if rescale != 1 and (frequencies == "linear" or freq_ranges is not None or self.rotated <= 2 * axes):
            raise ValueError(
                "rescale moves the base: it needs geometric frequencies without ranges, 4 features an axis"
            )
        if scale_base is not None and (axes != 1 or scale_base <= 0):
            raise ValueError(f"scale_base {scale_base} must be above 0 and needs a single axis, not {axes}")
        self.axes = self.position_axes = axes
        self.start_index, self.spacing, self.rescale = start_index, frequencies, rescale
        # Where pairs of the part that turns are pairs of the whole, the rest turns by 0: cheaper than cutting.
        aligned = c % 2 == 0 and start_index % 2 == 0
        self._padding = (start_index // 2, (room - self.rotated) // 2) if aligned else (0, 0)
        self._span = None if aligned else (start_index, start_index + self.rotated)
        self.max_frequency, self.scale_base = max_frequency, scale_base
        self.freq_ranges = None if freq_ranges is None else tuple((float(a), float(b)) for a, b in freq_ranges)
        self.is_relative = scale_base is None
        self.table_varies = learned_frequencies or scale_base is not None
        pairs = self.rotated // 2
        self.pairs_of_axis = tuple(pairs // axes + (axis < pairs % axes) for axis in range(axes))
        self.frequency_residual = nn.Parameter(torch.zeros(pairs)) if learned_frequencies else None

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.frequency_residual is not None:
            nn.init.zeros_(self.frequency_residual)

    # -- frequencies and angles --

    def frequencies(self, length: Tensor | None = None) -> Tensor:
        """Of every pair that turns, axis after axis, (rotated/2,) float64."""
        base = self.base.to(wide_dtype(self.base.device))
        parts = [self._of_axis(base, axis, pairs) for axis, pairs in enumerate(self.pairs_of_axis)]
        frequencies = torch.cat(parts)
        if self.frequency_residual is not None:
            frequencies = frequencies * self.frequency_residual.to(frequencies.dtype).exp()
        return frequencies

    def _of_axis(self, base: Tensor, axis: int, pairs: int) -> Tensor:
        m = torch.arange(pairs, device=base.device, dtype=base.dtype)
        part = m / max(pairs - 1, 1)
        if self.freq_ranges is not None:
            high, low = self.freq_ranges[axis]
            return high + part * (low - high) if self.spacing == "linear" else high * (low / high) ** part
        if self.spacing == "linear":
            return math.pi * (1 + part * (self.max_frequency / 2 - 1))
        if self.rescale != 1 and pairs > 1:
            base = base * self.rescale ** (pairs / (pairs - 1))
        return base ** (m / -pairs)

    def _default_positions(self, length: int, device: torch.device) -> Tensor:
        if self.axes > 1:
            raise ValueError(
                f"positions of {self.axes} axes have no default; pass (s, {self.axes}), e.g. grid_positions(…)"
            )
        return super()._default_positions(length, device)

    def _polar(self, positions: Tensor, inverse: bool = False) -> tuple[Tensor | float, Tensor]:
        frequencies = self.frequencies()
        steps = positions.to(frequencies.dtype)
        if self.axes == 1:
            steps = steps.unsqueeze(-1)
        else:
            shape = steps.shape[:-1]
            steps = torch.cat([steps[..., a, None].expand(*shape, n) for a, n in enumerate(self.pairs_of_axis)], dim=-1)
        angles = nn.functional.pad(steps * frequencies, self._padding)
        if self.scale_base is None:
            return 1.0, angles
        m = torch.arange(self.rotated // 2, device=steps.device, dtype=steps.dtype)
        zeta = (2 * m / self.rotated + 0.4) / 1.4
        exponents = steps / (-self.scale_base if inverse else self.scale_base)
        return nn.functional.pad(zeta**exponents, self._padding, value=1.0), angles

    # -- keys --

    def apply_key_positions(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        return self.apply_positions(x, positions, inverse=True)
