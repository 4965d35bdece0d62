"""Pictures of an experiment's result, each in a light and a dark version.

Small multiples instead of many coloured lines: each variant has a panel of its own in which the baseline is grey, so
two colours do for any number of variants. Verdicts are blue and orange, which everybody can tell apart, and colour
is never the only sign.
"""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cubelet.common.optional_imports import import_optional

from .experiment import AGAIN, BETTER, NOISE
from .measures import KINDS
from .runner import ExperimentResult
from .statistics import FEW, HELPS, HURTS, NOTHING, SAME
from .trends import straight_line, trends_of

COLUMNS = 4
Plot = Callable[[ExperimentResult, "Theme", Any], Any]


@dataclass(frozen=True)
class Theme:
    """Colours of one version."""

    name: str
    ground: str
    ink: str
    faint: str
    grid: str
    accent: str
    helps: str
    hurts: str

    def of(self, verdict: str) -> str:
        return {HELPS: self.helps, HURTS: self.hurts, NOTHING: self.faint, FEW: self.faint, SAME: self.faint}[verdict]


LIGHT = Theme("light", "#ffffff", "#1f2328", "#7d8590", "#e3e6ea", "#1f6feb", "#1f6feb", "#bc4c00")
DARK = Theme("dark", "#0d1117", "#e6edf3", "#8b949e", "#2b3138", "#58a6ff", "#58a6ff", "#f0883e")


def _save(figure: Any, path: Path) -> None:
    """As a PNG of at most 256 colours, a third of the size: reports are committed."""
    raw, packed = io.BytesIO(), io.BytesIO()
    figure.savefig(raw, dpi=150)
    image = import_optional("PIL.Image")
    image.open(raw).convert("RGB").quantize(256, dither=image.Dither.NONE).save(packed, "PNG", optimize=True)
    path.write_bytes(packed.getvalue())


def draw(result: ExperimentResult, folder: Path) -> list[str]:
    """Write `NAME-light.png` and `NAME-dark.png` of every picture that there are numbers for; returns the names."""
    plots: dict[str, Plot] = {
        "differences": forest, "curves": curves, "clock": clock, "exact": exact, "lengths": lengths,
        "time": against_time,
    }  # fmt: skip
    return _draw({name: partial(plot, result) for name, plot in plots.items()}, folder)


def draw_ladder(results: Sequence[ExperimentResult], folder: Path) -> list[str]:
    """`draw` for a ladder."""
    return _draw({"ladder": partial(ladder, results)}, folder)


def _draw(plots: Mapping[str, Callable[[Theme, Any], Any]], folder: Path) -> list[str]:
    matplotlib = import_optional("matplotlib")
    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for name, plot in plots.items():
        for theme in (LIGHT, DARK):
            with matplotlib.rc_context(_settings(theme)):
                figure = plot(theme, import_optional("matplotlib.pyplot"))
                if figure is None:
                    break
                _save(figure, folder / f"{name}-{theme.name}.png")
                import_optional("matplotlib.pyplot").close(figure)
        else:
            names.append(name)
    return names


def _settings(theme: Theme) -> dict[str, Any]:
    return {
        "figure.facecolor": theme.ground, "axes.facecolor": theme.ground, "savefig.facecolor": theme.ground,
        "text.color": theme.ink, "axes.labelcolor": theme.ink, "xtick.color": theme.ink, "ytick.color": theme.ink,
        "axes.edgecolor": theme.faint, "grid.color": theme.grid, "axes.grid": True, "axes.axisbelow": True,
        "axes.spines.top": False, "axes.spines.right": False, "font.size": 9, "axes.titlesize": 9,
        "figure.constrained_layout.use": True,
    }  # fmt: skip


def shown(result: ExperimentResult) -> list[str]:
    """Variants with finished runs; left out are the baseline, and controls that repeat it or a variant."""
    own = [*result.experiment.variants]
    runs = {variant: {r.run.key for r in result.results.get(variant, {}).values()} for variant in result.results}
    names = own + [n for n in result.results if n not in own and all(runs[n] != runs.get(v) for v in own)]
    return [n for n in names if n not in (result.experiment.baseline, AGAIN, BETTER, NOISE) and result.values(n)]


