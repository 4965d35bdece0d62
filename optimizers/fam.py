"""FAM, momentum whose coefficient α' or share ν' follows the spectrum of the gradient, and SimpleFAM.

- The notes of `sine2pi` raise α where the gradient is noisy at high frequency. Kept of them: the kinds of parameters,
  their bands, thresholds and boosts, the 100 steps of grace. Chosen here: windows without random numbers, thresholds
  relative to white noise, time as a second axis, several bases.
- Along the weight index (`axis="index"`, the notes' meaning) gradients of trained transformers are white, since hidden
  units are exchangeable: α' is the same constant for all tensors.
- Along time (`axis="time"`) they resonate while a model trains: momentum rings against curvature. A larger α lengthens
  the ringing; a share of fresh gradient damps it (derivation: `momentum_rules.damping_nu`). `nu=` and `nesterov=` are
  the same damping as constants, the controls of this idea. docs/optimizers.md has what was measured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from cubelet.common.checks import check_at_least, check_choice, check_fraction

from .base import GroupedOptimizer, check_finite
from .foreach import GroupedStep, parameter_names
from .momentum_rules import HANDLERS, RULES, white_bins
from .spectral_momentum import WINDOWS, SpectralMomentum

Base = Literal["adamw", "momentum", "maxfactor", "muon"]


class FAM(GroupedOptimizer):
    """Frequency-adaptive momentum.

    m ← α'·m + (1−α')·g, u = ν'·m + (1−ν')·g, and the base makes a step of u: w ← w − lr·û/√v̂ (base "adamw"; α' is its
    β₁), w ← w − lr·u ("momentum"). α' and ν' follow the gradient's spectrum for tensors of at least `min_size` entries
    after `start_step` of their steps; otherwise they are α and ν.

    Args:
        params: parameters, named parameters, or groups (`parameter_groups` makes suitable ones).
        lr: learning rate; may be a tensor (read once per step).
        alpha: momentum coefficient α, in [0, 1).
        beta: decay of the running band shares per step.
        n_bands: number of frequency bands (2 to 33; to history//2 + 1 along time).
        start_step: steps before the first analysis.
        min_size: smallest number of entries that is analysed.
        weight_decay: decoupled, w ← (1 − lr·decay)·w; coupled (g + decay·w, the notes' form) on request.
        nu: share ν of the momentum in the update, in (0, 1]; by default 1 (quasi-hyperbolic momentum: 0.7).
        nesterov: use ν = α' where `nu` is not given.
        betas: (alpha, beta2) in AdamW's form, instead of these two; schedules that cycle `betas` reach them.
        analyse_every: steps between analyses.
        handler: "default", "conv", "attention" or "embedding", usually per group.
        rule: "excess" (thresholds relative to white noise), "absolute" (the notes') and "ratio" (SimpleFAM's) choose
            α'; "damp" chooses ν', along time; "listen" changes nothing and serves the monitor. By default "damp" along
            time and "excess" along the index.
        axis: "index", along the weight index, or "time", over the last `history` steps.
        base: "adamw", "momentum" (the notes'), "maxfactor" (momentum over MaxFactor's bounded update), or "muon" (Muon
            for hidden matrices, AdamW for all else).
        beta2, eps: AdamW's.
        muon_alpha: α of the matrices that Muon updates.
        hidden: whether the matrices of a group are hidden layers, for Muon; a bool, or one for each of its parameters.
        history: length in steps of the record along time (64 KiB · history / 16 of state per analysed tensor).
        decoupled_weight_decay: False for the coupled form.
        maximize: ascend.
        foreach, fused: execution path; by default fused where torch's kernel is right, else foreach; `foreach=False`
            takes one tensor at a time.
        capturable: keep step counts, α' and ν' on the device, with no host read, so that a graph can be captured.
            Every step then pays for an analysis (its result is masked out between analyses). Not for "maxfactor".

    Raises:
        ValueError: for settings outside their range.
        RuntimeError: in `step`, for sparse gradients.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = FAM(model.parameters(), lr=0.1)
        >>> x = torch.tensor([[1.0, 2.0, 3.0]])
        >>> for _ in range(300):
        ...     optimizer.zero_grad()
        ...     loss = (model(x) - 2.0).square().mean()
        ...     loss.backward()
        ...     optimizer.step()
        >>> bool(loss < 1e-3)
        True

    Source: the ideas of α' are those of the `sine2pi` research notes (Apache-2.0); AdamW: https://arxiv.org/abs/1711.05101;
    ν: quasi-hyperbolic momentum, https://arxiv.org/abs/1810.06801; Muon: https://kellerjordan.github.io/posts/muon/.
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
        nu: float | None = None,
        nesterov: bool = False,
        betas: tuple[float, float] | None = None,
        analyse_every: int = 10,
        handler: Literal["default", "conv", "attention", "embedding"] = "default",
        rule: Literal["excess", "absolute", "ratio", "damp", "listen"] | None = None,
        axis: Literal["index", "time"] = "index",
        base: Base = "adamw",
        beta2: float = 0.999,
        eps: float = 1e-8,
        muon_alpha: float = 0.95,
        hidden: bool = True,
        history: int = 24,
        decoupled_weight_decay: bool = True,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None:
        alpha, beta2 = betas or (alpha, beta2)
        defaults = {
            "lr": lr, "alpha": alpha, "beta": beta, "n_bands": n_bands, "start_step": start_step, "min_size": min_size,
            "weight_decay": weight_decay, "nu": nu, "nesterov": nesterov, "betas": (alpha, beta2),
            "analyse_every": analyse_every, "handler": handler, "rule": rule, "axis": axis, "base": base,
            "beta2": beta2, "eps": eps, "muon_alpha": muon_alpha, "hidden": hidden, "history": history,
            "decoupled_weight_decay": decoupled_weight_decay, "maximize": maximize, "foreach": foreach, "fused": fused,
            "capturable": capturable,
        }  # fmt: skip
        super().__init__(params, defaults)

    @torch._disable_dynamo  # a compiled step would be compiled again for every count; it runs as it is
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step; return the closure's loss, if there is a closure."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        grads = [param.grad for group in self.param_groups for param in group["params"]]
        tensors = self._grouped
        if tensors is None or not tensors.is_current(grads):
            tensors = self._rebuilt()
        self._follow_betas()
        grads = tensors.begin(grads)  # t ← t + 1
        self._spectra.update(grads)  # where an analysis is due: α', ν' ← rule(bands(|FFT(window(g))|))
        for group in tensors.grouped():
            group.update(grads)  # m ← α'·m + (1−α')·g; u = ν'·m + (1−ν')·g; w ← w − lr·u (or base's step of it)
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        group = dict(param_group)
        for key, value in group.pop("fam", {}).items():  # what `parameter_groups` says for FAM alone
            group.setdefault(key, value)
        if "betas" in group:
            group["alpha"], group["beta2"] = group["betas"]
        settings = {**self.defaults, **group}
        group["betas"] = (settings["alpha"], settings["beta2"])
        group["rule"] = settings["rule"] or default_rule(settings["axis"])
        super().add_param_group(group)

    def _fill_group(self, group: dict[str, Any], old: dict[str, Any], saved: dict[str, Any]) -> None:
        super()._fill_group(group, old, saved)
        if "betas" in saved and "alpha" not in saved:  # a checkpoint of torch's AdamW
            group["alpha"], group["beta2"] = saved["betas"]
        group["betas"] = (group["alpha"], group["beta2"])

    def _follow_betas(self) -> None:
        """Keep `betas` and (alpha, beta2) the same, whichever of them somebody changed since the last step."""
        for number, group in enumerate(self.param_groups):
            ours = (group["alpha"], group["beta2"])
            if group["betas"] != ours:
                if group["betas"] != self._seen_betas[number]:
                    group["alpha"], group["beta2"] = ours = tuple(group["betas"])
                group["betas"] = self._seen_betas[number] = ours

    def _new_step(self) -> GroupedStep:
        tensors = super()._new_step()
        seen = getattr(self, "_seen_betas", [])
        self._seen_betas = [*seen, *(group["betas"] for group in self.param_groups[len(seen) :])]
        self._spectra = SpectralMomentum(tensors)
        return tensors

    def spectrum_summary(self) -> list[dict[str, Any]]:
        """Return what the last analyses saw, one dict for each tensor analysed so far, in one host read.

        Returns:
            `name` (its qualified name, if the groups have names), `handler`, `alpha` (α' now), `base_alpha`, `nu` (ν'
            now), `lr`, `bands` (shares, summing to one), `white` (what white noise has in these), `step` (the tensor's
            own count), and `period`: steps of one oscillation at the strongest bin, where the bands are the bins of a
            spectrum along time, otherwise None.
        """
        rows: list[tuple[str, dict[str, Any], dict[str, Any]]] = []
        for number, group in enumerate(self.param_groups):
            for name, param in zip(parameter_names(group, number), group["params"], strict=True):
                if "bands" in self.state.get(param, {}):
                    rows.append((name, group, self.state[param]))
        if not rows:
            return []
        device = rows[0][2]["bands"].device
        one = torch.ones((), dtype=torch.float32, device=device)
        values = torch.cat(
            [state.get(k, one).flatten().to(device) for _, _, state in rows for k in ("step", "alpha", "nu", "bands")]
        ).tolist()
        summary, end = [], 0
        for name, group, state in rows:
            start, end = end, end + 3 + state["bands"].numel()
            step, alpha, nu, *bands = values[start:end]
            if any(bands):
                is_muon = group["base"] == "muon" and "exp_avg_sq" not in state
                base_alpha = float(group["muon_alpha" if is_muon else "alpha"])
                if "nu" not in state:
                    nu = group["nu"] or (alpha if group["nesterov"] else 1.0)
                white, period = white_bands(group), None
                if group["axis"] == "time" and len(bands) == group["history"] // 2 + 1:
                    excess = [band / level for band, level in zip(bands, white, strict=True)][1:]
                    period = group["history"] / (1 + excess.index(max(excess)))
                summary.append(
                    {"name": name, "handler": group["handler"], "alpha": alpha, "base_alpha": base_alpha, "nu": nu,
                     "lr": float(group["lr"]), "bands": bands, "white": white, "period": period, "step": int(step)}
                )  # fmt: skip
        return summary

    def _check(self, group: dict[str, Any]) -> None:
        for key, choices in (("handler", HANDLERS), ("axis", WINDOWS), ("base", Base)):
            check_choice(key, group[key], choices)
        super()._check(group)
        check_finite(group, "eps", "start_step", "min_size")
        for key in ("alpha", "beta", "beta2", "muon_alpha"):
            check_fraction(key, group[key])
        check_at_least("analyse_every", group["analyse_every"], 1)
        check_at_least("history", group["history"], 4)
        if group["nu"] is not None and not 0 < group["nu"] <= 1:
            raise ValueError(f"nu {group['nu']} must be above 0 and at most 1")
        rule = group["rule"] or default_rule(group["axis"])
        check_choice("rule", rule, RULES)
        if rule == "damp" and group["axis"] != "time":
            raise ValueError('rule "damp" looks for a resonance along time: set axis="time"')
        bins = (group["history"] if group["axis"] == "time" else WINDOWS[group["axis"]][1]) // 2 + 1
        if not 2 <= group["n_bands"] <= bins and rule not in ("damp", "listen"):
            raise ValueError(f"n_bands must be 2 to {bins}, the bins of axis {group['axis']!r}, got {group['n_bands']}")
        if group["capturable"] and group["base"] == "maxfactor":
            raise ValueError("capturable works with base adamw, momentum or muon, not maxfactor")


def white_bands(group: dict[str, Any]) -> list[float]:
    """Return the shares of white noise in the bands of a group."""
    along_time = group["axis"] == "time"
    white = white_bins(group["history"] if along_time else WINDOWS[group["axis"]][1])
    if not (along_time and group["rule"] in ("damp", "listen")):
        white = white @ HANDLERS[group["handler"]].pooling(white.numel(), group["n_bands"])
    return white.numpy().tolist()


def default_rule(axis: str) -> str:
    """Return the rule of an axis where none is given."""
    return "damp" if axis == "time" else "excess"


FIXED = {
    "handler": "default", "n_bands": 2, "rule": "ratio", "axis": "first", "base": "momentum", "beta": 0.0,
    "min_size": 1001,
}  # fmt: skip


class SimpleFAM(FAM):
    """m ← α'·m + (1−α')·g, w ← w − lr·m with α' = min(0.98, α + 0.05·share of the spectrum's upper half).

    The spectrum is that of the gradient's first 1000 entries, for tensors of more than 1000 entries, after
    `start_step`; no bands, kinds or running averages. Groups made for FAM are taken, without their handlers and bands.

    Args:
        params, lr, alpha, weight_decay, start_step, maximize, foreach, fused: as for `FAM`.
        analyse_every: steps between analyses; 1 is the notes' (a tenth of the cost for the same α' within noise at 10).

    Raises:
        ValueError: for settings outside their range.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.ones(4))
        >>> optimizer = SimpleFAM([weight], lr=0.5)
        >>> weight.grad = torch.ones(4)
        >>> optimizer.step()
        >>> weight.detach()
        tensor([0.9500, 0.9500, 0.9500, 0.9500])

    Source: the research notes of `sine2pi`.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        alpha: float = 0.9,
        weight_decay: float = 0.0,
        *,
        start_step: int = 100,
        analyse_every: int = 10,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
    ) -> None:
        super().__init__(
            params, lr, alpha, FIXED["beta"], FIXED["n_bands"], start_step, FIXED["min_size"], weight_decay,
            analyse_every=analyse_every, handler=FIXED["handler"], rule=FIXED["rule"], axis=FIXED["axis"],
            base=FIXED["base"], maximize=maximize, foreach=foreach, fused=fused,
        )  # fmt: skip

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group({**param_group, **FIXED})
