"""What the package's optimizers share: standard `torch.optim` behaviour around a standing `GroupedStep`."""

from __future__ import annotations

import difflib
import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from cubelet.common.checks import check_at_least
from cubelet.common.sharded_tensors import to_local

from .foreach import CapturableStep, GroupedStep
from .origin import ParameterState
from .updates import UPDATE_RULES

# State that load_state_dict must not cast to the parameters' type, and the part of it that stays on the CPU.
EXACT_STATE = ("step", "beta1_product", "bands", "alpha", "nu", "ring", "row", "col", "exp_avg_sq")
COUNTS = ("step", "beta1_product")
# Settings that are expected to change during a run, so that a checkpoint may have others without a word.
SCHEDULED = {"params", "param_names", "lr", "initial_lr", "betas"}


class GroupedOptimizer(Optimizer):
    """An optimizer whose groups name an update rule (`base`); subclasses bring defaults and check settings."""

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        self._grouped: GroupedStep | None = None
        self._check(defaults)
        super().__init__(params, defaults)
        self.state = defaultdict(ParameterState)

    def _check(self, group: dict[str, Any]) -> None:
        """Raise ValueError for a setting that makes no sense; subclasses add theirs."""
        for key in ("lr", "weight_decay"):
            check_finite(group, key)
        if group["foreach"] and group["fused"]:
            raise ValueError("foreach and fused are two execution paths: set at most one of them to True")
        if group["fused"] and not UPDATE_RULES[group["base"]].has_fused:
            raise ValueError(f"there is no fused kernel for base {group['base']!r}; leave fused at None")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, at any time.

        Raises:
            ValueError: for settings outside their range, and for keys that look like misspelt settings.
            RuntimeError: for sharded parameters whose update needs whole matrices.
        """
        for key in param_group:
            if key not in self.defaults and key not in SCHEDULED:
                close = difflib.get_close_matches(key, self.defaults, 1, cutoff=0.8)
                if close:
                    raise ValueError(
                        f"param group has the key {key!r}, which is no setting; did you mean {close[0]!r}?"
                    )
        self._check({**self.defaults, **param_group})
        super().add_param_group(param_group)
        group, self._grouped = self.param_groups[-1], None
        hidden = group.get("hidden", True)
        for place, param in enumerate(group["params"]):
            if hasattr(param, "to_local"):  # what a rule cannot do with shards is told here, not in the first step
                is_hidden = hidden[place] if isinstance(hidden, Sequence) else hidden
                UPDATE_RULES[group["base"]].rule_for(param, is_hidden).state(param)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_grouped": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._grouped = None
        held = {key: ParameterState(value) if type(value) is dict else value for key, value in self.state.items()}
        self.state = defaultdict(ParameterState, held)
        for group in self.param_groups:
            for key, value in self.defaults.items():
                group.setdefault(key, value)

    def state_dict(self) -> dict[str, Any]:
        """As in torch; each tensor holds its own values only, though in the optimizer many share one memory."""
        saved = super().state_dict()
        saved["state"] = {
            number: {k: own_memory(v) for k, v in state.items()} for number, state in saved["state"].items()
        }
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch, but nothing is shared with the loaded dict, and state that is not of the parameters' type is not
        cast to it, so that a run continues bit for bit.

        Settings that the checkpoint lacks stay as they are; one warning names those that it changes.
        """
        seen: list[dict[str, Any]] = []
        handle = self.register_load_state_dict_pre_hook(lambda _, loaded: seen.append(loaded))
        before = [dict(group) for group in self.param_groups]
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
        saved_groups = seen[0]["param_groups"]
        changes = []
        for number, (group, old, saved) in enumerate(zip(self.param_groups, before, saved_groups, strict=True)):
            self._fill_group(group, old, saved)
            changes += [
                f"{key} {old[key]!r} -> {group[key]!r} (group {number})"
                for key in old.keys() & group.keys() & self.defaults.keys() - SCHEDULED
                if old[key] is not group[key] and old[key] != group[key]
            ]
            self._check(group)
        if changes:
            warnings.warn(f"the loaded state changes settings: {', '.join(sorted(changes))}", stacklevel=2)
        ids = [i for group in saved_groups for i in group["params"]]
        params = [param for group in self.param_groups for param in group["params"]]
        for number, param in zip(ids, params, strict=True):
            for key, value in seen[0]["state"].get(number, {}).items():
                held = self.state[param][key]
                cast = key in EXACT_STATE and isinstance(value, Tensor) and value.dtype != held.dtype
                shared = isinstance(value, Tensor) and value is held  # two optimizers would write into one memory
                if cast or shared:
                    self.state[param][key] = value.detach().to("cpu" if key in COUNTS else param.device, copy=True)
        self._grouped = None

    def _fill_group(self, group: dict[str, Any], old: dict[str, Any], saved: dict[str, Any]) -> None:
        """Settings that a loaded group lacks keep the values they had."""
        for key in old.keys() - saved.keys():
            group[key] = old[key]

    def _new_step(self) -> GroupedStep:
        """Build the standing step anew. Subclasses attach to it what they need."""
        for group in self.param_groups:
            self._check(group)
        capturable = {bool(group.get("capturable")) for group in self.param_groups}
        if len(capturable) > 1:
            raise ValueError("capturable must be the same in all param groups")
        return (CapturableStep if True in capturable else GroupedStep)(self.param_groups, self.state)

    @torch._disable_dynamo  # a compiled step would be compiled again for every count; it runs as it is
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step; return the closure's loss, if there is a closure."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        grads = [param.grad for group in self.param_groups for param in group["params"]]
        tensors = self._grouped
        if tensors is None or not tensors.is_current(grads):
            tensors = self._rebuilt()
        grads = tensors.begin(grads)
        for group in tensors.grouped():
            group.update(grads)
        return loss

    def _rebuilt(self) -> GroupedStep:
        """Build the standing step anew, since something it was built from has changed."""
        tensors = self._new_step()
        tensors.remember()
        self._grouped = tensors
        return tensors


def own_memory(value: Any) -> Any:
    """Return a tensor that is part of a larger memory as a copy, anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    part = to_local(value)
    return value.clone() if part.untyped_storage().nbytes() > part.numel() * part.element_size() else value


def check_finite(group: dict[str, Any], *keys: str) -> None:
    """Raise ValueError for a negative, infinite or NaN setting."""
    for key in keys:
        check_at_least(key, group[key], 0)
        if group[key] == math.inf:
            raise ValueError(f"{key} {group[key]} must be finite")
