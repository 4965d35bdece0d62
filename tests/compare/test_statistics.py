"""Intervals, correction and verdicts against their definitions, and against simulated experiments."""

import math
import random

import pytest

from cubelet.common.optional_imports import import_optional
from cubelet.compare.statistics import (
    FEW,
    HELPS,
    HURTS,
    NOTHING,
    SAME,
    a_a_control,
    compare,
    interval,
    paired,
    positive_control,
    smallest_visible,
)
from tests.reference.statistics import holm, t_interval

pytest.importorskip("scipy", reason="needs the extra `compare`")
pytest.importorskip("statsmodels", reason="needs the extra `compare`")


def losses(values):
    return dict(enumerate(values))


def simulated(draw, variants, seeds=5, shift=0.0, noise=0.02):
    """Losses with a large effect of the seed, which pairing removes, and noise of each run."""
    seed_effect = [draw.gauss(0, 0.2) for _ in range(seeds)]

    def one(mean):
        return losses(2 + mean + effect + draw.gauss(0, noise) for effect in seed_effect)

    return {f"v{i}": one(shift) for i in range(variants)}, one(0.0)


@pytest.mark.parametrize("n", [2, 3, 5, 12])
def test_interval_is_the_definition(n):
    draw = random.Random(n)
    differences = [draw.gauss(0.01, 0.02) for _ in range(n)]
    assert interval(differences) == pytest.approx(t_interval(differences), rel=1e-4, abs=1e-6)


def test_correction_is_holms():
    draw = random.Random(1)
    variants, base = simulated(draw, 6, shift=0.02)
    raw = [interval(paired(v, base))[3] for v in variants.values()]
    assert [d.p for d in compare(variants, base).values()] == pytest.approx(holm(raw), rel=1e-6)


def test_planted_effects_are_found_and_pairing_is_what_finds_them():
    draw = random.Random(2)
    variants, base = simulated(draw, 1, shift=-0.1)
    found = compare({**variants, "harm": {s: x + 0.1 + draw.gauss(0, 0.01) for s, x in base.items()}}, base)
    assert found["v0"].verdict == HELPS
    assert found["harm"].verdict == HURTS
    shuffled = dict(zip(base, list(variants["v0"].values())[::-1], strict=True))
    assert compare({"v0": shuffled}, base)["v0"].verdict == NOTHING


@pytest.mark.parametrize(("variants", "experiments"), [(1, 200), (6, 200)])
def test_false_positives_are_five_percent_of_experiments(variants, experiments, monkeypatch):
    monkeypatch.setattr("gc.collect", lambda: 0)  # statsmodels collects garbage at every call: a quarter of a second
    # Noise far above the smallest difference worth a word, so that the level alone decides.
    draw = random.Random(variants)
    wrong = 0
    for _ in range(experiments):
        found, base = simulated(draw, variants, noise=0.1)
        wrong += any(d.verdict != NOTHING for d in compare(found, base).values())
    # Three standard deviations of a binomial. With six variants that share a baseline Holm is below 5 %.
    assert wrong <= 0.05 * experiments + 3 * math.sqrt(experiments * 0.05 * 0.95)
    assert variants > 1 or wrong >= 1


def test_small_differences_get_no_word_however_certain():
    base = losses([2.0, 2.1, 2.2, 2.3])
    tiny = compare({"v": {s: x - 0.004 - 1e-5 * s for s, x in base.items()}}, base)["v"]
    assert tiny.high < 0
    assert tiny.verdict == NOTHING


def test_no_spread_and_too_few():
    base = losses([2.0, 2.5, 3.0])
    same = compare({"v": dict(base)}, base)["v"]
    assert (same.mean, same.low, same.high, same.p, same.verdict) == (0, 0, 0, 1, SAME)
    assert same.each == (0.0, 0.0, 0.0)
    moved = compare({"v": {s: x + 0.25 for s, x in base.items()}}, base)["v"]
    assert (moved.low, moved.verdict) == (0.25, HURTS)
    found = compare({"one": {0: 1.0}, "none": {}, "rest": {1: 2.0, 2: 2.4}}, base)
    assert [d.verdict for d in found.values()][:2] == [FEW, FEW]
    assert [d.n for d in found.values()] == [1, 0, 2]


def test_the_same_numbers_leave_the_family():
    draw = random.Random(3)
    variants, base = simulated(draw, 2, shift=0.02)
    alone = compare(variants, base)
    beside = compare({**variants, **{f"twin{i}": dict(base) for i in range(20)}}, base)
    assert [beside[v].p for v in variants] == [alone[v].p for v in variants]


def test_a_visible_difference_is_seen_in_four_of_five_experiments():
    """The power that is stated, against simulated experiments whose scatter is known."""
    draw, noise, seeds, tests = random.Random(4), 0.02, 5, 3
    scatter = math.sqrt(2) * noise
    # A sample whose standard deviation is exactly the true one.
    visible = smallest_visible([-scatter * math.sqrt(2), 0.0, scatter * math.sqrt(2), 0.0, 0.0], tests)
    seen, experiments = 0, 2000
    for _ in range(experiments):
        differences = [draw.gauss(visible, scatter) for _ in range(seeds)]
        seen += interval(differences)[3] < 0.05 / tests
    assert seen / experiments == pytest.approx(0.8, abs=4 * math.sqrt(0.8 * 0.2 / experiments))


def test_only_common_seeds_are_paired():
    assert paired({0: 1.0, 2: 5.0, 7: 1.0}, {2: 3.0, 0: 0.5, 9: 1.0}) == (0.5, 2.0)


def test_controls_tell_a_broken_experiment():
    base = losses([2.0, 2.1, 2.2])
    assert a_a_control(dict(base), base).passed
    assert "exactly 0" in a_a_control(dict(base), base).sentence
    noisy = a_a_control(losses([2.0, 2.13, 2.17]), base)
    assert not noisy.passed
    assert "0.03" in noisy.sentence
    worse = {s: x + 0.3 + 0.01 * s for s, x in base.items()}
    assert positive_control(worse, base).passed
    blind = positive_control(losses([2.0, 2.2, 2.1]), base)
    assert not blind.passed
    assert "fails to see" in blind.sentence
    assert not positive_control({}, base).passed


def test_a_missing_package_names_the_extra():
    with pytest.raises(ImportError, match=r"needs no_such_package: pip install 'cubelet\[compare\]'"):
        import_optional("no_such_package.inner")
