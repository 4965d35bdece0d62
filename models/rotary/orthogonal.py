"""Orthogonal matrices from free parameters: products of Givens rotations, and the Cayley map."""

import torch
from torch import Tensor

from .pairs import check_pairs, levels_of


def givens_places(pairs: Tensor, count: int) -> tuple[Tensor, int]:
    """Where cos, cos, sin, −sin of each rotation go in a flat stack of (count, count) matrices, and how many levels.

    Args:
        pairs: (K, 2) distinct pairs of coordinates.

    Returns: (4K,) int64 on the CPU, and the number of levels of disjoint pairs.
    """
    listed = check_pairs(pairs.tolist(), count)
    level = torch.tensor(levels_of(listed))
    i, j = torch.tensor(listed).unbind(1)
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
    G = eye.expand(levels, c, c).reshape(-1).scatter(0, where, torch.cat((cos, cos, sin, -sin))).view(levels, c, c)
    while G.shape[0] > 1:  # product of neighbours, in order
        odd = G[-1:] if G.shape[0] % 2 else G[:0]
        G = torch.cat((G[0 : G.shape[0] - 1 : 2] @ G[1::2], odd))
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
    x, y, z = torch.nn.functional.normalize(axes, dim=-1).unbind(-1)
    sign = torch.where(z >= 0, 1.0, -1.0).to(z.dtype)
    a = -1 / (sign + z)
    b = x * y * a
    first = torch.stack((1 + sign * x * x * a, sign * b, -sign * x), dim=-1)
    second = torch.stack((b, sign + y * y * a, -y), dim=-1)
    return torch.stack((first, second, torch.stack((x, y, z), dim=-1)), dim=-2)
