"""Folding R into projections: x·(W R) instead of (x·W)·R.

R (c, c) is the same for all heads and all tokens, so multiplying it into the weight (heads·c·c·dims multiply-adds)
replaces a pass over the activations (tokens·heads·c·c). It is exact to rounding, for values and gradients, as long as
nothing but R stands between the projection and the rotation; a root-mean-square norm without gains commutes with an
orthogonal R, a norm with gains does not.
"""

from contextlib import nullcontext

import torch
from torch import Tensor

# Tokens per step and width at which folding and multiplying activations cost the same, from benchmarks/rotary.py.
TOKENS_PER_DIM = 2


def worth_folding(tokens: int, dims: int, heads: int) -> bool:
    """Whether folding is cheaper than multiplying the activations.

    Args:
        tokens: batch·sequence of one forward. dims: input width of the projection. heads: its output heads (both costs
            are proportional to them; only tokens : dims decides).
    """
    return heads > 0 and tokens >= TOKENS_PER_DIM * dims


def fold(weight: Tensor, bias: Tensor | None, R: Tensor | None, heads: int) -> tuple[Tensor, Tensor | None]:
    """(weight', bias') such that head h of x·weight'ᵀ + bias' is (x·W_hᵀ + b_h) R.

    Args:
        weight: (heads·c, dims), as in `nn.Linear`. bias: (heads·c,) or None. R: (c, c) or None for the identity.
        heads: heads of this projection (fewer for the keys of grouped-query attention).

    Returns: tensors of the given shapes and dtypes, differentiable in all three.

    Raises:
        ValueError: weight's rows are not heads·c.
    """
    if R is None:
        return weight, bias
    c = R.shape[0]
    if weight.shape[0] != heads * c:
        raise ValueError(f"weight has {weight.shape[0]} rows; folding needs heads {heads} x head_dim {c} = {heads * c}")
    device = weight.device.type
    guard = torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
    with guard:
        wide = torch.promote_types(weight.dtype, R.dtype)
        R = R.to(wide)
        rows = weight.to(wide).view(heads, c, -1)
        # (heads, c, c) · (heads, c, dims): a broadcast matmul would copy the weight into another order first.
        folded = torch.bmm(R.mT.expand(heads, c, c), rows).view(weight.shape).to(weight.dtype)
        if bias is None:
            return folded, None
        return folded, (bias.to(wide).view(heads, c) @ R).view(-1).to(bias.dtype)


@torch.no_grad()
def fold_(weight: Tensor, bias: Tensor | None, R: Tensor) -> None:
    """`fold` in place, on parameters or on views of their rows."""
    new_weight, new_bias = fold(weight.detach().contiguous(), bias, R, weight.shape[0] // R.shape[0])
    weight.copy_(new_weight)
    if bias is not None and new_bias is not None:
        bias.copy_(new_bias)
