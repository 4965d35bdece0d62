"""A short depthwise convolution as a sum of shifted copies.

Formula: y_t = x_t + Σᵢ kernelᵢ ⊙ x_{t−1−i} (`shifted_sum` below), nothing before the first row.

Fast path: both gradients written as shifts in place, too; autograd's own pads every slice with zeros first. Measured
ratio, forward and backward at 12 × 64 × 128 with two shifts: see docs/attention.md.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .switch import use_fast_path


def shifted_sum(x: Tensor, kernel: Tensor, ahead: int = 0, documents: Tensor | None = None) -> Tensor:
    """The formula: x padded once, its shifted views weighted and added."""
    taps, length = kernel.shape[0], x.shape[1]
    padded = F.pad(x, (0, 0, taps - ahead, ahead))  # (b, s + taps, d)
    ids = None if documents is None else F.pad(documents, (taps - ahead, ahead))  # (b, s + taps)
    y = x
    for i, start in enumerate(start for start in range(taps, -1, -1) if start != taps - ahead):
        neighbour = padded[:, start : start + length]  # (b, s, d)
        if ids is not None:
            neighbour = neighbour.masked_fill((ids[:, start : start + length] != documents)[..., None], 0.0)
        y = y + kernel[i] * neighbour
    return y


class _ShiftSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, kernel: Tensor) -> Tensor:
        ctx.save_for_backward(x, kernel)
        y, length = x.clone(), x.shape[1]
        for i in range(min(kernel.shape[0], length - 1)):
            y[:, i + 1 :].addcmul_(x[:, : length - i - 1], kernel[i])
        return y

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (grad,) = grads
        x, kernel = ctx.saved_tensors
        to_x, to_kernel = grad.clone(), torch.zeros_like(kernel)
        length = x.shape[1]
        for i in range(min(kernel.shape[0], length - 1)):
            to_x[:, : length - i - 1].addcmul_(grad[:, i + 1 :], kernel[i])
            to_kernel[i] = (grad[:, i + 1 :] * x[:, : length - i - 1]).sum((0, 1))
        return to_x, to_kernel


def shift_sum(x: Tensor, kernel: Tensor, *, ahead: int = 0, documents: Tensor | None = None) -> Tensor:
    """x_t plus its weighted neighbours.

    Args:
        x: (b, s, d).
        kernel: (taps, d); row i weighs the i-th neighbour, from the farthest ahead backwards without x_t itself: with
            `ahead` 0 the tokens 1, 2, … back.
        ahead: how many of the neighbours lie after t.
        documents: (b, s) integers; neighbours of another number do not count.

    Returns:
        (b, s, d).

    Example:
        >>> shift_sum(torch.tensor([[[1.0], [2.0], [3.0]]]), torch.tensor([[10.0]])).flatten().tolist()
        [1.0, 12.0, 23.0]
    """
    if ahead or documents is not None or not use_fast_path("shift_sum"):
        return shifted_sum(x, kernel, ahead, documents)
    return _ShiftSum.apply(x, kernel)
