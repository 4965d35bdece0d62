"""Summary of a fit at its end: why it stopped, how good, how long, where things lie, and what to type next."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from rich.console import Console
from rich.text import Text

from cubelet.common.run_folder import run_folder


class RunSummary(Callback):
    """Writes the summary to the terminal on rank 0; a piece that does not exist is left out.

    Args:
        loss: name of the validation loss among the trainer's metrics, in nats per token.
        bits: name of bits per character among them.
        errors: name of the word error rate among them.
        program: command that starts this project, for the lines on how to continue; shown with the folder of the
            running script where the shell would not find it.

    Example:
        >>> callback = RunSummary(loss="val/loss")
    """

    def __init__(
        self, *, loss: str = "val_loss", bits: str = "val_bpc", errors: str = "val_wer", program: str = "cubelet"
    ) -> None:
        super().__init__()
        self.loss = loss
        self.bits = bits
        self.errors = errors
        self.program = program
        self._began = 0.0
        self._folder: Path | None = None
        self._validated: tuple[int, str] | None = None
        self._trained = False

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self._began = time.monotonic()
        self._validated, self._trained = None, False
        self._folder = run_folder(trainer)  # collective

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._trained = True

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            limit = trainer.limit_val_batches
            whole = isinstance(limit, float) and limit == 1.0
            self._validated = (trainer.global_step, "whole split" if whole else f"limit_val_batches={limit}")

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.is_global_zero and not trainer.fast_dev_run:
            begin = "finished" if self._trained else "nothing left to do: the checkpoint is"
            show(f"{begin} at step {trainer.global_step:,}{reason(trainer)}", self.rows(trainer))

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        if trainer.is_global_zero and self._began and not trainer.fast_dev_run:
            rows = self.rows(trainer, finished=False)
            if any(name == "continue" for name, _ in rows):  # otherwise there is nothing to tell beyond the error
                told = (getattr(callback, "stopped_by", None) for callback in trainer.checkpoint_callbacks)
                by = next(filter(None, told), type(exception).__name__)
                show(f"stopped at step {trainer.global_step:,} by {by}", rows)

    def rows(self, trainer: Any, finished: bool = True) -> list[tuple[str, str]]:
        """(name, text) of each line that there is something to say on."""
        rows: list[tuple[str, str]] = []
        loss = trainer.callback_metrics.get(self.loss)
        if self._validated is not None and loss is not None:
            step, part = self._validated
            rows.append(("validation loss", f"{float(loss):.4f} ({part}, step {step:,})"))
            bits = trainer.callback_metrics.get(self.bits)
            if bits is not None:
                rows.append(("bits per character", f"{float(bits):.4f}"))
            errors = trainer.callback_metrics.get(self.errors)
            if errors is not None:
                rows.append(("word error rate", f"{100 * float(errors):.1f} %"))
        rows.append(("wall time", duration(time.monotonic() - self._began)))
        best, last = checkpoints(trainer)
        rows += [("best checkpoint", best)] if best else []
        rows += [("last checkpoint", last)] if last else []
        if last or best:
            rows.append(("continue", self._continue(trainer, last or best, finished)))
            if self._config() and callable(getattr(trainer.lightning_module, "transcribe", None)):
                name = f"{reachable(self.program)} transcribe FILES --ckpt_path {shlex.quote(best or last)}"
                rows.append(("transcribe", name))
            if self._config() and callable(getattr(trainer.lightning_module, "sample_text", None)):
                rows.append(("write", f"{reachable(self.program)} generate --ckpt_path {shlex.quote(best or last)}"))
        if self._folder is not None and any(
            hasattr(getattr(g, "experiment", None), "add_image") for g in trainer.loggers
        ):
            rows.append(("look", f"{reachable('tensorboard')} --logdir {shlex.quote(_short(self._folder))}"))
        return rows

    def _config(self) -> Path | None:
        """What the command line wrote down of its configuration; None in a run from Python."""
        config = self._folder / "config.yaml" if self._folder is not None else None
        return config if config is not None and config.exists() else None

    def _continue(self, trainer: Any, checkpoint: str, finished: bool) -> str:
        """A command, or a line of Python, that goes on; where a limit ended the run, with twice that limit."""
        raised = {name: 2 * value for name, value in reached(trainer).items()} if finished else {}
        config = self._config()
        if config is None:
            limits = ", ".join(f"{name}={value!r}" for name, value in raised.items())
            start = f"Trainer({limits}, …)" if limits else "trainer"
            return f"{start}.fit(model, ckpt_path={checkpoint!r})"
        options = [f"--trainer.{name}={in_words(value)}" for name, value in raised.items()]
        given = ["--config", shlex.quote(_short(config)), "--ckpt_path", shlex.quote(checkpoint), *options]
        return " ".join([reachable(self.program), "fit", *given])


def reached(trainer: Any) -> dict[str, Any]:
    """Return the limits that a run is at, by the names of the Trainer's arguments."""
    limits: dict[str, Any] = {}
    if trainer.max_steps is not None and 0 < trainer.max_steps <= trainer.global_step:
        limits["max_steps"] = trainer.max_steps
    if trainer.max_epochs is not None and 0 < trainer.max_epochs <= trainer.current_epoch:
        limits["max_epochs"] = trainer.max_epochs
    for callback in trainer.callbacks:
        remaining = getattr(callback, "time_remaining", None)  # Lightning's Timer, which `max_time` adds
        left: Any = remaining() if callable(remaining) else None
        if left is not None and left <= 0:
            limits["max_time"] = timedelta(seconds=callback.time_elapsed() + left)
    return limits


