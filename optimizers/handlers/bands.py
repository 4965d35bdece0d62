"""Which frequency bin belongs to which band, and how much of white noise each band would hold.

A band map is a LongTensor (bins,) of band numbers. Every bin belongs to exactly one band, so the shares of the bands
sum to one whatever the number of bands. The white levels are what turns "a share of 0.3" into a statement: the upper
half of a spectrum holds half of white noise, so an absolute threshold of 0.3 on it always fires.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def equal_bands(bins: int, n_bands: int) -> Tensor:
    """Bands of equal width: bin f goes to band ⌊f·n/F⌋. Returns (bins,) int64."""
    return torch.arange(bins) * n_bands // bins


def half_bands(bins: int, n_bands: int) -> Tensor:
    """The low half and the high half of the bins, each split equally. Returns (bins,) int64."""
    low_bins, low_bands = (bins + 1) // 2, n_bands // 2
    low = equal_bands(low_bins, low_bands)
    return torch.cat([low, low_bands + equal_bands(bins - low_bins, n_bands - low_bands)])


def log_bands(bins: int, n_bands: int) -> Tensor:
    """Bands whose edges grow geometrically from bin 1 to `bins`; no band is empty while there are enough bins.

    Rounding a geometric series gives several empty bands at the low end, so each edge is at least one above the last,
    and leaves room for the bands still to come. Returns (bins,) int64.
    """
    edges = [0]
    for band in range(1, n_bands):
        wished = round(bins ** (band / n_bands))
        edges.append(max(edges[-1] + 1, min(wished, bins - (n_bands - band))))
    upper = torch.tensor([*edges[1:], bins])
    return torch.bucketize(torch.arange(bins), upper, right=True).clamp_(max=n_bands - 1)


def white_bins(length: int) -> Tensor:
    """Expected |rFFT| per bin of white Gaussian noise of that length, normalised to sum 1. Returns (length//2 + 1,).

    Inner bins are complex Gaussian (mean magnitude √π/2), bin 0 and, for even lengths, the Nyquist bin are real
    (mean magnitude √(2/π)).
    """
    level = torch.full((length // 2 + 1,), math.sqrt(math.pi) / 2)
    level[0] = math.sqrt(2 / math.pi)
    if length % 2 == 0:
        level[-1] = math.sqrt(2 / math.pi)
    return level / level.sum()


def pool(bins: Tensor, band_of_bin: Tensor, n_bands: int) -> Tensor:
    """Sums bins (..., F) into bands (..., n_bands)."""
    return bins @ torch.nn.functional.one_hot(band_of_bin, n_bands).to(bins)
