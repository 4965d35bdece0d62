"""Experiment files and the runs they stand for; the shipped ones compose."""

import importlib
from pathlib import Path

import pytest

from cubelet.callbacks.length_curve import length_curve
from cubelet.callbacks.run_metrics import RunMetrics
from cubelet.cli.comparison import compose
from cubelet.compare.experiment import AGAIN, BETTER, NOISE, ExperimentError, load_experiment
from cubelet.compare.runs import RunBuilder, VariantError, find_file
from cubelet.models.rotary.unfolded import UnfoldedCombinedRotary

SHIPPED = sorted(Path("experiments").glob("*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_experiments_compose_with_both_budgets(path):
    quick, standard = (load_experiment(path, budget).split_cases() for budget in ("quick", "standard"))
    assert 0 < quick[0].budget.steps < standard[0].budget.steps
    assert standard[0].budget.steps == 2000
    assert len(quick[0].seeds) >= 5
    # Composing costs a third of a second a variant, and what `standard` or another case adds is the same for all.
    builder = RunBuilder(standard[0], compose)
    assert builder.faults == {}
    for variant in builder.variants:
        assert builder.configured(variant, "model.optimizer.init_args.lr") > 0
        assert builder.configured(variant, "callbacks.seed").class_path == "cubelet.callbacks.StepSeed"
        options = builder.configuration(variant)
        several = [options.get(f"model.{key}") for key in ("rotary", "block", "decoder_rotary", "decoder_block")]
        assert all(len(given) > 1 for given in several if isinstance(given, (list, tuple)))  # else no model is made
    keys = {builder.run(v, 0, 100).key for v in standard[0].variants}
    assert len(keys) == len(standard[0].variants)  # no variant is another one by mistake
    for case in standard[1:]:
        assert [a for a, b in zip(case.common, standard[0].common, strict=True) if a != b] == [f"data.task={case.case}"]


def test_the_issue_s_experiments_are_shipped():
    assert {"rotary", "attention", "blocks", "optimizers"} <= {p.stem for p in SHIPPED}


@pytest.mark.slow
def test_runs_are_paired_by_seed_and_known_by_their_content(tiny):
    file = tiny({"other": ["fragment.yaml"]})
    fragment = file.parent / "fragment.yaml"
    fragment.write_text("model: {dropout: 0.3}\n")
    builder = RunBuilder(load_experiment(file), compose)
    first, second = builder.run("base", 7, 8), builder.run("other", 7, 8)
    for run in (first, second):
        assert {"--seed_everything=7", "--data.seed=7", "--model.init_seed=7"} <= set(run.arguments)
    assert builder.configured("other", "model.dropout") == 0.3
    assert builder.configured("base", "model.dropout") == 0.1
    base, other = builder.configuration("base"), builder.configuration("other")
    assert {k for k in base.keys() | other.keys() if base.get(k) != other.get(k)} == {"model.dropout"}
    assert first.key == builder.run("base", 7, 8).key != builder.run("base", 8, 8).key
    assert builder.run(AGAIN, 7, 8).key != first.key  # the control is trained anew …
    assert builder.run(AGAIN, 7, 8).arguments == first.arguments  # … by the same command
    assert builder.run(BETTER, 7, 8).key != second.key
    fragment.write_text("model: {dropout: 0.2}\n")
    assert builder.run("other", 7, 8).key != second.key
    assert "cubelet fit --config=" in first.shell(Path("x"))


@pytest.mark.slow
def test_a_typo_and_a_missing_fragment_cost_their_variant_alone(tiny):
    builder = RunBuilder(load_experiment(tiny({"typo": ["model.dimms=3"], "gone": ["nowhere.yaml"]})), compose)
    assert "did you mean --model.dims" in builder.faults["typo"]
    assert "there is no file nowhere.yaml" in builder.faults["gone"]
    assert all("\n" not in told for told in builder.faults.values())
    assert "base" in builder.variants


def test_paths_and_names_of_0_1_0_still_resolve():
    assert find_file("experiments/bases/synthetic.yaml", Path("experiments")) == Path("configs/synthetic.yaml")
    old = importlib.import_module("cubelet.lightning_modules.comparison")
    assert old.Measures is RunMetrics
    assert importlib.import_module("cubelet.lightning_modules.comparison.measure").length_curve is length_curve
    assert importlib.import_module("cubelet.lightning_modules.comparison.controls").Unfolded is UnfoldedCombinedRotary


def test_fragments_are_found_where_they_are_shipped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = find_file("configs/rotary/none.yaml", tmp_path)
    assert found.is_file()
    assert found.parts[-3:] == ("configs", "rotary", "none.yaml")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "plain.yaml").write_text("{}")
    assert find_file("configs/plain.yaml", tmp_path) == Path("configs/plain.yaml")
    with pytest.raises(VariantError, match=r"there is no file rotary/nune.yaml.*did you mean rotary/none"):
        find_file("rotary/nune.yaml", tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"baseline": "nobody"}, "the baseline 'nobody' is not among the variants"),
        ({"budgets": {"long": {"steps": 3}}}, "no budget 'quick'; it has long"),
        ({"budgets": {"quick": {}}}, "needs either steps or cpu_seconds"),
        ({"seeds": [1, 1]}, "two different ones"),
        ({"tune": {"seeds": [0], "space": {"a": {"values": [1]}}}}, "used for tuning and for comparing"),
        ({"tune": {"seeds": [9], "space": {"a": {"uniform": [1, 2]}}}}, "method optuna"),
        ({"tune": {"seeds": [9], "space": {"a": [1]}}}, "must have one of factors"),
        ({"tune": {"seeds": [9], "space": 3}}, "space must be a mapping of options to what is tried, got 3"),
        ({"budgets": {"quick": {"steps": 8, "space": {"a": {"values": [1]}}}}}, "tune is missing: it names the seeds"),
        ({"varients": {}}, "unknown key 'varients'"),
        ({"positive": 3}, "positive must be a mapping, got 3"),
        ({"budgets": {"quick": 7}}, "must be a mapping with steps or cpu_seconds, got 7"),
        ({"budgets": {"quick": {"steps": "many"}}}, "steps 'many'"),
        ({"seeds": "five"}, "seeds must be a number of seeds or a list of them, got 'five'"),
        ({"common": ["dropout"]}, "neither a fragment"),
    ],
)
def test_faulty_files_are_told(tiny, change, message):
    with pytest.raises(ExperimentError, match=message):
        load_experiment(tiny({}, **change))


