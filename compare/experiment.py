"""Experiment files: what is compared with what, on which seeds, within which budget.

    title: Does a learned rotation before RoPE help?
    base: configs/text.yaml              # what `cubelet fit --config` would get
    common: [configs/plain.yaml]         # fragments and overrides of all variants
    baseline: rope
    variants:                            # only what differs: fragments (*.yaml) and overrides (key=value), in order
      rope: []
      combined: [configs/rotary/combined.yaml, model.dropout=0.1]
    seeds: [0, 1, 2, 3, 4]
    tune:                                # the same grid for every variant, on seeds set aside
      seeds: [1000]
      space:
        model.optimizer.init_args.lr: {factors: [0.5, 1, 2]}
    budgets:
      quick: {cpu_seconds: 45}
      standard:
        steps: 2000
        use: [data.context_length=256, data.batch_size=8]
        space: {model.optimizer.init_args.lr: {factors: [0.5, 1, 2]}}   # instead of tune's

Two controls come with every experiment: the baseline once more (with the first two seeds), and no positions at all
against RoPE (`positive: {worse: [...], better: [...]}` for others). `noise: true` adds a row that shows what "no
difference" looks like: the baseline with other seeds. `measure: exact at 2, 4` compares something else than the
validation loss; see `measures`. `cases: {copy: [data.task=copy], …}` does the whole experiment
once for each case.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cubelet.common.errors import ConfigError
from cubelet.common.shipped_files import find_shipped_file
from cubelet.common.strict_yaml import load_yaml_file

from .measures import VAL_LOSS, Measure, read_measure

AGAIN, WORSE, BETTER = "baseline again", "known to be worse", "known to be better"
NOISE = "baseline, other seeds"
AGAIN_SEEDS = 2  # of the baseline once more: runs repeat bit for bit or they do not
POSITIVE = {"worse": ["configs/rotary/none.yaml"], "better": ["configs/rotary/rope.yaml"]}
METHODS = ("grid", "optuna")
SPACES = ("factors", "values", "log_uniform", "uniform")


@dataclass(frozen=True)
class Budget:
    """How long each run trains: optimizer steps, or CPU-seconds of training (steps are then measured per variant).

    `use` are fragments and overrides of this budget, `space` is searched instead of `Tune.space`.
    """

    steps: int | None = None
    cpu_seconds: float | None = None
    use: tuple[str, ...] = ()
    space: Mapping[str, Mapping[str, list[float]]] | None = None


@dataclass(frozen=True)
class Tune:
    """Search over a few settings before the comparison, on seeds of its own.

    `space` maps an option to one of {factors: […]} of its configured value, {values: […]}, {log_uniform: [low, high]}
    or {uniform: [low, high]}; the last two need method "optuna", which makes `trials` proposals for each variant.
    """

    seeds: tuple[int, ...] = ()
    space: Mapping[str, Mapping[str, list[float]]] = field(default_factory=dict)
    method: str = "grid"
    trials: int = 10


@dataclass(frozen=True)
class Experiment:
    """An experiment file, checked; see the module's docstring."""

    name: str
    family: str  # name of the file; several cases and sizes of it are one family
    title: str
    base: str
    baseline: str
    variants: Mapping[str, tuple[str, ...]]
    seeds: tuple[int, ...]
    budget: Budget
    budget_name: str
    common: tuple[str, ...] = ()
    tune: Tune = Tune()
    positive: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    threads: int = 1
    validations: int = 2
    lengths: tuple[int, ...] = (1, 2, 4, 8)
    measure: Measure = VAL_LOSS
    noise: bool = False
    folder: Path = Path()
    case: str = ""
    ladder: str = ""  # name of the experiment whose sizes it belongs to
    scale: float = 1.0  # parameters and tokens, on a ladder
    width: int = 0  # model.dims, on a ladder
    cases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def all_variants(self) -> dict[str, tuple[str, ...]]:
        """The variants, the controls' three, and the row of noise where it is wanted."""
        baseline = self.variants[self.baseline]
        controls = {AGAIN: baseline, WORSE: self.positive["worse"], BETTER: self.positive["better"]}
        return {**self.variants, **({NOISE: baseline} if self.noise else {}), **controls}

    def known_difference(self) -> str:
        """What the known positive compares, in words: what is worse against what is better."""
        sides = (self.positive[side] for side in ("worse", "better"))
        words = [", ".join(i.removeprefix("configs/").removesuffix(".yaml") for i in items) for items in sides]
        return " against ".join(word or f"the baseline, {self.baseline}" for word in words)

    def only(self, names: Sequence[str] | None) -> "Experiment":
        """The baseline and these of the variants (None: all), in the file's order; ConfigError where there is none."""
        if names is None:
            return self
        if unknown := [name for name in names if name not in self.variants]:
            raise ExperimentError(f"{self.name} has no variant {unknown[0]!r}; it has {', '.join(self.variants)}")
        kept = {name: items for name, items in self.variants.items() if name in (self.baseline, *names)}
        return replace(self, variants=kept)

    def split_cases(self) -> list["Experiment"]:
        """One experiment for each case; itself where there are none."""
        return [
            replace(
                self,
                name=f"{self.name}-{case}",
                title=f"{self.title} ({case})",
                case=case,
                cases={},
                common=(*self.common, *items),
            )
            for case, items in self.cases.items()
        ] or [self]


