"""SimpleFAM: one rule for all tensors, from the first 1000 entries of the gradient."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from .fam import FAM

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
