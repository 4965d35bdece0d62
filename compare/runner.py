"""An experiment from its file to its numbers: budget, tuning, comparison; and `Outcome`, all that a report needs."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .experiment import AGAIN, BETTER, WORSE, Experiment
from .measure import source_digest, write_json
from .processes import Result, Told, execute
from .runs import Plan, PlanError
from .statistics import Control, Difference, a_a_control, compare, positive_control
from .tune import Choice, calibration, drive, search, steps_for

Announce = Callable[[str], None]


@dataclass
class Outcome:
    """What came out.

    Attributes:
        steps, choices, results: per variant (controls included); results as {variant: {seed: result}}.
        faults: {variant: sentence} of those that have no runs at all.
        root: folder of the runs.
    """

    experiment: Experiment
    root: Path
    steps: dict[str, int] = field(default_factory=dict)
    choices: dict[str, Choice] = field(default_factory=dict)
    results: dict[str, dict[int, Result]] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)

    def values(self, variant: str, measure: str = "val_loss") -> dict[int, float]:
        """{seed: value} of a measure over the runs that finished."""
        found = {
            seed: r.measures[measure] for seed, r in self.results.get(variant, {}).items() if r.measures and not r.fault
        }
        return {seed: value for seed, value in found.items() if value is not None}

    def mean(self, variant: str, measure: str = "val_loss") -> float:
        """Over the seeds; NaN where no run finished."""
        values = self.values(variant, measure).values()
        return math.fsum(values) / len(values) if values else math.nan

    def differences(self) -> dict[str, Difference]:
        """Every variant but the baseline, as one family."""
        baseline = self.experiment.baseline
        names = [v for v in self.experiment.variants if v != baseline]
        return compare({v: self.values(v) for v in names}, self.values(baseline))

    def controls(self) -> list[Control]:
        """The controls that say whether the verdicts can be trusted."""
        return [
            a_a_control(self.values(AGAIN), self.values(self.experiment.baseline)),
            positive_control(self.values(WORSE), self.values(BETTER)),
        ]

    def trusted(self) -> bool:
        """Whether all controls came out as they must."""
        return all(control.passed for control in self.controls())

    def outdated(self) -> str | None:
        """A sentence where finished runs were made by other Python code than today's, which nobody does again."""
        measures = [r.measures for runs in self.results.values() for r in runs.values() if r.measures]
        other = [m for m in measures if m.get("source", source_digest()) != source_digest()]
        if not other:
            return None
        return (
            f"{len(other)} of {len(measures)} runs were made by other source code than today's: delete "
            f"{self.root.parent.name}/{self.root.name} in the folder given as --out to do them again"
        )

    def troubles(self) -> list[tuple[str, str]]:
        """(variant, sentence) of everything that failed; equal sentences of several seeds are told once."""
        told = list(self.faults.items())
        for variant, runs in self.results.items():
            kinds: dict[str, list[int]] = {}
            for seed, result in sorted(runs.items()):
                if result.fault:
                    kinds.setdefault(result.fault, []).append(seed)
            told += [(variant, f"seed {', '.join(map(str, seeds))}: {fault}") for fault, seeds in kinds.items()]
        return told


def conduct(
    experiment: Experiment, out: Path, jobs: int = 1, told: Told | None = None, announce: Announce | None = None
) -> Outcome:
    """Run an experiment, or what is missing of it.

    Args:
        out: its folder; runs go into `out/runs`.
        jobs, told: see `execute`.
        announce: is told each stage.

    Raises:
        PlanError: the baseline cannot be composed, so that there is nothing to compare to.
    """
    say = announce or (lambda text: None)
    plan = Plan(experiment)
    root = out / "runs"
    outcome = Outcome(experiment, root, faults=plan.faults)
    if fault := plan.faults.get(experiment.baseline):
        raise PlanError(f"the baseline {experiment.baseline!r} cannot run: {fault}")
    root.mkdir(parents=True, exist_ok=True)

    def drop(variant: str, fault: str) -> None:
        outcome.faults[variant] = fault
        plan.variants.pop(variant, None)

    if experiment.budget.steps is not None:
        outcome.steps = dict.fromkeys(plan.variants, experiment.budget.steps)
    else:
        say("measuring what a step costs")
        outcome.steps, faults = affordable(plan, out, jobs, told)
        for variant, fault in faults.items():
            drop(variant, fault)
    if experiment.tune.space:
        say("tuning")
    searches = {variant: search(plan, variant, outcome.steps[variant]) for variant in plan.variants}
    outcome.choices, faults = drive(searches, lambda runs: execute(runs, root, jobs, told))
    for variant, fault in faults.items():
        drop(variant, fault)
    say("comparing")
    runs = {
        (variant, seed): plan.run(variant, seed, outcome.steps[variant], "test", outcome.choices[variant].settings)
        for seed in experiment.seeds  # whole seeds first, so that what is finished can be compared
        for variant in plan.variants
    }
    results = execute(runs.values(), root, jobs, told)
    for (variant, seed), run in runs.items():
        outcome.results.setdefault(variant, {})[seed] = results[run.key]
    return outcome


def affordable(plan: Plan, out: Path, jobs: int, told: Told | None) -> tuple[dict[str, int], dict[str, str]]:
    """Steps that each variant can make in the budget's CPU-seconds, measured once and kept in `budget.json`: a command
    given again trains as long as the first, whatever the machine does meanwhile."""
    seconds = plan.experiment.budget.cpu_seconds
    assert seconds is not None
    path = out / "budget.json"
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    wanted = {variant: calibration(plan, variant) for variant in plan.variants}
    keys = {variant: f"{run.key} {seconds:g}" for variant, run in wanted.items()}
    missing = {keys[v]: run for v, run in wanted.items() if keys[v] not in known}
    # One at a time: neighbours share caches and memory, which CPU time feels.
    results = execute(missing.values(), out / "runs", min(jobs, 1), told)
    faults: dict[str, str] = {}
    for variant, run in wanted.items():
        if keys[variant] not in known:
            try:
                known[keys[variant]] = steps_for(seconds, results[run.key])
            except PlanError as error:
                faults[variant] = str(error)
    write_json(path, known)
    return {v: known[key] for v, key in keys.items() if key in known}, faults


def summary(outcome: Outcome) -> Mapping[str, Any]:
    """The numbers as plain data, for `outcome.json`."""
    return {
        "experiment": outcome.experiment.name,
        "budget": outcome.experiment.budget_name,
        "trusted": outcome.trusted(),
        "controls": [control.__dict__ for control in outcome.controls()],
        "variants": {
            name: {
                "steps": outcome.steps.get(name),
                "settings": dict(outcome.choices[name].settings) if name in outcome.choices else {},
                "losses": outcome.values(name),
            }
            for name in outcome.experiment.all_variants()
        },
        "differences": {name: d.__dict__ for name, d in outcome.differences().items()},
        "troubles": outcome.troubles(),
    }
