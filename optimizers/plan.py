"""The standing plan of FAM's step: which tensors are updated together, with everything precomputed that can be.

A small model's step takes microseconds per tensor, so nothing is looked up twice: tensors are put into buckets of equal
settings and equal α' once, and again only when the set of tensors with gradients, or an α', changes. Step counts and
products of α' live in CPU tensors that NumPy shares, so that counting costs one call and no host reads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .analysis import SETTINGS, Pack, analysis_settings, reduce_over_shards
from .bases import UPDATES
from .entries import Entry, local
from .spectra import index_spectrum, stack_windows, time_spectrum
from .updates import Call

# State that load_state_dict must not cast to the parameters' type, and the part of it that stays on the CPU.
EXACT_STATE = ("step", "beta1_product", "bands", "alpha", "ring", "row", "col", "exp_avg_sq")
COUNTS = ("step", "beta1_product")


def names_of(group: dict[str, Any], number: int) -> list[str]:
    """The parameters' qualified names, or, in unnamed groups, their places."""
    return group.get("param_names") or [f"group{number}.{i}" for i in range(len(group["params"]))]


# What groups set once. Learning rate and weight decay may change every step and are looked at separately.
FIXED_SETTINGS = (
    *SETTINGS, "base", "decoupled_weight_decay", "maximize", "beta2", "eps", "beta2_decay", "gamma", "d", "foreach",
    "fused",
)  # fmt: skip


def fixed_settings(group: dict[str, Any]) -> tuple[Any, ...]:
    """All settings of a group but its learning rate and weight decay."""
    return tuple(map(group.get, FIXED_SETTINGS))


