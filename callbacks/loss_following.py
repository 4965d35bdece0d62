"""What `DynamicBase`, `WindowController` and `SpanController` share: a value per target that follows the training loss.

Every `every_n_steps` optimizer steps the loss, averaged over micro-batches and over ranks, is shown to a
`LossFollower`, and every target's value is multiplied or divided by a factor. The averaged loss is the same number on
every rank, so replicas decide alike and stay equal without any broadcast. Validation and sanity-check losses never
enter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol, get_args

from lightning.pytorch import Callback

from .loss_follower import LossFollower, Mode, moved
from .reporting import due, idle, label, log_scalars
from .step_loss import StepLoss

Average = Literal["step", "interval"]


class Target(Protocol):
    """Something with a positive number that may be read and written in place."""

    def read(self) -> float: ...

    def write(self, value: float) -> None: ...


class LossFollowing(Callback):
    """Base of the controllers; a subclass finds the targets and names what it moves.

    Args:
        mode, dead_zone, decay: of the `LossFollower`.
        every_n_steps: optimizer steps between two decisions.
        factor: what a value is multiplied or divided by, > 1.
        minimum, maximum: bounds of the value.
        warmup_steps: optimizer steps during which the reference is built but nothing moves.
        average: "step", the loss of the optimizer step at hand (all its micro-batches); "interval", the mean over all
            steps since the last decision, which is less noisy.
        better: +1 where a better loss multiplies, −1 where it divides.
        strict: raise instead of staying idle when there is nothing to act on.

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
        super().__init__()
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps {every_n_steps} must be at least 1")
        if not factor > 1:
            raise ValueError(f"factor {factor} must be above 1, such as 1.0025; values are multiplied or divided by it")
        if not 0 < minimum < maximum:
            raise ValueError(f"bounds need 0 < minimum < maximum, got {minimum} and {maximum}")
        if warmup_steps < 0:
            raise ValueError(f"warmup_steps {warmup_steps} is negative")
        if average not in get_args(Average):
            raise ValueError(f"average {average!r} is unknown; choose one of {', '.join(get_args(Average))}")
        if better not in (1, -1):
            raise ValueError(f"better {better} must be 1 (a better loss multiplies) or -1 (it divides)")
        self.follower = LossFollower(mode, dead_zone=dead_zone, decay=decay)
        self.every_n_steps = every_n_steps
        self.factor = factor
        self.minimum, self.maximum = minimum, maximum
        self.warmup_steps = warmup_steps
        self.average = average
        self.better = better
        self.strict = strict
        self.values: dict[str, float] = {}
        self._resumed = False
        self._targets: dict[str, Target] = {}
        self._loss = StepLoss()
        self._step = 0
        self._label = self.quantity

    @property
    def state_key(self) -> str:
        follower = self.follower
        return self._generate_state_key(
            mode=follower.mode, dead_zone=follower.dead_zone, decay=follower.decay, every_n_steps=self.every_n_steps,
            factor=self.factor, minimum=self.minimum, maximum=self.maximum, average=self.average, better=self.better,
            **self.identity(),
        )  # fmt: skip

    def identity(self) -> dict[str, Any]:
        """Further arguments that tell two instances of a subclass apart."""
        return {}

    def find(self, module: Any) -> Mapping[str, Target]:
        """The targets in a module, by name."""
        raise NotImplementedError

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self._label = label(trainer, self, self.quantity)
        self._targets = dict(self.find(pl_module))
        self._loss.clear()
        if not self._targets:
            idle(self, self.nothing, self.strict)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if not self._targets:
            return
        self._step = trainer.global_step
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

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not self._targets:
            return
        self._loss.add(trainer, pl_module, outputs)
        before, self._step = self._step, trainer.global_step
        if before == self._step:  # in the middle of an accumulation window
            return
        if due(before, self._step, self.every_n_steps):
            self._decide(trainer, pl_module)
        elif self.average == "step":
            self._loss.clear()

    def _decide(self, trainer: Any, module: Any) -> None:
        loss = self._loss.mean(trainer, module.device)
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
        self._loss.clear()

    def state_dict(self) -> dict[str, Any]:
        return {"follower": self.follower.state_dict(), "values": dict(self.values), "step": self._step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.follower.load_state_dict(state_dict["follower"])
        self.values = dict(state_dict["values"])
        self._step = state_dict["step"]
        self._resumed = True


def _same(a: float, b: float) -> bool:
    """Equal up to what float32 storage of a logarithm loses."""
    return abs(a - b) <= 1e-4 * abs(b)