class ExperimentError(ConfigError):
    """An experiment file that cannot be run, in one sentence."""


def load_experiment(path: Path | str, budget: str = "quick", seeds: int | None = None) -> Experiment:
    """Read and check an experiment file.

    Args:
        path: of the file, or the short name of a shipped one, such as `rotary`.
        budget: name of one of its budgets.
        seeds: use only so many of its seeds, or count on from its last.

    Raises:
        ConfigError: says what is wrong with the file.
        MissingFileError: there is none.
    """
    path = find_shipped_file(str(path), "experiments")
    raw = load_yaml_file(path)
    known = {"title", "base", "common", "baseline", "variants", "seeds", "tune", "budgets", "positive", "threads"}
    known |= {"validations", "lengths", "noise", "cases", "measure"}
    _keys(raw, known, {"base", "baseline", "variants", "budgets"}, str(path))
    for key in ("variants", "budgets", "tune", "positive", "cases"):
        if not isinstance(raw.get(key) or {}, dict):
            raise ExperimentError(f"{path}: {key} must be a mapping, got {raw[key]!r}")
    variants = {str(name): _items(items, f"{path}: variant {name!r}") for name, items in raw["variants"].items()}
    if raw["baseline"] not in variants:
        raise ExperimentError(
            f"{path}: the baseline {raw['baseline']!r} is not among the variants {', '.join(variants)}"
        )
    for name in (AGAIN, WORSE, BETTER, NOISE):
        if name in variants:
            raise ExperimentError(f"{path}: the name {name!r} is taken by a control; choose another")
    if budget not in raw["budgets"]:
        raise ExperimentError(f"{path} has no budget {budget!r}; it has {', '.join(raw['budgets'])}")
    listed = raw.get("seeds", 5)
    listed = list(range(listed)) if isinstance(listed, int) else listed
    if not isinstance(listed, list) or not all(isinstance(seed, int) for seed in listed):
        raise ExperimentError(f"{path}: seeds must be a number of seeds or a list of them, got {listed!r}")
    if seeds is not None:
        listed = (listed + list(range(max(listed, default=-1) + 1, max(listed, default=-1) + 1 + seeds)))[:seeds]
    length = _budget(raw["budgets"][budget] or {}, f"{path}: budget {budget!r}")
    tune = _tune(raw.get("tune") or {}, length.space, str(path))
    if both := sorted(set(listed) & set(tune.seeds)):
        raise ExperimentError(
            f"{path}: seeds {both} are used for tuning and for comparing; set others aside for tuning"
        )
    if len(set(listed)) != len(listed) or len(listed) < 2:
        raise ExperimentError(f"{path}: seeds {listed} must be at least two different ones")
    positive = {**POSITIVE, **(raw.get("positive") or {})}
    _keys(positive, {"worse", "better"}, set(), f"{path}: positive")
    lengths = tuple(raw.get("lengths", (1, 2, 4, 8)))
    return Experiment(
        name=path.stem,
        family=path.stem,
        title=str(raw.get("title", path.stem)),
        base=str(raw["base"]),
        baseline=str(raw["baseline"]),
        variants=variants,
        seeds=tuple(listed),
        budget=length,
        budget_name=budget,
        common=_items(raw.get("common"), f"{path}: common"),
        tune=tune,
        positive={k: _items(v, f"{path}: positive") for k, v in positive.items()},
        threads=int(raw.get("threads", 1)),
        validations=int(raw.get("validations", 2)),
        lengths=lengths,
        measure=read_measure(raw.get("measure", VAL_LOSS.name), lengths, str(path)),
        noise=bool(raw.get("noise", False)),
        folder=path.resolve().parent,
        cases={str(k): _items(v, f"{path}: case {k!r}") for k, v in (raw.get("cases") or {}).items()},
    )


