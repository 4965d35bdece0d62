"""The run's folder and metrics.csv over resumes."""

import csv
import os

import pytest

from cubelet.cli.loggers import RUN_VARIABLE, MetricsCSV, refuse_existing, run_name, run_of_checkpoint


def rows_of(tmp_path):
    return [(int(r["step"]), r.get("a", "")) for r in csv.DictReader((tmp_path / "run/metrics.csv").open())]


def write(tmp_path, steps, resume=None, **more):
    logger = MetricsCSV(save_dir=str(tmp_path), name="", version="run")
    if resume is not None:
        logger.resume(resume)
    for step in steps:
        logger.log_metrics({"a": float(step)} | more, step)
    logger.save()


def test_a_resumed_run_appends_and_repeats_nothing(tmp_path):
    write(tmp_path, range(6))
    write(tmp_path, range(4, 8), resume=4)
    assert rows_of(tmp_path) == [(s, str(float(s))) for s in range(8)]


def test_new_columns_after_a_resume_keep_the_old_rows(tmp_path):
    write(tmp_path, range(3))
    write(tmp_path, range(3, 5), resume=3, b=1.0)
    rows = list(csv.DictReader((tmp_path / "run/metrics.csv").open()))
    assert [r["b"] for r in rows] == ["", "", "", "1.0", "1.0"]
    assert [r["a"] for r in rows] == ["0.0", "1.0", "2.0", "3.0", "4.0"]


def test_resuming_without_a_file_is_fine(tmp_path):
    write(tmp_path, range(2), resume=0)
    assert rows_of(tmp_path) == [(0, "0.0"), (1, "1.0")]


def test_children_share_the_name_and_a_later_run_gets_its_own(tmp_path, monkeypatch):
    monkeypatch.delenv(RUN_VARIABLE, raising=False)
    first = run_name(tmp_path)
    (tmp_path / first).mkdir()
    assert run_name(tmp_path) != first
    monkeypatch.setenv(RUN_VARIABLE, f"{os.getpid() + 1}|from-the-parent")
    assert run_name(tmp_path) == "from-the-parent"


def test_a_new_run_never_writes_into_an_earlier_ones_folder(tmp_path, monkeypatch):
    monkeypatch.delenv(RUN_VARIABLE, raising=False)
    refuse_existing(tmp_path, "new")
    (tmp_path / "old").mkdir()
    (tmp_path / "old/config.yaml").touch()
    with pytest.raises(ValueError, match=r"old holds an earlier run; choose another --run_name"):
        refuse_existing(tmp_path, "old")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    refuse_existing(tmp_path, "old")


def test_the_run_of_a_checkpoint(tmp_path):
    inside = tmp_path / "runs/one/checkpoints/last.ckpt"
    assert run_of_checkpoint(inside, tmp_path / "runs") == "one"
    assert run_of_checkpoint(tmp_path / "elsewhere/last.ckpt", tmp_path / "runs") is None
    assert run_of_checkpoint(tmp_path / "runs/last.ckpt", tmp_path / "runs") is None
