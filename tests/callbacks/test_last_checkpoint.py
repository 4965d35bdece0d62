"""When `last.ckpt` is written, and what `--ckpt_path last` makes of it."""

import os
import signal

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.plugins.io import AsyncCheckpointIO

from cubelet.callbacks.checkpoint_io import AtomicCheckpointIO
from cubelet.callbacks.checkpoints import newest_checkpoint
from cubelet.callbacks.last_checkpoint import CheckpointNotWritten, LastCheckpoint


class Noting(LastCheckpoint):
    """Notes optimizer steps and batches at which it saves."""

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.notes = []

    def _save(self, trainer):
        super()._save(trainer)
        self.notes.append((trainer.global_step, trainer.fit_loop.epoch_loop.batch_progress.total.processed))


def fit(tmp_path, callback, *more, module=None, ckpt_path=None, **settings):
    usual = {
        "accelerator": "cpu", "max_steps": 7, "limit_val_batches": 0, "logger": False, "enable_progress_bar": False,
        "enable_model_summary": False, "num_sanity_val_steps": 0, "default_root_dir": tmp_path,
    }  # fmt: skip
    trainer = Trainer(**usual | settings, callbacks=[*more, callback])
    trainer.fit(module or BoringModel(), ckpt_path=ckpt_path)
    return trainer


def test_every_n_steps_and_at_the_end(tmp_path):
    callback = Noting(3)
    trainer = fit(tmp_path, callback)
    assert [step for step, _ in callback.notes] == [3, 6, 7]
    assert isinstance(trainer.strategy.checkpoint_io, AtomicCheckpointIO)
    assert torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 7
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]


def test_after_the_validation_where_there_is_one(tmp_path):
    callback = Noting(3)
    fit(tmp_path, callback, limit_val_batches=1, val_check_interval=3, check_val_every_n_epoch=None)
    assert [step for step, _ in callback.notes] == [3, 6, 7]


def test_never_inside_an_accumulation_window_and_not_after_a_resume_either(tmp_path):
    callback = Noting(1)
    fit(tmp_path, callback, max_steps=3, accumulate_grad_batches=4)
    assert callback.notes == [(1, 4), (2, 8), (3, 12)]
    callback = Noting(1)
    path = str(tmp_path / "checkpoints/last.ckpt")
    fit(tmp_path, callback, max_steps=5, accumulate_grad_batches=4, ckpt_path=path)
    assert callback.notes == [(4, 16), (5, 20)]


def test_best_weights_of_a_windows_inside_are_marked_and_passed_over(tmp_path):
    best = ModelCheckpoint(tmp_path / "checkpoints", "best", monitor="x")

    class Better(BoringModel):
        def validation_step(self, batch, batch_idx):
            self.log("x", -float(self.trainer.fit_loop.epoch_loop.batch_progress.total.processed))

    settings = {
        "accumulate_grad_batches": 2, "limit_val_batches": 1, "val_check_interval": 7, "check_val_every_n_epoch": None,
        "max_steps": 4,
    }  # fmt: skip
    fit(tmp_path, LastCheckpoint(3), best, module=Better(), **settings)
    folder = tmp_path / "checkpoints"
    assert newest_checkpoint(folder) == folder / "last.ckpt"
    (folder / "last.ckpt").unlink()
    with pytest.warns(UserWarning, match="inside an accumulation window of 2 batches"):
        fit(tmp_path, LastCheckpoint(3), module=Better(), ckpt_path=str(newest_checkpoint(folder)), **settings)


def test_an_exception_between_steps_saves_and_one_inside_does_not(tmp_path):
    class Breaks(BoringModel):
        def __init__(self, hook):
            super().__init__()
            setattr(self, hook, self.fail)

        def fail(self, *arguments):
            if self.trainer.global_step == 5:
                raise RuntimeError("broken")

    for hook, validations, step in (("on_after_backward", 0, 3), ("on_validation_start", 1, 5)):
        folder = tmp_path / hook
        settings = {"limit_val_batches": validations, "val_check_interval": 5, "check_val_every_n_epoch": None}
        with pytest.raises(RuntimeError, match="broken"):
            fit(folder, LastCheckpoint(3), module=Breaks(hook), **settings)
        assert torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["global_step"] == step


def test_a_disk_that_stays_full_is_an_error_at_the_end(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cubelet.callbacks.checkpoint_io.write_atomic", full)
    with (
        pytest.warns(UserWarning, match="Training goes on"),
        pytest.raises(CheckpointNotWritten, match="No space left on device; none was written yet; the end of this run"),
    ):
        fit(tmp_path, LastCheckpoint(3))


def test_another_way_of_writing_is_left_alone(tmp_path):
    trainer = fit(tmp_path, LastCheckpoint(3), plugins=[AsyncCheckpointIO()])
    assert isinstance(trainer.strategy.checkpoint_io, AsyncCheckpointIO)


def test_a_bad_interval_is_refused():
    with pytest.raises(ValueError, match="every_n_steps 0 must be at least 1"):
        LastCheckpoint(0)


class Interrupts(Callback):
    """Sends this process a signal at the n-th call of a hook."""

    def __init__(self, hook, count, *numbers):
        self.left, self.numbers = count, numbers
        setattr(self, hook, self.hit)

    def hit(self, *_):
        self.left -= 1
        for number in self.numbers if self.left == 0 else ():
            os.kill(os.getpid(), number)


VALIDATE = {"limit_val_batches": 3, "val_check_interval": 4, "check_val_every_n_epoch": None}
SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, None)]


@pytest.mark.parametrize(("number", "status"), SIGNALS)
@pytest.mark.parametrize(
    ("hook", "count", "step"),
    [
        ("on_train_batch_start", 3, 3),
        ("on_before_optimizer_step", 3, 3),
        ("on_after_backward", 4, 4),  # a validation follows this step
        ("on_validation_batch_end", 2, 4),
        ("on_train_batch_end", 5, 5),
    ],
)
def test_a_signal_loses_no_step(hook, count, step, number, status, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    callback = Noting(100)
    # Before `callback` in the order of hooks, since checkpoints come last.
    with pytest.raises(SystemExit) as end:
        fit(tmp_path, callback, Interrupts(hook, count, number), **VALIDATE)
    assert end.value.code == status
    assert torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["global_step"] == step
    assert signal.getsignal(signal.SIGINT) is before
    # What was interrupted goes on to the end, and a validation that was begun was finished.
    trainer = fit(tmp_path, LastCheckpoint(100), ckpt_path=str(tmp_path / "checkpoints/last.ckpt"), **VALIDATE)
    assert trainer.global_step == 7
    assert trainer.fit_loop.epoch_loop.val_loop.batch_progress.total.ready % 3 == 0


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as end:  # Lightning's answer to KeyboardInterrupt
        fit(tmp_path, LastCheckpoint(2), Interrupts("on_after_backward", 4, signal.SIGINT, signal.SIGINT))
    assert end.value.code == 1
    signal.signal(signal.SIGINT, before)
    assert torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 2


def test_ctrl_c_after_the_fit_is_pythons_own_again(tmp_path):
    fit(tmp_path, LastCheckpoint(2))
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