def forest(result: ExperimentResult, theme: Theme, plt: Any) -> Any:
    """Difference of each variant to the baseline with its 95 % interval."""
    differences = {name: d for name, d in result.differences().items() if d.n}
    if not differences:
        return None
    measure = result.experiment.measure
    sign = 1 if measure.is_higher_better else -1
    unit = f", {measure.unit}" if measure.unit and measure.kind != KINDS["exact"] else ""  # a share says it itself
    rows = sorted(differences.items(), key=lambda item: sign * item[1].mean)  # the best on top
    figure, axis = plt.subplots(figsize=(8, 1.2 + 0.36 * len(rows)))
    axis.axvspan(-measure.worth, measure.worth, color=theme.grid, zorder=0, lw=0)
    axis.axvline(0, color=theme.faint, lw=1)
    for place, (_, d) in enumerate(rows):
        color = theme.of(d.verdict)
        if not math.isnan(d.low):
            axis.plot([d.low, d.high], [place, place], color=color, lw=2.2, solid_capstyle="round")
        axis.plot(d.each, [place - 0.22] * d.n, "|", color=theme.faint, ms=5, mew=0.8)
        axis.plot(d.mean, place, "o", color=color, ms=6)
        axis.annotate(d.verdict, (1.01, place), xycoords=("axes fraction", "data"), va="center", color=color)
    axis.set_yticks(range(len(rows)), [name for name, _ in rows])
    axis.set_ylim(-0.7, len(rows) - 0.3)
    axis.grid(axis="y", visible=False)
    axis.set_xlabel(
        f"{measure.label} minus {result.experiment.baseline}'s{unit}: "
        f"{'right' if measure.is_higher_better else 'left'} is better\n"
        f"(dots: mean, bars: 95 % interval, ticks: seeds, band: ±{measure.worth:g})"
    )
    return figure


def _panels(result: ExperimentResult, plt: Any, height: float = 1.9) -> tuple[Any, list[tuple[str, Any]]]:
    names = shown(result)
    if not names or not result.values(result.experiment.baseline):
        return None, []
    columns = min(COLUMNS, len(names))
    rows = -(-len(names) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(max(4.5, 2.35 * columns), 0.6 + height * rows), sharex=True, sharey=True, squeeze=False
    )
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    for place, axis in enumerate(axes.flat[: len(names)]):
        axis.tick_params(labelbottom=place + columns >= len(names))
    return figure, list(zip(names, axes.flat, strict=False))


def _band(axis: Any, x: np.ndarray, y: np.ndarray, color: str, label: str) -> None:
    """Mean over the seeds (first axis of y), and their range."""
    axis.fill_between(x, y.min(0), y.max(0), color=color, alpha=0.2, lw=0)
    axis.plot(x, y.mean(0), color=color, lw=1.5, label=label)


