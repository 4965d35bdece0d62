"""Records: what they hold is not done again, on any machine, and says the same."""

import json
import shutil

import pytest

from cubelet.cli.comparison import COMMAND_LINE, compose
from cubelet.common.errors import ConfigError
from cubelet.compare.command import open_records
from cubelet.compare.experiment import load_experiment
from cubelet.compare.processes import RunResult
from cubelet.compare.records import Records
from cubelet.compare.runner import ExperimentResult, run_experiment, summary
from cubelet.compare.runs import RunBuilder


def refuse(arguments):
    raise AssertionError(f"trained: {arguments}")


@pytest.mark.slow
def test_recorded_runs_are_found_on_another_machine(tiny, tmp_path):
    pytest.importorskip("statsmodels", reason="needs the extra `compare`")
    file = tiny(
        {"rate": ["model.optimizer.init_args.lr=0.01"]},
        tune={"seeds": [1000], "space": {"model.optimizer.init_args.lr": {"values": [0.003, 0.006]}}},
    )
    experiment = load_experiment(file)
    path = tmp_path / "records" / "x.jsonl"
    first = run_experiment(experiment, tmp_path / "a", COMMAND_LINE, jobs=0, records=Records(path))
    text = path.read_text("utf-8")
    assert len(Records(path)) == len(text.splitlines()) > 8
    # Elsewhere nothing is trained, and every number is the same.
    command_line = type(COMMAND_LINE)(COMMAND_LINE.compose, refuse)
    second = run_experiment(experiment, tmp_path / "b", command_line, jobs=0, records=Records(path))
    assert summary(second) == summary(first)
    assert path.read_text("utf-8") == text
    # Without the file nothing is found.
    third = run_experiment(experiment, tmp_path / "c", command_line, jobs=0)
    assert "trained" in third.faults["base"]


@pytest.fixture
def runs(tiny):
    builder = RunBuilder(load_experiment(tiny({})), compose)
    return [builder.run("base", seed, 8) for seed in range(3)]


def finish(run, root, loss):
    folder = root / run.name
    folder.mkdir(parents=True)
    curve = [[1, 0.123456789, loss]]
    (folder / "measures.json").write_text(json.dumps({"val_loss": loss, "val_curve": curve, "train_curve": curve}))


def test_two_processes_lose_nothing_of_each_other(runs, tmp_path):
    path = tmp_path / "x.jsonl"
    one, other = Records(path), Records(path)
    for run, loss in zip(runs, (1.0000000001, 2.0, None), strict=True):
        finish(run, tmp_path / "runs", loss)
    one.keep(runs[1:2], tmp_path / "runs")
    other.keep([runs[0], runs[2]], tmp_path / "runs")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["seed"] for row in rows] == [0, 1, 2]
    assert rows[0]["measures"] == {  # the loss to the last digit, curves to six
        "val_loss": 1.0000000001, "val_curve": [[1.0, 0.123457, 1.0]], "train_curve": [[1.0, 0.123457, 1.0]],
    }  # fmt: skip
    assert rows[2]["measures"]["val_loss"] is None  # a run that diverged is a result, too


def test_what_is_there_is_not_overwritten(runs, tmp_path):
    path = tmp_path / "x.jsonl"
    finish(runs[0], tmp_path / "a", 1.0)
    Records(path).keep(runs, tmp_path / "a")
    finish(runs[0], tmp_path / "b", 3.0)
    Records(path).restore(runs, tmp_path / "b")
    assert json.loads((tmp_path / "b" / runs[0].name / "measures.json").read_text())["val_loss"] == 3.0
    shutil.rmtree(tmp_path / "a")
    Records(path).restore(runs, tmp_path / "a")
    assert [p.name for p in (tmp_path / "a").iterdir() if p.is_dir()] == [runs[0].name]


@pytest.mark.parametrize(
    "line",
    ["{", "[]", "3", '{"key": "a"}', '{"key": "a", "measures": {"val_loss": 1}}', '{"measures": {"val_loss": 1}}'],
)
def test_a_line_that_is_no_record_is_named(line, tmp_path):
    path = tmp_path / "x.jsonl"
    whole = {"key": "a", "variant": "v", "purpose": "test", "seed": 0, "measures": {"val_loss": 1.0}}
    path.write_text(json.dumps(whole) + "\n" + line + "\n")
    with pytest.raises(ConfigError, match="line 2 is no record"):
        Records(path)


def test_a_file_in_the_place_of_the_folder_is_refused_before_any_run(tiny, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(ConfigError, match="is a file; name the folder"):
        open_records(load_experiment(tiny({})), tmp_path / "taken")


def test_runs_of_several_machines_are_told(runs, tmp_path, tiny):
    outcome = ExperimentResult(load_experiment(tiny({})), tmp_path)
    outcome.results = {
        "base": {s: RunResult(runs[s], {"machine": m}) for s, m in ((0, "A"), (1, "B"), (2, "A"))},
        "other": {0: RunResult(runs[0], {"machine": "A"}), 2: RunResult(runs[2], {})},
    }
    assert outcome.mixed() is None  # each seed by one machine
    outcome.results["other"][1] = RunResult(runs[1], {"machine": "A"})
    assert "runs of seed 1 were computed by different machines" in outcome.cautions()[-1]
