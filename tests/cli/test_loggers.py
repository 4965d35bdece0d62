"""The run's folder and metrics.csv over resumes."""

import csv

from cubelet.cli.loggers import MetricsCSV


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
