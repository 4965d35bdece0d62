"""What is measured of a run: `RunMetrics`, a callback, so that the command that repeats a run measures it too.

- The validation loss is Lightning's own, over the whole split, at the last step.
- CPU-seconds and tokens/s are those of training batches alone: validation, checkpoints and start-up are left out. CPU
  time counts all threads and does not depend on what else the machine does; tokens/s does, so it is that of the median
  batch, which a pause does not touch.
- The length curve is taken of the last `context_length` tokens of windows that all end at the same places, so that
  every length predicts the same tokens and only what can be seen before them differs.
"""

import contextlib
import importlib
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cubelet.common.files import write_json
from cubelet.common.lightning_internals import is_accumulating
from cubelet.common.machine import arithmetic
from cubelet.common.run_folder import run_folder
from cubelet.common.source_digest import source_digest

from .base import StatefulCallback
from .length_curve import length_curve

METRICS_FILE = "measures.json"
PROGRESS_FILE = "progress.json"


def peak_memory_mb(device: torch.device) -> float | None:
    """Highest memory of this process so far: the accelerator's where the model is on one, else resident memory.

    None on systems without Python's `resource` (Windows).
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        resource: Any = importlib.import_module("resource")
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


class RunMetrics(StatefulCallback):
    """Writes `measures.json` into the run's folder when a fit has ended.

    Keys: `val_loss` (nats a token), `scores` {name: all other values of the last validation, such as `val_wer`},
    `val_curve` and `train_curve` as [step, CPU-seconds, loss] rows, `lengths`
    {context: loss, null where the model cannot}, `exact` {context: share of rows right to the last token, where the
    data has right answers}, `tokens_per_second`, `cpu_seconds`, `peak_memory_mb`, `parameters`,
    `steps`, `tokens` (trained on), `source` (see `source_digest`), `machine` (see `arithmetic`).

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[RunMetrics(lengths=[1, 2])], logger=False, enable_checkpointing=False)

    Args:
        lengths: contexts of the length curve, as multiples of the training context.
        rows: sequences of the length curve.
        every_n_steps: between two points of the training curve; each is a mean over that stretch.
    """

    def __init__(self, lengths: list[int] | None = None, rows: int = 64, every_n_steps: int = 20) -> None:
        super().__init__()
        self.lengths = [1, 2, 4, 8] if lengths is None else list(lengths)
        self.rows, self.every_n_steps = rows, every_n_steps
        self._cpu = 0.0
        self._walls: list[float] = []
        self._tokens = 0  # of a batch, on all ranks
        self._val: list[list[float]] = []
        self._train: list[list[float]] = []
        self._sum: Tensor | float = 0.0
        self._count = 0
        self._from = (0.0, 0.0)
        self._shown = 0.0
        self._folder: Path | None = None  # on rank 0 alone, and not in a trial run

    # -- while training --

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        folder = run_folder(trainer)
        self._folder = folder if trainer.is_global_zero else None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._from = (time.process_time(), time.monotonic())

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._cpu += time.process_time() - self._from[0]
        self._walls.append(time.monotonic() - self._from[1])
        self._tokens = batch["tokens"].numel() * trainer.world_size
        # Summed wider than a module in half precision computes: a sum in bfloat16 stops growing.
        loss = outputs["train_loss"].detach().to(torch.float32 if pl_module.device.type == "mps" else torch.float64)
        self._sum = self._sum + loss
        self._count += 1
        if trainer.global_step % self.every_n_steps == 0 and not is_accumulating(trainer):
            self._train.append([trainer.global_step, self._cpu, float(self._sum) / self._count])
            self._sum, self._count = 0.0, 0
            self._show(trainer)

    def _show(self, trainer: Any) -> None:
        """Where the run is, for a display: at most every two seconds."""
        if self._folder is not None and time.monotonic() - self._shown > 2:
            self._shown = time.monotonic()
            at = {"step": trainer.global_step, "of": trainer.max_steps, "loss": self._train[-1][2]}
            with contextlib.suppress(OSError):  # it is only a display
                write_json(self._folder / PROGRESS_FILE, at)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        loss = trainer.callback_metrics.get("val_loss")
        if not trainer.sanity_checking and loss is not None and trainer.state.fn == "fit":
            self._val.append([trainer.global_step, self._cpu, float(loss)])

    @property
    def state_key(self) -> str:
        return "Measures"  # its name in 0.1.0

    def state_dict(self) -> dict[str, Any]:
        return {
            "cpu": self._cpu, "walls": list(self._walls), "tokens": self._tokens, "val": list(self._val),
            "train": list(self._train), "sum": float(self._sum), "count": self._count,
        }  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._cpu, self._walls, self._tokens = state_dict["cpu"], list(state_dict["walls"]), state_dict["tokens"]
        self._val, self._train, self._count = list(state_dict["val"]), list(state_dict["train"]), state_dict["count"]
        self._sum = state_dict["sum"]

    # -- at the end --

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        if self._folder is None:
            return
        model = trainer.lightning_module
        last = [row for row in self._val if row[0] == trainer.global_step]
        # At the precision of the run, as the validation loss that it is read beside.
        with trainer.precision_plugin.forward_context():
            curve = length_curve(model, trainer.datamodule, self.lengths, self.rows) if trainer.datamodule else {}
        measures = {
            "val_loss": last[-1][2] if last else None,
            "scores": {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val_") and last},
            "val_curve": self._val,
            "train_curve": self._train,
            "lengths": {length: point.loss for length, point in curve.items()},
            "exact": {length: point.exact for length, point in curve.items() if point.exact is not None},
            "tokens_per_second": self._tokens / statistics.median(self._walls) if self._walls else None,
            "cpu_seconds": self._cpu,
            "peak_memory_mb": peak_memory_mb(model.device),
            "parameters": sum(p.numel() for p in model.parameters()),
            "steps": trainer.global_step,
            "tokens": self._tokens * len(self._walls),
            "source": source_digest(),
            "machine": arithmetic(model.device),
        }
        write_json(self._folder / METRICS_FILE, measures)
