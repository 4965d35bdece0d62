"""The standing plan of FAM's step: which tensors are updated together, with everything precomputed that can be.

A small model's step takes microseconds per tensor, so nothing is looked up twice: tensors are put into buckets of equal
settings and equal α' once, and again only when the set of tensors with gradients, or an α', changes. Step counts and
products of α' live in CPU tensors that NumPy shares, so that counting costs one call and no host reads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .analysis import Pack, reduce_over_shards
from .bases import UPDATES
from .entries import Entry, local
from .updates import Call

# State that load_state_dict must not cast to the parameters' type, and the part of it that stays on the CPU.
EXACT_STATE = ("step", "beta1_product", "bands", "alpha", "ring", "row", "col", "exp_avg_sq")
COUNTS = ("step", "beta1_product")


def names_of(group: dict[str, Any], number: int) -> list[str]:
    """The parameters' qualified names, or, in unnamed groups, their places."""
    return group.get("param_names") or [f"group{number}.{i}" for i in range(len(group["params"]))]


class Bucket:
    """Tensors that one call updates: same group, α', device and type; with bias correction also same history."""

    def __init__(self, plan: Plan, group: dict[str, Any], alpha: float | None, indices: list[int]) -> None:
        self.plan, self.group, self.alpha, self.indices = plan, group, alpha, indices
        self.base = UPDATES[group["base"]]
        self.where = np.array(indices)
        self.plain = all(plan.entry(i).plain for i in indices)
        self.params, self.state = self._tensors()
        first = self.params[0]
        fused, foreach = group["fused"], group["foreach"]
        wanted = fused or (fused is None and foreach is None)
        self.fuse = bool(wanted and self.base.can_fuse(first.dtype, first.device))
        self.fallback = self.base.single if foreach is False and not fused else self.base.foreach
        # A kernel that ignores strides is right only where parameter, gradient and state all have the same ones.
        self.strides = [param.stride() for param in self.params]
        if self.fuse and any(b.stride() != s for list_ in self.state.values() for b, s in zip(list_, self.strides)):  # noqa: B905
            self.fuse = False

    def _tensors(self) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
        plan = self.plan
        state = {key: [local(plan.states[i][key]) for i in self.indices] for key in self.base.keys}
        return [plan.entry(i).tensor() for i in self.indices], state

    def run(self, grads: list[Tensor], lr: float) -> None:
        group, plan = self.group, self.plan
        params, state = (self.params, self.state) if self.plain else self._tensors()
        alpha = float(group.get("alpha", 0.0)) if self.alpha is None else self.alpha
        call = Call(group, lr, alpha)
        if self.base.tracks_step:
            call.step = int(plan.steps[self.indices[0]])
        if self.base.tracks_product:
            plan.products[self.where] *= alpha
            call.product = float(plan.products[self.indices[0]])
        if not self.fuse:
            self.fallback(params, grads, state, call)
            return
        other = [k for k, (grad, stride) in enumerate(zip(grads, self.strides, strict=True)) if grad.stride() != stride]
        if other:
            odd = set(other)
            for update, chosen in (
                (self.fallback, other),
                (self.base.fused, [k for k in range(len(grads)) if k not in odd]),
            ):
                if chosen:
                    part = {key: [tensors[k] for k in chosen] for key, tensors in state.items()}
                    update([params[k] for k in chosen], [grads[k] for k in chosen], part, call)
            return
        self.base.fused(params, grads, state, call)


