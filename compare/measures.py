"""What of a run is compared with the baseline's: the validation loss, or what an experiment names in its place.

    measure: val_loss                 # the default: nats a token over the validation split
    measure: exact at 2, 4            # share of rows right to the last token, mean over 2 and 4 × the trained length
    measure: loss at 8                # loss of the same tokens with 8 × the context
    measure: val_wer                  # any other value that the module logs while it validates
    measure: {name: val_accuracy, better: higher, worth: 0.01}

Tuning and the two controls always go by the validation loss: a setting is not chosen by what is asked about it, and
the controls look at the runs, not at the question.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cubelet.common.errors import ConfigError

from .statistics import WORTH

KINDS = {"exact": "exact", "loss": "lengths"}  # the key of `RunMetrics` that has it at every length
WORTH_OF_A_SHARE = 0.02
SYNTAX = "val_loss, 'exact at 2, 4', 'loss at 8', or a value that the module logs as val_…"


@dataclass(frozen=True)
class Measure:
    """A number of a run.

    Attributes:
        name: as the experiment file has it.
        label, unit: for tables and axes, and behind a number.
        worth: smallest difference that gets a word.
        is_higher_better: whether more of it is.
        kind: key of `RunMetrics` with a value for each length; "" for a value of its own.
        factors: lengths over which the mean is taken, as multiples of the trained one.
    """

    name: str = "val_loss"
    label: str = "validation loss"
    unit: str = "nats a token"
    worth: float = WORTH
    is_higher_better: bool = False
    kind: str = ""
    factors: tuple[float, ...] = ()

    def of(self, measures: Mapping[str, Any], lengths: Sequence[float]) -> float | None:
        """Its value, None where the run has none.

        Args:
            measures: of a run, as `RunMetrics` writes them.
            lengths: the multiples of the trained length at which the run was measured.
        """
        if not self.kind:
            return measures.get(self.name, (measures.get("scores") or {}).get(self.name))
        contexts = sorted(measures.get("lengths") or {}, key=int)
        at = dict(zip(sorted(lengths), contexts, strict=False))
        found: dict[str, float | None] = measures.get(self.kind) or {}
        values = [value for factor in self.factors if (value := found.get(at.get(factor, ""))) is not None]
        return math.fsum(values) / len(values) if len(values) == len(self.factors) else None


VAL_LOSS = Measure()


def read_measure(raw: Any, lengths: Sequence[float], where: str) -> Measure:
    """The `measure` of an experiment file; see the module's docstring.

    Raises:
        ConfigError: it is written wrongly, or its lengths are not among those of the experiment.
    """
    if not isinstance(raw, dict):
        return _named(raw, lengths, where)
    if unknown := sorted(map(str, raw.keys() - {"name", "better", "worth"})):
        raise ConfigError(f"{where}: measure has no key {unknown[0]!r}; known are better, name, worth")
    measure = _named(raw.get("name"), lengths, where)
    better = raw.get("better", "higher" if measure.is_higher_better else "lower")
    worth = raw.get("worth", measure.worth)
    if better not in ("lower", "higher"):
        raise ConfigError(f"{where}: measure: better {better!r} must be lower or higher")
    if isinstance(worth, bool) or not isinstance(worth, (int, float)) or not 0 <= worth < math.inf:
        raise ConfigError(f"{where}: measure: worth {worth!r} must be a number, 0 or more")
    return replace(measure, is_higher_better=better == "higher", worth=float(worth))


def _named(name: Any, lengths: Sequence[float], where: str) -> Measure:
    if name == VAL_LOSS.name:
        return VAL_LOSS
    if isinstance(name, str) and name.startswith("val_"):
        return Measure(name, name, "")
    found = re.fullmatch(r"(exact|loss) at ([\d., ]+)", name) if isinstance(name, str) else None
    try:
        factors = tuple(float(part) for part in found[2].split(",")) if found else ()
    except ValueError:
        factors = ()
    if not found or not factors:
        raise ConfigError(f"{where}: measure {name!r} must be {SYNTAX}")
    if missing := [f"{factor:g}" for factor in factors if factor not in lengths]:
        raise ConfigError(
            f"{where}: measure {name!r} asks for {missing[0]} × the trained length, and lengths are "
            f"{', '.join(f'{length:g}' for length in lengths) or 'none'}"
        )
    at = f"at {', '.join(f'{factor:g}' for factor in factors)} × the trained length"
    if found[1] == "exact":
        return Measure(
            name, f"share of rows right {at}", "of the rows", WORTH_OF_A_SHARE, True, KINDS["exact"], factors
        )
    return Measure(name, f"loss {at}", "nats a token", kind=KINDS["loss"], factors=factors)
