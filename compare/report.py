"""An experiment's result as Markdown and as one HTML page that holds its pictures; nothing in it is typed by hand."""

import base64
import html
import math
import platform
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .experiment import AGAIN, BETTER
from .runner import ExperimentResult
from .statistics import FEW, HELPS, HURTS, WORTH, Difference

Table = tuple[Sequence[str], list[list[str]]]
ABOUT = {
    "differences": "Difference to the baseline",
    "curves": "Training loss",
    "lengths": "Length curves: loss of the same tokens with longer contexts",
    "time": "Loss against time",
}
COSTS = {"cpu_seconds": ".1f", "tokens_per_second": ",.0f", "peak_memory_mb": ",.0f", "parameters": ",.0f"}
DISTRUST = "The verdicts below cannot be trusted: a control came out wrong."


def machine() -> str:
    """Date, processor, versions."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = f"{lines[0].partition(':')[2].strip()} x {len(lines)}" if lines else name
    versions = []
    for package in ("cubelet", "torch", "lightning"):
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return f"{time.strftime('%Y-%m-%d')}, {name}, Python {platform.python_version()}, {', '.join(versions)}"


def _number(value: float | None, form: str = ".4f") -> str:
    if value is None or math.isnan(value):
        return "–"
    text = format(value, form)
    return text.removeprefix("-").removeprefix("+") if not text.strip("+-0.,") else text  # no signed zeros


def _chance(p: float) -> str:
    return "< 0.001" if p < 0.001 else _number(p, ".3f")


def _interval(d: Difference, form: str) -> str:
    return f"{_number(d.mean, form)} [{_number(d.low, form)}, {_number(d.high, form)}]"


def table_of_losses(result: ExperimentResult) -> Table:
    """One row a variant: loss, difference, verdict, cost."""
    e, differences = result.experiment, result.differences()
    head = (
        "variant", "validation loss", "difference [95 %]", "p (Holm)", "verdict", "runs", "steps", "CPU s", "tokens/s",
        "peak MB", "parameters",
    )  # fmt: skip
    rows = []
    controls = [n for n in result.results if n not in e.variants]
    for name in (*e.variants, *controls):
        d = differences.get(name)
        word = "baseline" if name == e.baseline else "control" if d is None else d.verdict
        if name not in result.results:
            word = "failed"
        gap = "" if d is None or not d.n else _interval(d, "+.4f")
        first = [name, _number(result.mean(name)), gap, "" if d is None else _chance(d.p), word]
        done = [f"{len(result.values(name))}/{len(e.seeds)}", str(result.steps.get(name, "–"))]
        costs = [_number(result.mean(name, measure), form) for measure, form in COSTS.items()]
        rows.append([*first, *done, *costs])
    return head, rows


def table_of_tuning(result: ExperimentResult) -> Table | None:
    """What each variant's search tried, and what it chose."""
    rows = []
    for name, choice in result.choices.items():
        if not choice.trials or name == AGAIN:
            continue
        for trial in choice.trials:
            settings = ", ".join(f"{option.rpartition('.')[2]}={value}" for option, value in trial.settings.items())
            chosen = trial.settings == choice.settings
            edge = " (edge of the grid)" if chosen and choice.at_edge else ""
            rows.append([name, settings, trial.fault or _number(trial.loss), f"chosen{edge}" if chosen else ""])
    return (("variant", "setting", "loss on the tuning seeds", ""), rows) if rows else None


def table_of_lengths(result: ExperimentResult) -> Table | None:
    """Mean loss at each context."""
    rows, contexts = [], []
    for name, runs in result.results.items():
        curves = [r.measures["lengths"] for r in runs.values() if r.measures and not r.fault and r.measures["lengths"]]
        if not curves or name in (AGAIN, BETTER):
            continue
        contexts = contexts or list(curves[0])
        means = []
        for context in contexts:
            values = [curve.get(context) for curve in curves]
            means.append(_number(None if None in values else sum(values) / len(values), ".3f"))
        rows.append([name, *means])
    return (("variant", *(f"{c} tokens" for c in contexts)), rows) if rows else None


