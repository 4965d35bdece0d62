"""What `DynamicBase`, `WindowController` and `SpanController` share: a value per target that follows the training loss.

Every `every_n_steps` optimizer steps the mean loss is shown to a `LossFollower`, and every target's value is multiplied
or divided by a factor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

from .loss_callback import Average, LossCallback
from .loss_follower import LossFollower, Mode, moved
from .reporting import idle, label, log_scalars


class Target(Protocol):
    """Something with a positive number that may be read and written in place."""

    def read(self) -> float: ...

    def write(self, value: float) -> None: ...


class LossFollowing(LossCallback):
    """Base of the controllers; a subclass finds the targets and names what it moves.

    Args:
        mode, dead_zone, decay: of the `LossFollower`.
        every_n_steps, average, strict: of the `LossCallback`.
        factor: what a value is multiplied or divided by, > 1.
        minimum, maximum: bounds of the value.
        warmup_steps: optimizer steps during which the reference is built but nothing moves.
        better: +1 where a better loss multiplies, −1 where it divides.

    Raises:
        ValueError: a bad argument, or with `strict` nothing to act on.
    """

    quantity = "value"
    nothing = "nothing to act on"

    def __init__(
        self,
        *,
        mode: Mode,
        every_n_steps: int,
        factor: float,
        minimum: float,
        maximum: float,
        warmup_steps: int,
        dead_zone: float,
        decay: float,
        average: Average,
        better: Literal[1, -1] = 1,
        strict: bool = False,
    ) -> None:
        super().__init__(every_n_steps=every_n_steps, average=average, strict=strict)
        if not factor > 1:
            raise ValueError(f"factor {factor} must be above 1, such as 1.0025; values are multiplied or divided by it")
        if not 0 < minimum < maximum:
            raise ValueError(f"bounds need 0 < minimum < maximum, got {minimum} and {maximum}")
        if warmup_steps < 0:
            raise ValueError(f"warmup_steps {warmup_steps} is negative")
        if better not in (1, -1):
            raise ValueError(f"better {better} must be 1 (a better loss multiplies) or -1 (it divides)")
        self.follower = LossFollower(mode, dead_zone=dead_zone, decay=decay)
        self.factor = factor
        self.minimum, self.maximum = minimum, maximum
        self.warmup_steps = warmup_steps
        self.better = better
        self.values: dict[str, float] = {}
        self._resumed = False
        self._targets: dict[str, Target] = {}
        self._label = self.quantity

    def identity(self) -> dict[str, Any]:
        follower = self.follower
        return {
            "mode": follower.mode, "dead_zone": follower.dead_zone, "decay": follower.decay, "factor": self.factor,
            "every_n_steps": self.every_n_steps, "minimum": self.minimum, "maximum": self.maximum,
            "average": self.average, "better": self.better,
        }  # fmt: skip

    def find(self, module: Any) -> Mapping[str, Target]:
        """The targets in a module, by name."""
        raise NotImplementedError

    def acts(self) -> bool:
        return bool(self._targets)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        super().on_fit_start(trainer, pl_module)
        self._label = label(trainer, self, self.quantity)
        self._targets = dict(self.find(pl_module))
        if not self._targets:
            idle(self, self.nothing, self.strict)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        if not self._targets:
            return
        # Values of a checkpoint come back here and not earlier: some strategies load weights after on_fit_start.
        kept = self.values if self._resumed else {}
        self._resumed = False
        self.values = {}
        for name, target in self._targets.items():
            self.values[name] = kept.get(name, target.read())
            if name in kept and not _same(kept[name], target.read()):
                target.write(kept[name])
        if self._step == 0:  # a resumed run has told it already
            self._report(trainer)

    def on_loss(self, trainer: Any, module: Any, loss: float | None) -> None:
        direction = 0 if loss is None else self.follower.observe(loss)
        if self._step <= self.warmup_steps:
            direction = 0
        for name, target in self._targets.items():
            # The value is kept in float64 here; a target that somebody else moved meanwhile is followed.
            present = target.read()
            value = self.values[name] if _same(present, self.values[name]) else present
            self.values[name] = moved(value, direction * self.better, self.factor, self.minimum, self.maximum)
            if self.values[name] != value:
                target.write(self.values[name])
        self._report(trainer)

    def _report(self, trainer: Any) -> None:
        distinct = set(self.values.values())
        if len(distinct) == 1:
            log_scalars(trainer, {self._label: distinct.pop()})
        else:
            log_scalars(trainer, {f"{self._label}/{name or 'model'}": value for name, value in self.values.items()})

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._targets = {}

    def state_dict(self) -> dict[str, Any]:
        return {"follower": self.follower.state_dict(), "values": dict(self.values)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.follower.load_state_dict(state_dict["follower"])
        self.values = dict(state_dict["values"])
        self._resumed = True


def _same(a: float, b: float) -> bool:
    """Equal up to what float32 storage of a logarithm loses."""
    return abs(a - b) <= 1e-4 * abs(b)
