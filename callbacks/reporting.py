"""What callbacks write: scalars to loggers of any kind, pictures and texts where a logger can take them.

Scalars go to every logger's `log_metrics`, so TensorBoard, CSV and others get the same series. Text, pictures and
histograms go to loggers whose `experiment` has `add_text`, `add_image`, `add_histogram`. Nothing here runs per step:
each call costs 0.05 … 2 ms, so callers write only when their interval is due.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from cubelet.common.lightning_internals import logging_step

# Anchor colours of a perceptually even map from dark violet over green to yellow, interpolated linearly.
COLOUR_ANCHORS = np.array(
    [(68, 1, 84), (71, 44, 122), (59, 81, 139), (44, 113, 142), (33, 144, 141), (39, 173, 129), (92, 200, 99),
     (170, 220, 50), (253, 231, 37)],
    dtype=np.float64,
)  # fmt: skip


def due(before: int, now: int, every: int) -> bool:
    """Return whether a multiple of `every` lies in (before, now]; several optimizers advance the step by more than one.

    Never, where `every` is 0, as `log_every_n_steps` is in a trainer that does not log.
    """
    return every > 0 and now // every > before // every


def idle(callback: object, reason: str, strict: bool) -> None:
    """Say once on rank 0 that the callback has nothing to act on, or raise where the user asked for that.

    Raises:
        ValueError: with `strict`.
    """
    message = f"{type(callback).__name__} is idle: {reason}"
    if strict:
        raise ValueError(message)
    rank_zero_warn(message)


def label(trainer: Any, callback: object, default: str) -> str:
    """Return the prefix of what a callback logs: `default`, and `default_2`, … for further instances of its class."""
    siblings = [other for other in trainer.callbacks if type(other) is type(callback)]
    position = next((i for i, other in enumerate(siblings) if other is callback), 0)
    return default if position == 0 else f"{default}_{position + 1}"


def stops_writing(callback: object, path: Path, error: OSError) -> None:
    """Say on rank 0 that a file cannot be written any more; a full disk must not end a run."""
    rank_zero_warn(f"{type(callback).__name__} stops writing {path}: {error}")


def log_scalars(trainer: Any, values: dict[str, float]) -> None:
    """Hand values to every logger (rank 0 only, which the loggers see to themselves)."""
    for logger in trainer.loggers:
        logger.log_metrics(values, step=logging_step(trainer))


def experiments(trainer: Any, method: str) -> Iterator[Any]:
    """Yield the loggers' experiments that have `method`, on rank 0 only."""
    if not trainer.is_global_zero or trainer.fast_dev_run:
        return
    for logger in trainer.loggers:
        experiment = getattr(logger, "experiment", None)
        if callable(getattr(experiment, method, None)):
            yield experiment


def log_text(trainer: Any, tag: str, text: str) -> bool:
    """Write markdown to every logger that takes text; False when none does."""
    told = False
    for experiment in experiments(trainer, "add_text"):
        experiment.add_text(tag, text, global_step=logging_step(trainer))
        told = True
    return told


def log_image(trainer: Any, tag: str, image: np.ndarray) -> None:
    """Write a picture (height, width, 3) uint8 to every logger that takes pictures."""
    for experiment in experiments(trainer, "add_image"):
        experiment.add_image(tag, image, global_step=logging_step(trainer), dataformats="HWC")


def log_histogram(trainer: Any, tag: str, values: Any) -> None:
    """Write the distribution of an array of values to every logger that takes histograms."""
    values = np.asarray(values, dtype=np.float64)
    values = values[np.isfinite(values)]
    if values.size == 0:
        return
    for experiment in experiments(trainer, "add_histogram"):
        experiment.add_histogram(tag, values, global_step=logging_step(trainer))


def wants_pictures(trainer: Any) -> bool:
    """Whether any logger takes pictures, so that none are drawn for nothing."""
    return any(True for _ in experiments(trainer, "add_image"))


def heat_map(values: Any, *, low: float | None = None, high: float | None = None, cell: int = 8) -> np.ndarray:
    """Return a picture of a matrix; no plotting library needed.

    Args:
        values: (rows, columns); row 0 is drawn at the bottom, as on an axis. Not finite: grey.
        low, high: values of the darkest and brightest colour; default the finite minimum and maximum.
        cell: edge of one entry in pixels.

    Returns:
        (rows·cell, columns·cell, 3) uint8.
    """
    values = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(values)
    if low is None:
        low = float(values[finite].min()) if finite.any() else 0.0
    if high is None:
        high = float(values[finite].max()) if finite.any() else 1.0
    place = np.where(finite, (values - low) / max(high - low, 1e-12), 0.0).clip(0.0, 1.0)
    colours = np.stack(
        [np.interp(place, np.linspace(0.0, 1.0, len(COLOUR_ANCHORS)), channel) for channel in COLOUR_ANCHORS.T], axis=-1
    )
    colours[~finite] = 128.0
    return np.flipud(colours.round().astype(np.uint8)).repeat(cell, axis=0).repeat(cell, axis=1)
