"""Where a run writes: one folder a run, TensorBoard events and `metrics.csv` side by side.

- Lightning's CSVLogger deletes the metrics of an earlier run in the same folder. A resumed run goes on in its folder
  here, so this logger keeps what was written up to the step it resumes from and appends.
- TensorBoard draws one chart for a tag that several runs have, and sorts capitals first. So the losses are the tag
  `Loss` of the run (training) and of `validation` below it: one chart, at the top.
- Its HPARAMS tab shows runs that have a result, so the hyper-parameters are written with it when a run ends.
"""

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.logger import _flatten_dict
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

LOSSES = {"train_loss": "", "val_loss": "validation"}  # metric: run below this one whose `Loss` it is
LEFT_OUT = ("epoch", "val_perplexity")  # says nothing that the steps and the loss do not; metrics.csv has both


class RunTensorBoard(TensorBoardLogger):
    """TensorBoard events of a run: losses first and in one chart, equal rates once, hyper-parameters with the result.

    Example:
        >>> logger = RunTensorBoard(save_dir="runs", name="", version="first")
        >>> logger.log_dir
        'runs/first'
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"default_hp_metric": False, **options})
        self._validation: Any = None  # a second writer, below the first
        self._last: dict[str, float] = {}

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        values = {name: float(value) for name, value in metrics.items() if name not in LEFT_OUT}
        self._last |= {name: value for name, value in values.items() if name.startswith("val_")}
        super().log_metrics(merge_rates(values), step)
        for name, below in LOSSES.items():
            if name in values:
                (self.validation if below else self.experiment).add_scalar("Loss", values[name], step)

    @property
    @rank_zero_experiment
    def validation(self) -> Any:
        """Writer of the run `validation` below this one."""
        if self._validation is None:
            from torch.utils.tensorboard import SummaryWriter

            self._validation = SummaryWriter(log_dir=os.path.join(self.log_dir, "validation"), **self._kwargs)
        return self._validation

    def save(self) -> None:
        super().save()
        if self._validation is not None:
            self._validation.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if status == "success" and self.hparams and "val_loss" in self._last:
            self._write_hparams()
        super().finalize(status)
        if self._validation is not None:
            self._validation.close()
            self._validation = None

    def _write_hparams(self) -> None:
        """Hyper-parameters and the last validation's values, for the HPARAMS tab."""
        from torch.utils.tensorboard.summary import hparams

        given = self.hparams if isinstance(self.hparams, dict) else vars(self.hparams)
        params = self._sanitize_params(_flatten_dict(dict(given)))
        writer = self.experiment._get_file_writer()
        for summary in hparams(params, dict(self._last)):
            writer.add_summary(summary)


def merge_rates(values: dict[str, float]) -> dict[str, float]:
    """Return metrics in which learning rates that are equal stand once, as `lr` where all are.

    Example:
        >>> merge_rates({"lr-FAM/conv": 0.01, "lr-FAM/rest": 0.01, "base": 10.0})
        {'base': 10.0, 'lr': 0.01}
    """
    rates: dict[float, str] = {}
    for name, value in values.items():
        if name.startswith("lr-"):
            rates.setdefault(value, name)
    merged = {name: value for name, value in values.items() if not name.startswith("lr-")}
    if len(rates) == 1:
        return merged | {"lr": next(iter(rates))}
    return merged | {name: value for value, name in rates.items()}


class _Appending(ExperimentWriter):
    """The library's writer, which keeps an existing file instead of deleting it."""

    def _check_log_dir_exists(self) -> None:
        path = Path(self.log_dir, self.NAME_METRICS_FILE)
        if path.exists():
            with path.open(newline="") as file:
                self.metrics_keys = sorted(csv.DictReader(file).fieldnames or [])

    def drop_from(self, step: int) -> None:
        """Drop rows of `step` and later, which a resumed run writes again. The file is replaced atomically."""
        path = Path(self.metrics_file_path)
        if not path.exists():
            return
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            rows = [row for row in reader if int(row["step"]) < step]
            fields = reader.fieldnames or []
        fresh = path.with_suffix(".partial")
        with fresh.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=fields)
            writer.writeheader()
            writer.writerows(rows)
        os.replace(fresh, path)


class MetricsCSV(CSVLogger):
    """`metrics.csv` in the run's folder, appended to over resumes; see the library's CSVLogger for arguments."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            os.makedirs(self._root_dir, exist_ok=True)
            self._experiment = _Appending(log_dir=self.log_dir)
        return self._experiment

    _flush_next = False

    def flush(self) -> None:
        """Write out now, and again with the next values: those of the step that is just ending."""
        self.save()
        self._flush_next = True

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        super().log_metrics(metrics, step)
        if self._flush_next:
            self._flush_next = False
            self.save()

    def resume(self, step: int) -> None:
        """Forget what an interrupted run wrote at `step` and later."""
        drop = getattr(self.experiment, "drop_from", None)  # other ranks get a dummy experiment
        if drop is not None:
            drop(step)


def default_loggers(
    root: str | os.PathLike[str], name: str, flush_every: int = 50, resumed_step: int | None = None
) -> list[Any]:
    """TensorBoard and CSV loggers for `root/name`; TensorBoard hides what was written past `resumed_step`."""
    return [
        RunTensorBoard(save_dir=os.fspath(root), name="", version=name, purge_step=resumed_step),
        MetricsCSV(save_dir=os.fspath(root), name="", version=name, flush_logs_every_n_steps=flush_every),
    ]
