"""Matrices as pictures with axes, units and a colour bar: pixels for loggers, SVG text for the page of a run.

No plotting library: the text of pixel pictures is Pillow's, which TensorBoard brings along; without it the bare
matrix is the picture. In SVG the cells of one colour are one path, so that a map of a thousand cells stays small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from .line_chart import show, ticks
from .reporting import COLOUR_ANCHORS, heat_map

LEVELS = 32  # colours in SVG
PIXELS = (520, 240)  # of a pixel picture's matrix, at least
BAR_STEPS = 64


@dataclass(frozen=True)
class Axes:
    """What the sides of a matrix mean.

    Args:
        x_label, y_label: names of the axes, with units.
        x, y: values at the two ends of each axis, or one text for each column or row.
        colour: what the colour means, with its unit.
        title: above the picture.

    Example:
        >>> Axes("optimizer steps", "angle (rad)", x=(0, 2000), y=(0, 3.1416), colour="share of planes").y_label
        'angle (rad)'
    """

    x_label: str
    y_label: str
    x: tuple[float, float] | Sequence[str]
    y: tuple[float, float] | Sequence[str]
    colour: str
    title: str = ""


def colour_range(values: np.ndarray, low: float | None, high: float | None) -> tuple[float, float]:
    """Return the values of the darkest and the brightest colour: what is given, else the finite extremes."""
    finite = values[np.isfinite(values)]
    low = (float(finite.min()) if finite.size else 0.0) if low is None else low
    high = (float(finite.max()) if finite.size else 1.0) if high is None else high
    return low, high


def axis_marks(ends: tuple[float, float] | Sequence[str], cells: int, count: int = 5) -> list[tuple[float, str]]:
    """Return (place in cells, text) of the marks along an axis; texts stand at the middle of their cell.

    Example:
        >>> axis_marks((0, 100), 10, count=3)
        [(0.0, '0'), (5.0, '50'), (10.0, '100')]
        >>> axis_marks(["a", "b"], 2)
        [(0.5, 'a'), (1.5, 'b')]
    """
    if all(isinstance(end, str) for end in ends):
        return [(i + 0.5, str(text)) for i, text in enumerate(ends)]
    first, last = (float(end) for end in ends)
    if first == last:
        return [(cells / 2, show(first))]
    marks = ticks(min(first, last), max(first, last), count)
    return [((value - first) / (last - first) * cells, show(value)) for value in marks]


def mean_columns(values: np.ndarray, most: int) -> np.ndarray:
    """Return (rows, columns) with at most so many columns, each a mean of neighbours; gaps stay gaps."""
    if values.shape[1] <= most:
        return values
    parts = np.array_split(np.arange(values.shape[1]), most)
    return np.stack([values[:, part].mean(axis=1) for part in parts], axis=1)


# -- SVG --

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 640, 74, 92, 26, 44


def heat_chart(
    values: Any,
    axes: Axes,
    *,
    low: float | None = None,
    high: float | None = None,
    width: int = WIDTH,
    height: int = 300,
) -> str:
    """Return an `<svg>` element of a matrix; "" where nothing in it is finite.

    Args:
        values: (rows, columns), row 0 at the bottom; what is not finite is left out.
        axes: of it.
        low, high: values of the darkest and brightest colour; default the finite extremes.
        width, height: of the element, in units of which a letter is 12 high.

    Example:
        >>> axes = Axes("step", "pair", (0, 9), (0, 1), "share")
        >>> heat_chart([[0.0, 1.0], [2.0, 3.0]], axes).count("<path")
        4
    """
    values = mean_columns(np.asarray(values, dtype=np.float64), 160)
    if values.size == 0 or not np.isfinite(values).any():
        return ""
    rows, columns = values.shape
    low, high = colour_range(values, low, high)
    box_width, box_height = width - LEFT - RIGHT, height - TOP - BOTTOM
    across, up = box_width / columns, box_height / rows
    name = escape(axes.title or axes.colour)
    label = f"{name}: {escape(axes.y_label)} over {escape(axes.x_label)}"
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">']
    parts.append(f'<text x="{LEFT}" y="16" font-weight="bold">{name}</text>')
    onto = f"translate({LEFT} {TOP}) scale({across:.5f} {up:.5f})"  # one cell is one unit
    parts.append(f'<g class="cells" shape-rendering="crispEdges" transform="{onto}">')
    parts += [f'<path fill="{colour}" d="{path}"/>' for colour, path in _cell_paths(values, low, high)]
    parts.append("</g>")
    for place, text in axis_marks(axes.x, columns, 6):
        x, y = LEFT + place * across, TOP + box_height + 15
        parts.append(f'<text x="{x:.1f}" y="{y}" text-anchor="middle">{escape(text)}</text>')
    for place, text in axis_marks(axes.y, rows):
        y = TOP + box_height - place * up + 4
        parts.append(f'<text x="{LEFT - 6}" y="{y:.1f}" text-anchor="end">{escape(text)}</text>')
    middle, centre = LEFT + box_width / 2, TOP + box_height / 2
    parts.append(f'<text x="{middle:.0f}" y="{height - 8}" text-anchor="middle">{escape(axes.x_label)}</text>')
    turn = f'transform="rotate(-90 14 {centre:.0f})"'
    parts.append(f'<text x="14" y="{centre:.0f}" text-anchor="middle" {turn}>{escape(axes.y_label)}</text>')
    parts.append(_svg_bar(low, high, axes.colour, width, box_height))
    return "".join([*parts, "</svg>"])


def _cell_paths(values: np.ndarray, low: float, high: float) -> list[tuple[str, str]]:
    """(colour, path of all cells that have it), neighbours in a row in one piece; row 0 at the bottom."""
    rows = len(values)
    finite = np.isfinite(values)
    place = np.where(finite, (values - low) / max(high - low, 1e-12), 0.0).clip(0, 1)
    level = np.where(finite, np.minimum((place * LEVELS).astype(int), LEVELS - 1), -1)
    pieces: dict[int, list[str]] = {}
    for row in range(rows):
        starts = np.flatnonzero(np.diff(level[row], prepend=-2))
        for start, end in zip(starts, [*starts[1:], level.shape[1]], strict=True):
            if level[row, start] >= 0:
                width = end - start
                pieces.setdefault(int(level[row, start]), []).append(f"M{start} {rows - 1 - row}h{width}v1h-{width}z")
    return [(_hex((number + 0.5) / LEVELS), "".join(path)) for number, path in sorted(pieces.items())]


def _hex(place: float) -> str:
    """Colour at a place in [0, 1], as #rrggbb."""
    red, green, blue = (
        round(float(np.interp(place, np.linspace(0, 1, len(COLOUR_ANCHORS)), c))) for c in COLOUR_ANCHORS.T
    )
    return f"#{red:02x}{green:02x}{blue:02x}"


