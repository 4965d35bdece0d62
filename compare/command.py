"""`cubelet compare experiments/NAME.yaml …`: the command line of comparisons."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from cubelet.common.checks import check_at_least
from cubelet.common.errors import ConfigError
from cubelet.common.optional_imports import import_optional

from .cluster import ENGINES, Cluster, parse_parameters
from .display import Display
from .documents import BEGIN, END, fill_in, split_at_marks, write_document, write_ladder, write_reports
from .experiment import Experiment, ExperimentError, load_experiment
from .export import export
from .ladder import RATES, make_rung, parse_rungs, scale_rates
from .processes import execute
from .records import Records
from .render import table_to_markdown
from .report import conclusions
from .runner import ExperimentResult, run_experiment
from .runs import CommandLine, RunBuilder, VariantError
from .tables import summary_table

NEEDED = ("scipy", "statsmodels", "matplotlib")


def parser() -> argparse.ArgumentParser:
    """Options of `cubelet compare`."""
    options = argparse.ArgumentParser(
        prog="cubelet compare",
        description="Train variants and seeds of experiments, and report paired differences to the baseline. A command "
        "given again goes on where it was stopped.",
    )
    add = options.add_argument
    add("experiments", nargs="+", type=Path, metavar="EXPERIMENT.yaml")
    add("--budget", default="quick", help="one of the experiment's budgets (default: quick)")
    add("--seeds", type=int, metavar="N", help="number of seeds, instead of the experiment's own")
    add("--cases", nargs="+", metavar="CASE", help="only these of an experiment's cases")
    add("--variants", nargs="+", metavar="VARIANT", help="only these beside the baseline and the controls")
    add("--ladder", metavar="1,2,4,8", help="the same at growing sizes: parameters and tokens times each number")
    add("--ladder_rate", default="grid", choices=RATES, help="rates of larger sizes: tuned (grid) or ~ 1/width")
    add("--jobs", type=int, default=1, metavar="N", help="runs side by side (default: 1)")
    add("--engine", default="processes", choices=ENGINES, help="where runs are done: here, or by submitit (slurm)")
    add("--cluster", nargs="+", default=[], metavar="NAME=VALUE", help="submitit's parameters: timeout_min=60 …")
    add("--out", type=Path, default=Path("runs/compare"), help="where runs and reports lie")
    add(
        "--records", type=Path, metavar="FOLDER", help="keep finished runs in files there; those found are not repeated"
    )
    add("--plan", action="store_true", help="only show the runs and their commands")
    add("--write", type=Path, metavar="FILE.md", help="also write all reports into one document")
    add("--export", type=Path, metavar="FOLDER", help="also write CSV files and LaTeX tables into a folder")
    add("--readme", type=Path, metavar="FILE.md", help=f"put the summary between {BEGIN!r} and {END!r}")
    return options


def compare_command(arguments: Sequence[str], command_line: CommandLine) -> None:
    """Parse `arguments` and compare. Ends with status 1 where a control failed or an experiment could not run.

    Raises:
        UserError: a faulty experiment file or option, or a package that is not installed; before any run.
    """
    options = parser().parse_args(arguments)
    console = Console(soft_wrap=True)
    check_at_least("--jobs", options.jobs, 0)
    experiments = list_experiments(options, command_line)
    cluster = Cluster(options.engine, parse_parameters(options.cluster)) if options.engine != "processes" else None
    if options.cluster and cluster is None:
        raise ConfigError("--cluster needs --engine slurm")
    if options.plan:
        for experiment in experiments:
            show_plan(experiment, options.out, command_line, console)
            if cluster is not None:
                show_array(experiment, options, command_line, cluster, console)
        return
    for name in NEEDED:
        import_optional(name)
    if options.readme:
        split_at_marks(options.readme)  # not after hours
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    results, faults = [], []
    first_rungs: dict[str, ExperimentResult] = {}
    records = [open_records(experiment, options.records) for experiment in experiments]
    for experiment, kept in zip(experiments, records, strict=True):
        out = options.out / f"{experiment.name}-{experiment.budget_name}"
        first = first_rungs.get(experiment.ladder) if options.ladder_rate == "width" else None
        choices = first and scale_rates(first.choices, first.experiment.width / experiment.width)
        try:
            with Display(experiment.name, out / "runs", console) as display:
                result = run_experiment(
                    experiment,
                    out,
                    command_line,
                    options.jobs,
                    display.update,
                    display.announce,
                    choices,
                    execute if cluster is None else cluster.execute,
                    options.out,
                    kept,
                )
            write_reports(result, out)
        except (VariantError, OSError) as error:
            faults.append(f"{experiment.name}: {error}")
            continue
        except KeyboardInterrupt:
            raise SystemExit(f"interrupted; the same command goes on from {out}") from None
        results.append(result)
        if experiment.ladder:
            first_rungs.setdefault(experiment.ladder, result)
        show_result(result, out, console)
        if kept is not None:
            console.print(f"records {kept.path}, {len(kept)} runs", highlight=False, markup=False)
    faults += write_all(results, options, console) if results else []
    for fault in faults:
        sys.stderr.write(f"error: {fault}\n")
    if faults or not all(result.trusted() for result in results):
        raise SystemExit(1)


def list_experiments(options: argparse.Namespace, command_line: CommandLine) -> list[Experiment]:
    """What the options ask for: every file, each of its cases, each size of a ladder.

    Raises:
        ConfigError: says what is wrong with a file or an option.
    """
    experiments = [
        case
        for path in options.experiments
        for case in load_experiment(path, options.budget, options.seeds).only(options.variants).split_cases()
        if options.cases is None or case.case in options.cases
    ]
    if not experiments:
        raise ExperimentError(f"no experiment has a case among {', '.join(options.cases or ())}")
    if options.ladder is None:
        return experiments
    rungs = parse_rungs(options.ladder)
    return [make_rung(experiment, rung, command_line.compose) for experiment in experiments for rung in rungs]


def open_records(experiment: Experiment, folder: Path | None) -> Records | None:
    """The file of an experiment's finished runs in the folder given as --records.

    Raises:
        ConfigError: it is a file; see `Records`, too.
    """
    if folder is not None and folder.exists() and not folder.is_dir():
        raise ConfigError(f"--records {folder} is a file; name the folder that holds, or is to hold, such files")
    return None if folder is None else Records(folder / f"{experiment.name}-{experiment.budget_name}.jsonl")


def chosen_parts(options: argparse.Namespace) -> list[str]:
    """The options that chose among cases, variants, sizes and records, as they were given."""
    parts = []
    for name in ("cases", "variants", "ladder", "records"):
        if (value := getattr(options, name)) is not None:
            parts += [f"--{name}", *(value if isinstance(value, list) else [str(value)])]
    return parts


def write_all(results: Sequence[ExperimentResult], options: argparse.Namespace, console: Console) -> list[str]:
    """Ladders' reports and the documents that the options ask for; returns what could not be written."""
    try:
        for ladder in dict.fromkeys(r.experiment.ladder for r in results if r.experiment.ladder):
            rungs = [r for r in results if r.experiment.ladder == ladder]
            if len(rungs) > 1:
                out = options.out / f"{ladder}-ladder-{rungs[0].experiment.budget_name}"
                for line in write_ladder(rungs, out):
                    console.print(line, highlight=False, markup=False)
                console.print(f"ladder  {out / 'report.html'}", highlight=False, markup=False)
        if options.write:
            write_document(results, options.write, chosen_parts(options))
        if options.export:
            export(results, options.export)
        if options.readme:
            fill_in(options.readme, table_to_markdown(summary_table(results)))
    except OSError as error:  # a full disk, say, after hours
        return [f"{error}; the finished runs are kept, give the same command again"]
    return []


