"""What is measured of a run: `Measures`, a callback, so that the command that repeats a run measures it too.

- The validation loss is Lightning's own, over the whole split, at the last step.
- CPU-seconds and tokens/s are those of training batches alone: validation, checkpoints and start-up are left out. CPU
  time counts all threads and does not depend on what else the machine does; tokens/s does, so it is that of the median
  batch, which a pause does not touch.
- The length curve is taken of the last `context_length` tokens of windows that all end at the same places, so that
  every length predicts the same tokens and only what can be seen before them differs.
"""

import contextlib
import hashlib
import json
import math
import resource
import statistics
import sys
import time
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback
from torch import Tensor

from cubelet.common.files import write_atomic
from cubelet.datamodules.loader import IGNORE

NAME = "measures.json"
PROGRESS = "progress.json"


class Measures(Callback):
    """Writes `measures.json` into the run's folder when a fit has ended.

    Keys: `val_loss` (nats a token), `val_curve` and `train_curve` as [step, CPU-seconds, loss] rows, `lengths`
    {context: loss, null where the model cannot}, `tokens_per_second`, `cpu_seconds`, `peak_memory_mb`, `parameters`,
    `steps`, `source` (see `source_digest`).

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
        self._told = 0.0

    # -- while training --

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
        if trainer.global_step % self.every_n_steps == 0 and not trainer.fit_loop.epoch_loop._should_accumulate():
            self._train.append([trainer.global_step, self._cpu, float(self._sum) / self._count])
            self._sum, self._count = 0.0, 0
            self._tell(trainer)

    def _tell(self, trainer: Any) -> None:
        """Where the run is, for a display: at most every two seconds."""
        if trainer.is_global_zero and time.monotonic() - self._told > 2 and not trainer.fast_dev_run:
            self._told = time.monotonic()
            at = {"step": trainer.global_step, "of": trainer.max_steps, "loss": self._train[-1][2]}
            with contextlib.suppress(OSError):  # it is only a display
                write_json(_folder(trainer) / PROGRESS, at)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        loss = trainer.callback_metrics.get("val_loss")
        if not trainer.sanity_checking and loss is not None and trainer.state.fn == "fit":
            self._val.append([trainer.global_step, self._cpu, float(loss)])

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
        if not trainer.is_global_zero or trainer.fast_dev_run:
            return
        model = trainer.lightning_module
        done = [row for row in self._val if row[0] == trainer.global_step]
        # At the precision of the run, as the validation loss that it is read beside.
        with trainer.precision_plugin.forward_context():
            lengths = length_curve(model, trainer.datamodule, self.lengths, self.rows) if trainer.datamodule else {}
        measures = {
            "val_loss": done[-1][2] if done else None,
            "val_curve": self._val,
            "train_curve": self._train,
            "lengths": lengths,
            "tokens_per_second": self._tokens / statistics.median(self._walls) if self._walls else None,
            "cpu_seconds": self._cpu,
            "peak_memory_mb": peak_memory_mb(model.device),
            "parameters": sum(p.numel() for p in model.parameters()),
            "steps": trainer.global_step,
            "source": source_digest(),
        }
        write_json(_folder(trainer) / NAME, measures)


@cache
def source_digest() -> str:
    """Hash of this package's Python files, as they were when a process first asked: which code made a run."""
    root = Path(__file__).parents[2]
    found = hashlib.sha256()
    for room in ("models", "optimizers", "callbacks", "datamodules", "lightning_modules"):
        for path in sorted((root / room).rglob("*.py")):
            found.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return found.hexdigest()[:12]


def _folder(trainer: Any) -> Path:
    return Path(trainer.log_dir or trainer.default_root_dir)


def write_json(path: Path, value: Any) -> None:
    """Plain data to a file, as `write_text` does it. NaN becomes null."""
    write_text(path, json.dumps(finite(value), indent=1))


def write_text(path: Path, text: str) -> None:
    """Replace a file: afterwards it is wholly new or, if that fails, wholly old."""
    write_atomic(path, text)


def finite(value: Any) -> Any:
    """The same plain data with None for what is not finite, since JSON knows neither."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return value


def peak_memory_mb(device: torch.device) -> float:
    """Highest memory of this process so far: the accelerator's where the model is on one, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


@torch.no_grad()
def length_curve(model: Any, data: Any, factors: Iterable[int], rows: int) -> dict[int, float | None]:
    """Loss in nats a token at several multiples of the training context; None where the model refuses a length.

    Args:
        model: offers `loss(batch)`; is put into evaluation and left as it was.
        data: offers `length_batches(length, rows)`, or is a `TextDataModule`.
        factors: multiples of `data.context_length`.
        rows: about how many sequences to average over.
    """
    factors = sorted(factors)
    was_training = model.training
    model.eval()
    found: dict[int, float | None] = {}
    for factor in factors:
        length = factor * data.context_length
        try:
            if hasattr(data, "length_batches"):
                batches = data.length_batches(length, rows)
            else:
                batches = text_windows(data, length, factors[-1] * data.context_length, rows)
            total = count = 0.0
            for batch in batches:
                batch = {k: v.to(model.device) for k, v in batch.items()}
                n = int((batch["targets"] != IGNORE).sum())
                total, count = total + n * float(model.loss(batch)[0]), count + n
            found[length] = total / count if count else None
        except ValueError:
            found[length] = None
    model.train(was_training)
    return found


def text_windows(data: Any, length: int, longest: int, rows: int) -> Iterator[dict[str, Tensor]]:
    """Windows of the held-out text whose last `context_length` tokens are the same ones for every `length`.

    Args:
        length: tokens of a window. longest: of the longest windows that will be asked for: no place lies before it.
        rows: places, spread evenly over the text; fewer where the text is short.
    """
    tokens = data.val_dataloader().windows.tokens
    chunk = data.context_length
    last = (len(tokens) - 1) // chunk
    first = -(-longest // chunk)
    if last < first:
        return
    ends = np.unique(np.linspace(first, last, min(rows, last - first + 1)).round().astype(int)) * chunk
    size = max(1, data.val_batch_size * chunk // length)
    for start in range(0, len(ends), size):
        places = ends[start : start + size, None] + np.arange(-length, 1)
        text = torch.from_numpy(tokens[places].astype(np.int64))
        targets = text[:, 1:].clone()
        targets[:, :-chunk] = IGNORE
        yield {"tokens": text[:, :-1].contiguous(), "targets": targets}
