"""Measuring which way a value should move: the loss of one batch with the value a little larger and a little smaller.

- Both sides see the same batch, the same weights and the same random numbers, so that only the value differs. What is
  left is noise of the batch, which averaging over many decisions takes away.
- Wide steps are blind in one direction: the weights have grown used to the present value, and a change by a factor of 8
  costs more to one side than to the other. So several widths take turns, small ones among them.
- The step is normalised as Adam's is: the size of a slope in nats says nothing about how far to go.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cubelet.common.checks import check_at_least
from cubelet.common.seeds import derive_seed


class SlopeDescent:
    """Moves a logarithm down a slope that is measured with noise.

    The step is rate · m̂ / √v̂, with m̂ and v̂ the bias-corrected averages of the slopes and of their squares (Kingma and
    Ba 2014, https://arxiv.org/abs/1412.6980); slopes that keep their sign give steps of about `rate`, noise gives less.

    Args:
        rate: largest step, in the logarithm.
        decay, square_decay: weights of the old averages.

    Example:
        >>> descent = SlopeDescent(rate=0.5)
        >>> value = 4.0
        >>> for _ in range(100):
        ...     value += descent.step(value - 1.0)  # the slope of a parabola around 1
        >>> abs(value - 1.0) < 0.2
        True
    """

    def __init__(self, rate: float, decay: float = 0.8, square_decay: float = 0.95) -> None:
        self.rate, self.decay, self.square_decay = rate, decay, square_decay
        self.mean = self.square = 0.0
        self.count = 0

    def step(self, slope: float) -> float:
        """Return how far to move after one more measurement; 0 for a slope that is not finite."""
        if not math.isfinite(slope):
            return 0.0
        self.count += 1
        self.mean = self.decay * self.mean + (1 - self.decay) * slope
        self.square = self.square_decay * self.square + (1 - self.square_decay) * slope * slope
        mean = self.mean / (1 - self.decay**self.count)
        square = self.square / (1 - self.square_decay**self.count)
        step = -self.rate * mean / math.sqrt(square) if square > 0 else 0.0
        return min(max(step, -self.rate), self.rate)

    def state_dict(self) -> dict[str, float]:
        return {"mean": self.mean, "square": self.square, "count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.mean, self.square, self.count = state["mean"], state["square"], state["count"]


def check_widths(widths: Sequence[float]) -> list[float]:
    """Return the factors of a probe.

    Raises:
        ValueError: none, or one that is not above 1.
    """
    check_at_least("len(widths)", len(widths), 1)
    for width in widths:
        if not width > 1:
            raise ValueError(f"width {width} must be above 1, such as 1.5; values are multiplied and divided by it")
    return list(widths)


def paired_losses(
    trainer: Any, module: nn.Module, batch: Any, writers: Sequence[Callable[[], None]], seed: int
) -> list[float]:
    """Return the loss of a batch after each writer has changed something, without gradients. Collective.

    The module is in evaluation for it, all sides get the same random numbers, and the modes and the generators are left
    as they were. Mean over ranks.

    Args:
        trainer: gives the precision and the ranks.
        module: has `loss(batch)`, which gives a tensor, or a tuple or mapping that holds it first or as "loss".
        batch: of the last training step.
        writers: each puts one side into place.
        seed: of the random numbers.
    """
    losses = []
    with _evaluation(module), torch.no_grad(), trainer.precision_plugin.forward_context():
        devices = [module.device] if getattr(module, "device", torch.device("cpu")).type == "cuda" else []
        for write in writers:
            write()
            with torch.random.fork_rng(devices=devices):
                torch.manual_seed(derive_seed(seed, "probe"))
                losses.append(_loss_of(module, batch))
    mean: Tensor = trainer.strategy.reduce(torch.stack(losses), reduce_op="mean")
    return mean.tolist()


def _loss_of(module: Any, batch: Any) -> Tensor:
    loss = module.loss(batch)
    loss = loss["loss"] if isinstance(loss, Mapping) else loss[0] if isinstance(loss, (tuple, list)) else loss
    wide = torch.float32 if loss.device.type == "mps" else torch.float64
    return loss.detach().reshape(()).to(wide)


@contextmanager
def _evaluation(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards every submodule's own mode again."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
