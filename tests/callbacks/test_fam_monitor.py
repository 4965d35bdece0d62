import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cubelet.callbacks import FAMMonitor
from cubelet.callbacks.fam_monitor import moved_most
from tests.reference.callbacks import FakeFAM, MemoryLogger, Small, train


def fake(parameters):
    return FakeFAM(parameters, lr=0.1)


def records(folder, name="fam.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_a_line_per_tensor_and_dump(tmp_path):
    train(Small(fake), [FAMMonitor(every_n_steps=3)], 10, logger=MemoryLogger(tmp_path))
    rows = records(tmp_path)
    assert [(row["step"], row["name"]) for row in rows] == [
        (step, name) for step in (3, 6, 9) for name in ("layer.weight", "head.weight", "embed.weight")
    ]
    assert rows[3] == {
        "step": 6, "name": "layer.weight", "handler": "default", "alpha": pytest.approx(0.906), "base_alpha": 0.9,
        "nu": 1.0, "bands": pytest.approx([0.494, 0.3, 0.206]), "analysed": 6,
    }  # fmt: skip


def test_scalars_per_kind_go_to_every_logger_and_pictures_where_they_can(tmp_path):
    rich, plain = MemoryLogger(tmp_path), MemoryLogger(tmp_path, pictures=False)
    train(Small(fake), [FAMMonitor(every_n_steps=2, picture_every=2)], 8, logger=[rich, plain])
    assert rich.rows == plain.rows
    assert [step for step, _ in rich.rows] == [1, 3, 5, 7]
    values = rich.rows[1][1]
    assert values["fam/alpha/default"] == pytest.approx((0.904 + 0.9) / 2)
    assert values["fam/moved/default"] == 0.5
    assert values["fam/alpha/embedding"] == pytest.approx(0.95)
    assert values["fam/upper_half/embedding"] == pytest.approx(0.7)

    drawn = rich.experiment
    # Dumps 1 and 3, and the fourth at the end of training.
    assert [tag for tag, _ in drawn.images] == ["fam/bands/default", "fam/bands/embedding"] * 3
    picture = drawn.images[3][1]  # 4 bands over the 3 dumps so far, within axes, the lowest band at the bottom
    assert picture.shape == (28 + 4 * 60 + 48, 86 + 3 * 174 + 116, 3)
    assert picture.dtype == np.uint8
    last = picture[28 : 28 + 4 * 60, 86 : 86 + 3 * 174]
    assert last[0].astype(int).sum() > last[-1].astype(int).sum()  # the top band is the strongest, so the brightest
    assert sorted(drawn.histograms[0][1]) == pytest.approx([0.9, 0.902, 0.95])
    table = drawn.texts[0][1].splitlines()
    assert "embed.weight" in table[2]
    assert "layer.weight" in table[3]


def test_only_the_scalars_asked_for_are_logged_and_others_are_refused():
    logger = MemoryLogger()
    train(Small(fake), [FAMMonitor(every_n_steps=2, scalars=["alpha"])], 4, logger=logger)
    assert {key.split("/")[1] for _, row in logger.rows for key in row if key.startswith("fam/")} == {"alpha"}
    with pytest.raises(ValueError, match="'alfa' is none of alpha"):
        FAMMonitor(scalars=["alfa"])


def test_bands_over_groups_of_different_widths_keep_their_sum():
    monitor = FAMMonitor()
    rows = [
        {"name": n, "handler": "conv", "alpha": 0.9, "base_alpha": 0.9, "bands": bands, "step": 1}
        for n, bands in (("a", [0.1, 0.2, 0.3, 0.4]), ("b", [0.6, 0.4]))
    ]
    trainer = SimpleNamespace(loggers=[], global_step=1, is_global_zero=True, fast_dev_run=False)
    monitor.dump(trainer, rows)
    assert monitor.state_dict()["columns"]["conv"] == [pytest.approx([(0.3 + 0.6) / 2, (0.7 + 0.4) / 2])]


def test_spectra_along_time_are_drawn_as_a_ridge_over_white_with_its_period_and_nu(tmp_path):
    """A gradient that oscillates with a period of 8 steps in white noise, analysed by FAM itself."""
    optimizers = pytest.importorskip("cubelet.optimizers")
    weight = torch.nn.Parameter(torch.zeros(20, 64))
    optimizer = optimizers.FAM([weight], lr=0.04, axis="time", start_step=24)
    rng = np.random.default_rng(0)
    phase = rng.uniform(0, 2 * np.pi, weight.shape)
    for step in range(60):
        grad = np.cos(2 * np.pi * step / 8 + phase) + rng.standard_normal(weight.shape)
        weight.grad = torch.tensor(grad, dtype=torch.float32)
        optimizer.step()
    monitor, logger = FAMMonitor(picture_every=1), MemoryLogger(tmp_path)
    trainer = SimpleNamespace(loggers=[logger], global_step=60, is_global_zero=True, fast_dev_run=False)
    monitor.dump(trainer, optimizer.spectrum_summary())
    [ridge] = monitor.state_dict()["columns"]["default"]
    assert int(np.argmax(ridge)) == 3  # of 24 steps
    assert max(ridge) > 0.5
    values = logger.rows[0][1]
    assert values["fam/period/default"] == 8
    assert values["fam/period_sqrt_lr/default"] == pytest.approx(1.6)
    assert values["fam/peak/default"] == pytest.approx(max(ridge))
    assert values["fam/nu/default"] == pytest.approx(0.8, abs=0.051)
    assert [tag for tag, _ in logger.experiment.images] == ["fam/bands/default"]


@pytest.mark.parametrize("same_folder", [True, False])
def test_nothing_is_lost_or_repeated_over_a_resume(tmp_path, same_folder):
    one = tmp_path / "one"
    two = one if same_folder else tmp_path / "two"
    module = Small(fake, rows=4)
    trainer = train(module, [FAMMonitor(every_n_steps=2)], 5, logger=MemoryLogger(one))
    trainer.save_checkpoint(tmp_path / "five.ckpt")
    train(Small(fake, rows=4), [FAMMonitor(every_n_steps=2)], 9, logger=MemoryLogger(one))  # ran on, was then killed
    with (one / "fam.jsonl").open("a") as file:
        file.write('{"step": 10, "na')
    resumed = FAMMonitor(every_n_steps=2)
    train(Small(fake, rows=4), [resumed], 12, logger=MemoryLogger(two), ckpt_path=tmp_path / "five.ckpt")
    assert [row["step"] for row in records(two)][::3] == [2, 4, 6, 8, 10, 12]
    assert len(resumed.state_dict()["columns"]["default"]) == 6


def test_the_history_is_bounded():
    monitor = FAMMonitor(every_n_steps=1, history=3)
    train(Small(fake), [monitor], 8)
    assert len(monitor.state_dict()["columns"]["embedding"]) == 3


def test_two_instances_write_two_files(tmp_path):
    logger = MemoryLogger(tmp_path)
    train(Small(fake), [FAMMonitor(every_n_steps=2), FAMMonitor(every_n_steps=3)], 6, logger=logger)
    assert [row["step"] for row in records(tmp_path)][::3] == [2, 4, 6]
    assert [row["step"] for row in records(tmp_path, "fam_2.jsonl")][::3] == [3, 6]
    assert logger.series("fam_2/alpha/embedding")


def test_accumulation_counts_optimizer_steps(tmp_path):
    arguments = {"logger": MemoryLogger(tmp_path), "accumulate_grad_batches": 2}
    train(Small(fake), [FAMMonitor(every_n_steps=2)], 4, **arguments)
    assert [row["step"] for row in records(tmp_path)][::3] == [2, 4]


def test_names_are_unique_over_several_optimizers(tmp_path):
    class Two(Small):
        automatic_optimization = False

        def configure_optimizers(self):
            return FakeFAM(self.layer.parameters(), lr=0.1), FakeFAM(self.head.parameters(), lr=0.1)

        def training_step(self, batch, batch_idx):
            self.manual_backward(self(batch).square().mean())
            for optimizer in self.optimizers():
                optimizer.step()
                optimizer.zero_grad()

    train(Two(), [FAMMonitor(every_n_steps=3)], 4, logger=MemoryLogger(tmp_path))
    rows = records(tmp_path)
    assert [row["step"] for row in rows] == [4] * 6  # a batch makes two steps, so 3 is passed at 4
    assert len({row["name"] for row in rows}) == 6


def test_other_optimizers_leave_it_idle_or_raise():
    with pytest.warns(UserWarning, match=r"FAMMonitor is idle.*SGD"):
        train(Small(), [FAMMonitor()], 1)
    with pytest.raises(ValueError, match="spectrum_summary"):
        train(Small(), [FAMMonitor(strict=True)], 1)


def test_the_table_starts_with_what_moved_most():
    rows = [
        {"name": n, "handler": "h", "alpha": a, "base_alpha": 0.9, "bands": [0.2, 0.8]}
        for n, a in (("little", 0.91), ("down", 0.7), ("up", 0.98))
    ]
    text = moved_most(rows, 2)
    assert text.index("down") < text.index("up")
    assert "little" not in text
    assert "2 of 2" in text


@pytest.mark.parametrize("argument", ["every_n_steps", "history", "picture_every"])
def test_bad_arguments(argument):
    with pytest.raises(ValueError, match=f"{argument} 0"):
        FAMMonitor(**{argument: 0})


def test_with_the_real_optimizer(tmp_path):
    optimizers = pytest.importorskip("cubelet.optimizers")

    class Named(Small):
        def configure_optimizers(self):
            return optimizers.FAM(
                optimizers.parameter_groups(self, lr=0.01), start_step=1, min_size=16, analyse_every=1
            )

    train(Named(), [FAMMonitor(every_n_steps=5)], 10, logger=MemoryLogger(tmp_path))
    rows = [row for row in records(tmp_path) if row["step"] == 10]
    assert {row["name"] for row in rows} >= {"layer.weight"}
    for row in rows:
        assert sum(row["bands"]) == pytest.approx(1, abs=1e-4)
        assert 0.5 < row["alpha"] < 1


def test_tensorboard_takes_everything(tmp_path):
    from lightning.pytorch.loggers import TensorBoardLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, name="", version="run")
    train(Small(fake), [FAMMonitor(every_n_steps=2)], 4, logger=logger)
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    tags = events.Tags()
    assert "fam/bands/default" in tags["images"]
    assert "fam/alpha" in tags["histograms"]
    assert "fam/alpha/default" in tags["scalars"]
    assert [event.step for event in events.Scalars("fam/alpha/default")] == [1, 3]
    assert [event.value for event in events.Scalars("fam/upper_half/embedding")] == pytest.approx([0.7, 0.7])


def test_a_full_disk_ends_the_file_but_not_the_run(tmp_path, monkeypatch):
    logger = MemoryLogger(tmp_path)

    def full(self, records):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cubelet.callbacks.fam_monitor.ResumableJSONL.append", full)
    with pytest.warns(UserWarning, match=r"FAMMonitor stops writing .*fam\.jsonl.*No space") as told:
        trainer = train(Small(fake), [FAMMonitor(every_n_steps=1)], 5, logger=logger)
    assert trainer.global_step == 5
    assert len([warning for warning in told if "stops writing" in str(warning.message)]) == 1
    assert len(logger.series("fam/alpha/default")) == 5
