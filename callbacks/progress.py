"""Progress of the whole run in one line: steps, time left, losses and speed."""

import math
import time
from typing import Any

from lightning.pytorch.callbacks import ProgressBar as LightningProgressBar

from .terminal_line import Part, TerminalLine


class ProgressBar(LightningProgressBar):
    """Shows `step 1,240/2,000  62%  0:38 left  loss 1.712  val 1.689  13.2k tokens/s` on rank 0.

    The line never wraps, and leaves out what has no room. Without a terminal it is a plain line every so many seconds,
    after validations and at the end.

    Args:
        refresh_rate: batches between two looks at the clock.
        plain_seconds: least time between two plain lines.
        loss, val_loss: names of the losses among the trainer's metrics.
        speed: name of the throughput; None for what the module calls it (`units_name`).

    Example:
        >>> callback = ProgressBar(plain_seconds=60)
    """

    def __init__(
        self,
        refresh_rate: int = 1,
        plain_seconds: float = 10.0,
        loss: str = "train_loss",
        val_loss: str = "val_loss",
        speed: str | None = None,
    ) -> None:
        super().__init__()
        self.refresh_rate = max(1, refresh_rate)
        self.speed = speed
        self.names = {"loss": loss, "val": val_loss, "wer": "val_wer", "speed": speed or "tokens_per_second"}
        self._line = TerminalLine(plain_seconds=plain_seconds)
        self._is_enabled = True
        self._began = 0.0
        self._first_step = 0
        self._ahead: int | None = None  # steps that the run had made more than `planned_steps` when it went on
        self._values: dict[str, str] = {}

    def disable(self) -> None:
        self._is_enabled = False

    def enable(self) -> None:
        self._is_enabled = True

    def _is_on(self, trainer: Any) -> bool:
        return self._is_enabled and trainer.is_global_zero

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._began, self._first_step = time.monotonic(), trainer.global_step
        self._ahead = None
        self._values = {}
        self.names["speed"] = self.speed or getattr(pl_module, "units_name", "tokens_per_second")
        if self._is_on(trainer):
            self._line.open()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._ahead is None:
            self._ahead = trainer.global_step - planned_steps(trainer, batch_idx)
        if self._is_on(trainer) and batch_idx % self.refresh_rate == 0 and self._line.is_due():
            self._line.show(self.parts(trainer))

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        batches = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        total = batches[dataloader_idx]
        self._show_batches(trainer, "validating", batch_idx, total)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        # A plain log gets each validation, whatever the clock says.
        if self._is_on(trainer) and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._line.show(self.parts(trainer))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if self._is_on(trainer):
            self._line.show(self.parts(trainer))
            self._line.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._line.close()

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        if self._is_on(trainer) and trainer.state.fn != "fit":
            self._line.open()

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        if self._is_on(trainer):
            self._line.open()

    def on_test_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._show_batches(trainer, "testing", batch_idx, trainer.num_test_batches[dataloader_idx])

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._line.close()

    def _show_batches(self, trainer: Any, verb: str, batch_idx: int, total: float) -> None:
        if not self._is_on(trainer) or not self._line.is_due():
            return
        of = f"{batch_idx + 1}/{total:,.0f}" if math.isfinite(total) else f"{batch_idx + 1}"
        own: list[Part] = [(0, f"{verb} {of}")]
        self._line.show([*self.parts(trainer)[:1], *own] if trainer.state.fn == "fit" else own)

    def parts(self, trainer: Any) -> list[Part]:
        """Return the pieces of the line and how soon each is left out."""
        step = trainer.global_step
        total = total_steps(trainer)
        total = max(total + (self._ahead or 0), step) if total else 0
        parts: list[Part] = []
        if total:
            parts.append((0, f"step {step:,}/{total:,}"))
            parts.append((5, f"{100 * step // total}%"))
            done = step - self._first_step
            if done and step < total:
                left = (time.monotonic() - self._began) / done * (total - step)
                parts.append((3, f"{clock(left)} left"))
        else:
            parts.append((0, f"step {step:,}"))
            parts.append((3, clock(time.monotonic() - self._began)))
        metrics = trainer.progress_bar_metrics
        for name, key in self.names.items():
            if key in metrics:
                self._values[name] = number(float(metrics[key]), is_speed=name == "speed")
        texts = {
            "loss": "loss {}",
            "val": "val {}",
            "wer": "wer {}",
            "speed": f"{{}} {self.names['speed'].removesuffix('_per_second')}/s",
        }
        importance = {"loss": 1, "val": 2, "wer": 2, "speed": 4}
        parts += [(importance[name], texts[name].format(self._values[name])) for name in texts if name in self._values]
        return parts


def total_steps(trainer: Any) -> int:
    """Return the optimizer steps that the run will have made at its end, 0 where that is open."""
    if trainer.max_steps is not None and trainer.max_steps > 0:
        return int(trainer.max_steps)
    estimate = trainer.estimated_stepping_batches
    return int(estimate) if math.isfinite(estimate) else 0


def planned_steps(trainer: Any, batch_idx: int) -> int:
    """Return the optimizer steps behind this batch of the epoch, had all epochs been as long as they are now.

    Another number than `global_step` where a run counted in epochs goes on with epochs of another length.
    """
    batches, accumulate = trainer.num_training_batches, trainer.accumulate_grad_batches
    if (trainer.max_steps is not None and trainer.max_steps > 0) or not math.isfinite(batches):
        return trainer.global_step
    in_epoch = math.ceil(batches / accumulate) if batch_idx + 1 >= batches else (batch_idx + 1) // accumulate
    return trainer.current_epoch * math.ceil(batches / accumulate) + in_epoch


def clock(seconds: float) -> str:
    """Return seconds as 0:07, 12:30 or 2:05:00.

    Example:
        >>> clock(7.4), clock(750), clock(7500)
        ('0:07', '12:30', '2:05:00')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def number(value: float, is_speed: bool = False) -> str:
    """Return a loss with three decimals, a speed with three digits."""
    if not is_speed:
        return f"{value:.3f}"
    for factor, unit in ((1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g}{unit}"
    return f"{value:.0f}"
