"""A rotary base that moves with the training loss: a research instrument, to compare with a fixed base.

In simulation the `previous` rule (the one the idea's first code had) is a random walk in log B, because with noisy
losses "better than the last" is a coin toss; `best` drifts down once new bests get rare; `ema` with its dead zone moves
only on losses that differ from their own recent average by more than noise, and is the default. `probe` measures: the
loss of one batch with a larger and a smaller base.

What a probe can and cannot do: the weights grow used to the base they train with, so a base that is moved away from
it costs loss on both sides (a curvature of 0.013 nats for each squared nat of log B on text, against a slope of 0.0015
at a base of 10⁶), and it moves no faster than the weights follow. See docs/callbacks.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .loss_controller import LossController, Target
from .rotary_base_adapters import find_bases


class DynamicBase(LossController):
    """Multiplies the base of every rotary by `factor` on a better loss and divides it on a worse one.

    Acts between optimizer steps through `set_base`, in place, so optimizers, DDP and compiled graphs see no new tensor.
    Works with gradient accumulation (the loss is the mean over the window) and on several ranks (mean over ranks).
    Logs `base` at each decision. On resume the base continues where it was.

    Args:
        factor: what the base is multiplied or divided by, > 1.
        min_base, max_base: bounds of the base.
        targets: what to move: kinds, `offered` (modules with `base` and `set_base`, the default), `inv_freq` (Hugging
            Face's rotary embeddings), `rotary_embedding_torch`; or patterns of module names, for modules of any kind.
        options: of `LossController`: mode (`ema`, `previous`, `best`, `probe`), every_n_steps, warmup_steps, dead_zone,
            decay, average, strict, and of a probe widths and rate.

    Raises:
        ValueError: a bad argument; at fit start, with `strict` and no rotary found.

    Example:
        >>> callback = DynamicBase(mode="ema", every_n_steps=25, factor=1.0025)  # Trainer(callbacks=[callback])
    """

    quantity = "base"

    def __init__(
        self,
        *,
        factor: float = 1.0025,
        min_base: float = 100.0,
        max_base: float = 1_000_000.0,
        targets: str | Sequence[str] = "offered",
        **options: Any,
    ) -> None:
        super().__init__(factor=factor, minimum=min_base, maximum=max_base, **options)
        self.targets = [targets] if isinstance(targets, str) else list(targets)
        self.nothing = (
            f"no rotary found for targets {self.targets}; it moves modules that have `base` and `set_base`, and with "
            "targets='inv_freq' or 'rotary_embedding_torch' those of these libraries"
        )

    def identity(self) -> dict[str, Any]:
        return super().identity() | {"targets": self.targets}

    def find(self, module: Any) -> Mapping[str, Target]:
        return find_bases(module, self.targets)