def _svg_bar(low: float, high: float, meaning: str, width: int, box_height: float) -> str:
    x, step = width - RIGHT + 14, box_height / LEVELS
    parts = [
        f'<rect x="{x}" y="{TOP + box_height - (n + 1) * step:.2f}" width="12" height="{step + 0.3:.2f}" '
        f'fill="{_hex((n + 0.5) / LEVELS)}"/>'
        for n in range(LEVELS)
    ]
    for place, text in axis_marks((low, high), 1):
        parts.append(f'<text x="{x + 16}" y="{TOP + box_height * (1 - place) + 4:.1f}">{escape(text)}</text>')
    centre, at = TOP + box_height / 2, width - 6
    turn = f'transform="rotate(-90 {at} {centre:.0f})"'
    return "".join([*parts, f'<text x="{at}" y="{centre:.0f}" text-anchor="middle" {turn}>{escape(meaning)}</text>'])


# -- pixels --


def framed_map(values: Any, axes: Axes, *, low: float | None = None, high: float | None = None) -> np.ndarray:
    """Return a picture of a matrix with axes and a colour bar; arguments as `heat_chart` has them.

    Returns:
        (height, width, 3) uint8, dark text on white; the bare matrix where Pillow is not installed.

    Example:
        >>> framed_map([[0.0, 1.0]], Axes("step", "pair", (0, 9), (0, 1), "share")).dtype
        dtype('uint8')
    """
    values = np.asarray(values, dtype=np.float64)
    low, high = colour_range(values, low, high)
    across, up = (max(1, math.ceil(least / max(n, 1))) for least, n in zip(PIXELS, values.shape[::-1], strict=True))
    cells = heat_map(values, low=low, high=high, cell=1).repeat(up, axis=0).repeat(across, axis=1)
    try:
        from PIL import Image, ImageDraw
    except ImportError:
        return cells
    height, width = cells.shape[:2]
    left, top, right, bottom = 86, 28, 116, 48
    page = Image.new("RGB", (left + width + right, top + height + bottom), "white")
    page.paste(Image.fromarray(cells), (left, top))
    draw = ImageDraw.Draw(page)

    def write(x: float, y: float, text: str, anchor: str) -> None:
        box = draw.textbbox((0, 0), text)
        shift = {"l": 0.0, "m": box[2] / 2, "r": box[2]}[anchor]
        draw.text((x - shift, y), text, fill="black")

    def write_upright(x: int, y: float, text: str) -> None:
        box = draw.textbbox((0, 0), text)
        strip = Image.new("RGB", (int(box[2]) + 2, int(box[3]) + 2), "white")
        ImageDraw.Draw(strip).text((0, 0), text, fill="black")
        strip = strip.rotate(90, expand=True)
        page.paste(strip, (x, max(0, round(y - strip.height / 2))))

    write(left, 8, axes.title or axes.colour, "l")
    for place, text in axis_marks(axes.x, values.shape[1], 6):
        draw.line([left + place * across, top + height, left + place * across, top + height + 4], fill="black")
        write(left + place * across, top + height + 6, text, "m")
    for place, text in axis_marks(axes.y, values.shape[0]):
        y = top + height - place * up
        draw.line([left - 5, y, left - 1, y], fill="black")
        write(left - 7, y - 6, text, "r")
    write(left + width / 2, top + height + 26, axes.x_label, "m")
    write_upright(4, top + height / 2, axes.y_label)
    bar = heat_map(np.arange(BAR_STEPS)[:, None], cell=1)  # (steps, 1, 3)
    page.paste(Image.fromarray(bar).resize((14, height)), (left + width + 14, top))
    for place, text in axis_marks((low, high), 1):
        write(left + width + 34, top + height * (1 - place) - 6, text, "l")
    write_upright(left + width + right - 18, top + height / 2, axes.colour)
    return np.asarray(page)
