"""Signals are acted upon between steps, by all ranks at once."""

import os
import re
import signal
import time
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch

from cubelet.callbacks import signals as interruption
from cubelet.callbacks.signals import Interruption
from cubelet.cli.main import main
from tests.reference.terminal import run_in_terminal


@pytest.fixture(autouse=True)
def handlers():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Fake:
    """As much of a Trainer as is looked at; `others` is what the other ranks bring to a reduction."""

    def __init__(self, world_size=1, others=(0.0, 0.0, 0.0)):
        self.world_size, self.global_step, self.others, self.reductions = world_size, 0, others, 0
        self._signal_connector = SimpleNamespace(received_sigterm=False)
        self._accelerator_connector = SimpleNamespace(cluster_environment=None)
        self.strategy = SimpleNamespace(root_device=torch.device("cpu"), reduce=self.reduce)

    def reduce(self, tensor, reduce_op):
        assert reduce_op == "max"
        self.reductions += 1
        return torch.maximum(tensor, torch.tensor(self.others))


def test_a_signal_changes_nothing_until_it_is_asked_for():
    trainer, interruption = Fake(), Interruption()
    interruption.watch(trainer)
    assert not interruption.agreed(trainer)
    os.kill(os.getpid(), signal.SIGTERM)
    assert not trainer._signal_connector.received_sigterm
    assert interruption.agreed(trainer)
    assert trainer._signal_connector.received_sigterm


def test_a_signal_to_another_rank_stops_this_one_too():
    trainer, interruption = Fake(2, others=(1.0, 0.0, 0.0)), Interruption()
    interruption.watch(trainer)
    assert interruption.agreed(trainer)


@pytest.mark.parametrize(("pace", "every"), [(0.02, 50), (3.0, 1), (1e-9, 1000)])
def test_ranks_agree_about_once_a_second_of_the_slowest(pace, every, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(interruption.time, "monotonic", lambda: clock[0])
    trainer, watched = Fake(2, others=(0.0, 0.0, pace)), Interruption()
    watched.watch(trainer)
    looked = []
    for step in range(1, 2 * every + 2):
        trainer.global_step = step
        before = trainer.reductions
        watched.agreed(trainer)
        if trainer.reductions > before:
            looked.append(step)
    assert looked[:3] == [1, 1 + every, 1 + 2 * every]


def test_ctrl_c_takes_the_same_path_and_its_second_stops_at_once(capfd):
    before = signal.getsignal(signal.SIGINT)
    trainer, interruption = Fake(), Interruption()
    interruption.watch(trainer)
    os.kill(os.getpid(), signal.SIGINT)
    assert "once more stops at once" in capfd.readouterr().err
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    assert interruption.agreed(trainer)
    assert interruption.by is signal.SIGINT
    assert trainer._signal_connector.received_sigterm
    interruption.unwatch()
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_in_the_middle_of_a_write_is_answered_too(capfd, monkeypatch):
    def write(text):
        raise RuntimeError("reentrant call inside <_io.BufferedWriter name=1>")

    watcher = Interruption()
    watcher.watch(Fake())
    monkeypatch.setattr("sys.stderr", SimpleNamespace(write=write, flush=lambda: None))
    signal.raise_signal(signal.SIGINT)
    watcher.unwatch()
    assert "once more stops at once" in capfd.readouterr().err
    assert watcher.agreed(Fake())


def test_a_job_in_the_background_goes_on_ignoring_ctrl_c():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        interruption = Interruption()
        interruption.watch(Fake())
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        interruption.unwatch()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


class Long(pl.Callback):
    """A step that takes longer than anyone waits."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 3:
            time.sleep(200)


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_finishes_the_step_saves_and_says_how_to_go_on(small, tmp_path):
    def train():
        main(["fit", *(a for a in small if "progress" not in a), "--trainer.max_steps=100000"])

    output = run_in_terminal(train, 80, keys=[("tokens/s", "\x03")])
    output = re.sub(r"\x1b\[[0-9;]*m", "", output)
    step = int(re.search(r"stopped at step (\d+) by Ctrl-C", output)[1])
    (last,) = (tmp_path / "runs").glob("*/checkpoints/last.ckpt")
    assert torch.load(last, weights_only=True)["global_step"] == step
    assert re.search(r"continue +\S*cubelet fit --config \S+ --ckpt_path \S+last.ckpt", output)


@pytest.mark.slow
def test_ctrl_c_twice_in_a_terminal_stops_within_the_step(small):
    def train():
        options = ["--trainer.max_steps=100000", f"--trainer.callbacks+={__name__}.Long"]
        main(["fit", *(a for a in small if "progress" not in a), *options])

    began = time.monotonic()
    output = run_in_terminal(train, 80, keys=[("step 3/", "\x03"), ("once more stops at once", "\x03")])
    assert "once more stops at once" in output
    assert "step 4/" not in output
    assert time.monotonic() - began < 150  # the step alone takes 200 s
