"""Folder of a run, asked in one place: callbacks, checkpoints and measures all lie in the same one."""

import os
from pathlib import Path
from typing import Any


def run_location(trainer: Any) -> str:
    """Return path or URL of this run's folder, where Lightning's ModelCheckpoint writes too. Collective.

    The first logger's save_dir/name/version; without a logger the trainer's root.
    """
    location = str(trainer.default_root_dir)
    if trainer.loggers:
        logger = trainer.loggers[0]
        version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
        location = os.path.join(logger.save_dir or location, str(logger.name), version)
    return trainer.strategy.broadcast(location)


def run_folder(trainer: Any) -> Path | None:
    """Return this run's folder; None where nothing is to be written (`fast_dev_run`) or it is no local one. Collective.

    What a callback writes beside the logs goes through here, so a run on `s3://…` never leaves a local folder called
    `s3:`.
    """
    location = run_location(trainer)
    return None if trainer.fast_dev_run or "://" in location else Path(location)
