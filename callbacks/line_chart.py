"""Line charts as SVG text: no plotting library, both colour schemes, a table's worth of numbers in a picture."""

import math
from collections.abc import Mapping, Sequence
from html import escape

Series = Sequence[tuple[float, float]]
WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 74, 14, 12, 40


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` round numbers in [low, high].

    Example:
        >>> ticks(0, 2000)
        [0.0, 500.0, 1000.0, 1500.0, 2000.0]
    """
    if not high > low:
        return [low]
    raw = (high - low) / max(count - 1, 1)
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(step * n, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def line_chart(series: Mapping[str, Series], y_label: str, x_label: str = "optimizer steps") -> str:
    """Return an `<svg>` element with axes, units and a legend; "" where no series has a finite point.

    Args:
        series: {name: points (x, y)}; points that are not finite are left out.
        y_label, x_label: of the axes, with units.

    Example:
        >>> line_chart({"loss": [(0, 2.0), (10, 1.0)]}, "loss (nats)").startswith("<svg")
        True
    """
    finite = {n: [p for p in points if all(map(math.isfinite, p))] for n, points in series.items()}
    finite = {name: points for name, points in finite.items() if points}
    if not finite:
        return ""
    xs = [x for points in finite.values() for x, _ in points]
    ys = [y for points in finite.values() for _, y in points]
    x_low, x_high = min(xs), max(xs)
    y_low, y_high = min(ys), max(ys)
    margin = 0.05 * (y_high - y_low) or abs(y_high) * 0.05 or 1.0
    y_low, y_high = y_low - margin, y_high + margin
    x_high = x_high if x_high > x_low else x_low + 1

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM),
        )

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(y_label)} over {escape(x_label)}">']
    for value in ticks(y_low, y_high):
        _, y = place(x_low, value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{show(value)}</text>')
    for value in ticks(x_low, x_high):
        x, _ = place(value, y_low)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{show(value)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle:.0f}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    centre = (TOP + HEIGHT - BOTTOM) / 2
    turn = f'transform="rotate(-90 14 {centre:.0f})"'
    parts.append(f'<text x="14" y="{centre:.0f}" text-anchor="middle" {turn}>{escape(y_label)}</text>')
    for number, (name, points) in enumerate(finite.items()):
        places = [place(x, y) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline class="line c{number % 4}" points="{path}"/>')
        if len(places) <= 40:
            parts += [f'<circle class="dot c{number % 4}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in places]
        label = f"{name}: {show(points[-1][1])}"
        y = TOP + 14 + 16 * number
        parts.append(f'<rect class="dot c{number % 4}" x="{WIDTH - RIGHT - 190}" y="{y - 9}" width="10" height="10"/>')
        parts.append(f'<text x="{WIDTH - RIGHT - 174}" y="{y}">{escape(label)}</text>')
    return "".join([*parts, "</svg>"])


def show(value: float) -> str:
    """Return a number as people write it: 2,000; 1.62; 3e-05."""
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        is_whole = float(value).is_integer() and abs(value) >= 10
        return f"{value:,.0f}" if is_whole or abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:.2g}"