class Plan:
    """Everything `FAM.step` needs, rebuilt when tensors appear or the state is replaced.

    Args:
        groups: the optimizer's param groups.
        state: the optimizer's state; missing entries are created for tensors that have a gradient.
    """

    def __init__(self, groups: list[dict[str, Any]], state: Any) -> None:
        self.groups = groups
        self.params = [param for group in groups for param in group["params"]]
        self.entries: list[Entry | None] = []
        self.states: list[dict[str, Any]] = []
        for number, group in enumerate(groups):
            for name, param in zip(names_of(group, number), group["params"], strict=True):
                tracked = param.grad is not None or bool(state.get(param))
                self.entries.append(Entry(param, number, name, group.get("axis", "index")) if tracked else None)
                self.states.append(state[param] if tracked else {})
        self._fill_state()
        self._share_counts()
        self.packs = self._packs()
        self.alphas = self._known_alphas()
        self.mask: list[bool] = []
        self.buckets: list[Bucket] = []

    def entry(self, index: int) -> Entry:
        entry = self.entries[index]
        assert entry is not None
        return entry

    def tracked(self) -> list[int]:
        """The numbers of the tensors that have state."""
        return [i for i, entry in enumerate(self.entries) if entry is not None]

    def _fill_state(self) -> None:
        for i in self.tracked():
            entry, state = self.entry(i), self.states[i]
            group = self.groups[entry.group]
            fresh = UPDATES[group["base"]].state(entry.parameter)
            fresh["step"] = torch.tensor(0.0)
            if UPDATES[group["base"]].tracks_product:
                fresh["beta1_product"] = torch.tensor(1.0, dtype=torch.float64)
            if "min_size" in group and 0 < entry.parameter.numel() >= group["min_size"]:
                fresh.update(Pack.state(group, entry.tensor().device))
            for key, value in fresh.items():
                state.setdefault(key, value)

    def _share_counts(self) -> None:
        """Moves step counts and products into one CPU tensor each, shared with NumPy."""
        count = len(self.params)
        self.packed_steps = torch.zeros(count)
        self.packed_products = torch.ones(count, dtype=torch.float64)
        self.steps: np.ndarray = self.packed_steps.numpy()
        self.products: np.ndarray = self.packed_products.numpy()
        for i in self.tracked():
            state = self.states[i]
            self.packed_steps[i] = float(state["step"])
            state["step"] = self.packed_steps[i]
            if "beta1_product" in state:
                self.packed_products[i] = float(state["beta1_product"])
                state["beta1_product"] = self.packed_products[i]

    def _packs(self) -> list[Pack]:
        members: dict[Any, list[int]] = {}
        for i in sorted(self.tracked(), key=lambda i: self.entry(i).geometry[0]):
            if "bands" in self.states[i]:
                entry = self.entry(i)
                key = (entry.group, self.states[i]["bands"].device, entry.process_groups)
                members.setdefault(key, []).append(i)
        return [
            Pack(self.groups[key[0]], numbers, [self.entry(i) for i in numbers], [self.states[i] for i in numbers])
            for key, numbers in members.items()
        ]

    def _known_alphas(self) -> list[float | None]:
        """α' of the tensors already analysed; None (the group's α) for all others."""
        alphas: list[float | None] = [None] * len(self.params)
        for pack in self.packs:
            if (self.steps[pack.members] > pack.group["start_step"]).any():
                decided = (pack.packed["bands"].sum(-1) > 0).tolist()
                for member, known, alpha in zip(pack.members, decided, pack.packed["alpha"].tolist(), strict=True):
                    alphas[member] = alpha if known else None
        return alphas

    def fits(self, grads: list[Tensor | None]) -> bool:
        """Whether every tensor that has a gradient is tracked."""
        return all(grad is None or entry is not None for grad, entry in zip(grads, self.entries, strict=True))

    def run(self, grads: list[Tensor | None]) -> None:
        """One step: count, analyse what is due, update."""
        mask = [grad is not None for grad in grads]
        if mask != self.mask:
            self.mask, self.buckets = mask, []
            self.active = np.array(mask, dtype=bool)
        real = [None if g is None else self.entry(i).gradient(g) for i, g in enumerate(grads)]
        self.steps += self.active
        if self._analyse(real) or not self.buckets:
            self.buckets = self._make_buckets()
        lrs = [float(group["lr"]) for group in self.groups]
        numbers = {id(group): number for number, group in enumerate(self.groups)}
        for bucket in self.buckets:
            chosen = [real[i] for i in bucket.indices]
            bucket.run(chosen, lrs[numbers[id(bucket.group)]])  # type: ignore[arg-type]

    def _make_buckets(self) -> list[Bucket]:
        members: dict[Any, list[int]] = {}
        for i in np.flatnonzero(self.active).tolist():
            entry = self.entry(i)
            tensor = entry.tensor()
            if tensor.numel() == 0:
                continue
            key = (entry.group, self.alphas[i], tensor.device, tensor.dtype)
            base = UPDATES[self.groups[entry.group]["base"]]
            key += (float(self.steps[i]),) if base.tracks_step else ()
            key += (float(self.products[i]),) if base.tracks_product else ()
            members.setdefault(key, []).append(i)
        return [Bucket(self, self.groups[key[0]], key[1], indices) for key, indices in members.items()]

    def _analyse(self, grads: list[Any]) -> bool:
        """Analyses what is due. Returns whether any α' changed. At most one host read."""
        jobs: list[tuple[Pack, list[int], Tensor]] = []
        for pack in self.packs:
            steps = self.steps[pack.members]
            active = self.active[pack.members]
            rows = self._rows(pack.records, steps, active)
            if rows:
                pack.record(rows, steps[rows], pack.windows(rows, [grads[pack.members[row]] for row in rows]))
            rows = self._rows(pack.due, steps, active)
            if rows:
                along_time = pack.group["axis"] == "time"
                windows = None if along_time else pack.windows(rows, [grads[pack.members[row]] for row in rows])
                jobs.append((pack, rows, pack.magnitudes(rows, windows)))
        if not jobs:
            return False
        reduced = reduce_over_shards([(pack, magnitudes) for pack, _, magnitudes in jobs])
        chosen = [pack.update(rows, sums) for (pack, rows, _), sums in zip(jobs, reduced, strict=True)]
        values = iter(torch.cat([alpha.to(chosen[0].device) for alpha in chosen]).tolist())
        before = list(self.alphas)
        for pack, rows, _ in jobs:
            for row in rows:
                self.alphas[pack.members[row]] = next(values)
        return before != self.alphas

    @staticmethod
    def _rows(rule: Callable[[np.ndarray], np.ndarray], steps: np.ndarray, active: np.ndarray) -> list[int]:
        return np.flatnonzero(rule(steps) & active).tolist()
