"""An experiment's result as blocks, which `render.py` turns into Markdown and HTML; nothing in it is typed by hand."""

import math
import platform
import time
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from cubelet.common.machine import processor

from .blocks import PICTURES, Block, Heading, Links, ListOf, Picture, Preformatted, Text
from .experiment import AGAIN, BETTER
from .runner import ExperimentResult
from .statistics import FEW, HELPS, HURTS, SAME
from .tables import (
    format_interval,
    format_number,
    table_of_configurations,
    table_of_lengths,
    table_of_losses,
    table_of_tuning,
)

DISTRUST = "The verdicts below cannot be trusted: a control came out wrong."
METHOD = (  # the smallest difference worth a word, with its unit, goes into the braces
    "“helps” and “hurts” are said only where the 95 % t-interval of the paired differences excludes 0, their p is "
    "below 5 % after Holm's correction over all variants, and the mean difference exceeds {}. “No "
    "difference seen” is not “equal”: a difference smaller than the interval can hide in it, and “visible” is the "
    "smallest true one that so many seeds would show with a chance of 80 %, given how they scatter. CPU s are of "
    "training alone, all threads; tokens/s are by the clock, with whatever else the machine did meanwhile."
)


def machine() -> str:
    """Date, processor, versions."""
    return f"{time.strftime('%Y-%m-%d')}, {processor()}, Python {platform.python_version()}, {', '.join(versions())}"


def versions() -> list[str]:
    """Name and version of the packages that decide the numbers."""
    known = []
    for package in ("cubelet", "torch", "lightning"):
        try:
            known.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return known


def _unit(result: ExperimentResult) -> str:
    unit = result.experiment.measure.unit
    return f" {unit}" if unit else ""


