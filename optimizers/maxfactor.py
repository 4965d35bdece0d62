"""MaxFactor as an optimizer of its own: the memory of Adafactor, bounded steps, no momentum. See `factored`."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from .bases import PLAIN_MAXFACTOR
from .factored import BETA2_DECAY, CLIP, EPS, GAMMA
from .planned import PlannedOptimizer, check_not_negative, check_paths


class MaxFactor(PlannedOptimizer):
    """Factored second moments with updates bounded by their largest entry.

    w ← (1 − lr·decay)·w − step·u, with step = max(ε₂, RMS(w))·min(lr, 1/√t)/max(1, RMS(u)/d). For a matrix
    u = sign(g)·rowwise max|g/√V| over its maximum, V = r·c / max r; for vectors u = g/√v over its maximum norm. State:
    one float per row and one per column (tensors with more axes: first axis against the rest), vectors one per entry.

    Args:
        params: parameters, named parameters, or groups.
        lr: bound on the relative step; may be a tensor.
        beta2_decay: exponent of the weight t^decay of the newest g² in r and c; negative.
        eps: ε₁, floor of √V's factors and of the maximum norm; ε₂, least RMS(w) of the step.
        d: clipping threshold on RMS(u); has no effect from 1 on, since u is at most 1.
        weight_decay: decoupled.
        gamma: decay of the vectors' running g².
        maximize: ascend.
        foreach: False for the tensor-by-tensor reference.

    Raises:
        ValueError: for settings outside their range.
        RuntimeError: in `step`, for sparse gradients, sharded or complex parameters.

    Source: the research notes of `sine2pi`; factoring after Adafactor, https://arxiv.org/abs/1804.04235.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.025,
        beta2_decay: float = BETA2_DECAY,
        eps: tuple[float, float] = EPS,
        d: float = CLIP,
        weight_decay: float = 0.01,
        gamma: float = GAMMA,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
    ) -> None:
        defaults = {
            "lr": lr, "beta2_decay": beta2_decay, "eps": eps, "d": d, "weight_decay": weight_decay, "gamma": gamma,
            "maximize": maximize, "foreach": foreach,
        }  # fmt: skip
        super().__init__(params, {**defaults, "fused": None, "base": PLAIN_MAXFACTOR})

    def _check(self, group: dict[str, Any]) -> None:
        check_not_negative(group, "lr", "weight_decay")
        if group["beta2_decay"] > 0:
            raise ValueError(f"beta2_decay must not be positive (t^decay is a weight), got {group['beta2_decay']}")
        if not 0 <= group["gamma"] < 1:
            raise ValueError(f"gamma must be at least 0 and below 1, got {group['gamma']}")
        if len(group["eps"]) != 2 or min(group["eps"]) <= 0:
            raise ValueError(f"eps must be two positive numbers, got {group['eps']}")
        if not group["d"] > 0:
            raise ValueError(f"d must be positive, got {group['d']}")
        check_paths(group)
