"""Runs that were killed and resumed end bit for bit as the run that was not."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.reference.interrupted import BASE, KILLS, TROUBLES, attach

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Everything of tests/reference/interrupted.py, from one process that forks."""
    folder = tmp_path_factory.mktemp("runs")
    command = [sys.executable, "-m", "tests.reference.interrupted", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def ends(folder):
    """How the processes of each case ended, in turn."""
    return json.loads((folder / "ends.json").read_text())


def run_of(folder, name):
    (run,) = [p for p in (folder / name).iterdir() if p.is_dir()]
    return run


def last(folder, name):
    return torch.load(run_of(folder, name) / "checkpoints/last.ckpt", weights_only=True)


def said(folder, name):
    return (folder / name / "said.txt").read_text()


def different(a, b, path="") -> list[str]:
    """Where two nested containers differ in any bit; files may lie elsewhere."""
    if isinstance(a, torch.Tensor):
        # What is not filled yet is NaN in both.
        same = isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape
        return [] if same and torch.equal(a.nan_to_num(nan=-7.0), b.nan_to_num(nan=-7.0)) else [path]
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return [f"{path}: {a.keys() ^ b.keys()}"]
        return [found for key in a if key != "path" for found in different(a[key], b[key], f"{path}/{key}")]
    if isinstance(a, list | tuple):
        if len(a) != len(b):
            return [f"{path}: {len(a)}, {len(b)}"]
        return [found for i, (x, y) in enumerate(zip(a, b, strict=True)) for found in different(x, y, f"{path}/{i}")]
    return [] if a == b else [f"{path}: {a}, {b}"]


def assert_same_end(folder, name, reference):
    whole, resumed = last(folder, reference), last(folder, name)
    assert whole["global_step"] == resumed["global_step"] > 10
    for part in ("state_dict", "lr_schedulers"):
        assert different(whole[part], resumed[part]) == []
    for one, two in zip(whole["optimizer_states"], resumed["optimizer_states"], strict=True):
        assert different(one["state"], two["state"]) == []
        # torch adds the defaults of options that an optimizer does not have when it loads a state
        for a, b in zip(one["param_groups"], two["param_groups"], strict=True):
            assert different(a, {key: b[key] for key in a}) == []
    # All but where files lie and how often to save, in which runs that end alike may differ.
    states = [
        {k.split("{")[0]: v for k, v in c["callbacks"].items() if "Checkpoint" not in k} for c in (whole, resumed)
    ]
    assert len(states[0]) >= 7
    assert different(states[0], states[1]) == []


@pytest.mark.parametrize("name", KILLS)
def test_a_killed_run_ends_as_the_one_that_ran_through(name, folder, ends):
    reference, _, kills = KILLS[name]
    assert [abs(end) for end in ends[name]] == [9] * len(kills) + [0], said(folder, name)[-3000:]
    assert_same_end(folder, name, reference)


@pytest.mark.parametrize("name", KILLS)
def test_nothing_logged_is_lost_or_repeated(name, folder):
    rows = [list(csv.DictReader((run_of(folder, n) / "metrics.csv").open())) for n in (KILLS[name][0], name)]
    for column in ("train_loss", "val_loss", "val_bpc"):
        whole, resumed = ([(int(r["step"]), r[column]) for r in run if r.get(column)] for run in rows)
        # Lightning hands a step's values to its loggers after the step's checkpoint: killed between, they are lost.
        between = {0: set(), 1: {4, 9}}[any(hook == "replace" for hook, _ in KILLS[name][2])]
        assert [row for row in whole if row in resumed or row[0] not in between] == resumed, column
    files = [run_of(folder, n) / "fam.jsonl" for n in (KILLS[name][0], name)]
    dumps = [file.read_text() if file.exists() else "" for file in files]
    assert dumps[0]
    assert dumps[0] == dumps[1]


@pytest.mark.parametrize("name", TROUBLES)
def test_a_run_that_was_stopped_or_could_not_write_goes_on_exactly(name, folder, ends):
    reference, _, _, well = TROUBLES[name]
    assert ends[name] == [0 if well else 2, 0], said(folder, name)[-3000:]
    assert_same_end(folder, name, reference)


def before(folder, name):
    """The first run's last checkpoint and words."""
    name = f"{name}, before resuming"
    return last(folder, name), said(folder, name)


def test_sigterm_saves_the_step_it_came_in(folder):
    for name, step in {"told to stop": 13, "told to stop before a validation": 12, "one rank told to stop": 13}.items():
        checkpoint, words = before(folder, name)
        assert checkpoint["global_step"] == step
        assert f"told to stop after step {step}" in words
        assert "Traceback" not in words
        assert "--ckpt_path" in words


def test_a_full_disk_keeps_the_earlier_checkpoint_and_says_so_once(folder):
    checkpoint, words = before(folder, "disk full")
    assert checkpoint["global_step"] == 6
    assert words.count("Training goes on and tries again") == 1
    assert "File too large; the one before is untouched" in words
    assert "error: cannot write the checkpoint" in words
    assert "Traceback" not in words
    checkpoint, words = before(folder, "disk full for a while")
    assert checkpoint["global_step"] == 20
    assert "checkpoints are written again" in words


def test_a_log_that_cannot_be_written_ends_the_run_with_one_line(folder):
    checkpoint, words = before(folder, "no place for logs")
    assert checkpoint["global_step"] == 12
    assert "error: " in words
    assert "Traceback" not in words


def test_a_loss_that_is_no_number_stops_the_run_with_one_message(folder):
    checkpoint, words = before(folder, "not a number")
    assert checkpoint["global_step"] == 12
    (message,) = [line for line in words.splitlines() if line.startswith("error: ")]
    assert "loss of optimizer step 14 is nan" in message
    assert "checkpoints/last.ckpt" in message
    assert "Largest gradient: decoder." in message


def test_slurm_requeues_after_the_step_and_goes_on_exactly(folder, ends):
    assert ends["requeued"] == [-9, 0], said(folder, "requeued")[-3000:]
    saved = torch.load(folder / "requeued, before resuming/hpc_ckpt_1.ckpt", weights_only=True)
    assert saved["global_step"] == 13
    assert (folder / "scontrol.txt").read_text().splitlines() == ["requeue 17"]
    assert f"Restoring states from the checkpoint path at {folder}/requeued/hpc_ckpt_1.ckpt" in said(folder, "requeued")
    assert_same_end(folder, "requeued", "plain")


def test_the_installed_commands_resume_each_other(folder):
    """The console scripts themselves, each in an interpreter of its own: `cubelet` is killed, `lightning` goes on."""
    root = folder / "installed"
    places = [f"--data.corpus={folder}/words.txt", f"--data.cache_dir={folder}/cache"]
    arguments = ["fit", *BASE, *places, f"--trainer.default_root_dir={root}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ends = []
    for program, more in (
        ("cubelet", attach("Kill", hook="on_after_backward", count=13)),
        ("lightning", ["--ckpt_path=last"]),
    ):
        command = [str(Path(sys.executable).with_name(program)), *arguments, *more]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
        ends.append(done.returncode)
    assert ends == [-9, 0], done.stderr[-3000:]
    assert_same_end(folder, "installed", "plain")


def test_no_temporary_files_stay(folder):
    assert list(folder.rglob("*.partial")) == []
