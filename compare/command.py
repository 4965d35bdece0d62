"""`cubelet compare experiments/NAME.yaml …`: the command line of comparisons."""

import argparse
import logging
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from cubelet.common.optional_imports import import_optional

from .experiment import Experiment, ExperimentError, load_experiment
from .figures import draw
from .measure import write_json, write_text
from .processes import Result, Watch, progress
from .report import conclusions, machine, markdown, page, summary_table
from .runner import Outcome, conduct, summary
from .runs import Plan, PlanError, Run

NEEDED = ("scipy", "statsmodels", "matplotlib")
BEGIN, END = "<!-- results: written by cubelet compare -->", "<!-- end of results -->"


def parser() -> argparse.ArgumentParser:
    """Options of `cubelet compare`."""
    made = argparse.ArgumentParser(
        prog="cubelet compare",
        description="Train variants and seeds of experiments, and report paired differences to the baseline. A command "
        "given again goes on where it was stopped.",
    )
    made.add_argument("experiments", nargs="+", type=Path, metavar="EXPERIMENT.yaml")
    made.add_argument("--budget", default="quick", help="one of the experiment's budgets (default: quick)")
    made.add_argument("--seeds", type=int, metavar="N", help="number of seeds, instead of the experiment's own")
    made.add_argument("--jobs", type=int, default=1, metavar="N", help="runs side by side (default: 1)")
    made.add_argument("--out", type=Path, default=Path("runs/compare"), help="where runs and reports lie")
    made.add_argument("--plan", action="store_true", help="only show the runs and their commands")
    made.add_argument("--write", type=Path, metavar="FILE.md", help="also write all reports into one document")
    made.add_argument("--readme", type=Path, metavar="FILE.md", help=f"put the summary between {BEGIN!r} and {END!r}")
    return made


class Display:
    """One display of all that happens: a table that renews itself on a terminal, a line for each finished run else."""

    def __init__(self, title: str, root: Path, console: Console) -> None:
        self.title, self.root, self.console, self.stage = title, root, console, ""
        self._live = Live(console=console, refresh_per_second=2) if console.is_terminal else None
        self._losses: dict[int, str] = {}

    def __enter__(self) -> "Display":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *unused: object) -> None:
        if self._live is not None:
            self._live.stop()

    def announce(self, stage: str) -> None:
        self.stage = stage
        if self._live is None:
            self.console.print(f"{self.title}: {stage}", highlight=False)

    def told(self, watch: Watch, result: Result | None) -> None:
        left = watch.left()
        ahead = "" if math.isnan(left) else f", about {_time(left)} left"
        head = f"{self.title}: {self.stage}, {watch.done}/{watch.total} runs{ahead}"
        if result is not None and (self._live is None or result.fault):
            came = result.fault or f"{result.loss:.4f}"
            self.console.print(
                f"{head}  {result.run.variant} {_which(result.run)}: {came}", highlight=False, markup=False
            )
        if self._live is not None:
            table = Table(title=head, title_justify="left", box=None, show_header=False)
            for run in watch.active:
                at = progress(run, self.root)
                table.add_row(
                    run.variant, _which(run), f"{at['step']}/{at['of']}  loss {at['loss']:.4f}" if at else "…"
                )
            self._live.update(table)


def _which(run: Run) -> str:
    return f"seed {run.seed}" + ("" if run.purpose == "test" else f" ({run.purpose})")