def test_a_budget_may_search_a_space_of_its_own(tiny):
    rates = {"model.optimizer.init_args.lr": {"factors": [1, 8]}}
    own = {"model.optimizer.init_args.lr": {"factors": [0.5, 1]}}
    budgets = {"quick": {"steps": 8}, "long": {"steps": 80, "space": own}}
    file = tiny({}, tune={"seeds": [9], "space": rates}, budgets=budgets)
    assert load_experiment(file).tune.space == rates
    long = load_experiment(file, "long").tune
    assert (long.space, long.seeds) == (own, (9,))


@pytest.mark.slow
def test_the_row_of_noise_is_the_baseline_with_other_seeds(tiny):
    builder = RunBuilder(load_experiment(tiny({}, noise=True)), compose)
    noise, base = builder.run(NOISE, 1, 8), builder.run("base", 10_001, 8)
    assert noise.key == base.key
    assert noise.seed == 1  # paired with the baseline's
    assert builder.run(NOISE, 1, 8, "tune").key == builder.run("base", 1, 8, "tune").key


def test_the_known_difference_is_named_after_what_it_compares(tiny):
    assert load_experiment(tiny({})).known_difference() == "rotary/none against rotary/rope"
    own = load_experiment(tiny({}, positive={"worse": ["model.dropout=0.9"], "better": []}))
    assert own.known_difference() == f"model.dropout=0.9 against the baseline, {own.baseline}"


def test_only_chosen_variants_stand_beside_the_baseline(tiny):
    whole = load_experiment(tiny({"a": ["x=1"], "b": ["x=2"]}))
    chosen = whole.only(["b"])
    assert set(chosen.variants) == {whole.baseline, "b"}
    assert whole.only(None) is whole
    with pytest.raises(ExperimentError, match=r"no variant 'c'; it has .*a, b"):
        whole.only(["c"])


def test_cases_do_the_whole_experiment_once_each(tiny):
    file = tiny({}, cases={"short": ["data.context_length=8"], "long": ["data.context_length=32"]}, common=["a=1"])
    long, short = load_experiment(file).split_cases()  # written in the order of the alphabet
    assert (short.family, short.name, short.case) == (file.stem, f"{file.stem}-short", "short")
    assert long.common == ("a=1", "data.context_length=32")
    [whole] = load_experiment(tiny({})).split_cases()
    assert whole.case == ""


def test_seeds_can_be_fewer_or_more(tiny):
    file = tiny({}, seeds=[3, 5])
    assert load_experiment(file, seeds=4).seeds == (3, 5, 6, 7)
    assert load_experiment(tiny({}, seeds=5), seeds=2).seeds == (0, 1)
