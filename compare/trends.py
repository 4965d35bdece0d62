"""Whether a difference shrinks, stays or grows with size, and how loss falls with compute.

- A trend is tested per seed: a straight line through a seed's differences over log₂ s, and a t-test over the slopes of
  the seeds. Rungs of one seed are not independent, seeds are; so this keeps its level where a line through all points
  would not. Holm's correction goes over the variants.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .blocks import Block, Heading, ListOf, Picture, Table, Text
from .runner import ExperimentResult
from .statistics import LEVEL, adjust, interval
from .tables import format_number

GROWS, SHRINKS, STAYS, FEW = "grows", "shrinks", "no trend seen", "too few runs"
WORTH = 0.002  # nats a doubling: flatter trends are not worth a word


@dataclass(frozen=True)
class Trend:
    """How a variant's difference to the baseline changes with size.

    Attributes:
        differences: {factor: mean difference}.
        slope, low, high: nats for each doubling of the size, with the 95 % interval over the seeds.
        p: of the t-test against no trend, Holm's correction included.
        verdict: whether the difference's distance from 0 grows, shrinks, or neither can be said.
        seeds: with runs on every rung.
    """

    differences: Mapping[float, float]
    slope: float
    low: float
    high: float
    p: float
    verdict: str
    seeds: int


def straight_line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """(slope, intercept) by least squares."""
    mean_x, mean_y = math.fsum(x) / len(x), math.fsum(y) / len(y)
    across = math.fsum((a - mean_x) ** 2 for a in x)
    slope = math.fsum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / across
    return slope, mean_y - slope * mean_x


def trends(
    losses: Mapping[str, Mapping[float, Mapping[int, float]]], baseline: Mapping[float, Mapping[int, float]]
) -> dict[str, Trend]:
    """The trend of every variant, as one family.

    Args:
        losses: {variant: {factor: {seed: loss}}}.
        baseline: {factor: {seed: loss}}.
    """
    lines: dict[str, tuple[dict[float, float], list[float]]] = {}
    for name, rungs in losses.items():
        factors = sorted(baseline)
        common = [s for s in baseline[factors[0]] if all(s in baseline[f] and s in rungs.get(f, {}) for f in factors)]
        x = [math.log2(factor) for factor in factors]
        each = {seed: [rungs[f][seed] - baseline[f][seed] for f in factors] for seed in common}
        means = {f: math.fsum(d[i] for d in each.values()) / len(each) for i, f in enumerate(factors)} if each else {}
        lines[name] = means, [straight_line(x, d)[0] for d in each.values()]
    raw = {name: interval(slopes) for name, (_, slopes) in lines.items()}
    adjusted = adjust({name: values[3] for name, values in raw.items() if not math.isnan(values[3])})
    found = {}
    for name, (means, slopes) in lines.items():
        slope, low, high, _ = raw[name]
        p = adjusted.get(name, math.nan)
        found[name] = Trend(means, slope, low, high, p, _word(means, slope, low, high, p), len(slopes))
    return found


def _word(means: Mapping[float, float], slope: float, low: float, high: float, p: float) -> str:
    if math.isnan(p):
        return FEW
    if p >= 1 - LEVEL or abs(slope) <= WORTH or low <= 0 <= high:
        return STAYS
    middle = math.fsum(means.values())
    return GROWS if slope * middle > 0 else SHRINKS


@dataclass(frozen=True)
class PowerLaw:
    """loss = scale · compute^(−exponent), with the exponent's 95 % interval over the seeds.

    A straight line in logarithms; a loss that nothing can undercut bends it, which so few sizes cannot tell.
    """

    exponent: float
    low: float
    high: float
    scale: float

    def compute_for(self, loss: float) -> float:
        """The compute at which this law reaches a loss."""
        return (self.scale / loss) ** (1 / self.exponent) if self.exponent > 0 else math.nan


def fit_power_law(compute: Mapping[float, float], losses: Mapping[float, Mapping[int, float]]) -> PowerLaw | None:
    """Fit loss against compute, a line for each seed; None without a seed that has all sizes.

    Args:
        compute: {factor: operations}.
        losses: {factor: {seed: loss}}.
    """
    factors = sorted(compute)
    seeds = [s for s in losses[factors[0]] if all(s in losses[f] for f in factors)]
    if not seeds:
        return None
    x = [math.log(compute[f]) for f in factors]
    lines = [straight_line(x, [math.log(losses[f][seed]) for f in factors]) for seed in seeds]
    exponent, low, high, _ = interval([-slope for slope, _ in lines])
    return PowerLaw(exponent, low, high, math.exp(math.fsum(intercept for _, intercept in lines) / len(lines)))


def operations(result: ExperimentResult, variant: str) -> float:
    """Multiplications and additions of training, 6 · parameters · tokens (Kaplan et al. 2020, arXiv 2001.08361)."""
    return 6 * result.mean(variant, "parameters") * result.mean(variant, "tokens")


def losses_by_size(results: Sequence[ExperimentResult], variant: str) -> dict[float, dict[int, float]]:
    """{factor: {seed: validation loss}}."""
    return {r.experiment.scale: r.values(variant) for r in results}


def trends_of(results: Sequence[ExperimentResult]) -> dict[str, Trend]:
    """The trend of every variant of a ladder."""
    experiment = results[0].experiment
    names = [n for n in experiment.variants if n != experiment.baseline and all(r.values(n) for r in results)]
    return trends({n: losses_by_size(results, n) for n in names}, losses_by_size(results, experiment.baseline))


def sentence(name: str, trend: Trend) -> str:
    """The answer for one variant."""
    if not trend.differences:
        return f"{name}: no seed has runs at every size."
    (first, before), *_, (last, after) = trend.differences.items()
    word = {GROWS: "the difference grows with size", SHRINKS: "the difference shrinks with size"}
    return (
        f"{name}: {before:+.3f} nats at size × {first:g} and {after:+.3f} at × {last:g}, {trend.slope:+.4f} "
        f"[{format_number(trend.low, '+.4f')}, {format_number(trend.high, '+.4f')}] for each doubling: "
        f"{word.get(trend.verdict, trend.verdict)}."
    )


def ladder_report(results: Sequence[ExperimentResult], pictures: Sequence[str]) -> list[Block]:
    """The ladder as blocks of a report.

    Args:
        results: one for each size, rising.
        pictures: names from `figures.draw_ladder`.
    """
    e = results[0].experiment
    found = trends_of(results)
    rows = []
    for name in (e.baseline, *found):
        compute = {r.experiment.scale: operations(r, name) for r in results}
        law = fit_power_law(compute, losses_by_size(results, name))
        exponent = "–" if law is None else f"{law.exponent:.4f} [{format_number(law.low)}, {format_number(law.high)}]"
        means = [f"{r.mean(name):.4f}" for r in results]
        rows.append([name, *means, exponent, "baseline" if name == e.baseline else found[name].verdict])
    sizes = [f"× {r.experiment.scale:g}" for r in results]
    costs = Table(
        ("size", "parameters", "tokens", "operations", "controls"),
        [
            [size, f"{r.mean(e.baseline, 'parameters'):,.0f}", f"{r.mean(e.baseline, 'tokens'):,.0f}",
             f"{operations(r, e.baseline):.2e}", "passed" if r.trusted() else "FAILED"]
            for size, r in zip(sizes, results, strict=True)
        ],
    )  # fmt: skip
    blocks: list[Block] = [
        Heading(f"{e.ladder}: does the difference shrink, stay or grow with size?", is_top=True),
        ListOf([sentence(name, trend) for name, trend in found.items()]),
        Table(("variant", *(f"loss {size}" for size in sizes), "exponent of compute [95 %]", "difference"), rows),
        costs,
        Text(
            f"“grows” and “shrinks” are said only where the 95 % t-interval of the slopes of {len(e.seeds)} seeds "
            f"excludes 0, p is below 5 % after Holm's correction, and the slope exceeds {WORTH} nats a doubling.",
            "faint",
        ),
    ]
    return [*blocks, *(Picture(name) for name in pictures)]
