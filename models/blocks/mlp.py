"""The two-layer perceptron of a block, and the norms: small enough to choose by name."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from cubelet.common.checks import check_choice, check_fraction
from cubelet.models.kernels.rms_norm import RMSNorm
from cubelet.models.kernels.squared_relu import squared_relu
from cubelet.models.linear import Linear

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu2": squared_relu,
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "swiglu": F.silu,
}


def make_norm(name: str, dims: int) -> nn.Module:
    """A norm by name: "rms" (no gain) or "layer" (gain and bias)."""
    check_choice("norm", name, ("rms", "layer"))
    return RMSNorm() if name == "rms" else nn.LayerNorm(dims)


class MLP(nn.Module):
    """act(x W₁) W₂, or (silu(x W_g) ⊙ x W₁) W₂ for "swiglu" (https://arxiv.org/abs/2002.05202).

    Args:
        dims: width in and out.
        ratio: hidden width over dims; "swiglu" takes two thirds of it (a multiple of 8), so that the number of
            parameters stays the same.
        activation: "relu2", "relu", "gelu", "silu" or "swiglu".
        dropout: on the output.

    W₂ starts at zero, so that a residual block starts as the identity.

    Example:
        >>> import torch
        >>> MLP(8, activation="swiglu")(torch.randn(2, 3, 8)).shape
        torch.Size([2, 3, 8])
    """

    def __init__(
        self, dims: int, *, ratio: float = 4, activation: str = "relu2", dropout: float = 0.0, bias: bool = False
    ) -> None:
        super().__init__()
        check_choice("activation", activation, ACTIVATIONS)
        check_fraction("dropout", dropout)
        if ratio <= 0:
            raise ValueError(f"mlp_ratio {ratio} must be positive")
        self.activation, self.dropout = activation, dropout
        self.gated = activation == "swiglu"
        hidden = max(1, round(dims * ratio))
        if self.gated:
            hidden = max(8, round(hidden * 2 / 3 / 8) * 8)
        self.up = Linear(dims, 2 * hidden if self.gated else hidden, bias=bias)
        self.down = Linear(hidden, dims, bias=bias, scale=0.0)

    def reset_parameters(self) -> None:
        """Normal W₁ of deviation dims^−½, zero W₂ and biases."""
        self.up.reset_parameters()
        self.down.reset_parameters()

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
