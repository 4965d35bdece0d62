"""Shows what FAM decided: which momentum each tensor got, from which spectrum.

Reads the optimizer's own summary (`spectrum_summary()`, one host read) every `every_n_steps` optimizer steps, on
every rank, so that the callback's state is the same everywhere; rank 0 alone writes.
Scalars per kind of parameter go to every logger; a bands × time heat-map per kind, a histogram of the α' and a table of
the tensors that moved most go to loggers that take pictures; everything goes to a JSON-lines file in the run's folder,
one line per tensor and dump: step, name, handler, alpha, base_alpha, nu, bands, analysed (step of the analysis), and
where the optimizer says them white (what white noise has in the bands) and period.

Of a spectrum along time the heat-map is the *ridge*: each bin relative to white noise, bin k an oscillation of
history/k steps. Its scalars are the peak's height over white, its period in steps, period·√lr (constant where momentum
rings against curvature: the period goes with lr^−½), and ν'.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from cubelet.common.run_folder import run_folder

from .base import StatefulCallback
from .heat_chart import Axes, framed_map
from .jsonl_log import ResumableJSONL, open_log
from .reporting import (
    due,
    idle,
    label,
    log_histogram,
    log_image,
    log_scalars,
    log_text,
    stops_writing,
    wants_pictures,
)

SCALARS = ("alpha", "moved", "upper_half", "peak", "period", "period_sqrt_lr", "nu")


class FAMMonitor(StatefulCallback):
    """Dumps the spectra and momentum coefficients of every optimizer that offers `spectrum_summary`.

    Args:
        every_n_steps: optimizer steps between two dumps.
        table_rows: how many of the tensors with the largest |α' − α| the table shows.
        history: columns of the heat-maps: the last so many dumps.
        picture_every: pictures, histogram and table come with every so many dumps, and pictures at the end of
            training (a picture costs about a millisecond).
        scalars: which of the scalars each kind logs; all, or a list of `alpha`, `moved`, `upper_half`, `peak`,
            `period`, `period_sqrt_lr`, `nu`. The file has everything.
        filename: of the JSON-lines file in the run's folder; `fam_2.jsonl` and so on for further instances.
        strict: raise instead of staying idle when no optimizer offers spectra.

    Raises:
        ValueError: a bad argument; at fit start, with `strict` and no such optimizer.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[FAMMonitor(every_n_steps=10)], logger=False)
    """

    def __init__(
        self,
        *,
        every_n_steps: int = 50,
        table_rows: int = 10,
        history: int = 256,
        picture_every: int = 4,
        filename: str = "fam.jsonl",
        scalars: list[str] | None = None,
        strict: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (("every_n_steps", every_n_steps), ("history", history), ("picture_every", picture_every)):
            if value < 1:
                raise ValueError(f"{name} {value} must be at least 1")
        self.every_n_steps = every_n_steps
        self.table_rows = table_rows
        self.history = history
        self.picture_every = picture_every
        self.filename = filename
        for name in scalars or ():
            if name not in SCALARS:
                raise ValueError(f"scalars: {name!r} is none of {', '.join(SCALARS)}")
        self.scalars = SCALARS if scalars is None else tuple(scalars)
        self.strict = strict
        self._optimizers: list[Any] = []
        self._columns: dict[str, list[list[float]]] = {}
        self._along_time: set[str] = set()  # kinds whose columns are ridges
        self._dumps = 0
        self._step = 0
        self._path: str | None = None
        self._file: ResumableJSONL | None = None
        self._label = "fam"

    def identity(self) -> dict[str, Any]:
        return {"every_n_steps": self.every_n_steps, "filename": self.filename}

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self._label = label(trainer, self, "fam")
        self._optimizers = [o for o in trainer.optimizers if callable(getattr(o, "spectrum_summary", None))]
        if not self._optimizers:
            kinds = ", ".join(sorted({type(o).__name__ for o in trainer.optimizers})) or "none"
            idle(self, f"no optimizer offers spectrum_summary() (optimizers: {kinds}); it is made for FAM", self.strict)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._step = trainer.global_step
        folder = run_folder(trainer)  # collective, hence before the ranks part
        if folder is None or not self._optimizers:
            return
        path = folder / (Path(self.filename).stem + self._label.removeprefix("fam") + Path(self.filename).suffix)
        if trainer.is_global_zero:
            self._file = open_log(self, path, self._step, self._path)
        self._path = str(path)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        before, self._step = self._step, trainer.global_step
        if self._optimizers and due(before, self._step, self.every_n_steps):
            rows = self._summary()
            if rows:
                self.dump(trainer, rows)

    def _summary(self) -> list[dict[str, Any]]:
        """Rows of all optimizers; a name that two of them use gets the optimizer's number in front."""
        rows: dict[str, dict[str, Any]] = {}
        for number, optimizer in enumerate(self._optimizers):
            for row in optimizer.spectrum_summary():
                name = f"optimizer{number}.{row['name']}" if row["name"] in rows else row["name"]
                rows[name] = row | {"name": name}
        return list(rows.values())

    def dump(self, trainer: Any, rows: list[dict[str, Any]]) -> None:
        """Write one summary everywhere; `rows` as `spectrum_summary` gives them."""
        if self._file is not None:
            try:
                self._file.append(map(self._record, rows))
            except OSError as error:
                stops_writing(self, self._file.path, error)
                self._file = None
        kinds: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in rows:
            kinds[row["handler"]].append(row)
        scalars = {}
        for kind, members in kinds.items():
            alphas = [float(row["alpha"]) for row in members]
            scalars[f"{self._label}/alpha/{kind}"] = float(np.mean(alphas))
            scalars[f"{self._label}/moved/{kind}"] = float(np.mean([_shift(row) > 1e-6 for row in members]))
            bands = _mean_bands([row["bands"] for row in members])
            scalars[f"{self._label}/upper_half/{kind}"] = float(sum(bands[len(bands) // 2 :]))
            if all(row.get("period") for row in members):
                ridge = np.array([row["bands"] for row in members]) / np.array([row["white"] for row in members])
                bands = (ridge.mean(0) - 1).tolist()
                periods = [row["period"] for row in members]
                scaled = [row["period"] * row["lr"] ** 0.5 for row in members]
                self._along_time.add(kind)
                scalars[f"{self._label}/peak/{kind}"] = float(max(bands[1:]))
                scalars[f"{self._label}/period/{kind}"] = float(np.median(periods))
                scalars[f"{self._label}/period_sqrt_lr/{kind}"] = float(np.median(scaled))
            if any(row.get("nu", 1.0) != 1.0 for row in members):
                scalars[f"{self._label}/nu/{kind}"] = float(np.mean([row["nu"] for row in members]))
            self._columns[kind] = [*self._columns.get(kind, []), bands][-self.history :]
        log_scalars(trainer, {key: value for key, value in scalars.items() if key.split("/")[-2] in self.scalars})
        if self._dumps % self.picture_every == 0 and wants_pictures(trainer):
            self._draw(trainer, rows, list(kinds))
        self._dumps += 1

    def _record(self, row: dict[str, Any]) -> dict[str, Any]:
        return {
            "step": self._step, "name": row["name"], "handler": row["handler"], "alpha": float(row["alpha"]),
            "base_alpha": float(row["base_alpha"]), "nu": float(row.get("nu", 1.0)),
            "bands": [float(b) for b in row["bands"]],
            "analysed": int(row["step"]),
        } | {key: row[key] for key in ("white", "period") if row.get(key) is not None}  # fmt: skip

    def _draw(self, trainer: Any, rows: list[dict[str, Any]], kinds: list[str]) -> None:
        self._draw_bands(trainer, kinds)
        log_histogram(trainer, f"{self._label}/alpha", [float(row["alpha"]) for row in rows])
        log_text(trainer, f"{self._label}/moved", moved_most(rows, self.table_rows))

    def _draw_bands(self, trainer: Any, kinds: list[str]) -> None:
        for kind in kinds:
            history = self._columns[kind]
            columns = np.full((max(map(len, history)), len(history)), np.nan)
            for i, bands in enumerate(history):
                columns[: len(bands), i] = bands
            last = self._step // self.every_n_steps * self.every_n_steps
            steps = (max(0, last - (len(history) - 1) * self.every_n_steps), last)
            axes = band_axes(steps, len(columns), kind, kind in self._along_time)
            log_image(trainer, f"{self._label}/bands/{kind}", framed_map(columns, axes))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        is_drawn = (self._dumps - 1) % self.picture_every == 0
        if self._optimizers and self._columns and not is_drawn and wants_pictures(trainer):
            self._draw_bands(trainer, list(self._columns))

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None
        self._optimizers = []

    def state_dict(self) -> dict[str, Any]:
        columns = {kind: [list(bands) for bands in history] for kind, history in self._columns.items()}
        return {"columns": columns, "dumps": self._dumps, "path": self._path}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._columns = {kind: [list(bands) for bands in history] for kind, history in state_dict["columns"].items()}
        self._dumps = state_dict["dumps"]
        self._path = state_dict["path"]


def band_axes(steps: tuple[float, float], bands: int, kind: str, along_time: bool) -> Axes:
    """Return the axes of spectra over time: bins of an oscillation in cycles a step, or bands along the index."""
    if along_time:
        return Axes("optimizer steps", "cycles a step", steps, (0.0, 0.5), "above white noise (1 = twice)", kind)
    return Axes("optimizer steps", "band, slow to fast", steps, (0, bands), "share of the power", kind)


def _mean_bands(bands: list[list[float]]) -> list[float]:
    """Mean per band over tensors; where their numbers of bands differ, over the smallest number."""
    width = min(map(len, bands))
    return np.mean([_resampled(b, width) for b in bands], axis=0).tolist()


def _resampled(bands: list[float], width: int) -> list[float]:
    """Shares over fewer bands: the cumulative share read at the new edges, so the sum stays."""
    if len(bands) == width:
        return [float(b) for b in bands]
    total = np.concatenate([[0.0], np.cumsum(bands)])
    edges = np.interp(np.linspace(0, len(bands), width + 1), np.arange(len(bands) + 1), total)
    return np.diff(edges).tolist()


def _shift(row: dict[str, Any]) -> float:
    """|α' − α|; α' comes from float32, so that 0.9 is 0.89999998."""
    return abs(row["alpha"] - row["base_alpha"])


def moved_most(rows: list[dict[str, Any]], count: int) -> str:
    """Markdown table of the tensors whose α' lies furthest from their α."""
    order = sorted(rows, key=_shift, reverse=True)[:count]
    lines = ["| tensor | kind | α | α' | strongest band |", "| --- | --- | --- | --- | --- |"]
    for row in order:
        strongest = f"{int(np.argmax(row['bands'])) + 1} of {len(row['bands'])}" if len(row["bands"]) else "none"
        lines.append(
            f"| {row['name']} | {row['handler']} | {row['base_alpha']:.3f} | {row['alpha']:.3f} | {strongest} |"
        )
    return "\n".join(lines)
