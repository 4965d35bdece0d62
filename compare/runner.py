"""An experiment from its file to its numbers: budget, tuning, comparison; `ExperimentResult` is all a report needs."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cubelet.common.files import write_json
from cubelet.common.source_digest import source_digest

from .experiment import AGAIN, AGAIN_SEEDS, BETTER, NOISE, WORSE, Experiment
from .processes import Progress, ProgressCallback, RunResult, adopt, execute
from .records import Records
from .runs import CommandLine, Run, RunBuilder, VariantError
from .statistics import Control, Difference, a_a_control, compare, paired, positive_control, same_numbers
from .tune import Choice, calibration, drive, search, steps_for

Announce = Callable[[str], None]


def _mean(values: Mapping[int, float]) -> float:
    return math.fsum(values.values()) / len(values) if values else math.nan


@dataclass
class ExperimentResult:
    """What came out.

    Attributes:
        steps, choices, results: per variant (controls included); results as {variant: {seed: result}}.
        faults: {variant: sentence} of those that have no runs at all.
        configurations: {variant: {dotted option: value}}, before tuning.
        root: folder of the runs.
    """

    experiment: Experiment
    root: Path
    steps: dict[str, int] = field(default_factory=dict)
    choices: dict[str, Choice] = field(default_factory=dict)
    results: dict[str, dict[int, RunResult]] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    configurations: dict[str, dict[str, Any]] = field(default_factory=dict)

    def values(self, variant: str, measure: str = "val_loss") -> dict[int, float]:
        """{seed: value} of a measure over the runs that finished."""
        finished = {seed: r.measures for seed, r in self.results.get(variant, {}).items() if r.measures and not r.fault}
        return {seed: m[measure] for seed, m in finished.items() if m.get(measure) is not None}

    def mean(self, variant: str, measure: str = "val_loss") -> float:
        """Over the seeds; NaN where no run finished."""
        return _mean(self.values(variant, measure))

    def compared(self, variant: str) -> dict[int, float]:
        """{seed: value} of what the experiment compares, over the runs that finished and have it."""
        measure, lengths = self.experiment.measure, self.experiment.lengths
        runs = {seed: r.measures for seed, r in self.results.get(variant, {}).items() if r.measures and not r.fault}
        values = {seed: measure.of(measures, lengths) for seed, measures in runs.items()}
        return {seed: value for seed, value in values.items() if value is not None}

    def mean_compared(self, variant: str) -> float:
        """Over the seeds; NaN where no run has it."""
        return _mean(self.compared(variant))

    def _differences(self, names: Iterable[str]) -> dict[str, Difference]:
        names, baseline, measure = list(names), self.experiment.baseline, self.experiment.measure
        # By the loss: of two models that get no row right every share is the same, and they are not.
        same = same_numbers({name: paired(self.values(name), self.values(baseline)) for name in names})
        values = {name: self.compared(name) for name in names}
        return compare(values, self.compared(baseline), measure.worth, measure.is_higher_better, same)

    def differences(self) -> dict[str, Difference]:
        """Every variant but the baseline, as one family."""
        return self._differences(v for v in self.experiment.variants if v != self.experiment.baseline)

    def noise(self) -> Difference | None:
        """The baseline with other seeds minus the baseline: what a difference of nothing looks like."""
        return self._differences([NOISE])[NOISE] if NOISE in self.results else None

    def controls(self) -> list[Control]:
        """The controls that say whether the verdicts can be trusted."""
        return [
            a_a_control(self.values(AGAIN), self.values(self.experiment.baseline)),
            positive_control(self.values(WORSE), self.values(BETTER), what=self.experiment.known_difference()),
        ]

    def trusted(self) -> bool:
        """Whether all controls came out as they must."""
        return all(control.passed for control in self.controls())

    def cautions(self) -> list[str]:
        """What a reader of the numbers should know about where they came from, in sentences."""
        return [sentence for sentence in (self.unmeasured(), self.outdated(), self.mixed()) if sentence]

    def unmeasured(self) -> str | None:
        """A sentence where runs lack what the experiment compares."""
        lacking = [name for name in self.experiment.variants if self.values(name) and not self.compared(name)]
        if not lacking:
            return None
        return (
            f"{', '.join(lacking)}: no run has {self.experiment.measure.name!r}, what the experiment compares; "
            "“exact” needs data with right answers, “at” lengths that the model can read"
        )

    def outdated(self) -> str | None:
        """A sentence where finished runs were made by other Python code than today's; they are not done again."""
        measures = [r.measures for runs in self.results.values() for r in runs.values() if r.measures]
        other = [m for m in measures if m.get("source", source_digest()) != source_digest()]
        if not other:
            return None
        return (
            f"{len(other)} of {len(measures)} runs were made by other source code than today's: to do them again, "
            f"delete {self.root.parent.name}/{self.root.name} in the folder given as --out, and leave --records away"
        )

    def mixed(self) -> str | None:
        """A sentence where the runs of one seed were computed by different processors or versions of torch.

        They differ by rounding, too, which grows while a model trains: the A/A control fails if it was done elsewhere.
        """
        machines: dict[int, set[str]] = {}
        for runs in self.results.values():
            for seed, r in runs.items():
                if r.measures and "machine" in r.measures:
                    machines.setdefault(seed, set()).add(r.measures["machine"])
        seeds = [str(seed) for seed, names in sorted(machines.items()) if len(names) > 1]
        if not seeds:
            return None
        names = sorted(set().union(*machines.values()))
        return (
            f"runs of seed {', '.join(seeds)} were computed by different machines, whose rounding differs: "
            f"{'; '.join(names)}"
        )

    def troubles(self) -> list[tuple[str, str]]:
        """(variant, sentence) of everything that failed; equal sentences of several seeds stand once."""
        troubles = list(self.faults.items())
        for variant, runs in self.results.items():
            kinds: dict[str, list[int]] = {}
            for seed, result in sorted(runs.items()):
                if result.fault:
                    kinds.setdefault(result.fault, []).append(seed)
            troubles += [(variant, f"seed {', '.join(map(str, seeds))}: {fault}") for fault, seeds in kinds.items()]
        return troubles


