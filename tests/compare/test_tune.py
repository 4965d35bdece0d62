"""Searches: every point on every tuning seed, the best mean wins, the same questions again after a kill."""

import math

import pytest

from cubelet.cli.comparison import compose
from cubelet.compare.experiment import WORSE, load_experiment
from cubelet.compare.processes import RunResult
from cubelet.compare.runs import RunBuilder, VariantError
from cubelet.compare.tune import calibration, drive, open_space, search, steps_for

RATE = "model.optimizer.init_args.lr"


def answer(loss, asked):
    """A stand-in for training: loss(rate, seed), None for a failure."""

    def run(runs):
        asked.append([run.arguments for run in runs])
        results = {}
        for run in runs:
            rate = float(next(a for a in reversed(run.arguments) if a.startswith(f"--{RATE}=")).partition("=")[2])
            value = loss(rate, run.seed)
            results[run.key] = RunResult(run, {"val_loss": value}, "broke" if value is None else None)
        return results

    return run


@pytest.mark.slow
def test_a_grid_tries_all_on_its_seeds_and_takes_the_best_mean(tiny):
    tune = {"seeds": [100, 101], "space": {RATE: {"factors": [0.5, 1, 2]}}}
    builder = RunBuilder(load_experiment(tiny({"double": [f"{RATE}=0.006"]}, tune=tune)), compose)
    asked = []
    # Seed 101 alone would prefer the smallest rate, the mean does not.
    run = answer(lambda rate, seed: abs(math.log(rate / 0.006)) + (0.1 * rate if seed == 101 else 0), asked)
    found, faults = drive({v: search(builder, v, 8) for v in ("base", "double")}, run)
    assert faults == {}
    assert len(asked) == 1
    assert len(asked[0]) == 2 * 3 * 2
    assert [t.settings[RATE] for t in found["base"].trials] == [0.0015, 0.003, 0.006]
    assert found["base"].settings == {RATE: 0.006}
    assert found["base"].at_edge == (RATE,)
    assert found["double"].settings == {RATE: 0.006}
    assert found["double"].at_edge == ()
    seeds = {a for run in asked[0] for a in run if a.startswith("--data.seed")}
    assert seeds == {"--data.seed=100", "--data.seed=101"}

    half, _ = drive({"base": search(builder, "base", 8)}, answer(lambda rate, seed: None if rate > 0.005 else rate, []))
    assert half["base"].settings == {RATE: 0.0015}  # a failing point is not chosen, and shown
    assert half["base"].trials[-1].fault == "broke"
    none, faults = drive({"base": search(builder, "base", 8)}, answer(lambda rate, seed: None, []))
    assert none == {}
    assert "no setting of variant 'base' could be trained: broke" in faults["base"]


def test_a_variant_that_names_a_value_of_its_own_keeps_it(tiny):
    tune = {"seeds": [100], "space": {RATE: {"values": [0.003, 0.006]}, "model.dropout": {"values": [0.0, 0.1]}}}
    positive = {"worse": [f"{RATE}=0.00001", "model.dropout=0.0"], "better": []}
    experiment = load_experiment(tiny({"other": [f"{RATE}=0.1"]}, tune=tune, positive=positive))
    assert set(open_space(experiment, "base")) == {RATE, "model.dropout"}
    assert list(open_space(experiment, "other")) == ["model.dropout"]
    assert list(open_space(experiment, WORSE)) == []
    builder = RunBuilder(experiment, compose)
    assert drive({WORSE: search(builder, WORSE, 8)}, answer(lambda rate, seed: rate, []))[0][WORSE].settings == {}
    factors = load_experiment(
        tiny({"other": [f"{RATE}=0.1"]}, tune={"seeds": [100], "space": {RATE: {"factors": [1, 2]}}})
    )
    assert list(open_space(factors, "other")) == [RATE]  # around its own value


@pytest.mark.slow
def test_optuna_finds_the_better_half_and_repeats_itself(tiny):
    pytest.importorskip("optuna", reason="needs the extra `sweep`")
    tune = {"seeds": [100], "space": {RATE: {"log_uniform": [1e-4, 1.0]}}, "method": "optuna", "trials": 12}
    builder = RunBuilder(load_experiment(tiny({}, tune=tune)), compose)
    loss = lambda rate, seed: abs(math.log10(rate) + 3)  # noqa: E731
    first, second = [], []
    found, _ = drive({"base": search(builder, "base", 8)}, answer(loss, first))
    drive({"base": search(builder, "base", 8)}, answer(loss, second))
    assert first == second
    assert len(first) == 12
    assert found["base"].settings[RATE] == min(found["base"].trials, key=lambda t: t.loss).settings[RATE]
    assert 1e-4 <= found["base"].settings[RATE] <= 1e-2


@pytest.mark.slow
def test_seconds_become_steps(tiny):
    builder = RunBuilder(load_experiment(tiny({}, budgets={"quick": {"cpu_seconds": 30}})), compose)
    run = calibration(builder, "base")
    # The first 20 steps took 5 s of warming up, the next 40 took 1 s.
    measured = {"val_loss": 1.0, "train_curve": [[20, 5.0, 3.0], [40, 5.5, 3.0], [60, 6.0, 3.0]]}
    assert steps_for(30, RunResult(run, measured)) == 1200
    assert steps_for(31, RunResult(run, measured)) == 1200
    assert steps_for(0.1, RunResult(run, measured)) == 20
    with pytest.raises(VariantError, match="broke"):
        steps_for(30, RunResult(run, None, "broke"))