def conclusions(result: ExperimentResult) -> list[str]:
    """The verdicts, in sentences."""
    differences = result.differences()
    sentences = []
    for word in (HELPS, HURTS):
        names = [f"{n} ({d.mean:+.3f})" for n, d in differences.items() if d.verdict == word]
        sentences.append(f"{word.capitalize()}: {', '.join(names) if names else 'none'}.")
    rest = [n for n, d in differences.items() if d.verdict not in (HELPS, HURTS, FEW)]
    sentences.append(f"No difference seen: {', '.join(rest) if rest else 'none'}.")
    few = [n for n, d in differences.items() if d.verdict == FEW]
    return [*sentences, f"Too few finished runs: {', '.join(few)}."] if few else sentences


def setting(result: ExperimentResult) -> str:
    """What was done, in one sentence."""
    e = result.experiment
    long = f"{e.budget.steps} steps" if e.budget.steps else f"{e.budget.cpu_seconds:g} CPU-seconds of training"
    tuned = f", tuned on seeds {', '.join(map(str, e.tune.seeds))}" if e.tune.space else ", not tuned"
    return (
        f"{len(e.seeds)} paired seeds ({', '.join(map(str, e.seeds))}), {long} a run (budget {e.budget_name}){tuned}; "
        f"baseline: {e.baseline}."
    )


def commands(result: ExperimentResult) -> list[tuple[str, str]]:
    """(variant, command) that repeats each variant's first run."""
    return [
        (name, next(iter(runs.values())).run.shell(Path("runs/again")))
        for name, runs in result.results.items()
        if runs and name not in (AGAIN, BETTER)
    ]


METHOD = (
    "“helps” and “hurts” are said only where the 95 % t-interval of the paired differences excludes 0, their p is "
    f"below 5 % after Holm's correction over all variants, and the mean difference exceeds {WORTH} nats a token. “No "
    "difference seen” is not “equal”: a difference smaller than the interval can hide in it. CPU s are of training "
    "alone, all threads; tokens/s are by the clock, with whatever else the machine did meanwhile."
)


def markdown(result: ExperimentResult, pictures: Iterable[str], folder: str = "", level: int = 1) -> str:
    """The report as Markdown.

    Args:
        result: what to report.
        pictures: names from `figures.draw`.
        folder: where they lie, relative to the file, with a slash at its end.
        level: of the title's heading.
    """
    mark = "#" * level
    parts = [f"{mark} {result.experiment.title}"]
    if not result.trusted():
        parts.append(f"> **{DISTRUST}**")
    if caution := result.outdated():
        parts.append(f"> {caution}")
    parts += ["\n".join(f"- {'passed' if c.passed else '**FAILED**'}: {c.sentence}" for c in result.controls())]
    parts += [setting(result), "\n".join(f"- {line}" for line in conclusions(result)), _md(table_of_losses(result))]
    parts.append(METHOD)
    if troubles := result.troubles():
        parts.append("\n".join([f"{mark}# What failed", "", *(f"- {name}: {sentence}" for name, sentence in troubles)]))
    for name in pictures:
        dark, light = f"{folder}{name}-dark.png", f"{folder}{name}-light.png"
        parts.append(
            f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
            f'<img alt="{ABOUT[name]}" src="{light}"></picture>'
        )
    if (table := table_of_lengths(result)) is not None:
        parts += [f"{mark}# Length curves", _md(table)]
    if (table := table_of_tuning(result)) is not None:
        parts += [f"{mark}# Tuning", _md(table)]
    lines = "\n".join(f"# {name}\n{command}" for name, command in commands(result))
    parts += [f"{mark}# Repeat one run", f"```\n{lines}\n```", f"Measured {machine()}."]
    return "\n\n".join(parts) + "\n"


def _md(table: Table) -> str:
    head, rows = table
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows])


