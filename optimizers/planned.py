"""What the package's optimizers share: standard `torch.optim` behaviour around a `Plan` of grouped updates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from .bases import UPDATES
from .capturable import CapturablePlan
from .plan import COUNTS, EXACT_STATE, Plan


class PlannedOptimizer(Optimizer):
    """An optimizer whose groups name an update (`base`); subclasses bring defaults and check settings."""

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        self._plan: Plan | None = None
        self._check(defaults)
        super().__init__(params, defaults)

    def _check(self, group: dict[str, Any]) -> None:
        raise NotImplementedError

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, at any time. Raises ValueError for settings outside their range."""
        self._check({**self.defaults, **param_group})
        super().add_param_group(param_group)
        self._plan = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._plan = None
        for group in self.param_groups:
            for key, value in self.defaults.items():
                group.setdefault(key, value)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch, but nothing is shared with the loaded dict, and state that is not of the parameters' type is not
        cast to it, so that a run goes on bit for bit."""
        seen: list[dict[str, Any]] = []
        handle = self.register_load_state_dict_pre_hook(lambda _, loaded: seen.append(loaded))
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
        ids = [i for group in seen[0]["param_groups"] for i in group["params"]]
        params = [param for group in self.param_groups for param in group["params"]]
        for number, param in zip(ids, params, strict=True):
            for key, value in seen[0]["state"].get(number, {}).items():
                held = self.state[param][key]
                cast = key in EXACT_STATE and isinstance(value, Tensor) and value.dtype != held.dtype
                shared = isinstance(value, Tensor) and value is held  # two optimizers would write into one memory
                if cast or shared:
                    self.state[param][key] = value.detach().to("cpu" if key in COUNTS else param.device, copy=True)

    def _new_plan(self) -> Plan:
        capturable = {bool(group.get("capturable")) for group in self.param_groups}
        if len(capturable) > 1:
            raise ValueError("capturable must be the same in all param groups")
        return (CapturablePlan if True in capturable else Plan)(self.param_groups, self.state)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One optimizer step; returns the closure's loss, if there is a closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        plan = self._plan
        if plan is None or plan.is_stale(self.state):
            plan = self._plan = self._new_plan()
        grads = [param.grad for param in plan.params]
        if not plan.fits(grads):
            plan = self._plan = self._new_plan()
        plan.run(grads)
        return loss


def check_not_negative(group: dict[str, Any], *keys: str) -> None:
    """Raises ValueError for a negative (or NaN) setting."""
    for key in keys:
        if not group[key] >= 0:
            raise ValueError(f"{key} must not be negative, got {group[key]}")


def check_paths(group: dict[str, Any]) -> None:
    """Raises ValueError for execution paths that exclude each other or do not exist."""
    if group["foreach"] and group["fused"]:
        raise ValueError("foreach and fused are two execution paths: set at most one of them to True")
    if group["fused"] and not UPDATES[group["base"]].has_fused:
        raise ValueError(f"there is no fused kernel for base {group['base']!r}; leave fused at None")
