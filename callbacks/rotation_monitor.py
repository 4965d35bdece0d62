"""What the rotaries learned: their angles, how orthogonal they stayed, their base and effective frequencies.

Works on every module that has `rotation_matrix()` (`mixing()` in 0.1.0) and `base`; where it also has `angles()`
(radians) and `frequencies()` (radians per position) these are shown, otherwise the angles are those of the eigenvalues
of R and the frequencies B^(−2m/c). Scalars go to every logger, histograms and time pictures to loggers that take them,
and everything to `rotation.jsonl` in the run's folder, one line per rotary and look.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from cubelet.common.checks import check_at_least
from cubelet.common.run_folder import run_folder
from cubelet.common.sharded_tensors import to_full

from .base import StatefulCallback
from .heat_chart import Axes, framed_map
from .jsonl_log import ResumableJSONL, open_log
from .module_search import modules_with, to_float
from .reporting import due, idle, label, log_histogram, log_image, log_scalars, stops_writing, wants_pictures

_ANGLE_BINS = 24


class RotationMonitor(StatefulCallback):
    """Logs rotations every `every_n_steps` optimizer steps, on the module as it is (no forward, no gradient).

    Per rotary, under `rotation/<name>/`: `orthogonality` = ‖RᵀR − I‖ (Frobenius), `turn` = mean |angle| of R's
    eigenvalues in radians, `base`; histograms `angles` and `frequencies` (log₁₀, radians per position); pictures over
    time `angles_over_time` (rows 0 … π from bottom to top, brightness the share) and `frequencies_over_time` (a row per
    pair, brightness log₁₀). `rotation.jsonl` has `step`, `name`, `base`, and where known `orthogonality`, `turn`,
    `angles` and `frequencies`.

    Args:
        every_n_steps: optimizer steps between two looks.
        history: columns of the pictures: the last so many looks.
        picture_every: pictures and histograms come with every so many looks, and at the end of training (a rotary's
            take some milliseconds).
        per_module: scalars of each rotary; otherwise those of all, `rotation/orthogonality` (the largest) and
            `rotation/turn` (the mean).
        strict: raise instead of staying idle when no module has `rotation_matrix` and `base`.

    Raises:
        ValueError: a bad argument; at fit start, with `strict` and no such module.

    Example:
        >>> callback = RotationMonitor(every_n_steps=50, picture_every=10)
    """

    def __init__(
        self,
        *,
        every_n_steps: int = 100,
        history: int = 128,
        picture_every: int = 4,
        per_module: bool = True,
        strict: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (("every_n_steps", every_n_steps), ("history", history), ("picture_every", picture_every)):
            check_at_least(name, value, 1)
        self.every_n_steps = every_n_steps
        self.history = history
        self.picture_every = picture_every
        self.per_module = per_module
        self.strict = strict
        self._modules: dict[str, Any] = {}
        self._path: str | None = None
        self._file: ResumableJSONL | None = None
        self._columns: dict[str, list[list[float]]] = {}
        self._looks = 0
        self._step = 0
        self._label = "rotation"

    def identity(self) -> dict[str, Any]:
        return {"every_n_steps": self.every_n_steps, "history": self.history}

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self._label = label(trainer, self, "rotation")
        self._modules = {n: m for n, m in modules_with(pl_module, "base").items() if _matrix_method(m)}
        if not self._modules:
            idle(self, "no module has `rotation_matrix()` and `base`", self.strict)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._step = trainer.global_step
        folder = run_folder(trainer)  # collective, hence before the ranks part
        if folder is None or not self._modules:
            return
        path = folder / f"{self._label}.jsonl"
        if trainer.is_global_zero:
            self._file = open_log(self, path, self._step, self._path)
        self._path = str(path)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        is_drawn = (self._looks - 1) % self.picture_every == 0
        if self._modules and self._columns and not is_drawn and wants_pictures(trainer):
            self._draw(trainer)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        before, self._step = self._step, trainer.global_step
        if self._modules and due(before, self._step, self.every_n_steps):
            self.look(trainer)

    def look(self, trainer: Any) -> None:
        """Measure and log every rotary now."""
        scalars: dict[str, float] = {}
        records = []
        draw = self._looks % self.picture_every == 0 and wants_pictures(trainer)
        self._looks += 1
        for name, module in self._modules.items():
            prefix = f"{self._label}/{name}"
            facts = measure(module)
            scalars |= {f"{prefix}/{key}": value for key, value in facts.items() if isinstance(value, float)}
            records.append({"step": self._step, "name": name} | {key: _rounded(value) for key, value in facts.items()})
            angles, frequencies = facts.get("angles"), facts.get("frequencies")
            if angles is not None:
                self._keep(f"{name}/angles", angle_shares(angles))
                if draw:
                    log_histogram(trainer, f"{prefix}/angles", angles)
            if frequencies is not None:
                self._keep(f"{name}/frequencies", np.log10(np.maximum(frequencies, 1e-30)).tolist())
                if draw:
                    log_histogram(trainer, f"{prefix}/frequencies", self._columns[f"{name}/frequencies"][-1])
        log_scalars(trainer, scalars if self.per_module else overall(scalars, self._label))
        self._write(records)
        if draw:
            self._draw(trainer)

    def _write(self, records: list[dict[str, Any]]) -> None:
        if self._file is None:
            return
        try:
            self._file.append(records)
        except OSError as error:
            stops_writing(self, self._file.path, error)
            self._file = None

    def _draw(self, trainer: Any) -> None:
        for key, columns in self._columns.items():
            steps = ((self._looks - len(columns) + 1) * self.every_n_steps, self._looks * self.every_n_steps)
            name, _, kind = key.rpartition("/")
            axes = angle_axes(steps, name) if kind == "angles" else frequency_axes(steps, len(columns[-1]), name)
            log_image(trainer, f"{self._label}/{key}_over_time", framed_map(np.array(columns).T, axes))

    def _keep(self, key: str, column: list[float]) -> None:
        self._columns[key] = [*self._columns.get(key, []), column][-self.history :]

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None
        self._modules = {}

    def state_dict(self) -> dict[str, Any]:
        columns = {key: [list(column) for column in columns] for key, columns in self._columns.items()}
        return {"columns": columns, "looks": self._looks, "path": self._path}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._columns = {key: [list(column) for column in columns] for key, columns in state_dict["columns"].items()}
        self._looks = state_dict["looks"]
        self._path = state_dict.get("path")  # older checkpoints have none


def angle_shares(angles: Any, high: float = math.pi) -> list[float]:
    """Return the share of angles (radians) whose size lies in each of 24 equal parts of 0 … `high`."""
    counts, _ = np.histogram(np.abs(angles), bins=_ANGLE_BINS, range=(0.0, high))
    return (counts / max(len(angles), 1)).tolist()


def angle_axes(steps: tuple[float, float], title: str, high: float = math.pi) -> Axes:
    """Return the axes of `angle_shares` over time."""
    return Axes("optimizer steps", "|angle| (rad)", steps, (0.0, high), "share of planes", title)


def frequency_axes(steps: tuple[float, float], pairs: int, title: str) -> Axes:
    """Return the axes of the frequencies of so many pairs over time."""
    return Axes("optimizer steps", "pair m", steps, (0, pairs), "log₁₀ rad a position", title)


def overall(scalars: dict[str, float], label: str) -> dict[str, float]:
    """Return the largest orthogonality fault and the mean turn of what was measured of each rotary."""
    parts: dict[str, list[float]] = {}
    for key, value in scalars.items():
        parts.setdefault(key.rpartition("/")[2], []).append(value)
    summed = {"orthogonality": max, "turn": lambda values: sum(values) / len(values)}
    return {f"{label}/{key}": float(how(parts[key])) for key, how in summed.items() if key in parts}


def _rounded(value: Any) -> Any:
    """A number or an array as plain numbers of a few digits, for a file."""
    return np.asarray(value, dtype=np.float64).round(9).tolist()


@torch.no_grad()
def measure(module: Any) -> dict[str, Any]:
    """Return what a rotary is now.

    Returns:
        `base`; where there is an R of shape (c, c): `orthogonality` ‖RᵀR − I‖, `turn` mean |angle| of its eigenvalues,
        `angles` in (−π, π]; `frequencies`, where they are known.
    """
    facts: dict[str, Any] = {"base": to_float(module.base)}
    method = _matrix_method(module)
    R = _called(module, method) if method else None
    head_dim = None
    if R is not None:
        R = _host(R)
        head_dim = R.shape[-1]
        facts["orthogonality"] = float(np.linalg.norm(R.T @ R - np.eye(head_dim)))
        turns = np.angle(np.linalg.eigvals(R))
        facts["turn"] = float(np.abs(turns).mean())
        facts["angles"] = _wrapped(_host(_called(module, "angles"))) if _has_angles(module) else turns
    if callable(getattr(module, "frequencies", None)):
        facts["frequencies"] = _host(_called(module, "frequencies")).reshape(-1)
    elif head_dim is not None:
        facts["frequencies"] = facts["base"] ** (-np.arange(0, head_dim, 2) / head_dim)
    return facts


def _matrix_method(module: Any) -> str | None:
    """Name of the method that gives R; `mixing` is its name in 0.1.0."""
    return next((name for name in ("rotation_matrix", "mixing") if callable(getattr(module, name, None))), None)


class _Method(nn.Module):
    """Calls a method of a module as a forward, for `functional_call`."""

    def __init__(self, module: nn.Module, method: str) -> None:
        super().__init__()
        self.module, self.method = module, method

    def forward(self) -> Any:
        return getattr(self.module, self.method)()


def _called(module: Any, method: str) -> Any:
    """A method's result, with sharded parameters (FSDP2) made whole for the call; collective in that case."""
    whole = {f"module.{n}": full for n, p in module.named_parameters() if (full := to_full(p)) is not p}
    if not whole:
        return getattr(module, method)()
    return functional_call(_Method(module, method), whole, ())


def _has_angles(module: Any) -> bool:
    return callable(getattr(module, "angles", None)) and getattr(module, "rotations", None) != 0


def _host(tensor: Tensor) -> np.ndarray:
    return tensor.detach().to(device="cpu", dtype=torch.float64).numpy()


def _wrapped(angles: np.ndarray) -> np.ndarray:
    """Angles in (−π, π]."""
    return np.pi - np.mod(np.pi - angles, 2 * np.pi)