class Bucket:
    """Tensors that one call updates: same settings, α', device and type; with bias correction also same history."""

    def __init__(self, plan: Plan, number: int, alpha: float, indices: list[int]) -> None:
        self.plan, self.number, self.alpha, self.indices = plan, number, alpha, indices
        self.group = group = plan.groups[number]
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
        plan = self.plan
        params, state = (self.params, self.state) if self.plain else self._tensors()
        call = Call(self.group, lr, self.alpha)
        if self.base.tracks_step:
            call.step = int(plan.steps[self.indices[0]])
        if self.base.tracks_product:
            plan.products[self.where] *= self.alpha
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
        self.tracked_numbers = self.tracked()
        self._fill_state()
        self._share_counts()
        self.packs = self._packs()
        self.settings = [fixed_settings(group) for group in groups]
        # The same number for groups that update alike; settings that only the analysis looks at need not be equal.
        alike = [settings[len(SETTINGS) :] for settings in self.settings]
        self.kinds = [alike.index(settings) for settings in alike]
        self.rates: list[int] = []
        self.alphas = self._known_alphas()
        self.mask: list[bool] = []
        self.common_step: int | None = None  # of all tensors, while all have gradients and equal counts
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
                settings = analysis_settings(self.groups[entry.group])
                members.setdefault((settings, self.states[i]["bands"].device, entry.process_groups), []).append(i)
        packs = []
        for numbers in members.values():
            group = self.groups[self.entry(numbers[0]).group]
            packs.append(Pack(group, numbers, [self.entry(i) for i in numbers], [self.states[i] for i in numbers]))
        return packs

    def _known_alphas(self) -> list[float | None]:
        """α' of the tensors already analysed; None (the group's α) for all others."""
        alphas: list[float | None] = [None] * len(self.params)
        for pack in self.packs:
            if (self.steps[pack.members] > pack.group["start_step"]).any():
                decided = (pack.packed["bands"].sum(-1) > 0).tolist()
                for member, known, alpha in zip(pack.members, decided, pack.packed["alpha"].tolist(), strict=True):
                    alphas[member] = alpha if known else None
        return alphas

    def is_stale(self, state: Any) -> bool:
        """Whether somebody put other parameters into the groups, or other dicts into the state (as trainers that move
        optimizers between devices do), since this plan was made."""
        if len(self.params) != sum(len(group["params"]) for group in self.groups):
            return True
        return any(state[self.params[i]] is not self.states[i] for i in self.tracked_numbers[:1])

    def fits(self, grads: list[Tensor | None]) -> bool:
        """Whether every tensor that has a gradient is tracked, and the groups' settings are those planned for."""
        if self.settings != [fixed_settings(group) for group in self.groups]:
            return False
        return all(grad is None or entry is not None for grad, entry in zip(grads, self.entries, strict=True))

    def run(self, grads: list[Tensor | None]) -> None:
        """One step: count, analyse what is due, update."""
        mask = [grad is not None for grad in grads]
        if mask != self.mask:
            self.mask, self.buckets = mask, []
            self.active = np.array(mask, dtype=bool)
            counts = self.steps[self.active]
            self.common_step = int(counts[0]) if all(mask) and (counts == counts[0]).all() else None
        real = [None if g is None else self.entry(i).gradient(g) for i, g in enumerate(grads)]
        self.steps += self.active
        if self.common_step is not None:
            self.common_step += 1
        lrs = [float(group["lr"]) for group in self.groups]
        numbers: dict[tuple[float, float], int] = {}
        rates = [
            numbers.setdefault((lr, g["weight_decay"]), len(numbers)) for lr, g in zip(lrs, self.groups, strict=True)
        ]
        if rates != self.rates:  # which groups share rates, not what these are
            self.rates, self.buckets = rates, []
        if self._analyse(real) or not self.buckets:
            self.buckets = self._make_buckets()
        for bucket in self.buckets:
            bucket.run([real[i] for i in bucket.indices], lrs[bucket.number])  # type: ignore[misc]

    def _make_buckets(self) -> list[Bucket]:
        members: dict[Any, list[int]] = {}
        for i in np.flatnonzero(self.active).tolist():
            entry = self.entry(i)
            tensor = entry.tensor()
            if tensor.numel() == 0:
                continue
            group = self.groups[entry.group]
            alpha = self.alphas[i]
            if alpha is None:
                alpha = float(group.get("alpha", 0.0))
            base = UPDATES[group["base"]]
            key = (self.kinds[entry.group], self.rates[entry.group], alpha, tensor.device, tensor.dtype)
            key += (float(self.steps[i]),) if base.tracks_step else ()
            key += (float(self.products[i]),) if base.tracks_product else ()
            members.setdefault(key, []).append(i)
        return [Bucket(self, self.entry(indices[0]).group, key[2], indices) for key, indices in members.items()]

    def _analyse(self, grads: list[Any]) -> bool:
        """Analyses what is due. Returns whether any α' changed. At most one host read."""
        step = self.common_step
        jobs: list[tuple[Pack, list[int]]] = []
        for pack in self.packs:
            if step is not None and not pack.records(step) and not pack.due(step):
                continue
            steps = self.steps[pack.members]
            if step is None:
                active = self.active[pack.members]
                recorded, due = (np.flatnonzero(rule(steps) & active).tolist() for rule in (pack.records, pack.due))
            else:
                recorded, due = (pack.all_rows if rule(step) else [] for rule in (pack.records, pack.due))
            if recorded:
                windows = stack_windows(pack.windows(recorded, [grads[pack.numbers[row]] for row in recorded]))
                pack.record(recorded, steps[recorded], windows)
            if due:
                jobs.append((pack, due))
        if not jobs:
            return False
        sums = reduce_over_shards([(pack, m) for (pack, _), m in zip(jobs, self._magnitudes(jobs, grads), strict=True)])
        chosen = [pack.update(rows, part) for (pack, rows), part in zip(jobs, sums, strict=True)]
        values = iter(torch.cat([alpha.to(chosen[0].device) for alpha in chosen]).tolist())
        before = list(self.alphas)
        for pack, rows in jobs:
            for row in rows:
                self.alphas[pack.numbers[row]] = next(values)
        return before != self.alphas

    @staticmethod
    def _magnitudes(jobs: list[tuple[Pack, list[int]]], grads: list[Any]) -> list[Tensor]:
        """Band magnitudes of each job; all windows of one size on one device go through one transform."""
        found: list[Tensor | None] = [None] * len(jobs)
        together: dict[Any, list[int]] = {}
        for number, (pack, rows) in enumerate(jobs):
            if pack.group["axis"] == "time":
                found[number] = pack.pooled(time_spectrum(pack.rings(rows)))
            else:
                together.setdefault((pack.shape, pack.pooling.device), []).append(number)
        for (shape, _), numbers in together.items():
            views = [
                pack.windows(rows, [grads[pack.numbers[row]] for row in rows])
                for pack, rows in map(jobs.__getitem__, numbers)
            ]
            spectra = index_spectrum(stack_windows([view for part in views for view in part], *shape))
            for number, part in zip(numbers, spectra.split([len(part) for part in views]), strict=True):
                found[number] = jobs[number][0].pooled(part)
        return [magnitudes for magnitudes in found if magnitudes is not None]
