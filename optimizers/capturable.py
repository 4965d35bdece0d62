"""FAM's step without a single host read: step counts, α' and bias corrections stay on the device.

Everything is decided by masks, so every step transforms every window: slower than the planned step, but a graph can be
captured around it. The update is in list calls with one 0-dim tensor per parameter.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .analysis import Pack, reduce_over_shards
from .entries import local
from .plan import COUNTS, Plan
from .spectra import index_spectrum, stack_windows, time_spectrum
from .updates import scale_, working


class CapturablePlan(Plan):
    """A plan whose tensors' histories are known on the device only."""

    def _share_counts(self) -> None:
        for i in self.tracked():
            device = self.entry(i).tensor().device
            self.states[i].update({key: self.states[i][key].to(device) for key in COUNTS if key in self.states[i]})

    def _known_alphas(self) -> list[float | None]:
        return [None] * len(self.params)

    def run(self, grads: list[Tensor | None]) -> None:
        """One step: count, analyse (masked), update."""
        real = {i: self.entry(i).gradient(grad) for i, grad in enumerate(grads) if grad is not None}
        if real:
            torch._foreach_add_([self.states[i]["step"] for i in real], 1)
        self._analyse_masked(real)
        members: dict[Any, list[int]] = {}
        for i, grad in real.items():
            if grad.numel():
                members.setdefault((self.entry(i).group, grad.device, grad.dtype), []).append(i)
        for (number, _, _), indices in members.items():
            self._update(self.groups[number], indices, [real[i] for i in indices])

    def _analyse_masked(self, grads: dict[int, Tensor]) -> None:
        jobs: list[tuple[Pack, list[int], Tensor]] = []
        for pack in self.packs:
            members = pack.members.tolist()
            rows = [row for row, member in enumerate(members) if member in grads]
            if not rows:
                continue
            steps = torch.stack([self.states[members[row]]["step"] for row in rows])
            group = pack.group
            due = (steps > group["start_step"]) & (steps % group["analyse_every"] == 0)
            windows = stack_windows(pack.windows(rows, [grads[members[row]] for row in rows]), *pack.shape)
            if group["axis"] == "time":
                due &= steps >= group["history"]
                pack.record_rows(rows, (steps % group["history"]).long(), windows)
                spectra = time_spectrum(pack.rings(rows))
            else:
                spectra = index_spectrum(windows)
            jobs.append((pack, rows, torch.where(due[:, None], pack.pooled(spectra), 0)))
        reduced = reduce_over_shards([(pack, magnitudes) for pack, _, magnitudes in jobs])
        for (pack, rows, _), magnitudes in zip(jobs, reduced, strict=True):
            pack.update(rows, magnitudes)

    def _alphas(self, group: dict[str, Any], indices: list[int]) -> Tensor:
        """α' of these tensors (len(indices),), float32."""
        device = self.entry(indices[0]).tensor().device
        constant = torch.full((), float(group["alpha"]), device=device)
        return torch.stack([self.states[i].get("alpha", constant) for i in indices])

    def _update(self, group: dict[str, Any], indices: list[int], grads: list[Tensor]) -> None:
        params = [self.entry(i).tensor() for i in indices]
        lr, decay = group["lr"], group["weight_decay"]
        if group["maximize"]:
            grads = list(torch._foreach_neg(grads))
        if decay and group["decoupled_weight_decay"]:
            torch._foreach_mul_(params, 1 - lr * decay)
        elif decay:
            grads = list(torch._foreach_add(grads, params, alpha=decay))
        alphas = self._alphas(group, indices)
        exp_avgs = [local(self.states[i]["exp_avg"]) for i in indices]
        torch._foreach_mul_(exp_avgs, list(alphas.unbind()))
        torch._foreach_add_(exp_avgs, torch._foreach_mul(grads, list((1 - alphas).unbind())))
        if group["base"] == "adamw":
            steps = self._adamw_steps(group, indices, grads, exp_avgs, alphas)
            torch._foreach_mul_(steps, lr)
        else:
            steps = torch._foreach_mul(exp_avgs, lr)
        torch._foreach_sub_(params, steps)

    def _adamw_steps(
        self, group: dict[str, Any], indices: list[int], grads: list[Tensor], exp_avgs: list[Tensor], alphas: Tensor
    ) -> tuple[Tensor, ...]:
        """Bias-corrected AdamW steps for lr 1; updates the second moments and the products of α'."""
        states = [self.states[i] for i in indices]
        squares = [local(state["exp_avg_sq"]) for state in states]
        scale_(squares, group["beta2"])
        exact = [grad.to(working(grad.dtype)) for grad in grads]
        torch._foreach_addcmul_(squares, exact, exact, value=1 - group["beta2"])
        products = [state["beta1_product"] for state in states]
        torch._foreach_mul_(products, list(alphas.unbind()))
        first = (1 - torch.stack(products)).float()
        counts = torch.stack([state["step"] for state in states])
        second = (1 - group["beta2"] ** counts.double()).sqrt().float()
        denominators = torch._foreach_sqrt(squares)
        torch._foreach_div_(denominators, list(second.unbind()))
        torch._foreach_add_(denominators, group["eps"])
        torch._foreach_mul_(denominators, list(first.unbind()))
        return torch._foreach_div(exp_avgs, denominators)
