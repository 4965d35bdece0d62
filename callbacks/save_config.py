"""The composed configuration, written into the run's folder."""

from typing import Any

from lightning.pytorch.cli import SaveConfigCallback


class SaveRunConfig(SaveConfigCallback):
    """Writes `config.yaml` where a fit has a logger; a resumed run replaces it. Made by the command line."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if trainer.loggers and stage == "fit":
            super().setup(trainer, pl_module, stage)
