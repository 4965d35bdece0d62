"""Logs of a resumed run without rows that stand twice."""

from typing import Any

from lightning.pytorch import Callback


class ResumeLogs(Callback):
    """Tells loggers that can forget (`resume(step)`) at which step a resumed run starts.

    Example:
        >>> callback = ResumeLogs()
    """

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        for logger in trainer.loggers if trainer.global_step else ():
            if hasattr(logger, "resume"):
                logger.resume(trainer.global_step)
