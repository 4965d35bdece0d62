"""The progress bar: steps of the whole run, loss and tokens per second, and nothing else."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

Metrics = dict[str, int | str | float | dict[str, float]]
SHOWN = {
    "train_loss": "loss",
    "val_loss": "val",
    "val_wer": "wer",
    "tokens_per_second": "tokens/s",
    "audio_seconds_per_second": "audio/s",
}


class ProgressBar(RichProgressBar):
    """Rich progress with the values a training run is watched by; see the library's class for arguments.

    It is closed when training ends, so that what is printed afterwards stands below it.

    Example:
        >>> callback = ProgressBar(refresh_rate=50)
    """

    def __init__(self, refresh_rate: int = 10, leave: bool = True, **options: Any) -> None:
        super().__init__(refresh_rate=refresh_rate, leave=leave, **options)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> Metrics:
        values = super().get_metrics(trainer, pl_module)
        shown: Metrics = {}
        for key, name in SHOWN.items():
            if key in values:
                value = values[key]
                shown[name] = f"{value:,.0f}" if name.endswith("/s") and isinstance(value, float) else value
        return shown

    def _get_train_description(self, current_epoch: int) -> str:
        """ "Epoch 3", without the library's count of epochs, which is −2 for a run limited by steps."""
        return f"Epoch {current_epoch}"

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self._stop_progress()
