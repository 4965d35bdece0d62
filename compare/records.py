"""Finished runs of an experiment in one file that can be committed: what a published table was computed from.

One line of JSON for each run: its key, what it was, its measures. A comparison that is given the folder of such files
does only what is missing, on whatever machine, so hundreds of runs can be done in many sittings.
"""

import contextlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from cubelet.callbacks.run_metrics import METRICS_FILE
from cubelet.common.errors import ConfigError
from cubelet.common.files import to_finite, write_atomic, write_json

from .processes import read_result, sidecar_path
from .runs import Run

CURVES = ("train_curve", "val_curve")  # only drawn, but in a run that measures: six digits do


class Records:
    """Finished runs in one file.

    Args:
        path: of the file; it is made with the first run.

    Raises:
        ConfigError: a line of it is no record, with its number.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._records = self._read()

    def _read(self) -> dict[str, dict[str, Any]]:
        records: dict[str, dict[str, Any]] = {}
        for number, line in enumerate(self.path.read_text("utf-8").splitlines() if self.path.exists() else (), 1):
            record: Any = None
            try:
                record = json.loads(line)
                complete = {"key", "variant", "purpose", "seed"} <= record.keys() and "val_loss" in record["measures"]
            except (ValueError, TypeError, KeyError, AttributeError):
                complete = False
            if not complete:
                raise ConfigError(
                    f"{self.path}, line {number} is no record of a run (one line of JSON with key, variant, purpose, "
                    "seed and measures); delete the line, and the run is done again"
                )
            records[record["key"]] = record
        return records

    def __len__(self) -> int:
        return len(self._records)

    def restore(self, runs: Iterable[Run], root: Path) -> None:
        """Give each run that is recorded, and that `root` lacks, a folder with its measures alone."""
        for run in runs:
            record = self._records.get(run.key)
            if record is None or read_result(run, root) is not None:
                continue
            with contextlib.suppress(TimeoutError):  # another process is doing it
                root.mkdir(parents=True, exist_ok=True)
                with FileLock(sidecar_path(run, root, "lock"), timeout=0):
                    write_json(root / run.name / METRICS_FILE, record["measures"])

    def keep(self, runs: Iterable[Run], root: Path) -> None:
        """Write down the runs that are finished in `root` and not recorded yet.

        What another process has recorded meanwhile stays.
        """
        fresh = {run.key: r for run in runs if run.key not in self._records and (r := read_result(run, root))}
        if not fresh:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_name(f".{self.path.name}.lock")):
            self._records = self._read() | {
                key: {
                    "variant": r.run.variant,
                    "purpose": r.run.purpose,
                    "seed": r.run.seed,
                    "key": key,
                    "measures": to_finite(r.measures if r.run.purpose == "measure" else _short(r.measures or {})),
                }
                for key, r in fresh.items()
            }
            rows = sorted(self._records.values(), key=lambda r: (r["purpose"], r["variant"], r["seed"], r["key"]))
            write_atomic(self.path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _short(measures: Mapping[str, Any]) -> dict[str, Any]:
    def short(x: float | None) -> float | None:  # None in a run that diverged
        return None if x is None else float(f"{x:.6g}")

    return {**measures, **{k: [[short(x) for x in row] for row in measures[k]] for k in CURVES if k in measures}}
