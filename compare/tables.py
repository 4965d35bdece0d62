"""Tables of an experiment's result, and of several."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from .blocks import Block, Table, Text
from .experiment import AGAIN, AGAIN_SEEDS, BETTER, NOISE
from .measures import VAL_LOSS
from .runner import ExperimentResult
from .statistics import SAME, Difference

COSTS = {"cpu_seconds": ".1f", "tokens_per_second": ",.0f", "peak_memory_mb": ",.0f", "parameters": ",.0f"}


def format_number(value: float | None, form: str = ".4f") -> str:
    """A number, or a dash where there is none; zero has no sign."""
    if value is None or math.isnan(value):
        return "–"
    text = format(value, form)
    return text.removeprefix("-").removeprefix("+") if not text.strip("+-0.,") else text


def format_interval(d: Difference, form: str) -> str:
    """Mean and interval of a difference."""
    return f"{format_number(d.mean, form)} [{format_number(d.low, form)}, {format_number(d.high, form)}]"


def _format_p(p: float) -> str:
    return "< 0.001" if p < 0.001 else format_number(p, ".3f")


def table_of_losses(result: ExperimentResult) -> Table:
    """One row a variant: loss, difference, verdict, cost. Variants with the baseline's own numbers are left out."""
    e, differences = result.experiment, result.differences()
    if noise := result.noise():
        differences[NOISE] = noise
    extra = [] if e.measure == VAL_LOSS else [e.measure.label]
    head = (
        "variant", "validation loss", *extra, "difference [95 %]", "p (Holm)", "visible", "verdict", "runs", "steps",
        "CPU s", "tokens/s", "peak MB", "parameters",
    )  # fmt: skip
    rows = []
    names = [*e.variants, *(n for n in result.results if n not in e.variants)]
    for name in [n for n in names if n not in differences or differences[n].verdict != SAME]:
        d = differences.get(name)
        word = "baseline" if name == e.baseline else "control" if d is None else d.verdict
        if name == NOISE:
            word = "noise"
        if name not in result.results:
            word = "failed"
        gap = "" if d is None or not d.n else format_interval(d, "+.4f")
        chance = ("", "") if d is None else (_format_p(d.p), format_number(d.visible))
        wanted = len(e.seeds[:AGAIN_SEEDS] if name == AGAIN else e.seeds)
        done = [f"{len(result.values(name))}/{wanted}", str(result.steps.get(name, "–"))]
        costs = [format_number(result.mean(name, measure), form) for measure, form in COSTS.items()]
        own = [format_number(result.mean_compared(name))] if extra else []
        rows.append([name, format_number(result.mean(name)), *own, gap, *chance, word, *done, *costs])
    return Table(head, rows)


def table_of_tuning(result: ExperimentResult) -> Table | None:
    """What each variant's search tried, and what it chose."""
    rows = []
    for name, choice in result.choices.items():
        if not choice.trials or name in (AGAIN, NOISE):
            continue
        for trial in choice.trials:
            settings = ", ".join(f"{option.rpartition('.')[2]}={value}" for option, value in trial.settings.items())
            chosen = trial.settings == choice.settings
            edge = " (edge of the grid)" if chosen and choice.at_edge else ""
            loss = trial.fault or format_number(trial.loss)
            rows.append([name, settings, loss, f"chosen{edge}" if chosen else ""])
    return Table(("variant", "setting", "loss on the tuning seeds", ""), rows) if rows else None


def mean_at_lengths(result: ExperimentResult, variant: str, measure: str = "lengths") -> dict[str, float | None]:
    """{context: mean over the seeds}, None where any of them has none; `measure` is "lengths" (loss) or "exact"."""
    runs = result.results.get(variant, {}).values()
    curves = [m[measure] for r in runs if (m := r.measures) and not r.fault and m.get(measure)]
    means: dict[str, float | None] = {}
    for context in curves[0] if curves else ():
        values = [curve.get(context) for curve in curves]
        means[str(context)] = None if None in values else sum(values) / len(values)
    return means


def table_of_lengths(result: ExperimentResult, measure: str = "lengths") -> Table | None:
    """`mean_at_lengths` of every variant."""
    names = [n for n in result.results if n not in (AGAIN, BETTER, NOISE)]
    means = {name: values for name in names if (values := mean_at_lengths(result, name, measure))}
    if not means:
        return None
    contexts = list(next(iter(means.values())))
    rows = [[name, *(format_number(values.get(c), ".3f") for c in contexts)] for name, values in means.items()]
    return Table(("variant", *(f"{c} tokens" for c in contexts)), rows)


def table_of_configurations(result: ExperimentResult) -> Table | None:
    """What differs between each variant's configuration and the baseline's, tuned settings included."""
    base = _settled(result, result.experiment.baseline)
    rows = []
    for name in result.experiment.variants:
        if name == result.experiment.baseline or name not in result.configurations:
            continue
        own = _settled(result, name)
        for option in sorted(base.keys() | own.keys()):
            before, after = base.get(option), own.get(option)
            if before != after:
                rows.append([name, option, _word(before), _word(after)])
    return Table(("variant", "option", "baseline", "variant's"), rows, is_text=True) if rows else None


def _settled(result: ExperimentResult, variant: str) -> dict[str, Any]:
    choice = result.choices.get(variant)
    return {**result.configurations.get(variant, {}), **(choice.settings if choice else {})}


def _word(value: Any) -> str:
    return "–" if value is None else str(value)


def summary_table(results: Iterable[ExperimentResult]) -> Table:
    """One line a variant over several experiments, for the top of a document and for the README."""
    results, rows = list(results), []
    measures = list(dict.fromkeys(r.experiment.measure for r in results))
    one = "loss" if measures == [VAL_LOSS] else measures[0].label if len(measures) == 1 else ""
    head = f"{one} minus baseline's [95 %]" if one else "difference to the baseline [95 %]"
    for result in results:
        for name, d in result.differences().items():
            if d.verdict == SAME:
                continue
            word = d.verdict if result.trusted() else f"({d.verdict}; controls failed)"
            gap = format_interval(d, "+.3f") if d.n else "–"
            gap += "" if one else f" {result.experiment.measure.label}"
            rows.append([result.experiment.name, name, gap, word])
        rows += [
            [result.experiment.name, name, "–", "failed"]
            for name in result.faults
            if name in result.experiment.variants
        ]
    return Table(("experiment", "variant", head, "verdict"), rows)


def table_of_cases(results: Sequence[ExperimentResult]) -> list[Block]:
    """For a family of cases with right answers: the share of exact rows at each multiple of the training length."""
    exact = {
        (r.experiment.case, name): list(values.values())
        for r in results
        for name in r.experiment.variants
        if (values := mean_at_lengths(r, name, "exact"))
    }
    if not exact:
        return []
    cases = list(dict.fromkeys(case for case, _ in exact))
    names = list(dict.fromkeys(name for _, name in exact))
    blocks: list[Block] = []
    for place, factor in enumerate(results[0].experiment.lengths):
        rows = []
        for name in names:
            shares = [exact.get((case, name), []) for case in cases]
            rows.append([name, *(format_number(s[place], ".0%") if place < len(s) else "–" for s in shares)])
        blocks += [Text(f"Rows right to the last token at {factor} × the longest training length:")]
        blocks.append(Table(("variant", *cases), rows))
    return blocks
