"""Slow, obvious rotaries in float64: one token, one head and one rotation at a time. Row vectors throughout."""

import math

import torch
from torch import Tensor, nn


def rope(x: Tensor, positions: Tensor | None = None, base: float = 10_000.0) -> Tensor:
    """x (b, h, s, c) → float64: pair (2m, 2m+1) of the token at position p turned by p·base^(−2m/c)."""
    b, h, s, c = x.shape
    x, y = x.double(), torch.zeros(b, h, s, c, dtype=torch.float64)
    for i in range(b):
        for t in range(s):
            p = t if positions is None else int(positions[t] if positions.ndim == 1 else positions[i, t])
            for m in range(c // 2):
                angle = p * base ** (-2 * m / c)
                cos, sin = math.cos(angle), math.sin(angle)
                y[i, :, t, 2 * m] = x[i, :, t, 2 * m] * cos - x[i, :, t, 2 * m + 1] * sin
                y[i, :, t, 2 * m + 1] = x[i, :, t, 2 * m] * sin + x[i, :, t, 2 * m + 1] * cos
    return y


def liere(rotary: nn.Module, x: Tensor, positions: Tensor) -> Tensor:
    """x (b, h, s, c) → float64: each token times the exponential series of its own generator, all (c, c) of it."""
    c, n = rotary.head_dim, rotary.block
    raw, base = rotary.generators.detach().double(), float(rotary.base)
    y = torch.zeros(x.shape, dtype=torch.float64)
    for b in range(x.shape[0]):
        for h in range(x.shape[1]):
            for t in range(x.shape[2]):
                place = (positions if positions.ndim == (1 if rotary.axes == 1 else 2) else positions[b])[t].reshape(-1)
                A = torch.zeros(c, c, dtype=torch.float64)
                for i in range(c):
                    for j in range(c // n * n):
                        if i // n == j // n:
                            scale = base ** (-(i // 2) / c) * base ** (-(j // 2) / c)
                            for axis, p in enumerate(place.double()):
                                W = raw[h if rotary.per_head else 0, axis, i // n]
                                A[i, j] += p * (W[i % n, j % n] - W[j % n, i % n]) * scale
                term, E = torch.eye(c, dtype=torch.float64), torch.eye(c, dtype=torch.float64)
                for k in range(1, 60 + int(4 * A.abs().sum(-1).max())):
                    term = term @ A / k
                    E = E + term
                y[b, h, t] = x[b, h, t].double() @ E
    return y


def givens(c: int, i: int, j: int, angle: float) -> Tensor:
    """The (c, c) matrix G with (x·G)_i = x_i cos − x_j sin and (x·G)_j = x_i sin + x_j cos."""
    G = torch.eye(c, dtype=torch.float64)
    G[i, i] = G[j, j] = math.cos(angle)
    G[i, j], G[j, i] = math.sin(angle), -math.sin(angle)
    return G


def combined_mixing(pairs: list, thetas: list, c: int, n: float, scale: float, M: Tensor | None) -> Tensor:
    """(∏ₖ G(iₖ, jₖ, clamp(n − k, 0, 1)·θₖ·scale)) · M, one rotation at a time."""
    R = torch.eye(c, dtype=torch.float64)
    for k, ((i, j), theta) in enumerate(zip(pairs, thetas, strict=True)):
        R = R @ givens(c, i, j, min(max(n - k, 0.0), 1.0) * theta * scale)
    return R if M is None else R @ M.double()


def nudge(module: nn.Module, amount: float = 0.3, seed: int = 0) -> nn.Module:
    """Move every parameter off its initial value, so that nothing is tested at zero angles only."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_((noise * amount).to(parameter.dtype))
    return module


def orthogonality_error(R: Tensor) -> float:
    """Largest entry of |RᵀR − I|, in float64."""
    R = R.detach().double()
    return (R.mT @ R - torch.eye(R.shape[-1], dtype=torch.float64)).abs().max().item()


def relative_spread(rotary: nn.Module, dtype: torch.dtype, shifts: tuple = (0, 1, 17, 300, 1500), **shape) -> float:
    """Largest change of q·k when all positions move by a constant, relative to the largest score."""
    generator = torch.Generator().manual_seed(1)
    s, c = 24, rotary.head_dim
    q, k = (torch.randn(1, rotary.heads, s, c, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    with torch.no_grad():
        scores = []
        for shift in shifts:
            positions = torch.arange(s) + shift
            if "axes" in shape:
                positions = torch.stack(
                    [torch.arange(s) * (a + 1) % 11 + shift * (a + 1) for a in range(shape["axes"])], -1
                )
            scores.append(rotary.rotate(q, positions).double() @ rotary.rotate(k, positions).double().mT)
        stacked = torch.stack(scores)
    return ((stacked.amax(0) - stacked.amin(0)).max() / stacked.abs().max()).item()
