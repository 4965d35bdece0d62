"""What a standing step was built from, compared in every step with what is there.

Anyone may change it between steps: pruning, resized vocabularies, trainers that move state. All of it is compared, not
a sample. Within a step, whose kernels have emptied the caches, the cost is that of the objects looked at, so state
dicts tell of changes themselves, and are opened only after one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from operator import is_, itemgetter
from typing import Any, ClassVar

from torch import Tensor
from torch.overrides import TorchFunctionMode

# Settings that a group sets once: those on which the update depends, and all others that a step is built from. Rates,
# weight decay, α, β₂ and ν may change in every step and are looked at separately.
UPDATE_SETTINGS = (
    "base", "decoupled_weight_decay", "maximize", "eps", "beta2_decay", "gamma", "d", "foreach", "fused", "capturable",
)  # fmt: skip
FIXED_SETTINGS = (
    *UPDATE_SETTINGS, "hidden", "nesterov", "handler", "n_bands", "rule", "axis", "history", "start_step",
    "analyse_every", "beta", "min_size",
)  # fmt: skip
_numbers = itertools.count(1)


class ParameterState(dict[str, Any]):
    """The state of one parameter: a dict that tells when an entry is set or removed.

    `changes` is another number after a change of any such dict of the process.
    """

    changes: ClassVar[int] = 0


def _telling(name: str) -> Callable[..., Any]:
    method = getattr(dict, name)

    def change(self: ParameterState, *args: Any, **kwargs: Any) -> Any:
        ParameterState.changes = next(_numbers)
        return method(self, *args, **kwargs)

    return change


for _name in ("__setitem__", "__delitem__", "__ior__", "clear", "pop", "popitem", "setdefault", "update"):
    setattr(ParameterState, _name, _telling(_name))


class DifferentTensorsError(Exception):
    """Two tensors, not one and the same, were compared."""


class DifferentTensors(TorchFunctionMode):
    """Within it every operation on tensors, `==` too, raises DifferentTensorsError."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise DifferentTensorsError


class Origin:
    """Parameters, their layout, state dicts, what these hold, and settings, as they are now.

    Lists and dicts are compared as wholes: Python asks for `==` only where two objects are not one and the same, so a
    `==` of tensors is a difference found. That is several times as fast as an `is` for each of them.

    Args:
        groups: the optimizer's param groups.
        state: the optimizer's state.
        plain: the parameters whose layout counts.
    """

    def __init__(self, groups: list[dict[str, Any]], state: Mapping[Any, Any], plain: list[Tensor]) -> None:
        self.groups, self.state, self.plain = groups, state, plain
        self.read_settings = itemgetter(*[key for key in FIXED_SETTINGS if key in groups[0]])
        self.parameters = [[*group["params"]] for group in groups]
        self.states = dict(state)
        self.contents = [*map(dict, self.states.values())]
        self.all_tell = all(isinstance(held, ParameterState) for held in self.states.values())
        self.changes = ParameterState.changes
        self.layout = self._layout()

    def _layout(self) -> list[Any]:
        """Strides and numbers of entries, which together give the sizes, and the settings."""
        plain = self.plain
        return [*map(Tensor.stride, plain), *map(Tensor.numel, plain), *map(self.read_settings, self.groups)]

    def _same_objects(self) -> bool:
        states, changes = self.state.values(), ParameterState.changes
        if not (
            [group["params"] for group in self.groups] == self.parameters
            and self.state == self.states
            and all(map(is_, states, self.states.values()))
        ):
            return False
        if not self.all_tell or changes != self.changes:
            if [*states] != self.contents:
                return False
            self.changes = changes
        return True

    def is_current(self) -> bool:
        """Whether all of it is still there, unchanged."""
        try:
            with DifferentTensors():
                same = self._same_objects()
        except (DifferentTensorsError, ValueError):  # the latter from arrays that somebody keeps in the state
            return False
        return same and self._layout() == self.layout
