"""FAM: momentum whose coefficient α' is chosen, tensor by tensor, from the spectrum of the gradient.

The notes of `sine2pi` propose to raise the momentum where the gradient is noisy at high frequency. What is kept of
them: the four kinds of parameters, their bands, thresholds and boosts, the 100 steps of grace. What is chosen here:
windows without random numbers (`spectra`), thresholds relative to white noise (`handlers`), time as a second axis, and
several bases.

What to expect. Along the weight index (`axis="index"`, the notes' meaning) gradients of trained transformers are white
(upper-half share near 0.5 everywhere, since hidden units are exchangeable), so α' is the same constant for all
tensors; along time (`axis="time"`) it is nearly so. docs/optimizers.md measures whether either beats a constant α,
against constant-α controls: neither did.

With constant α' the momentum base is SGD with momentum = dampening = α' (from a zero buffer): five passes over memory
against AdamW's seven.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .bases import BASES
from .handlers import HANDLERS, RULES
from .plan import names_of
from .planned import PlannedOptimizer, check_not_negative, check_paths
from .spectra import WINDOWS


class FAM(PlannedOptimizer):
    """Frequency-adaptive momentum.

    m ← α'·m + (1−α')·g, w ← w − lr·m (base "momentum"), with α' from the gradient's spectrum for tensors of at least
    `min_size` entries after `start_step` of their steps, and α' = α otherwise.

    Args:
        params: parameters, named parameters, or groups (`parameter_groups` makes suitable ones).
        lr: learning rate; may be a tensor (read once per step).
        alpha: base momentum coefficient α, in [0, 1).
        beta: decay of the running band shares per step.
        n_bands: number of frequency bands (2 to 33; to history//2 + 1 along time).
        start_step: steps before the first analysis.
        min_size: smallest number of entries that is analysed.
        weight_decay: decoupled, w ← (1 − lr·decay)·w; coupled (g + decay·w, the notes' form) on request.
        analyse_every: steps between analyses.
        handler: "default", "conv", "attention" or "embedding", usually per group.
        rule: "excess" (thresholds relative to white noise), "absolute" (the notes') or "ratio" (SimpleFAM's).
        axis: "index", along the weight index, or "time", over the last `history` steps.
        base: "momentum", "adamw" (α' as β₁), or "maxfactor" (momentum over MaxFactor's bounded update).
        beta2, eps: AdamW's, for that base.
        history: length in steps of the record along time (64 KiB · history / 16 of state per analysed tensor).
        decoupled_weight_decay: False for the coupled form.
        maximize: ascend.
        foreach, fused: execution path; by default fused where torch's kernel is right, else foreach; `foreach=False`
            is the one-tensor-at-a-time reference.
        capturable: keep step counts and α' on the device, with no host read at all, so that a graph can be captured;
            every step then pays for an analysis (its result is masked out between analyses). Not for "maxfactor".

    Raises:
        ValueError: for settings outside their range.
        RuntimeError: in `step`, for sparse gradients.

    Source: the ideas are those of the `sine2pi` research notes (Apache-2.0); AdamW: https://arxiv.org/abs/1711.05101.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        alpha: float = 0.9,
        beta: float = 0.99,
        n_bands: int = 8,
        start_step: int = 100,
        min_size: int = 256,
        weight_decay: float = 0.0,
        *,
        analyse_every: int = 10,
        handler: Literal["default", "conv", "attention", "embedding"] = "default",
        rule: Literal["excess", "absolute", "ratio"] = "excess",
        axis: Literal["index", "time"] = "index",
        base: Literal["momentum", "adamw", "maxfactor"] = "momentum",
        beta2: float = 0.999,
        eps: float = 1e-8,
        history: int = 24,
        decoupled_weight_decay: bool = True,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None:
        defaults = {
            "lr": lr, "alpha": alpha, "beta": beta, "n_bands": n_bands, "start_step": start_step, "min_size": min_size,
            "weight_decay": weight_decay, "analyse_every": analyse_every, "handler": handler, "rule": rule,
            "axis": axis, "base": base, "beta2": beta2, "eps": eps, "history": history,
            "decoupled_weight_decay": decoupled_weight_decay, "maximize": maximize, "foreach": foreach, "fused": fused,
            "capturable": capturable,
        }  # fmt: skip
        super().__init__(params, defaults)

    def _check(self, group: dict[str, Any]) -> None:
        check_group(group)

    def spectrum_summary(self) -> list[dict[str, Any]]:
        """What the last analyses saw, one dict for each tensor analysed so far, in one host read.

        Returns:
            `name` (its qualified name, if the groups have names), `handler`, `alpha` (α' now), `base_alpha`,
            `bands` (shares, summing to one), `step` (the tensor's own count).
        """
        rows: list[tuple[str, dict[str, Any], dict[str, Any]]] = []
        for number, group in enumerate(self.param_groups):
            for name, param in zip(names_of(group, number), group["params"], strict=True):
                if "bands" in self.state.get(param, {}):
                    rows.append((name, group, self.state[param]))
        if not rows:
            return []
        device = rows[0][2]["bands"].device
        values = torch.cat(
            [state[key].flatten().to(device) for _, _, state in rows for key in ("step", "alpha", "bands")]
        ).tolist()
        summary, end = [], 0
        for name, group, state in rows:
            start, end = end, end + 2 + state["bands"].numel()
            step, alpha, *bands = values[start:end]
            if any(bands):
                summary.append(
                    {"name": name, "handler": group["handler"], "alpha": alpha, "base_alpha": float(group["alpha"]),
                     "bands": bands, "step": int(step)}
                )  # fmt: skip
        return summary


def check_group(group: dict[str, Any]) -> None:
    """Raises ValueError, with the number and the range, for a setting that makes no sense."""
    check_not_negative(group, "lr", "weight_decay", "eps", "start_step", "min_size")
    for key in ("alpha", "beta", "beta2"):
        if not 0 <= group[key] < 1:
            raise ValueError(f"{key} must be at least 0 and below 1, got {group[key]}")
    for key, least in (("analyse_every", 1), ("history", 4)):
        if group[key] < least:
            raise ValueError(f"{key} must be at least {least}, got {group[key]}")
    for key, known in (("handler", HANDLERS), ("rule", RULES), ("axis", WINDOWS), ("base", BASES)):
        if group[key] not in known:
            raise ValueError(f"unknown {key} {group[key]!r}; choose one of {', '.join(known)}")
    bins = (group["history"] if group["axis"] == "time" else WINDOWS[group["axis"]][1]) // 2 + 1
    if not 2 <= group["n_bands"] <= bins:
        raise ValueError(f"n_bands must be 2 to {bins}, the bins of axis {group['axis']!r}, got {group['n_bands']}")
    check_paths(group)
    if group["capturable"] and group["base"] == "maxfactor":
        raise ValueError("capturable works with base momentum or adamw, not maxfactor")
