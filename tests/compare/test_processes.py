"""Whole experiments on tiny models: repeated, killed and resumed, planted effects, failures that cost nothing else."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from lightning.pytorch import Callback

from cubelet.cli.comparison import COMMAND_LINE, compose, fit
from cubelet.common.source_digest import source_digest
from cubelet.compare.experiment import AGAIN, load_experiment
from cubelet.compare.processes import RunResult, execute, one_line
from cubelet.compare.runner import ExperimentResult, run_experiment, summary
from cubelet.compare.runs import RunBuilder
from cubelet.compare.statistics import HELPS, HURTS

STABLE = ("val_loss", "lengths", "parameters", "steps")


class KillOnce(Callback):
    """Kills its process at a step, the first time."""

    def __init__(self, mark: str, step: int = 6):
        self.mark, self.step = mark, step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step and not os.path.exists(self.mark):
            open(self.mark, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)


class FullDisk(Callback):
    """What a write to a full disk raises."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 3:
            raise OSError(28, "No space left on device")


class NoRoom(Callback):
    """From now on the system really refuses files above 20 kB; a checkpoint is larger."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then writing fails with an error, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))


def numbers(measures):
    losses = {k: [[row[0], row[2]] for row in measures[k]] for k in ("val_curve", "train_curve")}
    return {**{k: measures[k] for k in STABLE}, **losses}


@pytest.mark.slow
def test_an_experiment_with_planted_effects_and_failures(tiny, tmp_path):
    pytest.importorskip("statsmodels", reason="needs the extra `compare`")
    file = tiny(
        {
            "same": ["model.compile=false"],
            "better rate": ["model.optimizer.init_args.lr=0.03"],
            "worse rate": ["model.optimizer.init_args.lr=0.00001"],
            "diverging": ["model.optimizer.init_args.lr=1.0e+30"],
            "full": [f"trainer.callbacks=[{{class_path: {__name__}.FullDisk}}]"],
            "typo": ["model.dimms=3"],
        },
        seeds=3,
        budgets={"quick": {"steps": 16}},
    )
    out = run_experiment(load_experiment(file), tmp_path, COMMAND_LINE, jobs=0)
    found = out.differences()
    assert found["same"].each == (0.0, 0.0, 0.0)
    assert found["better rate"].verdict == HELPS
    assert found["worse rate"].verdict == HURTS
    assert out.controls()[0].passed  # the baseline trained again
    assert "exactly 0" in out.controls()[0].sentence
    troubles = dict(out.troubles())
    assert set(troubles) == {"diverging", "full", "typo"}
    assert "No space left" in troubles["full"]
    assert "nan" in troubles["diverging"] or "finite" in troubles["diverging"]
    assert all("\n" not in line for line in troubles.values())
    assert len(out.values(AGAIN)) == 2
    for variant in ("base", "same", "better rate"):
        assert len(out.values(variant)) == 3
        assert out.mean(variant, "cpu_seconds") > 0
    assert json.loads(json.dumps(summary(out)))["variants"]["base"]["steps"] == 16
    asked = []
    again = run_experiment(
        load_experiment(file), tmp_path, COMMAND_LINE, jobs=0, on_progress=lambda progress, result: asked.append(result)
    )
    assert {r.run.variant for r in asked} == {"diverging", "full"}  # only what failed is tried again
    assert again.values("better rate") == out.values("better rate")


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted_and_side_by_side_equals_one_by_one(tiny, tmp_path):
    if torch.get_num_threads() > 1:
        pytest.skip("processes are forked here, which needs OMP_NUM_THREADS=1")
    mark = tmp_path / "killed"
    callback = f"trainer.callbacks=[{{class_path: {__name__}.KillOnce, init_args: {{mark: {mark}}}}}]"
    builder = RunBuilder(load_experiment(tiny({"killed": [callback]})), compose)
    killed, plain, other = builder.run("killed", 1, 8), builder.run("base", 1, 8), builder.run("base", 2, 8)
    results = execute([killed, other], tmp_path / "a", fit, jobs=2)
    assert "killed by SIGKILL" in results[killed.key].fault
    assert results[other.key].fault is None
    rest = execute([killed, other], tmp_path / "a", fit, jobs=1)[killed.key]
    whole = execute([plain, other], tmp_path / "b", fit, jobs=0)
    assert numbers(rest.measures) == numbers(whole[plain.key].measures)
    assert numbers(results[other.key].measures) == numbers(whole[other.key].measures)
    assert numbers(rest.measures)["val_curve"][-1][0] == 8


@pytest.mark.slow
def test_a_baseline_of_two_experiments_is_trained_once(tiny, tmp_path):
    """The second takes the first's runs, but none of another seed, or of other source code."""
    first, second = tiny({"rate": ["model.optimizer.init_args.lr=0.01"]}), tiny({"wider": ["model.dims=32"]}, seeds=3)

    def trained(file, folder):
        asked = []
        tell = lambda progress, result: asked.append((result.run.variant, result.run.seed))  # noqa: E731
        options = {"jobs": 0, "on_progress": tell, "shared": tmp_path}
        out = run_experiment(load_experiment(file), tmp_path / folder, COMMAND_LINE, **options)
        return out, asked

    one, _ = trained(first, "first")
    two, asked = trained(second, "second")
    assert {seed for variant, seed in asked if variant == "base"} == {2}
    assert not [variant for variant, _ in asked if variant == AGAIN]
    assert {seed: two.values("base")[seed] for seed in (0, 1)} == one.values("base")
    assert not list((tmp_path / "second").glob("runs/base-test-0-*/checkpoints"))
    for measures in (tmp_path / "first").glob("runs/*/measures.json"):
        measures.write_text(json.dumps(json.loads(measures.read_text()) | {"source": "another"}))
    shutil.rmtree(tmp_path / "second")
    _, asked = trained(second, "second")
    assert {seed for variant, seed in asked if variant == "base"} == {0, 1, 2}


