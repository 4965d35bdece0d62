"""The exponential of many small skew-symmetric matrices.

Formula: `torch.linalg.matrix_exp(A)`. Its gradient is the exponential of matrices of twice the size. The fast path, in
eager code on the CPU, scales, takes eight terms of the series in three products, and squares; autograd goes through
these products. Measured on 8,192 matrices of 8 × 8 in float64: forward 0.67 ×, forward and backward 0.33 × the
formula's CPU time; 1,024 of 64 × 64: 1.0 and 0.47 ×. Both agree to 1e-12 for float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .switch import use_fast_path


def skew_exp(A: Tensor) -> Tensor:
    """exp(A) of skew-symmetric A (…, n, n): rotations, to rounding."""
    if not use_fast_path("skew_exp") or A.device.type != "cpu" or not A.numel():
        return torch.linalg.matrix_exp(A)
    # The largest row sum bounds the norm; scaled to 1/8, the first term that is left out is 2e-14.
    norm = float(A.detach().abs().sum(-1).amax())
    squarings = max(0, math.ceil(math.log2(max(norm, 1e-30) / 0.125)))
    A = A * 2.0**-squarings
    one, A2 = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device), A @ A
    A3, A4 = A2 @ A, A2 @ A2
    E = one + A + A2 / 2 + A3 / 6 + A4 @ (one / 24 + A / 120 + A2 / 720 + A3 / 5040 + A4 / 40320)
    for _ in range(squarings):
        E = E @ E
    return E
