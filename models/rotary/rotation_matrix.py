"""The position-independent matrix R (c, c): how it is made, and how it is multiplied into activations and weights.

Row vectors throughout: y = x·R. R is a product of Givens rotations, or comes from the Cayley map; folding multiplies it
into a projection, x·(W R) instead of (x·W)·R. R is the same for all heads and tokens, so that costs heads·c·c·dims
multiply-adds instead of tokens·heads·c·c. It is exact to rounding, for values and gradients, as long as nothing but R
stands between the projection and the rotation; a root-mean-square norm without gains commutes with an orthogonal R, a
norm with gains does not.
"""

import torch
from torch import Tensor

from ..kernels.right_multiply import right_multiply_rows
from ..kernels.switch import full_precision, use_fast_path
from .pairs import check_pairs, levels_of

# Tokens per step and width at which folding and multiplying activations cost the same, from benchmarks/rotary.py.
TOKENS_PER_DIM = 2


def givens_places(pairs: Tensor, count: int) -> tuple[Tensor, int]:
    """Where cos, cos, sin, −sin of each rotation go in a flat stack of (count, count) matrices, and how many levels.

    Args:
        pairs: (K, 2) distinct pairs of coordinates.

    Returns: (4K,) int64 on the CPU, and the number of levels of disjoint pairs.
    """
    listed = check_pairs(pairs.tolist(), count)
    level = torch.tensor(levels_of(listed))  # (K,)
    i, j = torch.tensor(listed).unbind(1)  # (K,) each
    at = level * count * count
    # Row vectors: y_i = x_i cos − x_j sin, y_j = x_i sin + x_j cos.
    where = torch.cat((at + i * count + i, at + j * count + j, at + i * count + j, at + j * count + i))
    return where, int(level.max()) + 1


def givens_product(angles: Tensor, where: Tensor, levels: int, eye: Tensor) -> Tensor:
    """∏ₖ G(iₖ, jₖ, anglesₖ) as a (c, c) matrix for row vectors, in eye's dtype.

    Args:
        angles: (K,) radians. where, levels: from `givens_places`. eye: the (c, c) identity.
    """
    cos, sin = angles.cos(), angles.sin()
    c = eye.shape[0]
    G = eye.expand(levels, c, c).reshape(-1).scatter(0, where, torch.cat((cos, cos, sin, -sin)))
    G = G.view(levels, c, c)
    while G.shape[0] > 1:  # product of neighbours, in order
        odd = G[-1:] if G.shape[0] % 2 else G[:0]
        G = torch.cat((G[0 : G.shape[0] - 1 : 2] @ G[1::2], odd))  # (⌈levels/2⌉, c, c)
    return G[0]


def cayley(A: Tensor, anchor: Tensor, eye: Tensor) -> Tensor:
    """anchor · (I + S)(I − S)⁻¹ with S = A − Aᵀ: orthogonal whatever A (c, c) is, where anchor is.

    I − S is never singular, and (I + S)(I − S)⁻¹ = 2(I − S)⁻¹ − I; inv_ex does not wait for a device to report success.
    """
    inverse = torch.linalg.inv_ex(eye + (A.mT - A)).inverse
    return torch.addmm(anchor, anchor, inverse, beta=-1, alpha=2)


def frames(axes: Tensor) -> Tensor:
    """Right-handed orthonormal frames (G, 3, 3) whose last rows are the normalized axes (G, 3).

    Without branches, after Duff et al. 2017, "Building an Orthonormal Basis, Revisited" (JCGT 6(1)). Only the axis has
    meaning; how the other two rows lie about it cancels wherever a rotation about the axis is undone or scored.
    """
    x, y, z = torch.nn.functional.normalize(axes, dim=-1).unbind(-1)  # (G,) each
    sign = torch.where(z >= 0, 1.0, -1.0).to(z.dtype)
    a = -1 / (sign + z)
    b = x * y * a
    first = torch.stack((1 + sign * x * x * a, sign * b, -sign * x), dim=-1)  # (G, 3)
    second = torch.stack((b, sign + y * y * a, -y), dim=-1)
    return torch.stack((first, second, torch.stack((x, y, z), dim=-1)), dim=-2)  # (G, 3, 3)


def right_multiply(x: Tensor, R: Tensor | None) -> Tensor:
    """x · R over the last dimension, in at least float32, in x's memory order and dtype; x itself where R is None."""
    if R is None:
        return x
    R = R.to(torch.promote_types(x.dtype, torch.float32))
    wide = x.to(R.dtype)
    with full_precision(x.device):
        if x.ndim == 4 and x.stride(1) < x.stride(2):  # memory of (b, s, h, c) seen as (b, h, s, c): do not copy it
            return right_multiply_rows(wide.transpose(1, 2), R).transpose(1, 2).to(x.dtype)
        return right_multiply_rows(wide, R).to(x.dtype)


def worth_folding(tokens: int, dims: int, heads: int) -> bool:
    """Whether folding is cheaper than multiplying the activations.

    Args:
        tokens: batch·sequence of one forward. dims: input width of the projection. heads: its output heads (both costs
            are proportional to them; only tokens : dims decides).
    """
    # A compiled graph always folds: a branch on the number of tokens would cost it one graph more.
    return heads > 0 and (not use_fast_path("unfolded") or tokens >= TOKENS_PER_DIM * dims)


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
    with full_precision(weight.device):
        R = R.to(torch.promote_types(weight.dtype, R.dtype))
        rows = weight.to(R.dtype).view(heads, c, -1)  # (heads, c, dims)
        # Rᵀ from the left: a broadcast matmul would copy the weight into another order first.
        folded = torch.bmm(R.mT.expand(heads, c, c), rows).view(weight.shape).to(weight.dtype)
        if bias is None:
            return folded, None
        return folded, (bias.to(R.dtype).view(heads, c) @ R).view(-1).to(bias.dtype)


@torch.no_grad()
def fold_(weight: Tensor, bias: Tensor | None, R: Tensor) -> None:
    """`fold` in place, on parameters or on views of their rows."""
    new_weight, new_bias = fold(weight.detach().contiguous(), bias, R, weight.shape[0] // R.shape[0])
    weight.copy_(new_weight)
    if bias is not None and new_bias is not None:
        bias.copy_(new_bias)
