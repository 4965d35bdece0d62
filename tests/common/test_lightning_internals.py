"""Each private attribute of Lightning does what it is read for, in real trainers; a new release breaks here first."""

import signal

import lightning.pytorch as pl
import pytest
import pytorch_lightning
import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.utilities.compile import from_compiled
from pytorch_lightning.demos.boring_classes import BoringModel as OldBoringModel

from cubelet.common import lightning_internals as internals

PACKAGES = [(pl, BoringModel), (pytorch_lightning, OldBoringModel)]


def fit(package, module, see, **options):
    """Fit, and return what `see(trainer)` gives after each batch."""
    seen = []

    class Watch(package.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append(see(trainer))

    quiet = {
        "logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
        "accelerator": "cpu", "max_epochs": 1, "limit_train_batches": 6, "limit_val_batches": 1,
        "num_sanity_val_steps": 0,
    }  # fmt: skip
    package.Trainer(callbacks=[Watch()], **(quiet | options)).fit(module())
    return seen


@pytest.mark.parametrize(("package", "module"), PACKAGES)
def test_the_open_accumulation_window(package, module):
    assert fit(package, module, internals.is_accumulating, accumulate_grad_batches=3) == [True, True, False] * 2


@pytest.mark.parametrize(("package", "module"), PACKAGES)
def test_batches_are_counted_over_epochs_and_windows(package, module):
    counted = fit(package, module, internals.trained_batches, accumulate_grad_batches=2, max_epochs=2)
    assert counted == [*range(1, 13)]  # the batch at hand included


@pytest.mark.parametrize(("package", "module"), PACKAGES)
def test_the_loggers_axis_counts_optimizer_steps_from_zero(package, module):
    assert fit(package, module, internals.logging_step, accumulate_grad_batches=2) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(("package", "module"), PACKAGES)
def test_whether_a_validation_follows(package, module):
    assert fit(package, module, internals.validates_next, val_check_interval=3) == [False, False, True] * 2
    by_time = fit(package, module, internals.validates_next, val_check_interval={"seconds": 60})
    assert by_time == [False] * 6


def test_whether_values_are_written_in_this_step(tmp_path):
    logger = pl.loggers.CSVLogger(tmp_path)
    assert fit(pl, BoringModel, internals.should_log, logger=logger, log_every_n_steps=3) == [False, False, True] * 2
    assert fit(pl, BoringModel, internals.should_log, fast_dev_run=2) == [True, True]


def test_a_compiled_module_is_known():
    assert not internals.is_compiled(BoringModel())
    compiled = torch.compile(BoringModel(), backend="eager")
    assert internals.is_compiled(from_compiled(compiled))


def test_the_run_ends_after_the_batch_as_at_sigterm():
    steps = []

    def stop(trainer):
        steps.append(trainer.global_step)
        if trainer.global_step == 3:
            internals.end_by_sigterm(trainer)

    with pytest.raises(SystemExit):
        fit(pl, BoringModel, stop)
    assert steps == [1, 2, 3]


def test_slurms_requeue_writes_a_checkpoint_and_calls_scontrol(tmp_path, monkeypatch):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls.txt\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("SLURM_JOB_ID", "17")

    def requeue(trainer):
        assert isinstance(internals.cluster_environment(trainer), SLURMEnvironment)
        if trainer.global_step == 2:
            internals.requeue(trainer, signal.SIGUSR1)

    fit(pl, BoringModel, requeue, plugins=[SLURMEnvironment(auto_requeue=True)], default_root_dir=tmp_path)
    assert torch.load(tmp_path / "hpc_ckpt_1.ckpt", weights_only=True)["global_step"] == 2
    assert (tmp_path / "calls.txt").read_text() == "requeue 17\n"
