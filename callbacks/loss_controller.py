"""Controllers that move a quantity up or down as the training loss improves or not.

`TrendDetector` says a direction for each observed loss and knows neither torch nor Lightning; `LossController` shows it
the loss every so many optimizer steps and multiplies or divides every target's value by a factor. With the mode "probe"
it measures instead: the loss with larger and with smaller values, see `loss_probe.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from cubelet.common.checks import check_at_least, check_choice, check_fraction

from .loss_callback import Average, LossCallback
from .loss_probe import SlopeDescent, check_widths, paired_losses
from .reporting import idle, label, log_scalars

Mode = Literal["previous", "best", "ema"]
ControllerMode = Literal["previous", "best", "ema", "probe"]


class TrendDetector:
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

    Example:
        >>> trend = TrendDetector("previous")
        >>> [trend.observe(loss) for loss in (3.0, 2.5, 2.7)]
        [0, 1, -1]
    """

    def __init__(self, mode: Mode = "ema", *, dead_zone: float = 0.005, decay: float = 0.9) -> None:
        check_choice("mode", mode, Mode)
        check_at_least("dead_zone", dead_zone, 0, "a share of the reference, such as 0.005")
        check_fraction("decay", decay)
        self.mode = mode
        self.dead_zone = dead_zone
        self.decay = decay
        self.reference: float | None = None

    def observe(self, loss: float) -> int:
        """Return the direction for a loss, and make it the reference for the next; one that is not finite is a 0."""
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


LossFollower = TrendDetector  # its name in 0.1.0


def moved(value: float, direction: int, factor: float, minimum: float, maximum: float) -> float:
    """Return value·factor for +1, value/factor for −1, value for 0, clamped to [minimum, maximum] in each case."""
    return min(max(value * factor**direction, minimum), maximum)


class Target(Protocol):
    """Something with a positive number that may be read and written in place."""

    def read(self) -> float: ...

    def write(self, value: float) -> None: ...


