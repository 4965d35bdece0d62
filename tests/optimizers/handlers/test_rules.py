"""Each handler's thresholds, from both sides, in both axes' band numbers; and on gradients made to fit."""

import numpy as np
import pytest
import torch

from cubelet.optimizers.handlers import HANDLERS, RULES, pool, white_bins
from cubelet.optimizers.spectra import index_spectrum, stack_windows, window
from tests.reference import optimizers as reference

WHITE = white_bins(64)
BANDS = {"default": 8, "conv": 10, "attention": 12, "embedding": 8}


def alpha_of(name, shares, alpha=0.9, rule="excess"):
    handler = HANDLERS[name]
    white = pool(WHITE, handler.band_map(33, len(shares)), len(shares)).tolist()
    return handler(torch.as_tensor(shares, dtype=torch.float32)[None], white, alpha, rule).item()


def with_share(name, part, share):
    """White shares, rescaled so that the part holds `share` of the whole."""
    n = BANDS[name]
    white = pool(WHITE, HANDLERS[name].band_map(33, n), n).double()
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
    white = pool(WHITE, HANDLERS[name].band_map(33, n), n)
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
    white = pool(WHITE, HANDLERS["attention"].band_map(33, 12), 12)
    for factor, wanted in ((1.15, 0.9), (1.25, 0.85)):
        assert alpha_of("attention", with_share("attention", slice(0, 1), factor * white[0])) == pytest.approx(wanted)


def test_ratio_is_proportional_to_the_upper_half_and_capped():
    assert alpha_of("default", [0.5, 0.5], rule="ratio") == pytest.approx(0.925)
    assert alpha_of("default", [0.0, 1.0], rule="ratio") == pytest.approx(0.95)
    assert alpha_of("conv", [0.0, 1.0], alpha=0.97, rule="ratio") == pytest.approx(0.98)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", HANDLERS)
def test_caps_never_lower_and_floors_never_raise(name, rule):
    n = BANDS[name]
    for alpha in (0.2, 0.84, 0.99):
        for band in range(n):
            shares = with_share(name, slice(band, band + 1), 0.7)
            got = alpha_of(name, shares, alpha=alpha, rule=rule)
            white = pool(WHITE, HANDLERS[name].band_map(33, n), n).numpy()
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
    view = window(torch.tensor(gradient(kind), dtype=torch.float32))
    spectrum = index_spectrum(stack_windows([view]))[0]
    n = BANDS[name]
    shares = pool(spectrum / spectrum.sum(), HANDLERS[name].band_map(33, n), n)
    assert alpha_of(name, shares) == pytest.approx(wanted)
    if kind == "white" and name != "attention":  # the notes' thresholds lie below the white level: they always fire
        assert alpha_of(name, shares, rule="absolute") > 0.9