@pytest.mark.slow
def test_a_refused_write_costs_its_run_alone(tiny, tmp_path):
    if torch.get_num_threads() > 1:
        pytest.skip("processes are forked here, which needs OMP_NUM_THREADS=1")
    builder = RunBuilder(
        load_experiment(tiny({"refused": [f"trainer.callbacks=[{{class_path: {__name__}.NoRoom}}]"]})), compose
    )
    refused, plain = builder.run("refused", 1, 8), builder.run("base", 1, 8)
    results = execute([refused, plain], tmp_path, fit, jobs=1)
    assert "too large" in results[refused.key].fault.lower()
    assert results[plain.key].fault is None
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.slow
def test_a_command_killed_and_given_again_equals_one_left_alone(tiny, tmp_path):
    pytest.importorskip("matplotlib", reason="needs the extra `compare`")
    file = tiny({"rate": ["model.optimizer.init_args.lr=0.01"]}, budgets={"quick": {"steps": 40}})
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def command(out):
        words = ["-c", "from cubelet.cli.main import main; main()", "compare", str(file), "--out", out]
        return [sys.executable, *words, "--jobs", "2"]

    one = subprocess.Popen(command(str(tmp_path / "a")), env=environment, stdout=subprocess.DEVNULL)
    first = time.monotonic()
    while not list(tmp_path.glob("a/*/runs/*/measures.json")) and time.monotonic() < first + 120:
        time.sleep(0.02)
    one.kill()
    one.wait()
    done = len(list(tmp_path.glob("a/*/runs/*/measures.json")))
    assert 0 < done < 8
    for out in ("a", "b"):
        subprocess.run(command(str(tmp_path / out)), env=environment, stdout=subprocess.DEVNULL, check=False)
    found = {out: {p.parent.name: p for p in tmp_path.glob(f"{out}/*/runs/*/measures.json")} for out in ("a", "b")}
    assert found["a"].keys() == found["b"].keys()
    for name, path in found["a"].items():
        assert numbers(json.loads(path.read_text())) == numbers(json.loads(found["b"][name].read_text()))


def test_runs_of_other_code_are_told(tiny, tmp_path):
    builder = RunBuilder(load_experiment(tiny({})), compose)
    outcome = ExperimentResult(builder.experiment, tmp_path)
    made = [
        RunResult(builder.run("base", seed, 8), {"source": source}) for seed, source in ((0, source_digest()), (1, "x"))
    ]
    outcome.results = {"base": {0: made[0]}}
    assert outcome.outdated() is None
    outcome.results["base"][1] = made[1]
    assert outcome.outdated().startswith("1 of 2 runs were made by other source code")


BLOCKED = """
import sys
for name in ("fcntl", "resource", "termios"):
    sys.modules[name] = None  # as where the system has none
import multiprocessing, torch
methods = multiprocessing.get_all_start_methods
multiprocessing.get_all_start_methods = lambda: [m for m in methods() if m != "fork"]
if __name__ == "__main__":
    from cubelet.callbacks.run_metrics import peak_memory_mb
    assert peak_memory_mb(torch.device("cpu")) is None
    from cubelet.cli.main import main
    main(sys.argv[1:])
"""


@pytest.mark.slow
def test_comparisons_run_where_python_has_no_fork_and_no_locks_of_unix(tiny, tmp_path):
    pytest.importorskip("matplotlib", reason="needs the extra `compare`")
    (tmp_path / "blocked.py").write_text(BLOCKED)
    file = tiny({}, positive={"worse": [], "better": []})  # fails that control, and needs one run less
    words = [sys.executable, "blocked.py", "compare", str(file), "--out", str(tmp_path / "out"), "--jobs", "2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    ended = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert "the baseline minus itself is exactly 0" in ended.stdout, ended.stderr
    measures = [json.loads(path.read_text()) for path in tmp_path.glob("out/*/runs/*/measures.json")]
    assert len(measures) == 4
    assert {m["peak_memory_mb"] for m in measures} == {None}


def test_messages_are_one_line():
    assert one_line("error: first\nsecond") == "first"
    assert one_line("A long one. " + "x" * 300) == "A long one"
    assert one_line("") == "no message"
