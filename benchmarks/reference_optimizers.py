"""Published optimizers, written out plainly for the comparison in optimizer_quality.py; the package uses none of them.

- QHAdamW: quasi-hyperbolic AdamW, https://arxiv.org/abs/1810.06801. The update uses ν·m̂ + (1 − ν)·g in place of m̂;
  ν = β₁ is NAdam's Nesterov term without its schedule (https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ).
- MuonAndAdamW: torch's own Muon for hidden matrices, torch's AdamW for all else, behind one interface.
- SOAP: Adam in the eigenbasis of Shampoo's preconditioner, https://arxiv.org/abs/2409.11321, for hidden matrices.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class QHAdamW(Optimizer):
    """AdamW whose numerator is ν·m̂ + (1 − ν)·g.

    Args:
        params: parameters or groups.
        lr: learning rate.
        betas: decay of first and second moment.
        nu: weight of the momentum in the update; 1 is AdamW.
        eps: added to the denominator.
        weight_decay: decoupled.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        nu: float = 0.7,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "nu": nu, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for w in group["params"]:
                if w.grad is None:
                    continue
                state, g = self.state[w], w.grad
                if not state:
                    state.update(t=0, m=torch.zeros_like(w), v=torch.zeros_like(w))
                state["t"] += 1
                state["m"].lerp_(g, 1 - beta1)
                state["v"].mul_(beta2).addcmul_(g, g, value=1 - beta2)
                first, second = 1 - beta1 ** state["t"], 1 - beta2 ** state["t"]
                u = state["m"] * (group["nu"] / first) + (1 - group["nu"]) * g
                w.mul_(1 - group["lr"] * group["weight_decay"])
                w.addcdiv_(u, (state["v"] / second).sqrt_().add_(group["eps"]), value=-group["lr"])


def is_hidden(group: dict[str, Any], w: Tensor) -> bool:
    """Whether a parameter is a hidden matrix: two axes, in an attention or another linear layer, and decayed."""
    return group.get("name") in ("attention", "rest") and w.ndim == 2


def split(params: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Groups of `parameter_groups` as groups of hidden matrices and groups of all else, with plain torch keys."""
    hidden, rest = [], []
    for group in params:
        plain = {key: group[key] for key in ("lr", "weight_decay")}
        for chosen, wanted in ((hidden, True), (rest, False)):
            members = [w for _, w in group["params"] if is_hidden(group, w) is wanted]
            if members:
                chosen.append({"params": members, **plain})
    return hidden, rest


class Several(Optimizer):
    """Some optimizers as one: their groups side by side, so that one schedule serves all."""

    def __init__(self, optimizers: list[Optimizer]) -> None:
        self.optimizers = optimizers
        super().__init__([group for optimizer in optimizers for group in optimizer.param_groups], {})
        # The same dicts, so that a rate that a schedule sets reaches the inner optimizer.
        self.param_groups = [group for optimizer in optimizers for group in optimizer.param_groups]

    def step(self, closure: Any = None) -> None:
        for optimizer in self.optimizers:
            optimizer.step()


def muon_and_adamw(params: Any, lr: float, momentum: float = 0.95, nu: float | None = None) -> Several:
    """torch's Muon (its update as large as AdamW's) for hidden matrices; AdamW, or QHAdamW with `nu`, for all else."""
    hidden, rest = split(params)
    muon = torch.optim.Muon(hidden, lr, momentum=momentum, adjust_lr_fn="match_rms_adamw")
    other = QHAdamW(rest, lr, nu=nu) if nu else torch.optim.AdamW(rest, lr, betas=(0.9, 0.99), fused=True)
    return Several([muon, other])


class SOAP(Optimizer):
    """Adam in the slowly turning eigenbasis of the running L = GGᵀ and R = GᵀG; vectors take plain Adam.

    Args:
        params: parameters or groups.
        lr: learning rate.
        betas: decay of first and second moment.
        shampoo_beta: decay of L and R.
        refresh_every: steps between two power iterations (QR) of the eigenbases.
        eps: added to the denominator.
        weight_decay: decoupled.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 3e-3,
        betas: tuple[float, float] = (0.95, 0.95),
        shampoo_beta: float = 0.95,
        refresh_every: int = 10,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {
            "lr": lr, "betas": betas, "shampoo_beta": shampoo_beta, "refresh_every": refresh_every, "eps": eps,
            "weight_decay": weight_decay,
        }  # fmt: skip
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for w in group["params"]:
                if w.grad is not None:
                    self._update(w, w.grad, self.state[w], group, is_hidden(group, w))

    def _update(self, w: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any], rotates: bool) -> None:
        beta, (beta1, beta2) = group["shampoo_beta"], group["betas"]
        if not state:
            state.update(t=0, m=torch.zeros_like(w), v=torch.zeros_like(w))
            if rotates:  # the first gradient only makes the bases, as in the paper's code
                state["L"], state["R"] = (1 - beta) * g @ g.T, (1 - beta) * g.T @ g
                state["QL"], state["QR"] = (torch.linalg.eigh(state[key])[1].flip(1) for key in "LR")
                return
        state["t"] += 1
        first, second = 1 - beta1 ** state["t"], 1 - beta2 ** state["t"]
        turned = state["QL"].T @ g @ state["QR"] if rotates else g
        state["m"].lerp_(g, 1 - beta1)  # in the weights' own basis, so that it survives a change of basis
        state["v"].mul_(beta2).addcmul_(turned, turned, value=1 - beta2)
        m = state["QL"].T @ state["m"] @ state["QR"] if rotates else state["m"]
        u = (m / first) / ((state["v"] / second).sqrt_().add_(group["eps"]))
        if rotates:
            u = state["QL"] @ u @ state["QR"].T
        w.mul_(1 - group["lr"] * group["weight_decay"]).sub_(u, alpha=group["lr"])
        if rotates:
            state["L"].lerp_(g @ g.T, 1 - beta)
            state["R"].lerp_(g.T @ g, 1 - beta)
            if state["t"] % group["refresh_every"] == 0:
                self._refresh(state)

    @staticmethod
    def _refresh(state: dict[str, Any]) -> None:
        """One power iteration of both bases, their columns sorted by eigenvalue, and v's rows and columns with them."""
        for side, axis in (("L", 0), ("R", 1)):
            basis, matrix = state["Q" + side], state[side]
            order = (basis.T @ matrix @ basis).diagonal().argsort(descending=True)
            state["v"] = state["v"].index_select(axis, order)
            state["Q" + side] = torch.linalg.qr(matrix @ basis[:, order])[0]
