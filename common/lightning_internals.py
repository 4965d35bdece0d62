"""Every private attribute of Lightning that this project reads, one function each and one test each.

Lightning offers no public way to these facts (as of 2.6). A new release breaks this file and its tests, nothing else.
Trainers and modules are taken as they come, those of `pytorch_lightning` included, so nothing is imported here.
"""

from typing import Any


def is_accumulating(trainer: Any) -> bool:
    """Whether the batch just trained on belongs to an accumulation window that is still open."""
    return trainer.fit_loop.epoch_loop._should_accumulate()


def trained_batches(trainer: Any) -> int:
    """Batches trained on since the run began, micro-batches included; kept in checkpoints and over resumes.

    Lightning's count of epochs is no substitute: after a checkpoint written at an epoch's end, runs limited by
    `max_steps` resume with that one too high.
    """
    return trainer.fit_loop.epoch_loop.batch_progress.total.processed


def logging_step(trainer: Any) -> int:
    """Where Lightning puts the values of the step just done on the loggers' axis: optimizer steps, from 0."""
    epoch_loop = getattr(getattr(trainer, "fit_loop", None), "epoch_loop", None)
    return getattr(epoch_loop, "_batches_that_stepped", trainer.global_step)


def should_log(trainer: Any) -> bool:
    """Whether Lightning writes what is logged in this step."""
    return trainer._logger_connector.should_update_logs or bool(getattr(trainer, "fast_dev_run", False))


def validates_next(trainer: Any) -> bool:
    """Whether a validation follows this batch at once; False where only a clock, which ranks do not share, can tell."""
    if getattr(trainer, "_val_check_time_interval", None) is not None:
        return False
    fetcher = trainer.fit_loop._data_fetcher
    return fetcher is not None and trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


def cluster_environment(trainer: Any) -> Any:
    """The plugin that knows the cluster (SLURM, torchrun, …), or None."""
    return trainer._accelerator_connector.cluster_environment


def requeue(trainer: Any, signal_number: int) -> None:
    """Do what Lightning does at SLURM's requeue signal: write a checkpoint and call `scontrol requeue`."""
    trainer._signal_connector._slurm_sigusr_handler_fn(signal_number, None)


def end_by_sigterm(trainer: Any) -> None:
    """Let the trainer end the run after this batch as at SIGTERM."""
    trainer._signal_connector.received_sigterm = True


def is_compiled(module: Any) -> bool:
    """Whether a LightningModule came out of `torch.compile`."""
    return getattr(module, "_compiler_ctx", None) is not None
