"""The two-layer perceptron of a block, and the norms: small enough to choose by name."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..attention.norm import rms_norm


class _SquaredReLU(torch.autograd.Function):
    """Two kernels each way and one tensor kept; the composed form takes three more in its backward."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        positive = x.relu()
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[override]
        ctx, *grads: Tensor
    ) -> Tensor:
        (positive,) = ctx.saved_tensors
        return (grads[0] * positive).mul_(2.0)


def relu2(x: Tensor) -> Tensor:
    """max(x, 0)², the squared ReLU of Primer (So et al. 2021, https://arxiv.org/abs/2109.08668)."""
    if torch.compiler.is_compiling():
        return F.relu(x).square()
    return _SquaredReLU.apply(x)  # type: ignore[no-any-return]


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu2": relu2,
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "swiglu": F.silu,
}


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²)), without a gain: the projection behind it has one per input already."""

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x)


def make_norm(name: str, dims: int) -> nn.Module:
    """A norm by name: "rms" (no gain) or "layer" (gain and bias)."""
    if name == "rms":
        return RMSNorm()
    if name == "layer":
        return nn.LayerNorm(dims)
    raise ValueError(f"norm {name!r} is unknown; choose 'rms' or 'layer'")


class MLP(nn.Module):
    """act(x W₁) W₂, or (silu(x W_g) ⊙ x W₁) W₂ for "swiglu" (https://arxiv.org/abs/2002.05202).

    Args:
        dims: width in and out.
        ratio: hidden width over dims; "swiglu" takes two thirds of it (a multiple of 8), so that the number of
            parameters stays the same.
        activation: "relu2", "relu", "gelu", "silu" or "swiglu".
        dropout: on the output.

    W₂ starts at zero, so that a residual block starts as the identity.
    """

    def __init__(
        self, dims: int, *, ratio: float = 4, activation: str = "relu2", dropout: float = 0.0, bias: bool = False
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation {activation!r} is unknown; choose one of {', '.join(sorted(ACTIVATIONS))}")
        if ratio <= 0:
            raise ValueError(f"mlp_ratio {ratio} must be positive")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout {dropout} must be at least 0 and below 1")
        self.activation, self.dropout = activation, dropout
        self.gated = activation == "swiglu"
        hidden = max(1, round(dims * ratio))
        if self.gated:
            hidden = max(8, round(hidden * 2 / 3 / 8) * 8)
        self.up = nn.Linear(dims, 2 * hidden if self.gated else hidden, bias=bias)
        self.down = nn.Linear(hidden, dims, bias=bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal W₁ of deviation dims^−½, zero W₂ and biases."""
        nn.init.normal_(self.up.weight, std=self.up.in_features**-0.5)
        for tensor in (self.down.weight, self.up.bias, self.down.bias):
            if tensor is not None:
                nn.init.zeros_(tensor)

    def forward(self, x: Tensor) -> Tensor:
        """(…, dims) → (…, dims)."""
        hidden = self.up(x)
        act = ACTIVATIONS[self.activation]
        if self.gated:
            gate, hidden = hidden.chunk(2, dim=-1)
            hidden = act(gate) * hidden
        else:
            hidden = act(hidden)
        y = self.down(hidden)
        return F.dropout(y, self.dropout, self.training) if self.dropout else y