def show_plan(experiment: Experiment, out: Path, command_line: CommandLine, console: Console) -> None:
    """The number of runs, a command for each variant, and what cannot run."""
    builder = RunBuilder(experiment, command_line.compose)
    tune = experiment.tune
    tuning = len(tune.seeds) if tune.space else 0
    for space in tune.space.values() if tune.method == "grid" else ():
        tuning *= len(next(iter(space.values())))
    tuning *= tune.trials if tune.method == "optuna" else 1
    different = {builder.run(variant, 0, 1).key for variant in builder.variants}
    most = len(different) * (len(experiment.seeds) + tuning)
    budget = experiment.budget
    length = f"{budget.steps} steps" if budget.steps else f"{budget.cpu_seconds:g} CPU-s"
    head = f"{experiment.name}: {len(builder.variants)} variants (controls included), at most {most} runs of {length}"
    console.print(head, highlight=False)
    root = out / f"{experiment.name}-{experiment.budget_name}" / "runs"
    for variant in builder.variants:
        run = builder.run(variant, experiment.seeds[0], budget.steps or 1000)
        console.print(f"# {variant}\n{run.shell(root)}", highlight=False, markup=False)
    for variant, fault in builder.faults.items():
        console.print(f"# {variant}: cannot run: {fault}", highlight=False, markup=False)


def show_array(
    experiment: Experiment, options: argparse.Namespace, command_line: CommandLine, cluster: Cluster, console: Console
) -> None:
    """The job array of the comparison's own runs, as they would be submitted with untuned settings."""
    builder = RunBuilder(experiment, command_line.compose)
    steps = experiment.budget.steps or 1000
    runs = [builder.run(variant, seed, steps) for seed in experiment.seeds for variant in builder.variants]
    root = options.out / f"{experiment.name}-{experiment.budget_name}" / "runs"
    for line in cluster.describe(runs, root, options.jobs):
        console.print(line, highlight=False, markup=False)


def show_result(result: ExperimentResult, out: Path, console: Console) -> None:
    """Controls, verdicts and troubles of a finished experiment, and where its report lies."""
    plain: dict[str, Any] = {"highlight": False, "markup": False}
    console.rule(result.experiment.title)
    for control in result.controls():
        console.print(f"{'passed' if control.passed else 'FAILED'}  {control.sentence}", **plain)
    for line in conclusions(result):
        console.print(line, **plain)
    for caution in result.cautions():
        console.print(f"caution  {caution}", **plain)
    for name, sentence in result.troubles():
        console.print(f"failed  {name}: {sentence}", **plain)
    console.print(f"report  {out / 'report.html'}", **plain)
