"""Ladders: sizes in proportion, rates by rule, and trends against simulated ladders."""

import contextlib
import json
import math
import random

import pytest

from cubelet.cli.comparison import COMMAND_LINE, compose
from cubelet.common.errors import ConfigError
from cubelet.compare.command import compare_command
from cubelet.compare.experiment import load_experiment
from cubelet.compare.ladder import make_rung, parse_rungs, scale_rates
from cubelet.compare.trends import GROWS, SHRINKS, STAYS, fit_power_law, straight_line, trends
from cubelet.compare.tune import Choice

pytest.importorskip("scipy", reason="needs the extra `compare`")
pytest.importorskip("statsmodels", reason="needs the extra `compare`")
SIZES = (1.0, 2.0, 4.0, 8.0)


def simulate(draw, shift, seeds=5, noise=0.02):
    """Losses of a variant and the baseline on a ladder; `shift` is the true difference at each size.

    A seed has an effect on all its runs and, as initial values and data do, one of its own on each variant's.
    """
    effects = [(draw.gauss(0, 0.2), draw.gauss(0, noise)) for _ in range(seeds)]

    def one(extra, own):
        return {
            size: {
                s: 3 * size**-0.1 + extra(size) + e + own * v + draw.gauss(0, noise) for s, (e, v) in enumerate(effects)
            }
            for size in SIZES
        }

    return one(shift, 1.0), one(lambda size: 0.0, 0.0)


@pytest.mark.parametrize("variants", [1, 4])
def test_a_false_trend_is_seen_in_at_most_one_ladder_of_twenty(variants):
    draw, ladders, wrong = random.Random(variants), 200, 0
    for _ in range(ladders):
        pairs = [simulate(draw, lambda size: -0.03) for _ in range(variants)]
        baseline = pairs[0][1]
        found = trends({f"v{i}": variant for i, (variant, _) in enumerate(pairs)}, baseline)
        wrong += any(trend.verdict != STAYS for trend in found.values())
    assert wrong <= 0.05 * ladders + 3 * math.sqrt(ladders * 0.05 * 0.95)


@pytest.mark.parametrize(
    ("shift", "word"),
    [
        (lambda size: -0.05 - 0.05 * math.log2(size), GROWS),
        (lambda size: -0.2 + 0.06 * math.log2(size), SHRINKS),
        (lambda size: 0.2 - 0.06 * math.log2(size), SHRINKS),
        (lambda size: 0.05 + 0.05 * math.log2(size), GROWS),
    ],
)
def test_a_planted_trend_is_seen_with_its_direction(shift, word):
    draw = random.Random(7)
    found = [trends({"v": variant}, base)["v"] for variant, base in (simulate(draw, shift) for _ in range(20))]
    assert sum(trend.verdict == word for trend in found) >= 18
    assert all(trend.verdict in (word, STAYS) for trend in found)
    true_slope = shift(2) - shift(1)
    assert sum(trend.low <= true_slope <= trend.high for trend in found) >= 17
    assert sum(t.slope for t in found) / 20 == pytest.approx(true_slope, abs=0.01)


def test_seeds_that_miss_a_size_are_left_out():
    variant, base = simulate(random.Random(1), lambda size: 0.0)
    del variant[4.0][2]
    trend = trends({"v": variant}, base)["v"]
    assert trend.seeds == 4
    by_hand = sum(variant[8.0][s] - base[8.0][s] for s in (0, 1, 3, 4)) / 4
    assert trend.differences[8.0] == pytest.approx(by_hand)


def test_a_power_law_is_found_again():
    compute = {size: 1e12 * size**2 for size in SIZES}
    losses = {size: {s: (5 + s) * compute[size] ** -0.05 for s in range(3)} for size in SIZES}
    law = fit_power_law(compute, losses)
    assert (law.exponent, law.low, law.high) == pytest.approx((0.05, 0.05, 0.05))
    assert law.scale == pytest.approx((5 * 6 * 7) ** (1 / 3))
    assert law.compute_for(law.scale * 1e13**-0.05) == pytest.approx(1e13, rel=1e-6)
    assert straight_line([0, 1, 2], [1.0, 3.0, 5.0]) == pytest.approx((2.0, 1.0))


@pytest.mark.slow
def test_a_rung_has_its_share_of_parameters_and_tokens(tiny):
    file = tiny({}, common=["model.dims=96", "model.layers=4", "model.heads=6"])
    experiment = load_experiment(file)
    for factor in SIZES:
        rung = make_rung(experiment, factor, compose)
        values = dict(item.split("=") for item in rung.budget.use)
        dims, layers, heads = (int(values[f"model.{name}"]) for name in ("dims", "layers", "heads"))
        assert dims // heads == 16
        assert dims == rung.width
        assert layers * dims**2 == pytest.approx(factor * 4 * 96**2, rel=0.2)
        assert rung.budget.steps == 8 * factor
        assert (rung.ladder, rung.scale) == (experiment.name, factor)
    assert len({make_rung(experiment, factor, compose).name for factor in SIZES}) == 4
    with pytest.raises(ConfigError, match="needs a budget in steps"):
        make_rung(load_experiment(tiny({}, budgets={"quick": {"cpu_seconds": 3}})), 2, compose)


@pytest.mark.slow
def test_a_command_climbs_a_ladder_and_answers(tiny, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="needs the extra `compare`")
    rate = "model.optimizer.init_args.lr"
    tune = {"seeds": [9], "space": {rate: {"values": [0.02, 0.04]}}}
    positive = {"worse": ["model.optimizer.init_args.lr=1e-5"], "better": []}
    file = tiny({"slow": ["model.dropout=0.5"]}, tune=tune, positive=positive)
    arguments = [str(file), "--ladder", "1,8", "--ladder_rate", "width", "--jobs", "0", "--out", str(tmp_path)]
    with contextlib.suppress(SystemExit):  # two seeds and eight steps may well fail the known positive
        compare_command(arguments, COMMAND_LINE)
    said = capsys.readouterr().out
    assert "for each doubling:" in said
    report = (tmp_path / f"{file.stem}-ladder-quick" / "report.md").read_text()
    assert "| × 8 |" in report
    assert "ladder-dark.png" in report
    assert "exponent of compute" in report
    outcomes = [json.loads((tmp_path / f"{file.stem}-x{f}-quick" / "outcome.json").read_text()) for f in (1, 8)]
    rates = [outcome["variants"]["slow"]["settings"][rate] for outcome in outcomes]
    assert rates[1] == pytest.approx(rates[0] / 2)  # twice the width
    assert [outcome["variants"]["slow"]["steps"] for outcome in outcomes] == [8, 64]


def test_rates_go_with_one_over_the_width_and_nothing_else_does():
    found = scale_rates({"v": Choice({"model.optimizer.init_args.lr": 0.01, "model.dropout": 0.1})}, 0.5)
    assert found["v"].settings == {"model.optimizer.init_args.lr": 0.005, "model.dropout": 0.1}


@pytest.mark.parametrize("text", ["1", "2,1", "1,x", "0,1", ""])
def test_a_faulty_ladder_is_told(text):
    with pytest.raises(ConfigError, match="--ladder"):
        parse_rungs(text)
    assert parse_rungs("1,2,4.5") == [1, 2, 4.5]