def _keys(given: Mapping[str, Any], known: set[str], needed: set[str], where: str) -> None:
    if unknown := sorted(map(str, given.keys() - known)):
        raise ExperimentError(f"{where}: unknown key {unknown[0]!r}; known are {', '.join(sorted(known))}")
    if missing := sorted(needed - given.keys()):
        raise ExperimentError(f"{where}: {missing[0]!r} is missing")


def _items(items: Any, where: str) -> tuple[str, ...]:
    items = [] if items is None else [items] if isinstance(items, str) else items
    if not isinstance(items, list):
        raise ExperimentError(f"{where} must be a list of fragments and key=value overrides")
    for item in items:
        if not isinstance(item, str) or not (item.endswith((".yaml", ".yml")) or "=" in item):
            raise ExperimentError(f"{where}: {item!r} is neither a fragment (*.yaml) nor an override (key=value)")
    return tuple(items)


def _budget(raw: Mapping[str, Any], where: str) -> Budget:
    if not isinstance(raw, dict):
        raise ExperimentError(f"{where} must be a mapping with steps or cpu_seconds, got {raw!r}")
    _keys(raw, {"steps", "cpu_seconds", "use", "space"}, set(), where)
    steps, seconds = raw.get("steps"), raw.get("cpu_seconds")
    if (steps is None) == (seconds is None):
        raise ExperimentError(f"{where} needs either steps or cpu_seconds")
    if not isinstance(seconds if steps is None else steps, (int, float) if steps is None else int):
        raise ExperimentError(f"{where}: steps {steps!r}, cpu_seconds {seconds!r} must be numbers, steps a whole one")
    if min(x for x in (steps, seconds) if x is not None) <= 0:
        raise ExperimentError(f"{where}: steps {steps}, cpu_seconds {seconds} must be positive")
    return Budget(steps, seconds, _items(raw.get("use"), where), raw.get("space"))


def _tune(raw: Mapping[str, Any], instead: Mapping[str, Any] | None, where: str) -> Tune:
    where = f"{where}: tune"
    if instead is not None and not raw:
        raise ExperimentError(f"{where} is missing: it names the seeds on which a budget's space is searched")
    _keys(raw, {"seeds", "space", "method", "trials"}, {"seeds", "space"} if raw else set(), where)
    method, space = raw.get("method", "grid"), (raw.get("space") if instead is None else instead) or {}
    if method not in METHODS:
        raise ExperimentError(f"{where}: method {method!r} is unknown; choose one of {', '.join(METHODS)}")
    if not isinstance(space, dict):
        raise ExperimentError(f"{where}: space must be a mapping of options to what is tried, got {space!r}")
    for option, values in space.items():
        if not isinstance(values, dict) or len(values) != 1 or next(iter(values)) not in SPACES:
            raise ExperimentError(f"{where}: {option} must have one of {', '.join(SPACES)}, got {values!r}")
        if method == "grid" and next(iter(values)) in ("log_uniform", "uniform"):
            raise ExperimentError(
                f"{where}: {option} has a range; method optuna draws from ranges, a grid lists values"
            )
    if raw and not raw["seeds"]:
        raise ExperimentError(f"{where}: seeds is empty")
    return Tune(tuple(raw.get("seeds", ())), space, method, int(raw.get("trials", 10)))