def conclusions(result: ExperimentResult) -> list[str]:
    """The verdicts, in sentences."""
    differences, unit = result.differences(), _unit(result)
    sentences = []
    for word in (HELPS, HURTS):
        names = [f"{n} ({d.mean:+.3f})" for n, d in differences.items() if d.verdict == word]
        sentences.append(f"{word.capitalize()}: {'; '.join(names) if names else 'none'}.")
    rest = [n for n, d in differences.items() if d.verdict not in (HELPS, HURTS, FEW, SAME)]
    sentences.append(f"No difference seen: {'; '.join(rest) if rest else 'none'}.")
    if few := [n for n, d in differences.items() if d.verdict == FEW]:
        sentences.append(f"Too few finished runs: {'; '.join(few)}.")
    if same := [n for n, d in differences.items() if d.verdict == SAME]:
        sentences.append(f"Left out, since every loss is the baseline's own: {'; '.join(same)}.")
    if (noise := result.noise()) and noise.n:
        sentences.append(
            f"Noise: the baseline with other seeds differs from itself by {format_interval(noise, '+.4f')}{unit}."
        )
    visible = sorted(d.visible for d in differences.values() if not math.isnan(d.visible) and d.verdict != SAME)
    if visible:
        middle = visible[len(visible) // 2]
        sentences.append(
            f"Power: {len(result.experiment.seeds)} seeds would show a true difference of {middle:.4f}{unit} with a "
            f"chance of 80 % (median over the variants; {visible[0]:.4f} to {visible[-1]:.4f})."
        )
    return sentences


def setting(result: ExperimentResult) -> str:
    """What was done, in one sentence."""
    e = result.experiment
    length = f"{e.budget.steps} steps" if e.budget.steps else f"{e.budget.cpu_seconds:g} CPU-seconds of training"
    tuned = f", tuned on seeds {', '.join(map(str, e.tune.seeds))}" if e.tune.space else ", not tuned"
    return (
        f"{len(e.seeds)} paired seeds ({', '.join(map(str, e.seeds))}), {length} a run (budget {e.budget_name}){tuned}"
        f"; baseline: {e.baseline}."
    )


def methods(result: ExperimentResult) -> str:
    """A paragraph for the methods section of a paper."""
    e, config = result.experiment, result.configurations.get(result.experiment.baseline, {})

    def value(option: str) -> str:
        return str(config.get(option, "?"))

    parameters = format_number(result.mean(e.baseline, "parameters"), ",.0f")
    length = f"{e.budget.steps} optimizer steps" if e.budget.steps else f"{e.budget.cpu_seconds:g} CPU-seconds"
    if "data.task" in config:
        data = f"the synthetic task “{value('data.task')}”"
    else:
        data = value("data.corpus") if "data.corpus" in config else value("data_class").rpartition(".")[2]
    sizes = [
        words.format(config[option])
        for option, words in (
            ("model.layers", "{} layers"),
            ("model.dims", "width {}"),
            ("model.heads", "{} heads"),
        )
        if config.get(option)
    ]
    rows = f" with {value('data.batch_size')} sequences" if "data.batch_size" in config else ""
    rows += f" of {value('data.context_length')} tokens each" if rows and config.get("data.context_length") else ""
    trained = (
        f"Models have {', '.join(sizes) or 'the configured sizes'} ({parameters} parameters in the baseline, "
        f"{e.baseline}) and were trained on {data} for {length}{rows} by "
        f"{value('model.optimizer.class_path').rpartition('.')[2]}."
    )
    tuned = ""
    if e.tune.space:
        spaces = "; ".join(
            f"{option.removeprefix('model.').replace('.init_args', '')} in {kind} {values}"
            for option, space in e.tune.space.items()
            for kind, values in space.items()
        )
        tuned = (
            f" Settings were chosen for every variant by the same {e.tune.method} ({spaces}), on seeds that the "
            f"comparison does not use ({', '.join(map(str, e.tune.seeds))})."
        )
    measured = e.measure.label + (f" ({e.measure.unit})" if e.measure.unit else "")
    return (
        f"{trained}{tuned} Each variant was then trained with {len(e.seeds)} seeds; a seed fixes the initial value of "
        "every parameter by its name, the order of the data and dropout, so that runs of two variants are paired. We "
        f"report the mean paired difference in {measured} to the baseline with its 95 % t-interval, "
        f"and p-values of paired t-tests with Holm's correction over the variants; differences below "
        f"{e.measure.worth:g} are not called. Controls: the baseline trained again, and "
        f"{result.controls()[1].sentence}. Software: {', '.join(versions())}."
    )


def commands(result: ExperimentResult) -> list[tuple[str, str]]:
    """(variant, command) that repeats each variant's first run."""
    return [
        (name, next(iter(runs.values())).run.shell(Path("runs/again")))
        for name, runs in result.results.items()
        if runs and name not in (AGAIN, BETTER)
    ]


def report(result: ExperimentResult, pictures: Iterable[str]) -> list[Block]:
    """All of a report.

    Args:
        result: what to report.
        pictures: names from `figures.draw`.
    """
    blocks: list[Block] = [Heading(result.experiment.title, is_top=True)]
    if not result.trusted():
        blocks.append(Text(DISTRUST, "alarm"))
    blocks += [Text(caution, "caution") for caution in result.cautions()]
    blocks.append(ListOf([f"{'passed' if c.passed else 'FAILED'}: {c.sentence}" for c in result.controls()]))
    blocks += [Text(setting(result)), ListOf(conclusions(result)), table_of_losses(result)]
    blocks.append(Text(METHOD.format(f"{result.experiment.measure.worth:g}{_unit(result)}"), "faint"))
    if troubles := result.troubles():
        blocks += [Heading("What failed"), ListOf([f"{name}: {sentence}" for name, sentence in troubles])]
    for name in pictures:
        blocks += [Heading(PICTURES[name]), Picture(name)]
    optional = {
        "Rows right to the last token": table_of_lengths(result, "exact"),
        "Length curves": table_of_lengths(result),
        "Configurations": table_of_configurations(result),
        "Tuning": table_of_tuning(result),
    }
    for title, table in optional.items():
        if table is not None:
            blocks += [Heading(title), table]
    blocks += [Heading("Methods"), Text(methods(result))]
    lines = "\n".join(f"# {name}\n{command}" for name, command in commands(result))
    blocks += [Heading("Repeat one run"), Preformatted(lines)]
    folders = [
        (f"{name}, seed {seed}", f"{result.root.name}/{run.run.name}/")
        for name, runs in result.results.items()
        for seed, run in sorted(runs.items())
        if run.measures
    ]
    if folders:
        blocks.append(Links(folders))
    return [*blocks, Text(f"Measured {machine()}.", "faint")]
