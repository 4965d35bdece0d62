"""The squared ReLU of Primer (So et al. 2021, https://arxiv.org/abs/2109.08668).

Formula: `F.relu(x).square()`.

Fast path: its gradient in two kernels with one tensor kept; autograd's own takes three more and keeps two.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .switch import use_fast_path


class _SquaredReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        positive = x.relu()
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[override]  # torch types it as many gradients
        ctx, *grads: Tensor
    ) -> Tensor:
        (positive,) = ctx.saved_tensors
        return (grads[0] * positive).mul_(2.0)


def squared_relu(x: Tensor) -> Tensor:
    """max(x, 0)².

    Example:
        >>> squared_relu(torch.tensor([-1.0, 3.0]))
        tensor([0., 9.])
    """
    if not use_fast_path("squared_relu"):
        return F.relu(x).square()
    return _SquaredReLU.apply(x)
