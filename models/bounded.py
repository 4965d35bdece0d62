"""Bounds on parameters that let an optimizer come back: gradients whose descent leads inward always pass.

- A clamp is dead outside its bounds, and a sigmoid nearly so in its tails: one large step, or momentum, and the
  parameter never moves again. Here the value is bounded as usual and the gradient is that of the bound, except where
  descent would lead back inside.
- Outward gradients outside the bounds are stopped, so that the parameter does not wander off either.
"""

import torch
from torch import Tensor


class _Clamp(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, low: float, high: float) -> Tensor:
        return x.clamp(low, high)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, float, float], output: Tensor) -> None:
        x, ctx.low, ctx.high = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, None, None]:
        (x,), (grad,) = ctx.saved_tensors, grads
        outward = ((x > ctx.high) & (grad < 0)) | ((x < ctx.low) & (grad > 0))
        return grad.masked_fill(outward, 0.0), None, None


class _Direction(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, slope: float) -> Tensor:
        return 2 * torch.sigmoid(x) - 1

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, float], output: Tensor) -> None:
        x, ctx.slope = inputs
        ctx.save_for_backward(x, output)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, None]:
        (x, y), (grad,) = ctx.saved_tensors, grads
        own = (1 - y * y) / 2  # the derivative of 2σ(x) − 1
        return grad * torch.where(grad * x > 0, own.clamp(min=ctx.slope), own), None


def bounded(x: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Clamp x to low … high; outside, gradients pass exactly where descent leads back inside.

    Example:
        >>> x = torch.tensor([-0.5, 0.5, 1.5], requires_grad=True)
        >>> bounded(x).sum().backward()  # descent moves every entry down
        >>> x.grad
        tensor([0., 1., 1.])
    """
    return _Clamp.apply(x, low, high)


def direction(x: Tensor, slope: float = 0.1) -> Tensor:
    """2σ(x) − 1 in (−1, 1); gradients whose descent leads towards 0 are scaled by at least `slope`.

    The derivative itself is 0.5 at 0, 0.21 at the usual start x = 2, and 9e-5 at 10.

    Example:
        >>> x = torch.tensor(10.0, requires_grad=True)
        >>> direction(x).backward()
        >>> round(x.grad.item(), 3)
        0.1
    """
    return _Direction.apply(x, slope)
