"""x @ R for many rows and a small square R, as a 1×1 convolution.

Formula: `x @ R`. On the CPU with several threads oneDNN's convolution beats MKL's product of a tall and a tiny matrix:
1.3 × for CombinedRotary on activations and for QuaternionRotary, forward and backward, q and k (8, 8, 1024, 64), two
threads of an AMD EPYC. With one thread, or for narrow R, the product is as fast or faster (up to 1.9 ×).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .switch import use_fast_path


def right_multiply_rows(x: Tensor, R: Tensor) -> Tensor:
    """x (..., c) @ R (c, n), both of one dtype."""
    if not use_fast_path("right_multiply") or not _is_tall(x, R):  # in this order: sizes would split a graph in two
        return x @ R
    pixels = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)  # (1, c, rows, 1)
    return F.conv2d(pixels, R.mT[:, :, None, None]).permute(0, 2, 3, 1).reshape(*x.shape[:-1], R.shape[1])


def _is_tall(x: Tensor, R: Tensor) -> bool:
    tall = R.shape[0] == R.shape[1] and x.numel() >= 1 << 16 and torch.get_num_threads() > 1
    at_home = x.device.type == "cpu" and x.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    return tall and at_home
