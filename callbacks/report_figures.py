"""Figures of a run's page that are more than a line over steps, each made from the file that a callback wrote.

Attention maps (`attention.json`), rotation planes and spectra (`rotation.jsonl`), spectra of the gradients
(`fam.jsonl`). A file that is not there, or not whole yet, gives no figure.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .attention_maps import map_axes
from .fam_monitor import band_axes
from .heat_chart import heat_chart
from .line_chart import line_chart
from .rotation_monitor import angle_axes, angle_shares

MOST_STEPS = 160  # columns of a figure over time: a longer file is read at evenly spaced steps
MOST_ROTARIES = 4


def attention_figures(path: Path) -> tuple[str, dict[str, list[str]]]:
    """Return a sentence and {name of the attention: a map for each head} of `attention.json`; "" and {} without."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "", {}
    texts = told["tokens"]
    figures = {}
    for name, heads in told["weights"].items():
        weights = np.array(heads, dtype=np.float64)  # (h, queries, keys)
        figures[name] = [
            heat_chart(head[::-1], map_axes(head, texts, f"head {number}"), low=0.0, high=1.0, width=430, height=330)
            for number, head in enumerate(weights)
        ]
    return f"step {told['step']:,}, on {''.join(texts)!r}", figures


def rotation_figures(path: Path) -> dict[str, list[str]]:
    """Return {name of the rotary: figures} of `rotation.jsonl`: angles of its planes over time, and its spectrum."""
    looks: dict[str, list[dict[str, Any]]] = {}
    for record in read_records(path):
        looks.setdefault(record["name"], []).append(record)
    figures: dict[str, list[str]] = {}
    for name, records in list(looks.items())[:MOST_ROTARIES]:
        steps = (records[0]["step"], records[-1]["step"])
        made = []
        if all("angles" in record for record in records):
            largest = max(float(np.abs(record["angles"]).max(initial=0.0)) for record in records)
            high = min(math.pi, 1.05 * largest) or 1.0  # learned angles start at 0 and stay small for long
            shares = np.array([angle_shares(record["angles"], high) for record in records]).T  # (bins, looks)
            made.append(heat_chart(shares, angle_axes(steps, "rotation planes", high), low=0.0))
        if all("frequencies" in record for record in records):
            ends = {f"step {record['step']:,}": record["frequencies"] for record in (records[0], records[-1])}
            spectra = {
                label: [(pair, float(np.log10(max(value, 1e-30)))) for pair, value in enumerate(frequencies)]
                for label, frequencies in ends.items()
            }
            made.append(line_chart(spectra, "frequency (log₁₀ rad a position)", "pair m"))
        if made := [figure for figure in made if figure]:
            figures[name] = made
    return figures


def spectrum_figures(path: Path) -> list[str]:
    """Return a figure for each kind of parameter in `fam.jsonl`: its spectrum over steps, the mean over its tensors."""
    kinds: dict[str, dict[int, list[list[float]]]] = {}
    along_time = set()
    for record in read_records(path):
        bands, white = record["bands"], record.get("white")
        if record.get("period") and white:
            along_time.add(record["handler"])
            bands = [band / level - 1 for band, level in zip(bands, white, strict=True)]
        kinds.setdefault(record["handler"], {}).setdefault(record["step"], []).append(bands)
    figures = []
    for kind, steps in kinds.items():
        width = min(len(bands) for rows in steps.values() for bands in rows)
        columns = np.array([np.mean([bands[:width] for bands in rows], axis=0) for rows in steps.values()]).T
        axes = band_axes((min(steps), max(steps)), width, kind, kind in along_time)
        figures.append(heat_chart(columns, axes))
    return [figure for figure in figures if figure]


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a JSON-lines file at no more than 160 of its steps, evenly spaced, the last included."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    numbered = [(int(match[1]), line) for line in lines if (match := re.match(r'\{"step": (\d+),', line))]
    steps = sorted({step for step, _ in numbered})
    stride = -(-len(steps) // MOST_STEPS) or 1
    kept = set(steps[::-1][::stride])
    for step, line in numbered:
        if step in kept:
            try:
                yield json.loads(line)
            except ValueError:  # the last line of a run that is writing it
                return