def reason(trainer: Any) -> str:
    """Return why a run ended, for a title: ", trainer.max_steps"; "" where nothing is known."""
    reasons = [f"trainer.{name}" for name in reached(trainer)]
    for callback in trainer.callbacks:
        if getattr(callback, "patience", None) is not None and getattr(callback, "wait_count", -1) >= callback.patience:
            reasons.append(f"{type(callback).__name__}: {callback.monitor} did not improve {callback.wait_count} times")
    return f" ({', '.join(reasons)})" if reasons else ""


def in_words(value: Any) -> str:
    """Return a limit as the command line takes it: times as DD:HH:MM:SS."""
    if not isinstance(value, timedelta):
        return str(value)
    minutes, seconds = divmod(round(value.total_seconds()), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours // 24:02d}:{hours % 24:02d}:{minutes:02d}:{seconds:02d}"


def show(title: str, rows: list[tuple[str, str]]) -> None:
    """Print a title and lines; long paths and commands run on, so that they can be copied whole."""
    console = Console()
    console.rule(title)
    for name, text in rows:
        line = Text(f"{name:<20}", style="bold")
        line.append(text, style="not bold")
        console.print(line, soft_wrap=True)


def reachable(program: str) -> str:
    """The program as the user can type it: by name if it is on the PATH, else beside the script that runs now."""
    beside = Path(sys.argv[0]).parent / program
    return program if shutil.which(program) or not beside.is_file() else shlex.quote(_short(beside))


def duration(seconds: float) -> str:
    """3.2 s, 4 min 07 s, 2 h 05 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def checkpoints(trainer: Any) -> tuple[str, str]:
    """Paths of the best and the last checkpoint, "" where there is none."""
    best = last = any_path = ""
    for callback in trainer.checkpoint_callbacks:
        path = getattr(callback, "best_model_path", "")
        if path and getattr(callback, "monitor", None):
            best = best or path
        last = last or getattr(callback, "last_model_path", "")
        any_path = any_path or path
    best, last = (_short(Path(path)) if path else "" for path in (best, last or any_path))
    return best, last


def _short(path: Path) -> str:
    """Relative to the working folder where it lies below it."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
