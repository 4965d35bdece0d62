"""The run's folder, metrics.csv over resumes, and what TensorBoard gets."""

import csv

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from cubelet.cli.loggers import MetricsCSV, RunTensorBoard, merge_rates


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


def scalars(folder):
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, round(e.value, 6)) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_both_losses_are_one_tag_of_two_runs_and_equal_rates_one_line(tmp_path):
    logger = RunTensorBoard(save_dir=str(tmp_path), name="", version="run")
    rates = {"lr-FAM/conv": 0.5, "lr-FAM/rest": 0.5}
    logger.log_metrics({"train_loss": 2.0, "epoch": 0, **rates}, 0)
    logger.log_metrics({"val_loss": 1.5, "val_bpc": 3.0}, 1)
    logger.log_hyperparams({"dims": 8, "rotary": {"class_path": "RoPE"}})
    logger.finalize("success")
    assert scalars(tmp_path / "run") == {
        "Loss": [(0, 2.0)],
        "train_loss": [(0, 2.0)],
        "lr": [(0, 0.5)],
        "val_loss": [(1, 1.5)],
        "val_bpc": [(1, 3.0)],
    }
    assert scalars(tmp_path / "run/validation") == {"Loss": [(1, 1.5)]}
    # Capitals come before all else that is logged, in TensorBoard's order of tags.
    assert min(scalars(tmp_path / "run")) == "Loss"


def test_the_hyper_parameters_are_shown_with_the_last_validation(tmp_path):
    logger = RunTensorBoard(save_dir=str(tmp_path), name="", version="run")
    logger.log_metrics({"val_loss": 1.5}, 1)
    logger.log_hyperparams({"dims": 8, "rotary": {"class_path": "RoPE"}})
    logger.finalize("success")
    metadata = EventAccumulator(str(tmp_path / "run")).Reload().summary_metadata
    start = metadata["_hparams_/session_start_info"].plugin_data.content
    content = plugin_data_pb2.HParamsPluginData.FromString(start).session_start_info.hparams
    assert content["dims"].number_value == 8
    assert content["rotary/class_path"].string_value == "RoPE"
    experiment = metadata["_hparams_/experiment"].plugin_data.content
    infos = plugin_data_pb2.HParamsPluginData.FromString(experiment).experiment.metric_infos
    assert [info.name.tag for info in infos] == ["val_loss"]


def test_rates_that_differ_keep_their_names():
    values = {"lr-FAM/conv": 0.5, "lr-FAM/rest": 0.25, "lr-FAM/head": 0.5}
    assert merge_rates(values) == {"lr-FAM/conv": 0.5, "lr-FAM/rest": 0.25}


@pytest.mark.slow
def test_the_default_experiment_shows_at_most_twenty_scalars_losses_first(cubelet, tmp_path):
    cubelet("fit", "--trainer.max_steps=160", "--trainer.val_check_interval=80", "--trainer.log_every_n_steps=20")
    (folder,) = (tmp_path / "runs").glob("2*")
    events = EventAccumulator(str(folder)).Reload().Tags()
    tags = events["scalars"]
    assert {"Loss", "train_loss", "val_loss", "val_bpc", "tokens_per_second", "base", "cycler"} <= set(tags)
    assert {"rotation/turn", "fam/peak/attention"} <= set(tags)
    assert len(tags) <= 20
    assert min(tags) == "Loss"
    for kind in ("attention/", "rotation/", "fam/bands/"):
        assert any(tag.startswith(kind) for tag in events["images"])
