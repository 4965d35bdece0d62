import math

import numpy as np
import pytest
import torch

from cubelet.optimizers.handlers import equal_bands, half_bands, log_bands, pool, white_bins
from tests.reference import optimizers as reference

MAPS = {"default": equal_bands, "attention": half_bands, "conv": log_bands}


@pytest.mark.parametrize("handler", MAPS)
@pytest.mark.parametrize("bins", [13, 33, 501])
@pytest.mark.parametrize("n", [2, 4, 5, 8, 10, 12])
def test_bands_are_those_of_the_definition_and_lose_no_bin(handler, bins, n):
    band = MAPS[handler](bins, n)
    magnitudes = np.random.default_rng(n).uniform(0.1, 1, bins)
    shares = pool(torch.tensor(magnitudes / magnitudes.sum()), band, n)
    np.testing.assert_allclose(shares.numpy(), reference.bands_of(magnitudes, n, handler), atol=1e-12)
    assert shares.sum() == pytest.approx(1)
    assert (band.diff() >= 0).all()
    assert band[0] == 0
    assert band.max() < n


@pytest.mark.parametrize("n", [4, 8, 10, 12])
def test_log_bands_grow_and_none_is_empty(n):
    widths = torch.bincount(log_bands(33, n), minlength=n)
    assert (widths > 0).all()
    assert widths[-1] > 4 * widths[0]
    assert widths[-1] == widths.max()


def test_white_level_is_that_of_drawn_noise():
    for length in (24, 64, 25):
        noise = torch.randn(20_000, length, generator=torch.Generator().manual_seed(0))
        measured = torch.fft.rfft(noise).abs().mean(0)
        torch.testing.assert_close(white_bins(length), measured / measured.sum(), atol=2e-4, rtol=0.02)
    assert white_bins(64)[0] / white_bins(64)[1] == pytest.approx(math.sqrt(8) / math.pi)
