"""Momentum rules as data: for each kind of parameter its bands, and which share of them changes α by how much.

- A share counts relative to white noise (`rule="excess"`): the notes' thresholds lie below the white level, and taken
  as they stand (`rule="absolute"`) they hold for every spectrum that is not clearly low-pass.
- A cap never lowers a larger α, and a floor never raises a smaller one.
- `damping_nu` turns a resonance into the fresh-gradient share that damps it (`rule="damp"`).

The comparison itself is made in `spectral_momentum`, for all tensors at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

RULES = ("excess", "absolute", "ratio", "damp", "listen")
MARGIN = 0.2  # how far above white the strongest band of `attention`, or a resonance, must stand to count


def equal_bands(bins: int, n_bands: int) -> Tensor:
    """Return bands of equal width as (bins,) int64: bin f goes to band ⌊f·n/F⌋."""
    return torch.arange(bins, device="cpu") * n_bands // bins


def half_bands(bins: int, n_bands: int) -> Tensor:
    """Return (bins,) int64: the low half and the high half of the bins, each split equally."""
    low_bins, low_bands = (bins + 1) // 2, n_bands // 2
    low = equal_bands(low_bins, low_bands)
    return torch.cat([low, low_bands + equal_bands(bins - low_bins, n_bands - low_bands)])


def log_bands(bins: int, n_bands: int) -> Tensor:
    """Return (bins,) int64: bands whose edges grow geometrically, none empty while there are enough bins."""
    edges = [0]
    for band in range(1, n_bands):
        # Rounding a geometric series gives empty bands at the low end: each edge is one above the last at least, and
        # leaves room for the bands still to come.
        wanted = round(bins ** (band / n_bands))
        edges.append(max(edges[-1] + 1, min(wanted, bins - (n_bands - band))))
    upper = torch.tensor([*edges[1:], bins], device="cpu")
    return torch.bucketize(torch.arange(bins, device="cpu"), upper, right=True).clamp_(max=n_bands - 1)


def white_bins(length: int) -> Tensor:
    """Return (length//2 + 1,): expected |rFFT| per bin of white Gaussian noise of that length, normalised to sum 1.

    Inner bins are complex Gaussian (mean magnitude √π/2), bin 0 and, for even lengths, the Nyquist bin are real
    (mean magnitude √(2/π)).
    """
    level = torch.full((length // 2 + 1,), math.sqrt(math.pi) / 2, dtype=torch.float32, device="cpu")
    level[0] = math.sqrt(2 / math.pi)
    if length % 2 == 0:
        level[-1] = math.sqrt(2 / math.pi)
    return level / level.sum()


class Shift(NamedTuple):
    """α moves by `by`, as far as `limit`, where the bands from `start` to `stop` (shares of 1) exceed `threshold`."""

    start: float
    stop: float
    by: float
    limit: float
    threshold: float = 0.0

    def shifted(self, alpha: float) -> float:
        """Return the α' that this shift makes of an α."""
        if self.by > 0:
            return max(alpha, min(self.limit, alpha + self.by))
        return min(alpha, max(self.limit, alpha + self.by))


class Handler(NamedTuple):
    """Bands of one kind of parameter, and its shifts of α, of which the first that holds is taken.

    With `by_strongest` a shift holds where the strongest band lies inside it, and no thresholds are asked.
    """

    band_map: Callable[[int, int], Tensor]
    shifts: tuple[Shift, ...]
    by_strongest: bool = False

    def pooling(self, bins: int, n_bands: int) -> Tensor:
        """Return the matrix (bins, n_bands) that sums bins into bands."""
        return torch.nn.functional.one_hot(self.band_map(bins, n_bands), n_bands).to(torch.float32)


HANDLERS = {
    "default": Handler(equal_bands, (Shift(1 / 2, 1, 0.05, 0.95, threshold=0.3),)),
    "conv": Handler(
        log_bands, (Shift(1 / 4, 3 / 4, 0.07, 0.97, threshold=0.4), Shift(3 / 4, 1, 0.05, 0.95, threshold=0.3))
    ),
    "attention": Handler(half_bands, (Shift(0, 1 / 4, -0.05, 0.85), Shift(3 / 4, 1, 0.08, 0.98)), by_strongest=True),
    "embedding": Handler(equal_bands, (Shift(3 / 4, 1, 0.08, 0.98, threshold=0.2),)),
}

NU_RANGE, NU_STEP = (0.5, 1.0), 0.05  # ν' and the grid it lies on, so that few values are in use at a time
DAMPING = 1 / math.sqrt(2)  # the least damping ratio without a resonance peak


def damping_nu(alpha: Tensor, frequency: Tensor) -> Tensor:
    """Return the ν (...) at which a momentum with coefficient α no longer resonates at `frequency` (...) per step.

    Momentum with memory τ = α/(1−α) on a curvature h moves like w'' + (1/τ + lr·h·(1−ν))·w' + (lr·h/τ)·w = 0: an
    oscillator of frequency ω = √(lr·h/τ), so of period ~ lr^−½, and damping ratio ζ = (1/τ + ω²·τ·(1−ν)) / 2ω. Solved
    for ν at ζ = 1/√2, the observed ω standing for the unknown lr·h. At α = 0.9 a period of 8 steps asks for ν = 0.82,
    one of 24 steps for 0.58.
    """
    memory = alpha.clamp(min=1e-3) / (1 - alpha)
    omega = 2 * math.pi * frequency
    nu = 1 - (2 * DAMPING * omega - 1 / memory) / (memory * omega**2)
    return nu.clamp(*NU_RANGE)
