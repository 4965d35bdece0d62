"""ParameterCycler: one parameter, or one named group, of a chosen set learns at a time.

It is a regulariser and an instrument, not a speed-up: the backward pass still computes every gradient, and each member
gets only its share of the updates.

Default `mode="grad"`: after backward and reduction, before clipping and the optimizer, the idle members' `.grad`
becomes None. Momentum and weight decay then skip them, so they do not move at all; `requires_grad` stays as it is, so
DDP (static graphs too), FSDP2, accumulation and compiled models see nothing unusual. `mode="requires_grad"` freezes
idle members instead, which saves their gradients' computation where it is right: on one device, eager, or DDP with
`find_unused_parameters=True`. Elsewhere it refuses.
"""

from __future__ import annotations

from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from cubelet.common.checks import check_at_least, check_choice

from ..base import StatefulCallback
from ..reporting import due, idle, label, log_histogram, log_scalars, log_text
from .members import Cycle, Member, Patterns, cycles, find_members, refusal
from .order import Order, turn_of

CycleMode = Literal["grad", "requires_grad"]


class ParameterCycler(StatefulCallback):
    """One member of a set of parameters learns at a time; parameters outside the set learn as always.

    Turns advance with optimizer steps, never with micro-batches or validation. With several optimizers each has a cycle
    over the members that it owns, so none is ever left without an active parameter. Parameters that the user froze are
    never members and never thawed. Logs every `trainer.log_every_n_steps` the mean index of the members that had their
    turn since the last time (`cycler`; a single look would show only those that the interval happens to meet), the
    histogram of these turns to loggers that take them, and once the table of indices and names.

    Args:
        patterns: what takes turns; see `find_members`: patterns of parameter names (parts, globs, regular
            expressions), module types, or a mapping of group names to these.
        order: `round_robin`, `random`, or `permutation` (drawn anew per cycle); see `turn_of`.
        every_n_steps: optimizer steps per turn.
        mode: `grad` or `requires_grad`, see this module's docstring.
        seed: of the random orders; the same on every rank, independent of the global generator.
        strict: raise instead of staying idle when the patterns select nothing.

    Raises:
        ValueError: a bad argument; at fit start, with `strict` and nothing selected.
        RuntimeError: at fit start, a strategy under which the mode would be wrong.

    Example:
        >>> callback = ParameterCycler({"early": "blocks.0", "late": "blocks.1"}, order="permutation")
    """

    def __init__(
        self,
        patterns: Patterns,
        *,
        order: Order = "round_robin",
        every_n_steps: int = 1,
        mode: CycleMode = "grad",
        seed: int = 0,
        strict: bool = False,
    ) -> None:
        super().__init__()
        check_choice("order", order, Order)
        check_at_least("every_n_steps", every_n_steps, 1)
        check_choice("mode", mode, CycleMode)
        self.patterns = patterns
        self.order: Order = order
        self.every_n_steps = every_n_steps
        self.mode: CycleMode = mode
        self.seed = seed
        self.strict = strict
        self._steps: list[int] = []
        self._names: list[list[str]] = []
        self._cycles: list[Cycle] = []
        self._turns: list[int] = []
        self._past: list[list[int]] = []  # turns since they were logged, of each cycle
        self._place: dict[int, int] = {}
        self._pending: tuple[int, int] | None = None
        self._frozen: list[nn.Parameter] = []
        self._candidates: list[nn.Parameter] = []
        self._known: set[int] = set()
        self._trainable = (0, 0)
        self._step = 0
        self._label = "cycler"

    def identity(self) -> dict[str, Any]:
        return {
            "patterns": str(self.patterns),
            "order": self.order,
            "every_n_steps": self.every_n_steps,
            "mode": self.mode,
            "seed": self.seed,
        }

    def active(self, optimizer: int = 0) -> str | None:
        """Return the name of the member that learns in the coming step of an optimizer; None when it has none."""
        if optimizer >= len(self._cycles) or not self._cycles[optimizer].members:
            return None
        return self._cycles[optimizer].members[self._turns[optimizer]].name

    def _turn(self, which: int) -> int:
        size = len(self._cycles[which].members)
        return turn_of(self._steps[which] // self.every_n_steps, size, self.order, self.seed, which) if size else 0

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self._label = label(trainer, self, "cycler")
        self._candidates = [p for m in find_members(pl_module, self.patterns, frozen=True) for p in m.parameters]
        members = find_members(pl_module, self.patterns)
        if not self._candidates:
            idle(self, f"no trainable parameter matches {self.patterns!r}", self.strict)
            return
        reason = refusal(trainer.strategy, pl_module, self.mode)
        if reason is not None:
            raise RuntimeError(f"ParameterCycler(mode={self.mode!r}) cannot work here: {reason}")
        self._place = {id(optimizer): i for i, optimizer in enumerate(trainer.optimizers)}
        before = self._names
        self._set_members(trainer, members)
        if not members:
            idle(self, f"all parameters that match {self.patterns!r} are frozen until somebody thaws them", self.strict)
        elif not any(cycle.members for cycle in self._cycles):
            idle(self, f"no optimizer owns any of the {len(members)} parameters it found", self.strict)
        if before and before != self._names:
            rank_zero_warn(
                "ParameterCycler: the checkpoint's members differ from this model's; turns go on over the new ones"
            )
        self._pending = None

    def _set_members(self, trainer: Any, members: list[Member]) -> None:
        self._cycles = cycles(members, trainer.optimizers)
        self._names = [[member.name for member in cycle.members] for cycle in self._cycles]
        self._steps = (self._steps + [0] * len(self._names))[: len(self._names)]
        self._turns = [self._turn(which) for which in range(len(self._names))]
        self._past = (self._past + [[] for _ in self._names])[: len(self._names)]
        self._known = {id(p) for cycle in self._cycles for member in cycle.members for p in member.parameters}
        self._trainable = self._count(trainer)

    def _count(self, trainer: Any) -> tuple[int, int]:
        """How many candidates are trainable outside the cycles, and how many parameters the optimizers own."""
        outside = sum(p.requires_grad and id(p) not in self._known for p in self._candidates)
        return outside, sum(len(g["params"]) for o in trainer.optimizers for g in o.param_groups) if outside else 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._step = trainer.global_step
        if not self._cycles:
            return
        # Strategies that shard load a checkpoint, and with it the number of steps, after on_fit_start.
        self._turns = [self._turn(which) for which in range(len(self._cycles))]
        self._log_table(trainer)

    def _log_table(self, trainer: Any) -> None:
        table = "\n\n".join(
            "\n".join([f"optimizer {i}", "", "| index | member |", "| --- | --- |", *rows])
            for i, names in enumerate(self._names)
            if (rows := [f"| {j} | {name} |" for j, name in enumerate(names)])
        )
        log_text(trainer, f"{self._label}/members", table)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        # Parameters that were thawed meanwhile (BackboneFinetuning) join; a look at each candidate costs nanoseconds.
        if self._cycles and self._count(trainer) != self._trainable:
            self._set_members(trainer, find_members(pl_module, self.patterns))
            self._log_table(trainer)
        for which, cycle in enumerate(self._cycles):
            self._turns[which] = cycle.next_trainable(self._turns[which])
        # Turns move at the end of optimizer steps only, so the frozen set changes where a window of accumulation opens.
        if self.mode == "requires_grad":
            self._frozen = [parameter for parameter in self._idle() if parameter.requires_grad]
            for parameter in self._frozen:
                parameter.requires_grad_(False)

    def _idle(self) -> list[nn.Parameter]:
        return [
            p for cycle, turn in zip(self._cycles, self._turns, strict=True) if cycle.members for p in cycle.idle[turn]
        ]

    def _thaw(self) -> None:
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        self._frozen = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        which = self._place.get(id(getattr(optimizer, "optimizer", optimizer)))
        if which is None or not self._cycles[which].members:
            return
        # This hook runs before the step, and several times in a step whose closure does (LBFGS): a step counts when the
        # trainer has counted it.
        if self._pending not in (None, (which, trainer.global_step)):
            self._advance()
        self._pending = (which, trainer.global_step)
        for parameter in self._cycles[which].idle[self._turns[which]]:
            parameter.grad = None

    def _advance(self) -> None:
        assert self._pending is not None
        which, _ = self._pending
        self._pending = None
        self._steps[which] += 1
        if self._steps[which] % self.every_n_steps == 0:
            self._turns[which] = self._turn(which)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._thaw()  # between batches the parameters are as the user wants them, who may freeze some just then
        if self._pending is None or self._pending[1] == trainer.global_step:
            return
        self._past[self._pending[0]].append(self._turns[self._pending[0]])
        if due(self._step, trainer.global_step, trainer.log_every_n_steps):
            self._log_turns(trainer)
        self._step = trainer.global_step
        self._advance()

    def _log_turns(self, trainer: Any) -> None:
        past = {i: turns for i, turns in enumerate(self._past) if turns}
        single = sum(bool(cycle.members) for cycle in self._cycles) == 1
        names = {i: self._label if single else f"{self._label}/{i}" for i in past}
        log_scalars(trainer, {names[i]: sum(turns) / len(turns) for i, turns in past.items()})
        for i, turns in past.items():
            log_histogram(trainer, f"{names[i]}/turns", turns)
        self._past = [[] for _ in self._past]

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._thaw()
        self._cycles, self._turns, self._place = [], [], {}
        self._candidates, self._known = [], set()
        self._pending = None

    def state_dict(self) -> dict[str, Any]:
        past = [list(turns) for turns in self._past]
        return {"steps": list(self._steps), "members": [list(names) for names in self._names], "past": past}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._steps = list(state_dict["steps"])
        self._names = [list(names) for names in state_dict["members"]]
        self._past = [list(turns) for turns in state_dict.get("past", [])]  # 0.1.0 kept none
