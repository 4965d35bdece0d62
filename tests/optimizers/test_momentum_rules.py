"""Each handler's thresholds, from both sides, in both axes' band numbers; and on gradients made to fit."""

import math

import numpy as np
import pytest
import torch

from cubelet.optimizers import FAM
from cubelet.optimizers.momentum_rules import HANDLERS, damping_nu, equal_bands, half_bands, log_bands, white_bins
from cubelet.optimizers.spectral_momentum import index_spectrum, stack_windows, window_geometry
from tests.reference import optimizers as reference

WHITE = white_bins(64)
BANDS = {"default": 8, "conv": 10, "attention": 12, "embedding": 8}


def white_of(name, n):
    """White noise's shares of n bands."""
    return WHITE @ HANDLERS[name].pooling(33, n)


def alpha_of(name, shares, alpha=0.9, rule="excess"):
    """α' that FAM's analysis chooses once its running bands are these shares."""
    weight = torch.nn.Parameter(torch.zeros(16, 64))
    optimizer = FAM([weight], alpha=alpha, handler=name, rule=rule, n_bands=len(shares), start_step=0)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    [state] = optimizer._spectra.states
    shares = torch.as_tensor(shares, dtype=torch.float32)[None]
    state.choose([0], shares, np.array([alpha]))
    return state.packed["alpha"].item()


def with_share(name, part, share):
    """White shares, rescaled so that the part holds `share` of the whole."""
    n = BANDS[name]
    white = white_of(name, n).double()
    inside = torch.zeros(n, dtype=torch.bool)
    inside[part] = True
    return torch.where(inside, white / white[inside].sum() * share, white / white[~inside].sum() * (1 - share))


THRESHOLDS = [
    ("default", slice(4, None), 0.3, 0.95),
    ("conv", slice(2, 7), 0.4, 0.97),
    ("conv", slice(7, None), 0.3, 0.95),
    ("embedding", slice(6, None), 0.2, 0.98),
]


@pytest.mark.parametrize(("name", "part", "threshold", "raised"), THRESHOLDS)
@pytest.mark.parametrize("rule", ["excess", "absolute"])
def test_thresholds_from_both_sides(name, part, threshold, raised, rule):
    n = BANDS[name]
    white = white_of(name, n)
    level = threshold if rule == "absolute" else (1 + threshold) * white[part].sum().item()
    if name == "conv" and part.start == 7:
        # What the top quarter does not hold goes below the middle, so that the middle's threshold stays quiet.
        def shares(share):
            made = torch.zeros(n, dtype=torch.float64)
            made[7:], made[:2] = share / 3, (1 - share) / 2
            return made
    else:

        def shares(share):
            return with_share(name, part, share)

    assert alpha_of(name, shares(level - 1e-3), rule=rule) == pytest.approx(
        reference.chosen_alpha(shares(level - 1e-3).numpy(), white.numpy(), 0.9, name, rule)
    )
    assert alpha_of(name, shares(level + 1e-3), rule=rule) == pytest.approx(raised)
    if rule == "excess" or name != "conv":
        assert alpha_of(name, shares(level - 1e-3), rule=rule) == pytest.approx(0.9)


@pytest.mark.parametrize("rule", ["excess", "absolute"])
def test_attention_goes_by_the_strongest_band(rule):
    for band in range(12):
        shares = with_share("attention", slice(band, band + 1), 0.3)
        wanted = 0.85 if band < 3 else 0.98 if band > 9 else 0.9
        assert alpha_of("attention", shares, rule=rule) == pytest.approx(wanted), band


def test_attention_ignores_a_strongest_band_within_the_noise():
    white = white_of("attention", 12)
    for factor, wanted in ((1.15, 0.9), (1.25, 0.85)):
        assert alpha_of("attention", with_share("attention", slice(0, 1), factor * white[0])) == pytest.approx(wanted)


def test_ratio_is_proportional_to_the_upper_half_and_capped():
    assert alpha_of("default", [0.5, 0.5], rule="ratio") == pytest.approx(0.925)
    assert alpha_of("default", [0.0, 1.0], rule="ratio") == pytest.approx(0.95)
    assert alpha_of("conv", [0.0, 1.0], alpha=0.97, rule="ratio") == pytest.approx(0.98)


