"""A controller that moves a quantity up or down as a training loss improves or not. Pure: no torch, no Lightning.

`LossFollower` says a direction per observed loss; `moved` applies it to a value. `DynamicBase`, `WindowController` and
`SpanController` share both.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

Mode = Literal["previous", "best", "ema"]


class LossFollower:
    """Compares each loss with a reference: +1 better, −1 worse, 0 hold.

    * `previous`: better than the loss observed before, or not. With noisy losses the two are about equally likely
      whatever the value, so the value makes a random walk in its logarithm: it is here as the control to compare with.
    * `best`: better than the best loss so far, or not. Late in training new bests are rare, so the value sinks.
    * `ema`: better or worse than an exponential moving average by more than a dead zone, otherwise hold. A falling loss
      runs ahead of its average, a plateau lies inside the dead zone.

    Args:
        mode: see above.
        dead_zone: half-width of the zone in which `ema` holds, relative to |reference|.
        decay: weight of the old average per observation, 0 ≤ decay < 1; used by `ema`.

    Attributes:
        reference: what the next loss is compared with; None before the first observation.

    Raises:
        ValueError: unknown mode, dead_zone < 0, decay outside [0, 1).
    """

    def __init__(self, mode: Mode = "ema", *, dead_zone: float = 0.005, decay: float = 0.9) -> None:
        if mode not in get_args(Mode):
            raise ValueError(f"mode {mode!r} is unknown; choose one of {', '.join(get_args(Mode))}")
        if dead_zone < 0:
            raise ValueError(f"dead_zone {dead_zone} is negative; it is a share of the reference, such as 0.005")
        if not 0 <= decay < 1:
            raise ValueError(f"decay {decay} is outside [0, 1)")
        self.mode = mode
        self.dead_zone = dead_zone
        self.decay = decay
        self.reference: float | None = None

    def observe(self, loss: float) -> int:
        """Direction for a loss, and the reference for the next one. A loss that is not finite changes nothing: 0."""
        if not math.isfinite(loss):
            return 0
        reference = self.reference
        if reference is None:
            self.reference = loss
            return 0
        if self.mode == "previous":
            self.reference = loss
        elif self.mode == "best":
            self.reference = min(reference, loss)
        else:
            self.reference = self.decay * reference + (1 - self.decay) * loss
            if abs(loss - reference) <= self.dead_zone * abs(reference):
                return 0
        return 1 if loss < reference else -1

    def state_dict(self) -> dict[str, Any]:
        return {"reference": self.reference}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.reference = state["reference"]


def moved(value: float, direction: int, factor: float, minimum: float, maximum: float) -> float:
    """value·factor for +1, value/factor for −1, value for 0, clamped to [minimum, maximum] in each case."""
    return min(max(value * factor**direction, minimum), maximum)