def run_experiment(
    experiment: Experiment,
    out: Path,
    command_line: CommandLine,
    jobs: int = 1,
    on_progress: ProgressCallback | None = None,
    announce: Announce | None = None,
    choices: Mapping[str, Choice] | None = None,
    engine: Callable[..., dict[str, RunResult]] = execute,
    shared: Path | None = None,
    records: Records | None = None,
) -> ExperimentResult:
    """Run an experiment, or what is missing of it.

    Args:
        experiment: what to compare.
        out: its folder; runs go into `out/runs`.
        command_line: composes configurations and trains.
        jobs, on_progress: see `execute`.
        announce: is called with the name of each stage.
        choices: settings that were tuned elsewhere; then nothing is tuned here.
        engine: does runs, as `execute` does.
        shared: folder of experiments' folders, whose finished runs are taken where they are the same; see `adopt`.
        records: finished runs are kept there, and those that are there are not done again.

    Raises:
        VariantError: the baseline cannot be composed, so that there is nothing to compare to.
    """
    say = announce or (lambda text: None)
    builder = RunBuilder(experiment, command_line.compose)
    root = out / "runs"
    result = ExperimentResult(experiment, root, faults=builder.faults)
    result.configurations = {name: builder.configuration(name) for name in builder.variants}
    if fault := builder.faults.get(experiment.baseline):
        raise VariantError(f"the baseline {experiment.baseline!r} cannot run: {fault}")
    root.mkdir(parents=True, exist_ok=True)

    def do(runs: Iterable[Run], most_jobs: int = jobs) -> dict[str, RunResult]:
        runs = list(runs)
        if records is not None:
            records.restore(runs, root)
        if shared is not None:
            adopt(runs, root, shared)
        if records is not None:
            records.keep(runs, root)
        return engine(runs, root, command_line.fit, min(jobs, most_jobs), progressed)

    def progressed(progress: Progress, ended: RunResult | None) -> None:
        if records is not None and ended is not None:
            records.keep([ended.run], root)  # at once: the rest may take days
        if on_progress is not None:
            on_progress(progress, ended)

    def drop(faults: Mapping[str, str]) -> None:
        result.faults.update(faults)
        for variant in faults:
            builder.variants.pop(variant, None)

    if experiment.budget.steps is not None:
        result.steps = dict.fromkeys(builder.variants, experiment.budget.steps)
    else:
        say("measuring what a step costs")
        result.steps, faults = affordable_steps(builder, out, do)
        drop(faults)
    if choices is not None:
        drop({variant: "no settings were found for it" for variant in builder.variants if variant not in choices})
        result.choices = {variant: choices[variant] for variant in builder.variants}
    else:
        if experiment.tune.space:
            say("tuning")
        searches = {variant: search(builder, variant, result.steps[variant]) for variant in builder.variants}
        result.choices, faults = drive(searches, do)
        drop(faults)
    say("comparing")
    runs = {
        (variant, seed): builder.run(variant, seed, result.steps[variant], "test", result.choices[variant].settings)
        for index, seed in enumerate(experiment.seeds)  # whole seeds first, so that what is finished can be compared
        for variant in builder.variants
        if variant != AGAIN or index < AGAIN_SEEDS
    }
    results = do(runs.values())
    for (variant, seed), run in runs.items():
        result.results.setdefault(variant, {})[seed] = results[run.key]
    return result


def affordable_steps(
    builder: RunBuilder, out: Path, do: Callable[..., dict[str, RunResult]]
) -> tuple[dict[str, int], dict[str, str]]:
    """Steps that each variant can make in the budget's CPU-seconds, and sentences for those that failed.

    Measured once and kept in `budget.json`: a command given again trains as long as the first, whatever the machine
    does meanwhile.
    """
    seconds = builder.experiment.budget.cpu_seconds
    assert seconds is not None
    path = out / "budget.json"
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    runs = {variant: calibration(builder, variant) for variant in builder.variants}
    keys = {variant: f"{run.key} {seconds:g}" for variant, run in runs.items()}
    # One at a time: neighbours share caches and memory, which CPU time feels.
    results = do([run for variant, run in runs.items() if keys[variant] not in known], 1)
    faults: dict[str, str] = {}
    for variant, run in runs.items():
        if keys[variant] not in known:
            try:
                known[keys[variant]] = steps_for(seconds, results[run.key])
            except VariantError as error:
                faults[variant] = str(error)
    write_json(path, known)
    return {v: known[key] for v, key in keys.items() if key in known}, faults


def summary(result: ExperimentResult) -> Mapping[str, Any]:
    """The numbers as plain data, for `outcome.json`."""
    return {
        "experiment": result.experiment.name,
        "budget": result.experiment.budget_name,
        "measure": result.experiment.measure.name,
        "trusted": result.trusted(),
        "controls": [control.__dict__ for control in result.controls()],
        "variants": {
            name: {
                "steps": result.steps.get(name),
                "settings": dict(result.choices[name].settings) if name in result.choices else {},
                "losses": result.values(name),
                "compared": result.compared(name),
            }
            for name in result.experiment.all_variants()
        },
        "noise": (noise := result.noise()) and noise.__dict__,
        "differences": {name: d.__dict__ for name, d in result.differences().items()},
        "troubles": result.troubles(),
    }