@pytest.mark.parametrize("rule", ["excess", "absolute", "ratio"])
@pytest.mark.parametrize("name", HANDLERS)
def test_caps_never_lower_and_floors_never_raise(name, rule):
    n = BANDS[name]
    for alpha in (0.2, 0.84, 0.99):
        for band in range(n):
            shares = with_share(name, slice(band, band + 1), 0.7)
            got = alpha_of(name, shares, alpha=alpha, rule=rule)
            white = white_of(name, n).numpy()
            assert got == pytest.approx(reference.chosen_alpha(shares.numpy(), white, alpha, name, rule))
            if alpha == 0.99:
                assert got >= min(alpha, 0.94) - 1e-6
            if name != "attention":
                assert got >= alpha - 1e-6


def gradient(kind, shape=(64, 128)):
    rng = np.random.default_rng(3)
    columns = np.arange(shape[1])
    if kind == "low":
        return np.outer(rng.standard_normal(shape[0]), np.cos(2 * np.pi * columns / 64))
    if kind == "nyquist":
        return np.outer(rng.standard_normal(shape[0]), (-1.0) ** columns)
    if kind == "white":
        return rng.standard_normal(shape)
    middle = sum(np.cos(np.pi * f / 32 * columns + rng.uniform(0, 6)) for f in range(2, 13))  # conv's bands 2 to 6
    return np.outer(rng.standard_normal(shape[0]), middle)


@pytest.mark.parametrize(
    ("name", "kind", "wanted"),
    [
        ("default", "low", 0.9), ("default", "nyquist", 0.95), ("default", "white", 0.9),
        ("conv", "low", 0.9), ("conv", "log-spaced", 0.97), ("conv", "nyquist", 0.95), ("conv", "white", 0.9),
        ("attention", "low", 0.85), ("attention", "nyquist", 0.98), ("attention", "white", 0.9),
        ("embedding", "low", 0.9), ("embedding", "nyquist", 0.98), ("embedding", "white", 0.9),
    ],
)  # fmt: skip
def test_made_gradients(name, kind, wanted):
    made = torch.tensor(gradient(kind), dtype=torch.float32)
    spectrum = index_spectrum(stack_windows([(made, window_geometry(made.shape))]))[0]
    shares = spectrum / spectrum.sum() @ HANDLERS[name].pooling(33, BANDS[name])
    assert alpha_of(name, shares) == pytest.approx(wanted)
    if kind == "white" and name != "attention":  # the notes' thresholds lie below the white level: they always fire
        assert alpha_of(name, shares, rule="absolute") > 0.9


MAPS = {"default": equal_bands, "attention": half_bands, "conv": log_bands}


@pytest.mark.parametrize("handler", MAPS)
@pytest.mark.parametrize("bins", [13, 33, 501])
@pytest.mark.parametrize("n", [2, 4, 5, 8, 10, 12])
def test_bands_are_those_of_the_definition_and_lose_no_bin(handler, bins, n):
    band = MAPS[handler](bins, n)
    magnitudes = np.random.default_rng(n).uniform(0.1, 1, bins)
    shares = torch.tensor(magnitudes / magnitudes.sum()) @ HANDLERS[handler].pooling(bins, n).double()
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


@pytest.mark.parametrize("alpha", [0.8, 0.9, 0.95])
@pytest.mark.parametrize("period", [8, 12, 24])
def test_damping_nu_gives_the_oscillator_the_damping_ratio_of_no_resonance(alpha, period):
    """The roots of w'' + (1/τ + ω²τ(1−ν))·w' + ω²·w = 0 over ω have real part −1/√2 (unless ν is at its bound)."""
    omega, memory = 2 * math.pi / period, alpha / (1 - alpha)
    nu = damping_nu(torch.tensor(alpha), torch.tensor(1 / period)).item()
    friction = 1 / memory + omega**2 * memory * (1 - nu)
    root = np.roots([1, friction, omega**2])[0]
    assert -root.real / omega == pytest.approx(math.sqrt(0.5), abs=1e-4) or nu == 0.5


@pytest.mark.parametrize("alpha", [0.9, 0.95])
def test_damping_works_on_the_quadratic_it_is_derived_for(alpha):
    """Momentum overshoots on a curvature; with the ν of its own period by less than half as much."""

    def overshoot(nu, curvature=0.2):
        w, m, lowest = 1.0, 0.0, 0.0
        for _ in range(200):
            g = curvature * w
            m = alpha * m + (1 - alpha) * g
            w -= nu * m + (1 - nu) * g
            lowest = min(lowest, w)
        return -lowest

    omega = math.sqrt(0.2 * (1 - alpha) / alpha)
    nu = damping_nu(torch.tensor(alpha), torch.tensor(omega / (2 * math.pi))).item()
    assert overshoot(1.0) > 0.2
    assert overshoot(nu) < 0.5 * overshoot(1.0)
