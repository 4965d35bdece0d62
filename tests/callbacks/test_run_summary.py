import os
import signal

import pytest
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, Timer

from cubelet.callbacks import LastCheckpoint, RunSummary
from cubelet.callbacks.run_summary import duration, reachable
from tests.reference.callbacks import MemoryLogger, Small, train


class Measured(Small):
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", 1.5)
        self.log("val_bpc", 2.25)


def fit(tmp_path, callbacks, steps=4, module=None, **arguments):
    arguments = {"limit_val_batches": 1.0, "val_check_interval": 2, "default_root_dir": tmp_path} | arguments
    return train(module or Measured(), callbacks, steps, **arguments)


def printed(capsys):
    lines = capsys.readouterr().out.splitlines()
    return {line[:20].strip(): line[20:].strip() for line in lines}, lines


def test_tells_what_a_reader_wants_to_know(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("seed: 1")
    folder = tmp_path / "a rather long folder name" / ("x" * 60)
    checkpoint = ModelCheckpoint(folder, monitor="val_loss", save_last=True)
    fit(tmp_path, [RunSummary(), checkpoint], logger=MemoryLogger(tmp_path), enable_checkpointing=True)
    said, lines = printed(capsys)
    assert sum("finished at step 4" in line for line in lines) == 1
    assert said["validation loss"] == "1.5000 (whole split, step 4)"
    assert said["bits per character"] == "2.2500"
    assert said["wall time"].endswith(" s")
    assert said["best checkpoint"] == checkpoint.best_model_path  # in one line, however long
    assert said["last checkpoint"] == checkpoint.last_model_path
    config = tmp_path / "config.yaml"
    expected = f"cubelet fit --config {config} --ckpt_path '{checkpoint.last_model_path}' --trainer.max_steps=8"
    assert said["continue"] == expected
    assert said["look"] == f"tensorboard --logdir {tmp_path}"


def test_leaves_out_what_is_not_there(tmp_path, capsys):
    fit(tmp_path, [RunSummary()], limit_val_batches=0)
    said, _ = printed(capsys)
    assert "wall time" in said
    assert not {"validation loss", "best checkpoint", "last checkpoint", "continue", "look"} & set(said)


def test_says_when_the_loss_is_of_a_part_of_the_split(tmp_path, capsys):
    fit(tmp_path, [RunSummary()], limit_val_batches=1)
    assert printed(capsys)[0]["validation loss"] == "1.5000 (limit_val_batches=1, step 4)"


def test_without_a_config_file_the_command_is_python(tmp_path, capsys):
    fit(tmp_path, [RunSummary(), ModelCheckpoint(tmp_path, save_last=True)], enable_checkpointing=True)
    expected = f"Trainer(max_steps=8, …).fit(model, ckpt_path='{tmp_path / 'last.ckpt'}')"
    assert printed(capsys)[0]["continue"] == expected


LIMITS = {
    "steps": ({}, "trainer.max_steps", "--trainer.max_steps=8"),
    "epochs": ({"max_steps": -1, "max_epochs": 1}, "trainer.max_epochs", "--trainer.max_epochs=2"),
    "time": ({"max_steps": -1, "max_time": {"hours": 30, "seconds": 1}}, "trainer.max_time", "02:12:00:02"),
}


@pytest.mark.parametrize("limit", LIMITS)
def test_the_line_to_go_on_raises_the_limit_that_ended_the_run(limit, tmp_path, capsys, monkeypatch):
    """And what it says trains on: a second fit by the same limits has nothing left to do and says so."""
    arguments, named, option = LIMITS[limit]
    (tmp_path / "config.yaml").write_text("seed: 1")
    if limit == "time":  # a clock that jumps by 30 hours once a batch was trained on
        trained = set()
        monkeypatch.setattr(Timer, "on_train_batch_end", lambda self, trainer, *_, **__: (
            trained.add(id(self)), self._check_time_remaining(trainer)))  # fmt: skip
        monkeypatch.setattr(Timer, "time_elapsed", lambda self, *_: 30 * 3600 + 1.0 if id(self) in trained else 0.0)
    fit(tmp_path, [RunSummary(), ModelCheckpoint(tmp_path, save_last=True)], 4, logger=MemoryLogger(tmp_path),
        enable_checkpointing=True, **arguments)  # fmt: skip
    said, lines = printed(capsys)
    assert any(" at step " in line and named in line for line in lines)
    assert option in said["continue"]
    again = [RunSummary(), ModelCheckpoint(tmp_path, save_last=True)]
    fit(tmp_path, again, 4, logger=MemoryLogger(tmp_path), enable_checkpointing=True,
        ckpt_path=tmp_path / "last.ckpt", **arguments)  # fmt: skip
    said, lines = printed(capsys)
    assert limit == "time" or any("nothing left to do" in line and named in line for line in lines)
    assert option in said["continue"]


def test_early_stopping_is_named_as_the_reason(tmp_path, capsys):
    fit(tmp_path, [RunSummary(), EarlyStopping("val_loss", patience=1)], 20)
    _, lines = printed(capsys)
    assert any("EarlyStopping: val_loss did not improve 1 times" in line for line in lines)


def test_a_signal_is_named_as_the_reason(tmp_path, capsys):
    class Interrupted(Measured):
        def on_before_optimizer_step(self, optimizer):
            if self.trainer.global_step == 2:
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(SystemExit):
        fit(tmp_path, [RunSummary(), LastCheckpoint()], 9, Interrupted(), enable_checkpointing=True)
    _, lines = printed(capsys)
    assert any("stopped at step 3 by Ctrl-C" in line for line in lines)


def test_a_run_that_breaks_tells_how_to_go_on(tmp_path, capsys):
    class Breaking(Measured):
        def training_step(self, batch, batch_idx):
            if self.trainer.global_step == 3:
                raise FloatingPointError("broken")
            return super().training_step(batch, batch_idx)

    (tmp_path / "config.yaml").write_text("seed: 1")
    checkpoint = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=2)
    with pytest.raises(FloatingPointError):
        fit(
            tmp_path, [RunSummary(), checkpoint], 9, Breaking(), enable_checkpointing=True,
            logger=MemoryLogger(tmp_path),
        )  # fmt: skip
    said, lines = printed(capsys)
    assert any("stopped at step 3 by FloatingPointError" in line for line in lines)
    assert said["continue"] == f"cubelet fit --config {tmp_path / 'config.yaml'} --ckpt_path {tmp_path / 'last.ckpt'}"


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.21, "3.2 s"), (247.4, "4 min 07 s"), (59.96, "60.0 s"), (7500, "2 h 05 min")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_commands_are_told_as_the_user_can_type_them(tmp_path, monkeypatch):
    script = tmp_path / "bin/cubelet"
    script.parent.mkdir()
    script.touch(mode=0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(script), "fit"])
    monkeypatch.setenv("PATH", "/nowhere")
    assert reachable("cubelet") == "bin/cubelet"
    assert reachable("tensorboard") == "tensorboard"  # not installed beside it: the name is all there is to tell
    monkeypatch.setenv("PATH", str(script.parent))
    assert reachable("cubelet") == "cubelet"
