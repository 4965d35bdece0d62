"""Settings for each variant before the comparison: a grid or Optuna, on seeds that the comparison never sees.

A search is a generator: it yields runs, gets their results, and returns a `Choice`. So the searches of all variants
share the processes, and nothing of a search needs to be stored: after a kill it asks the same questions again and finds
the answers among the finished runs (Optuna's sampler is seeded, so it proposes the same).
"""

import itertools
import math
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cubelet.common.optional_imports import import_optional

from .experiment import Experiment
from .processes import RunResult
from .runs import Run, RunBuilder, VariantError

Results = dict[str, RunResult]
Search = Generator[list[Run], Results, "Choice"]
CALIBRATION_STEPS = 60  # the first third is warm-up, the rest is timed
LEAST_STEPS = 20


@dataclass(frozen=True)
class Trial:
    """One point of a search: its settings and mean loss over the tuning seeds; NaN where a run failed."""

    settings: Mapping[str, Any]
    loss: float
    fault: str | None = None


@dataclass(frozen=True)
class Choice:
    """The end of a search: the best settings ({} where nothing is tuned), and all that was tried."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    trials: tuple[Trial, ...] = ()
    at_edge: tuple[str, ...] = ()


def choices(builder: RunBuilder, variant: str, option: str, space: Mapping[str, list[float]]) -> list[Any]:
    """Values of a discrete space.

    Raises:
        VariantError: factors of something that is not a number.
    """
    ((kind, values),) = space.items()
    if kind == "values":
        return list(values)
    start = builder.configured(variant, option)
    if isinstance(start, bool) or not isinstance(start, (int, float)):
        raise VariantError(f"{option} is {start!r} in variant {variant!r}; factors need a number there")
    return [float(f"{start * factor:.6g}") for factor in values]


def open_space(experiment: Experiment, variant: str) -> dict[str, Mapping[str, list[float]]]:
    """What is to be tuned for a variant: not the options for which it names a value itself, as a control may.

    Factors are of the variant's own value, so they stay.
    """
    own = {item.partition("=")[0] for item in experiment.all_variants()[variant] if "=" in item}
    return {o: space for o, space in experiment.tune.space.items() if "factors" in space or o not in own}


def grid(builder: RunBuilder, variant: str, steps: int) -> Search:
    """All combinations; the best by mean loss over the tuning seeds."""
    tune, spaces = builder.experiment.tune, open_space(builder.experiment, variant)
    axes = {option: choices(builder, variant, option, space) for option, space in spaces.items()}
    points = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    runs = [[builder.run(variant, seed, steps, "tune", point) for seed in tune.seeds] for point in points]
    results = yield [run for some in runs for run in some]
    trials = tuple(_trial(point, some, results) for point, some in zip(points, runs, strict=True))
    best = _best(variant, trials)
    edge = tuple(o for o, v in axes.items() if len(v) > 1 and best.settings[o] in (min(v), max(v)))
    return Choice(best.settings, trials, edge)


def optuna(builder: RunBuilder, variant: str, steps: int) -> Search:
    """`trials` proposals of Optuna's TPE sampler, one after another."""
    tune, library = builder.experiment.tune, import_optional("optuna", "sweep")
    library.logging.set_verbosity(library.logging.WARNING)
    study = library.create_study(sampler=library.samplers.TPESampler(seed=tune.seeds[0]))
    spaces = open_space(builder.experiment, variant)
    trials: list[Trial] = []
    for _ in range(tune.trials):
        proposal = study.ask()
        point = {option: _suggest(builder, variant, proposal, option, space) for option, space in spaces.items()}
        runs = [builder.run(variant, seed, steps, "tune", point) for seed in tune.seeds]
        results = yield runs
        trials.append(_trial(point, runs, results))
        if math.isnan(trials[-1].loss):
            study.tell(proposal, state=library.trial.TrialState.FAIL)
        else:
            study.tell(proposal, trials[-1].loss)
    return Choice(_best(variant, trials).settings, tuple(trials))


def _suggest(builder: RunBuilder, variant: str, proposal: Any, option: str, space: Mapping[str, list[float]]) -> Any:
    ((kind, values),) = space.items()
    if kind in ("log_uniform", "uniform"):
        value = proposal.suggest_float(option, *values, log=kind == "log_uniform")
        return float(f"{value:.6g}")
    return proposal.suggest_categorical(option, choices(builder, variant, option, space))


def _trial(point: Mapping[str, Any], runs: list[Run], results: Results) -> Trial:
    ended = [results[run.key] for run in runs]
    fault = next((r.fault for r in ended if r.fault), None)
    losses = [r.loss for r in ended if r.loss is not None]
    return Trial(point, math.nan if fault or not losses else sum(losses) / len(losses), fault)


def _best(variant: str, trials: Iterable[Trial]) -> Trial:
    trials = list(trials)
    finished = [trial for trial in trials if not math.isnan(trial.loss)]
    if not finished:
        fault = next((t.fault for t in trials if t.fault), "no trial was made")
        raise VariantError(f"no setting of variant {variant!r} could be trained: {fault}")
    return min(finished, key=lambda trial: trial.loss)


def search(builder: RunBuilder, variant: str, steps: int) -> Search:
    """The search that the experiment asks for."""
    tune = builder.experiment.tune
    if not open_space(builder.experiment, variant):
        return _nothing()
    return (grid if tune.method == "grid" else optuna)(builder, variant, steps)


def _nothing() -> Search:
    yield from ()
    return Choice()


def drive(
    searches: Mapping[str, Search], run: Callable[[list[Run]], Results]
) -> tuple[dict[str, Choice], dict[str, str]]:
    """Do the searches of all variants together.

    Args:
        searches: {variant: search}.
        run: does runs and returns {key: result}.

    Returns:
        {variant: choice} and, for those where nothing could be trained, {variant: sentence}.
    """
    best: dict[str, Choice] = {}
    faults: dict[str, str] = {}
    results: Results = {}
    open_searches: dict[str, tuple[Search, list[Run]]] = {}

    def advance(variant: str, one: Search, value: Results | None) -> None:
        open_searches.pop(variant, None)
        try:
            open_searches[variant] = (one, next(one) if value is None else one.send(value))
        except StopIteration as end:
            best[variant] = end.value
        except VariantError as error:
            faults[variant] = str(error)

    for variant, one in searches.items():
        advance(variant, one, None)
    while open_searches:
        results |= run([wanted for _, runs in open_searches.values() for wanted in runs])
        for variant, (one, _) in list(open_searches.items()):
            advance(variant, one, results)
    return best, faults


def calibration(builder: RunBuilder, variant: str) -> Run:
    """A short run that tells what a step of a variant costs."""
    seed = builder.experiment.tune.seeds[0] if builder.experiment.tune.seeds else 1000
    return builder.run(variant, seed, CALIBRATION_STEPS, "measure")


def steps_for(seconds: float, result: RunResult) -> int:
    """Optimizer steps that fit into so many CPU-seconds, two digits of them, from a calibration run.

    Raises:
        VariantError: the run failed.
    """
    if result.fault or not result.measures:
        raise VariantError(result.fault or "its calibration run left no measures")
    curve = result.measures["train_curve"]
    (first, begin, _), (last, end, _) = curve[0], curve[-1]
    fits = seconds * (last - first) / max(end - begin, 1e-9)
    digits = 10 ** max(0, math.floor(math.log10(max(fits, 1))) - 1)
    return max(LEAST_STEPS, int(fits / digits) * digits)