def _curve(result: ExperimentResult, variant: str, over: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Steps or mean CPU-seconds, and training losses (seeds, points), in at most 40 stretches."""
    runs = [r.measures["train_curve"] for r in result.results.get(variant, {}).values() if r.measures and not r.fault]
    rows = min((len(curve) for curve in runs), default=0)
    if rows < 2:
        return None
    each = np.array([curve[:rows] for curve in runs], dtype=float)
    size = -(-rows // 40)
    cut = each[:, : rows // size * size].reshape(len(runs), -1, size, 3)
    return cut[:, :, -1, 0 if over == "steps" else 1].mean(0), cut[..., 2].mean(2)


def curves(result: ExperimentResult, theme: Theme, plt: Any) -> Any:
    """Training loss over steps with the range over the seeds, each variant beside the baseline."""
    return _curves(result, theme, plt, "steps")


def clock(result: ExperimentResult, theme: Theme, plt: Any) -> Any:
    """The same over CPU-seconds of training."""
    return _curves(result, theme, plt, "seconds")


def _curves(result: ExperimentResult, theme: Theme, plt: Any, over: str) -> Any:
    base = _curve(result, result.experiment.baseline, over)
    figure, panels = _panels(result, plt)
    if figure is None or base is None:
        return None
    lows, highs = [], []
    for name, axis in panels:
        _band(axis, *base, theme.faint, result.experiment.baseline)
        if (own := _curve(result, name, over)) is not None:
            _band(axis, *own, theme.accent, "variant")
        for _, y in (base, own or base):
            late = y[:, y.shape[1] // 8 :]
            lows.append(late.min())
            highs.append(late.max())
        axis.set_title(name)
    margin = 0.04 * (max(highs) - min(lows)) or 0.01
    panels[0][1].set_ylim(min(lows) - margin, max(highs) + margin)
    panels[0][1].legend(frameon=False, fontsize=7)
    figure.supxlabel("optimizer steps" if over == "steps" else "CPU-seconds of training (mean over seeds)", fontsize=9)
    figure.supylabel("training loss", fontsize=9)
    return figure


def _at_lengths(result: ExperimentResult, variant: str, key: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Contexts, and the values of `key` there (seeds, contexts)."""
    runs = [r.measures.get(key) for r in result.results.get(variant, {}).values() if r.measures and not r.fault]
    runs = [curve for curve in runs if curve]
    kept = [k for k in (runs[0] if runs else {}) if all(curve.get(k) is not None for curve in runs)]
    if len(kept) < 2:
        return None
    return np.array([int(k) for k in kept]), np.array([[curve[k] for k in kept] for curve in runs])


def lengths(result: ExperimentResult, theme: Theme, plt: Any) -> Any:
    """Loss of the same tokens with longer and longer contexts before them, beyond the one trained on."""
    return _over_lengths(result, theme, plt, "lengths", "loss")


def exact(result: ExperimentResult, theme: Theme, plt: Any) -> Any:
    """Share of rows that are right to the last token, at the trained length and beyond it."""
    return _over_lengths(result, theme, plt, "exact", "rows right")


def _over_lengths(result: ExperimentResult, theme: Theme, plt: Any, key: str, label: str) -> Any:
    base = _at_lengths(result, result.experiment.baseline, key)
    figure, panels = _panels(result, plt)
    if figure is None or base is None:
        return None
    for name, axis in panels:
        _band(axis, *base, theme.faint, result.experiment.baseline)
        if (own := _at_lengths(result, name, key)) is not None:
            _band(axis, *own, theme.accent, "variant")
        axis.set_title(name)
        axis.set_xscale("log", base=2)
        axis.set_xticks(base[0], [str(x) for x in base[0]])
    panels[0][1].legend(frameon=False, fontsize=7)
    figure.supxlabel("context in tokens (the first is the one trained on)", fontsize=9)
    figure.supylabel(label, fontsize=9)
    return figure


def against_time(result: ExperimentResult, theme: Theme, plt: Any) -> Any:
    """Validation loss against CPU time of training; variants that nothing beats in both are joined by a line."""
    names = [result.experiment.baseline, *shown(result)]
    points = {n: (result.mean(n, "cpu_seconds"), result.mean(n)) for n in names if result.values(n)}
    if len(points) < 2:
        return None
    figure, axis = plt.subplots(figsize=(8, max(4.2, 0.26 * len(points))))
    front, best = [], math.inf
    for name, (x, y) in sorted(points.items(), key=lambda item: item[1]):
        if y < best:
            best = y
            front.append((x, y))
        losses = list(result.values(name).values())
        color = theme.ink if name == result.experiment.baseline else theme.accent
        axis.plot([x, x], [min(losses), max(losses)], color=color, lw=1, alpha=0.5)
        axis.plot(x, y, "o", color=color, ms=5)
    axis.plot(*zip(*front, strict=True), color=theme.faint, lw=1, ls=":", drawstyle="steps-post")
    axis.set_xlabel("CPU-seconds of training (mean over seeds)")
    axis.set_ylabel("validation loss")
    axis.margins(x=0.08, y=0.12)
    _label(axis, points, theme)
    return figure


def _label(axis: Any, points: dict[str, tuple[float, float]], theme: Theme) -> None:
    """Numbers over the points, moved up where they would lie on each other, and their names at the right."""
    axis.figure.canvas.draw()
    placed: list[tuple[float, float]] = []
    ranked = sorted(points.items(), key=lambda item: item[1][1])
    for rank, (name, (x, y)) in enumerate(ranked, start=1):
        across, up = axis.transData.transform((x, y)) * 72 / axis.figure.dpi
        at = up + 9
        while any(abs(across - a) < 12 and abs(at - b) < 8 for a, b in placed):
            at += 2
        placed.append((across, at))
        axis.annotate(
            str(rank), (x, y), xytext=(0, at - up), textcoords="offset points", fontsize=7, ha="center", va="center",
            color=theme.ink,
        )  # fmt: skip
        height = 1 - (rank - 0.5) / max(len(ranked), 14)
        axis.annotate(f"{rank}  {name}", (1.02, height), xycoords="axes fraction", fontsize=8, va="center")


def ladder(results: Sequence[ExperimentResult], theme: Theme, plt: Any) -> Any:
    """Difference to the baseline over size: a faint line for each seed, the mean, and its straight line."""
    baseline = results[0].experiment.baseline
    found = {name: trend for name, trend in trends_of(results).items() if trend.differences}
    if not found:
        return None
    columns = min(COLUMNS, len(found))
    rows = -(-len(found) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(max(4.5, 2.35 * columns), 0.6 + 1.9 * rows), sharex=True, sharey=True, squeeze=False
    )
    for axis in axes.flat[len(found) :]:
        axis.set_visible(False)
    for (name, trend), axis in zip(found.items(), axes.flat, strict=False):
        x, means = list(trend.differences), list(trend.differences.values())
        values = [(r.values(name), r.values(baseline)) for r in results]
        for seed in [s for s in values[0][0] if all(s in own and s in base for own, base in values)]:
            axis.plot(x, [own[seed] - base[seed] for own, base in values], color=theme.faint, lw=0.8, alpha=0.6)
        axis.axhline(0, color=theme.faint, lw=1)
        axis.plot(x, means, "o", color=theme.accent, ms=4)
        steps = [math.log2(factor) for factor in x]
        slope, start = straight_line(steps, means)
        axis.plot(x, [start + slope * step for step in steps], color=theme.accent, lw=1.5)
        axis.set_title(f"{name}: {trend.verdict}", fontsize=8)
        axis.set_xscale("log", base=2)
        axis.set_xticks(x, [f"{factor:g}" for factor in x])
    figure.supxlabel("size: factor of parameters and of tokens", fontsize=9)
    figure.supylabel(f"loss minus {baseline}'s", fontsize=9)
    return figure