class LossController(LossCallback):
    """Base of the controllers; a subclass finds the targets (`find`) and names what it moves (`quantity`).

    Args:
        mode: how to find the direction: `previous`, `best` or `ema` of the `TrendDetector`, which follow the training
            loss, or `probe`, which costs two evaluations of a training batch at each decision and needs a module with
            `loss(batch)`. A compiled module compiles once more for it.
        dead_zone, decay: of the `TrendDetector`.
        every_n_steps, average, strict: of the `LossCallback`.
        factor: what a value is multiplied or divided by, > 1.
        minimum, maximum: bounds of the value.
        warmup_steps: optimizer steps during which the reference is built but nothing moves.
        better: +1 where a better loss multiplies, −1 where it divides; a probe does not need it.
        widths: factors that a probe multiplies and divides the value by; they take turns, one at each decision.
        rate: largest step of a probe, in nats of the value; `factor` is not used there.

    Raises:
        ValueError: a bad argument, or with `strict` nothing to act on.

    Example:
        >>> class Temperature(LossController):
        ...     quantity = "temperature"
        ...     def find(self, module):
        ...         return {"softmax": module.temperature}  # has `read()` and `write(value)`
        >>> callback = Temperature(factor=1.01, minimum=0.1, maximum=10.0, every_n_steps=10)
    """

    quantity = "value"
    nothing = "nothing to act on"

    def __init__(
        self,
        *,
        factor: float,
        minimum: float,
        maximum: float,
        mode: ControllerMode = "ema",
        every_n_steps: int = 25,
        warmup_steps: int = 0,
        dead_zone: float = 0.005,
        decay: float = 0.9,
        average: Average = "step",
        better: Literal[1, -1] = 1,
        strict: bool = False,
        widths: Sequence[float] = (1.25, 1.5, 2.0),
        rate: float = 0.3,
    ) -> None:
        super().__init__(every_n_steps=every_n_steps, average=average, strict=strict)
        if not factor > 1:
            raise ValueError(f"factor {factor} must be above 1, such as 1.0025; values are multiplied or divided by it")
        if not 0 < minimum < maximum:
            raise ValueError(f"bounds need 0 < minimum < maximum, got {minimum} and {maximum}")
        check_at_least("warmup_steps", warmup_steps, 0)
        check_choice("better", better, (1, -1))
        check_choice("mode", mode, ControllerMode)
        if not rate > 0:
            raise ValueError(f"rate {rate} must be above 0; it is the largest step of a probe in nats, such as 0.3")
        self.mode = mode
        self.trend = TrendDetector("ema" if mode == "probe" else mode, dead_zone=dead_zone, decay=decay)
        self.descent = SlopeDescent(rate)
        self.widths = check_widths(widths)
        self.factor = factor
        self.minimum, self.maximum = minimum, maximum
        self.warmup_steps = warmup_steps
        self.better = better
        self.values: dict[str, float] = {}
        self._targets: dict[str, Target] = {}
        self._label = self.quantity
        self._batch: Any = None  # of the training step at hand

    def identity(self) -> dict[str, Any]:
        trend = self.trend
        probe = {"widths": self.widths, "rate": self.descent.rate} if self.mode == "probe" else {}
        return probe | {
            "mode": self.mode, "dead_zone": trend.dead_zone, "decay": trend.decay, "factor": self.factor,
            "every_n_steps": self.every_n_steps, "minimum": self.minimum, "maximum": self.maximum,
            "average": self.average, "better": self.better,
        }  # fmt: skip

    def find(self, module: Any) -> Mapping[str, Target]:
        """Return the targets in a module, by name."""
        raise NotImplementedError

    def acts(self) -> bool:
        return bool(self._targets)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        super().on_fit_start(trainer, pl_module)
        self._label = label(trainer, self, self.quantity)
        self._targets = dict(self.find(pl_module))
        if not self._targets:
            idle(self, self.nothing, self.strict)
        elif self.mode == "probe" and not callable(getattr(pl_module, "loss", None)):
            raise ValueError(
                f"mode 'probe' of {type(self).__name__} evaluates `module.loss(batch)`, and {type(pl_module).__name__} "
                "has no such method; add one, or choose mode 'ema'"
            )

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        if not self._targets:
            return
        # Values of a checkpoint, or of the fit before on this trainer, come back here and not earlier: some strategies
        # load weights after on_fit_start.
        kept, self.values = self.values, {}
        for name, target in self._targets.items():
            self.values[name] = kept.get(name, target.read())
            if name in kept and not _nearly_equal(kept[name], target.read()):
                target.write(kept[name])
        if self._step == 0:  # a resumed run has told it already
            self._report(trainer)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._batch = batch
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._batch = None

    def on_loss(self, trainer: Any, module: Any, loss: float | None) -> None:
        for name, target in self._targets.items():
            # The value is kept in float64 here; a target that somebody else moved meanwhile is followed.
            present = target.read()
            if not _nearly_equal(present, self.values[name]):
                self.values[name] = present
        if self.mode == "probe":
            factor, direction = math.exp(self._probe(trainer, module)), 1
        else:
            factor, direction = self.factor, self.better * (0 if loss is None else self.trend.observe(loss))
        if self._step <= self.warmup_steps:
            direction = 0
        for name, target in self._targets.items():
            value = self.values[name]
            self.values[name] = moved(value, direction, factor, self.minimum, self.maximum)
            if self.values[name] != value:
                target.write(self.values[name])
        self._report(trainer)

    def _probe(self, trainer: Any, module: Any) -> float:
        """Measure the loss on both sides, and return the step of the logarithm. Collective; every rank agrees."""
        width = self.widths[self.descent.count % len(self.widths)]
        sides = [
            {name: moved(value, sign, width, self.minimum, self.maximum) for name, value in self.values.items()}
            for sign in (1, -1)
        ]

        def write(values: Mapping[str, float]) -> None:
            for name, target in self._targets.items():
                target.write(values[name])

        try:
            above, below = paired_losses(
                trainer, module, self._batch, [lambda values=values: write(values) for values in sides], self._step
            )
        finally:
            write(self.values)
        # A bound may cut one side off: the distance is what was gone, not what was asked for.
        distances = [math.log(sides[0][name] / sides[1][name]) for name in self.values]
        distance = math.fsum(distances) / len(distances)
        return self.descent.step((above - below) / distance if distance else math.nan)

    def _report(self, trainer: Any) -> None:
        distinct = set(self.values.values())
        if len(distinct) == 1:
            log_scalars(trainer, {self._label: distinct.pop()})
        else:
            log_scalars(trainer, {f"{self._label}/{name or 'model'}": value for name, value in self.values.items()})

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._targets = {}

    def state_dict(self) -> dict[str, Any]:
        own = {"descent": self.descent.state_dict()} if self.mode == "probe" else {}
        return own | {"follower": self.trend.state_dict(), "values": dict(self.values)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.trend.load_state_dict(state_dict["follower"])
        if self.mode == "probe":
            self.descent.load_state_dict(state_dict["descent"])
        self.values = dict(state_dict["values"])


def _nearly_equal(a: float, b: float) -> bool:
    """Equal up to what float32 storage of a logarithm loses."""
    return abs(a - b) <= 1e-4 * abs(b)