STYLE = """
:root { color-scheme: light dark; --ground: #fff; --ink: #1f2328; --faint: #59636e; --line: #d9dee3; --soft: #f6f8fa;
  --helps: #0757c2; --hurts: #9a3d00; }
@media (prefers-color-scheme: dark) { :root { --ground: #0d1117; --ink: #e6edf3; --faint: #9aa4af; --line: #30363d;
  --soft: #161b22; --helps: #79b8ff; --hurts: #ffa657; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem 1rem 3rem; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .8rem; width: 100%; }
th, td { padding: .35rem .45rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th { color: var(--faint); font-weight: 600; } th:first-child, td:first-child { text-align: left; }
.helps { color: var(--helps); font-weight: 600; } .hurts { color: var(--hurts); font-weight: 600; }
.alarm { border: 2px solid var(--hurts); color: var(--hurts); padding: .7rem 1rem; font-weight: 600; }
img { max-width: 100%; height: auto; display: block; }
figure { margin: 0; overflow-x: auto; } figure img { min-width: 36rem; }
pre { background: var(--soft); padding: .8rem; overflow-x: auto; font-size: .78rem; overflow-wrap: normal; }
small, .faint { color: var(--faint); }
"""


def page(result: ExperimentResult, pictures: Iterable[str], folder: Path) -> str:
    """The report as one HTML page; pictures from `folder` are put into it."""
    text = html.escape
    body = [f"<h1>{text(result.experiment.title)}</h1>"]
    if not result.trusted():
        body.append(f'<p class="alarm">{text(DISTRUST)}</p>')
    if caution := result.outdated():
        body.append(f'<p class="alarm">{text(caution)}</p>')
    marks = "".join(
        f"<li>{'passed' if c.passed else '<b>FAILED</b>'}: {text(c.sentence)}</li>" for c in result.controls()
    )
    body += [f"<ul>{marks}</ul>", f"<p>{text(setting(result))}</p>"]
    body.append("<ul>" + "".join(f"<li>{text(line)}</li>" for line in conclusions(result)) + "</ul>")
    body += [_html(table_of_losses(result)), f'<p class="faint">{text(METHOD)}</p>']
    if troubles := result.troubles():
        rows = "".join(f"<li><b>{text(name)}</b>: {text(sentence)}</li>" for name, sentence in troubles)
        body.append(f"<h2>What failed</h2><ul>{rows}</ul>")
    for name in pictures:
        light, dark = (
            base64.b64encode((folder / f"{name}-{theme}.png").read_bytes()).decode() for theme in ("light", "dark")
        )
        body.append(
            f"<h2>{text(ABOUT[name])}</h2><figure><picture>"
            f'<source media="(prefers-color-scheme: dark)" srcset="data:image/png;base64,{dark}">'
            f'<img alt="{text(ABOUT[name])}" src="data:image/png;base64,{light}"></picture></figure>'
        )
    for title, table in (("Length curves", table_of_lengths(result)), ("Tuning", table_of_tuning(result))):
        if table is not None:
            body.append(f"<h2>{title}</h2>{_html(table)}")
    lines = "\n".join(f"# {name}\n{command}" for name, command in commands(result))
    body.append(f"<h2>Repeat one run</h2><pre>{text(lines)}</pre><p><small>Measured {text(machine())}.</small></p>")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{text(result.experiment.title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>'
        f"<body>{''.join(body)}</body></html>\n"
    )


def _html(table: Table) -> str:
    def cell(value: str) -> str:
        kind = f' class="{value}"' if value in (HELPS, HURTS) else ""
        return f"<td{kind}>{html.escape(value)}</td>"

    head, rows = table
    top = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    lines = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>'


def summary_table(results: Iterable[ExperimentResult]) -> str:
    """One line a variant over several experiments, as Markdown, for the top of a document and for the README."""
    rows = []
    for result in results:
        for name, d in result.differences().items():
            word = d.verdict if result.trusted() else f"({d.verdict}; controls failed)"
            gap = _interval(d, "+.3f") if d.n else "–"
            rows.append([result.experiment.name, name, f"{gap}", word])
        rows += [
            [result.experiment.name, name, "–", "failed"]
            for name in result.faults
            if name in result.experiment.variants
        ]
    return _md((("experiment", "variant", "loss minus baseline's [95 %]", "verdict"), rows))
