"""Where a run writes, asked in one place: callbacks, checkpoints and measures all lie in the same folder."""

from pathlib import Path
from typing import Any


def run_folder(trainer: Any) -> Path | None:
    """Folder of this run, or None where nothing is to be written (`fast_dev_run`). Collective.

    The first logger's own folder, or its save_dir/name/version as for checkpoints; without a logger, the trainer's
    root.
    """
    folder: str | None = None
    if trainer.loggers:
        logger = trainer.loggers[0]
        folder = getattr(logger, "log_dir", None)
        if folder is None and logger.save_dir is not None:
            version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
            folder = str(Path(logger.save_dir) / str(logger.name) / version)
    elif trainer.default_root_dir is not None:
        folder = str(trainer.default_root_dir)
    folder = trainer.strategy.broadcast(folder)
    return None if folder is None or trainer.fast_dev_run else Path(folder)
