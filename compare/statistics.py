"""Paired comparison to a baseline, by scipy and statsmodels, and the words for its outcome.

A variant "helps" or "hurts" only if the 95 % t-interval of its paired differences excludes 0, it still does after
Holm's correction over all variants of the experiment, and the mean difference is larger than `WORTH`; everything else
is "no difference seen", which is not "equal". The correction keeps the chance of one false word in a whole experiment
at 5 %, however many variants it has. A variant whose every loss is the baseline's own computes the same by
construction; it is no test and leaves the family.
"""

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cubelet.common.optional_imports import import_optional

WORTH = 0.005  # nats a token: smaller differences of a loss are not worth a word
LEVEL = 0.95
POWER = 0.8  # chance to see the difference that is called visible

HELPS, HURTS, NOTHING, FEW = "helps", "hurts", "no difference seen", "too few runs"
SAME = "the same numbers"


@dataclass(frozen=True)
class Difference:
    """Variant minus baseline, of what is compared: of a loss, below 0 is better.

    Attributes:
        mean, low, high: of the paired differences, with the 95 % interval; NaN with fewer than two pairs.
        n: pairs.
        p: of the paired t-test, Holm's correction included.
        verdict: one of this module's words.
        each: the paired differences.
        visible: smallest true difference that so many pairs would show with 80 % chance, given how these scatter.
    """

    mean: float
    low: float
    high: float
    n: int
    p: float
    verdict: str
    each: tuple[float, ...] = ()
    visible: float = math.nan


def paired(variant: Mapping[int, float], baseline: Mapping[int, float]) -> tuple[float, ...]:
    """Differences variant − baseline of the seeds that both have, in the order of the seeds."""
    return tuple(variant[seed] - baseline[seed] for seed in sorted(variant.keys() & baseline.keys()))


def interval(differences: Sequence[float]) -> tuple[float, float, float, float]:
    """Mean, lower and upper end of the 95 % t-interval, and p of the two-sided t-test against 0."""
    n = len(differences)
    if n < 2:
        return (differences[0] if n else math.nan), math.nan, math.nan, math.nan
    mean = math.fsum(differences) / n
    if max(differences) == min(differences):  # no spread at all: nothing for a t-test to divide by
        return mean, mean, mean, float(mean == 0)
    test: Any = import_optional("scipy.stats").ttest_1samp(differences, 0.0)
    low, high = test.confidence_interval(LEVEL)
    return mean, float(low), float(high), float(test.pvalue)


def compare(
    values: Mapping[str, Mapping[int, float]],
    baseline: Mapping[int, float],
    worth: float = WORTH,
    is_higher_better: bool = False,
    same: Collection[str] | None = None,
) -> dict[str, Difference]:
    """Every variant against the baseline, as one family.

    Args:
        values: {variant: {seed: value}}. baseline: {seed: value}.
        worth: smallest difference that gets a word.
        is_higher_better: whether a variant with more of it helps.
        same: variants that compute what the baseline does; by default those whose every value is the baseline's.
    """
    each = {name: paired(own, baseline) for name, own in values.items()}
    raw = {name: interval(differences) for name, differences in each.items()}
    same = same_numbers(each) if same is None else same
    tested = [name for name in raw if name not in same and not math.isnan(raw[name][3])]
    adjusted = adjust({name: raw[name][3] for name in tested})
    return {
        name: Difference(
            mean,
            low,
            high,
            len(each[name]),
            p,
            SAME if name in same else verdict(mean, low, high, p, worth, is_higher_better),
            each[name],
            smallest_visible(each[name], max(1, len(tested))),
        )
        for name, (mean, low, high, _) in raw.items()
        for p in (1.0 if name in same else adjusted.get(name, math.nan),)
    }


def same_numbers(each: Mapping[str, Sequence[float]]) -> set[str]:
    """The variants whose paired differences, at least two, are all exactly 0."""
    return {name for name, differences in each.items() if len(differences) > 1 and not any(differences)}


def adjust(p: Mapping[str, float]) -> dict[str, float]:
    """p-values of one family after Holm's correction."""
    if len(p) < 2:  # a family of one needs no correction
        return dict(p)
    multipletests = import_optional("statsmodels.stats.multitest").multipletests
    corrected = multipletests(list(p.values()), alpha=1 - LEVEL, method="holm")[1]
    return {name: float(value) for name, value in zip(p, corrected, strict=True)}


def smallest_visible(differences: Sequence[float], tests: int) -> float:
    """Smallest true mean difference that a t-test of so many pairs shows with a chance of 80 %.

    Args:
        differences: as observed; only their scatter counts.
        tests: size of the family; the level is 5 % divided by it, which is what Holm's correction asks of the first.
    """
    if len(differences) < 2 or max(differences) == min(differences):  # no scatter to judge by
        return math.nan
    power: Any = import_optional("statsmodels.stats.power").TTestPower()
    effect = power.solve_power(None, len(differences), (1 - LEVEL) / tests, POWER)
    return float(effect) * statistics.stdev(differences)


def verdict(
    mean: float, low: float, high: float, p: float, worth: float = WORTH, is_higher_better: bool = False
) -> str:
    """The word for a difference; see the module's docstring."""
    if math.isnan(p):
        return FEW
    if p < 1 - LEVEL and abs(mean) > worth and (low > 0 or high < 0):
        return HELPS if (mean > 0) is is_higher_better else HURTS
    return NOTHING


@dataclass(frozen=True)
class Control:
    """Whether an experiment could see what is known: `passed`, and a sentence."""

    name: str
    passed: bool
    sentence: str


def a_a_control(again: Mapping[int, float], baseline: Mapping[int, float], worth: float = WORTH) -> Control:
    """The baseline under another name, same seeds: every difference must be exactly 0 where arithmetic is
    deterministic, and in any case none may be seen."""
    difference = compare({"again": again}, baseline, worth)["again"]
    if difference.n < 2:
        return Control("A/A", False, f"A/A control: only {difference.n} pairs of the baseline with itself are finished")
    most = max(map(abs, difference.each))
    passed = difference.verdict in (NOTHING, SAME) and most <= worth
    words = "is exactly 0 for every seed" if most == 0 else f"differs by up to {most:.2g} for one seed"
    sentence = f"A/A control ({difference.n} seeds): the baseline minus itself {words}"
    return Control(
        "A/A", passed, sentence if passed else f"{sentence}: runs are not reproducible, or their pairing is broken"
    )


def positive_control(
    worse: Mapping[int, float], better: Mapping[int, float], worth: float = WORTH, what: str = "worse against better"
) -> Control:
    """Something known to be worse must be called so; `what` says in words what is compared."""
    difference = compare({"worse": worse}, better, worth)["worse"]
    if difference.n < 2:
        return Control("positive", False, f"known positive: only {difference.n} pairs are finished")
    gap = f"{difference.mean:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}] nats"
    sentence = f"known positive ({difference.n} seeds): {what}: {gap}"
    passed = difference.verdict == HURTS
    return Control("positive", passed, sentence if passed else f"{sentence}, which this experiment fails to see")