def _time(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def compare_command(arguments: Sequence[str]) -> None:
    """Parse `arguments` and compare. Ends with status 1 where a control failed or an experiment could not run."""
    given = parser().parse_args(arguments)
    console = Console(soft_wrap=True)
    try:
        experiments = [load_experiment(path, given.budget, given.seeds) for path in given.experiments]
        if given.jobs < 0:
            raise ExperimentError(f"--jobs {given.jobs} must not be negative")
        if given.plan:
            for experiment in experiments:
                _show_plan(experiment, given.out, console)
            return
        for name in NEEDED:
            import_optional(name)
        if given.readme:
            marked(given.readme)  # not after hours
    except (ExperimentError, ImportError) as error:
        raise SystemExit(f"error: {error}") from None
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    outcomes, faults = [], []
    for experiment in experiments:
        out = given.out / f"{experiment.name}-{experiment.budget_name}"
        try:
            with Display(experiment.name, out / "runs", console) as display:
                outcome = conduct(experiment, out, given.jobs, display.told, display.announce)
            write_reports(outcome, out)
        except (PlanError, OSError) as error:
            faults.append(f"{experiment.name}: {error}")
            continue
        except KeyboardInterrupt:
            raise SystemExit(f"interrupted; the same command goes on from {out}") from None
        outcomes.append(outcome)
        _tell(outcome, out, console)
    try:
        if given.write and outcomes:
            write_document(outcomes, given.write)
        if given.readme and outcomes:
            fill_in(given.readme, summary_table(outcomes))
    except OSError as error:  # a full disk, say, after hours
        faults.append(f"{error}; the finished runs are kept, give the same command again")
    for fault in faults:
        sys.stderr.write(f"error: {fault}\n")
    if faults or not all(outcome.trusted() for outcome in outcomes):
        raise SystemExit(1)


def _show_plan(experiment: Experiment, out: Path, console: Console) -> None:
    plan = Plan(experiment)
    tried = len(experiment.tune.seeds) if experiment.tune.space else 0
    for space in experiment.tune.space.values() if experiment.tune.method == "grid" else ():
        tried *= len(next(iter(space.values())))
    tried *= experiment.tune.trials if experiment.tune.method == "optuna" else 1
    each = len(experiment.seeds) + tried
    runs = {run.key for v in plan.variants for run in [plan.run(v, 0, 1)]}
    long = f"{experiment.budget.steps} steps" if experiment.budget.steps else f"{experiment.budget.cpu_seconds:g} CPU-s"
    most = len(runs) * each
    told = f"{experiment.name}: {len(plan.variants)} variants (controls included), at most {most} runs of {long}"
    console.print(told, highlight=False)
    root = out / f"{experiment.name}-{experiment.budget_name}" / "runs"
    for variant in plan.variants:
        run = plan.run(variant, experiment.seeds[0], experiment.budget.steps or 1000)
        console.print(f"# {variant}\n{run.shell(root)}", highlight=False, markup=False)
    for variant, fault in plan.faults.items():
        console.print(f"# {variant}: cannot run: {fault}", highlight=False, markup=False)


def write_reports(outcome: Outcome, out: Path) -> list[str]:
    """`report.md`, `report.html`, `outcome.json` and pictures into `out`; returns the pictures' names."""
    pictures = draw(outcome, out)
    write_text(out / "report.md", markdown(outcome, pictures))
    write_text(out / "report.html", page(outcome, pictures, out))
    write_json(out / "outcome.json", summary(outcome))
    return pictures


def write_document(outcomes: Sequence[Outcome], path: Path) -> None:
    """All reports in one Markdown file, its pictures in `images/results/` beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    command = "cubelet compare " + " ".join(f"experiments/{o.experiment.name}.yaml" for o in outcomes)
    budget = f"--budget {outcomes[0].experiment.budget_name} --seeds {len(outcomes[0].experiment.seeds)}"
    parts = [
        f"# Results\n\nWritten by `{command} {budget} --write {path}`; nothing here is typed by hand. {machine()}.",
        summary_table(outcomes),
    ]
    for outcome in outcomes:
        below = f"images/results/{outcome.experiment.name}"
        pictures = draw(outcome, path.parent / below)
        parts.append(markdown(outcome, pictures, f"{below}/", level=2).rstrip())
    write_text(path, "\n\n".join(parts) + "\n")


def marked(path: Path) -> tuple[str, str]:
    """What stands before and after the two marks of a file.

    Raises:
        SystemExit: there is no such file, or it has no marks.
    """
    old = path.read_text(encoding="utf-8") if path.is_file() else ""
    before, begin, rest = old.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"error: {path} has no lines {BEGIN} and {END} to put the summary between")
    return before, after


def fill_in(path: Path, text: str) -> None:
    """Replace what stands between the two marks; see `marked`."""
    before, after = marked(path)
    write_text(path, f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


def _tell(outcome: Outcome, out: Path, console: Console) -> None:
    options: dict[str, Any] = {"highlight": False, "markup": False}
    console.rule(outcome.experiment.title)
    for control in outcome.controls():
        console.print(f"{'passed' if control.passed else 'FAILED'}  {control.told}", **options)
    for line in conclusions(outcome):
        console.print(line, **options)
    if caution := outcome.outdated():
        console.print(f"caution  {caution}", **options)
    for name, told in outcome.troubles():
        console.print(f"failed  {name}: {told}", **options)
    console.print(f"report  {out / 'report.html'}", **options)
