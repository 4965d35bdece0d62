"""Members of a cycle: from patterns, types or given groups to the parameters that take turns, per optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.optim import Optimizer

from cubelet.common.lightning_internals import is_compiled

from ..module_search import clean_name, match_names, named_modules

Chosen = str | type | Sequence[str | type]
Patterns = Chosen | Mapping[str, Chosen]


@dataclass
class Member:
    """Parameters that learn together, under one name."""

    name: str
    parameters: list[nn.Parameter]


@dataclass
class Cycle:
    """The members that one optimizer owns, and for each member what is idle while it learns."""

    members: list[Member]
    idle: list[list[nn.Parameter]] = field(init=False)

    def __post_init__(self) -> None:
        everything = {id(p): p for member in self.members for p in member.parameters}
        self.idle = [
            [p for key, p in everything.items() if key not in {id(q) for q in member.parameters}]
            for member in self.members
        ]

    def next_trainable(self, turn: int) -> int:
        """The turn itself, or the next one whose member the user has not frozen meanwhile; itself if all are frozen."""
        for place in range(turn, turn + len(self.members)):
            if any(p.requires_grad for p in self.members[place % len(self.members)].parameters):
                return place % len(self.members)
        return turn


def named_parameters(module: nn.Module, frozen: bool = False) -> dict[str, nn.Parameter]:
    """Return the parameters that the user left trainable, or all, by clean name; shared ones once."""
    return {clean_name(name): p for name, p in module.named_parameters() if frozen or p.requires_grad}


def as_list(patterns: Chosen) -> list[str | type]:
    return [patterns] if isinstance(patterns, str | type) else list(patterns)


def find_members(module: nn.Module, patterns: Patterns, *, frozen: bool = False) -> list[Member]:
    """Return the members of the cycle in a module.

    Args:
        module: whose trainable parameters are looked at; frozen ones never become members.
        patterns: a pattern or a list of them, each selected parameter being a member of its own. A pattern is a part of
            a parameter's name, a glob over the whole name, a regular expression where it matches nothing otherwise, a
            module class, or "type:Name" for a class (or base class) by name: all parameters of such modules. A mapping
            from names to patterns makes each of its entries one member.

        frozen: look at frozen parameters, too: those that may become members when they are thawed.

    Raises:
        ValueError: a parameter that stands in two groups of a mapping.
    """
    parameters = named_parameters(module, frozen)
    if not isinstance(patterns, Mapping):
        return [Member(name, [parameters[name]]) for name in _select(module, parameters, as_list(patterns))]
    members, owner = [], {}
    for group, chosen in patterns.items():
        names = _select(module, parameters, as_list(chosen))
        for name in names:
            if name in owner:
                raise ValueError(
                    f"parameter {name} stands in two groups, {owner[name]!r} and {group!r}; give it to one"
                )
            owner[name] = group
        if names:
            members.append(Member(group, [parameters[name] for name in names]))
    return members


def _select(module: nn.Module, parameters: dict[str, nn.Parameter], patterns: Iterable[str | type]) -> list[str]:
    chosen: set[str] = set()
    for pattern in patterns:
        if isinstance(pattern, str) and not pattern.startswith("type:"):
            chosen.update(match_names(pattern, parameters))
            continue
        inside = {
            id(p) for _, submodule in named_modules(module) if _is_a(submodule, pattern) for p in submodule.parameters()
        }
        chosen.update(name for name, p in parameters.items() if id(p) in inside)
    return [name for name in parameters if name in chosen]


def _is_a(module: nn.Module, pattern: str | type) -> bool:
    if isinstance(pattern, type):
        return isinstance(module, pattern)
    return pattern.removeprefix("type:") in {kind.__name__ for kind in type(module).__mro__}


def cycles(members: list[Member], optimizers: Sequence[Optimizer]) -> list[Cycle]:
    """Return one cycle per optimizer, over the members (or parts of members) that it owns; possibly empty.

    With a cycle of its own every optimizer keeps at least one of its parameters active at any time.
    """
    result = []
    for optimizer in optimizers:
        owned: set[int] = {id(p) for group in optimizer.param_groups for p in group["params"]}
        parts = [Member(m.name, [p for p in m.parameters if id(p) in owned]) for m in members]
        result.append(Cycle([part for part in parts if part.parameters]))
    return result


def refusal(strategy: Any, module: Any, mode: str) -> str | None:
    """Return why `mode` would be wrong under a strategy, with the fix; None where it is right.

    Strategies are told apart by class name and by what the wrapped model says, never by class, since projects on
    `pytorch_lightning` have other classes.
    """
    names = {kind.__name__ for kind in type(strategy).__mro__}
    if "DeepSpeedStrategy" in names:
        return "DeepSpeed applies gradients itself and ignores what a callback does to `.grad`: use DDP or FSDP2"
    if mode == "grad":
        return None
    fix = 'use mode="grad", which is right everywhere'
    if _compiled(module):
        return f"flipping requires_grad recompiles a compiled model at every turn: {fix}"
    if "SingleDeviceStrategy" in names:
        return None
    wrapped = getattr(strategy, "model", None)
    if getattr(wrapped, "static_graph", False):
        return f"DDP with static_graph=True records which gradients arrive once and for all: {fix}"
    if getattr(wrapped, "find_unused_parameters", False):
        return None
    return (
        f"{type(strategy).__name__} prepares gradient reduction for the parameters that are trainable when it wraps "
        f"the model, and flipping requires_grad afterwards loses reductions: {fix}, or DDP with "
        "find_unused_parameters=True"
    )


def _compiled(module: Any) -> bool:
    return is_compiled(module) or any(
        "_orig_mod" in submodule._modules or getattr(submodule, "_compiled_call_impl", None) is not None
        for submodule in module.modules()
    )
