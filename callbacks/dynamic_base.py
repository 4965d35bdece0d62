"""Moves the rotary base with the training loss. A research instrument: compare it with a fixed base before you keep it.

In simulation the `previous` rule (the one the idea's first code had) is a random walk in log B, because with noisy
losses "better than the last" is a coin toss; `best` drifts down once new bests get rare; `ema` with its dead zone moves
only on losses that differ from their own recent average by more than noise, and is the default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .base_targets import find_bases
from .loss_callback import Average
from .loss_follower import Mode
from .loss_following import LossFollowing, Target


class DynamicBase(LossFollowing):
    """Multiplies the base of every rotary by `factor` on a better loss and divides it on a worse one.

    Acts between optimizer steps through `set_base`, in place, so optimizers, DDP and compiled graphs see no new tensor.
    Works with gradient accumulation (the loss is the mean over the window) and on several ranks (mean over ranks).
    Logs `base` at each decision. On resume the base continues where it was.

    Args:
        mode: `ema` (default), `previous` or `best`; see `LossFollower`.
        every_n_steps: optimizer steps between two decisions.
        factor: what the base is multiplied or divided by, > 1.
        min_base, max_base: bounds of the base.
        warmup_steps: optimizer steps during which the base stays.
        dead_zone: half-width of the zone in which `ema` holds, relative to its reference.
        decay: weight of the old average per decision in `ema`.
        average: "step" judges by the loss of the optimizer step at hand, "interval" by the mean since the last
            decision.
        targets: what to move: kinds, `offered` (modules with `base` and `set_base`, the default), `inv_freq` (Hugging
            Face's rotary embeddings), `rotary_embedding_torch`; or patterns of module names, for modules of any kind.
        strict: raise instead of staying idle when no rotary is found.

    Raises:
        ValueError: a bad argument; at fit start, with `strict` and no rotary found.
    """

    quantity = "base"

    def __init__(
        self,
        *,
        mode: Mode = "ema",
        every_n_steps: int = 25,
        factor: float = 1.0025,
        min_base: float = 100.0,
        max_base: float = 1_000_000.0,
        warmup_steps: int = 0,
        dead_zone: float = 0.005,
        decay: float = 0.9,
        average: Average = "step",
        targets: str | Sequence[str] = "offered",
        strict: bool = False,
    ) -> None:
        super().__init__(
            mode=mode, every_n_steps=every_n_steps, factor=factor, minimum=min_base, maximum=max_base,
            warmup_steps=warmup_steps, dead_zone=dead_zone, decay=decay, average=average, strict=strict,
        )  # fmt: skip
        self.targets = [targets] if isinstance(targets, str) else list(targets)
        self.nothing = (
            f"no rotary found for targets {self.targets}; it moves modules that have `base` and `set_base`, and with "
            "targets='inv_freq' or 'rotary_embedding_torch' those of these libraries"
        )

    def identity(self) -> dict[str, Any]:
        return super().identity() | {"targets": self.targets}

    def find(self, module: Any) -> Mapping[str, Target]:
        return find_bases(module, self.targets)
