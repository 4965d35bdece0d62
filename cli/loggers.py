"""Where a run writes: one folder a run, TensorBoard events and `metrics.csv` side by side.

Lightning's CSVLogger deletes the metrics of an earlier run in the same folder. A resumed run goes on in its folder
here, so this logger keeps what was written up to the step it resumes from and appends.
"""

import csv
import os
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment


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
        TensorBoardLogger(
            save_dir=os.fspath(root), name="", version=name, default_hp_metric=False, purge_step=resumed_step
        ),
        MetricsCSV(save_dir=os.fspath(root), name="", version=name, flush_logs_every_n_steps=flush_every),
    ]
