"""Windows of gradients and their magnitude spectra, along the weight index or along time.

A window is at most 16 evenly spaced rows of 64 contiguous entries: a view of the gradient, the same on every replica
and every step, and in order (permuting rows or columns at random whitens any spectrum, and differs per rank). A row
always has 64 entries; shorter ones are padded with zeros, so that all windows of a model go through one batched FFT
and all shards of a tensor have comparable bins.

Measured in trained transformers, the gradient is white along the weight index (hidden units are exchangeable), so the
index spectrum says little there; along time it said as little where it was measured (docs/optimizers.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

# Rows and columns of the window, for each axis; "first" is SimpleFAM's, the first 1000 entries as one row.
WINDOWS = {"index": (16, 64), "time": (16, 64), "first": (1, 1000)}
CHUNK = 4  # windows per transform along time: what is in flight stays in the cache (3-4 times faster)

Geometry = tuple[tuple[int, int], tuple[int, int]]


def window_geometry(shape: tuple[int, ...], rows: int = 16, columns: int = 64) -> Geometry:
    """Size and stride of the window in a contiguous tensor of that shape."""
    numel = 1
    for extent in shape:
        numel *= extent
    if numel == 0:
        return (0, columns), (columns, 1)
    row_length = numel // shape[0] if shape else 1
    if len(shape) < 2 or row_length < columns:
        row_length = min(columns, numel)
    n_rows = numel // row_length
    step = max(1, n_rows // rows)
    return (min(rows, n_rows), min(columns, row_length)), (step * row_length, 1)


def window(grad: Tensor, geometry: Geometry | None = None) -> Tensor:
    """The analysed part of a gradient: (rows ≤ 16, columns ≤ 64), a view when the gradient is contiguous.

    Tensors with at least 64 entries behind the first axis give evenly spaced slices of it; others (vectors, depthwise
    kernels) are read as one sequence cut into pieces of 64.

    Args:
        grad: a dense tensor of any shape.
        geometry: `window_geometry` of its shape, if already known.
    """
    grad = grad if grad.is_contiguous() else grad.contiguous()
    size, stride = geometry or window_geometry(tuple(grad.shape))
    return torch.as_strided(grad, size, stride)


def stack_windows(windows: Sequence[Tensor], rows: int = 16, columns: int = 64) -> Tensor:
    """Windows of any size as one float32 tensor (T, rows, columns), what is missing filled with zeros.

    Fastest when windows of equal size follow each other.
    """
    runs = []
    for (height, width), members in groupby(windows, key=lambda view: tuple(view.shape)):
        run = torch.stack(list(members)).float()
        runs.append(run if (height, width) == (rows, columns) else F.pad(run, (0, columns - width, 0, rows - height)))
    return runs[0] if len(runs) == 1 else torch.cat(runs)


def index_spectrum(windows: Tensor) -> Tensor:
    """Magnitudes along the weight index, summed over rows: (T, rows, columns) → (T, columns//2 + 1)."""
    real, imaginary = torch.view_as_real(torch.fft.rfft(windows)).unbind(-1)
    return torch.hypot(real, imaginary).sum(1)  # a third of the time that `abs` takes


def time_spectrum(ring: Tensor) -> Tensor:
    """Magnitudes along time, summed over the window's entries: (T, H, 16, 64) → (T, H//2 + 1).

    The ring's oldest row may be anywhere: turning a sequence changes the phases of its transform, not the magnitudes.
    A product with the few rows of the transform's matrix beats an FFT over so short an axis.
    """
    length = ring.shape[1]
    bins = length // 2 + 1
    angle = torch.outer(torch.arange(bins, dtype=torch.float64), torch.arange(length, dtype=torch.float64))
    angle *= 2 * torch.pi / length
    transform = torch.cat([angle.cos(), angle.sin()]).to(ring)
    parts = []
    for part in ring.flatten(2).split(CHUNK):
        cos, sin = (transform @ part).unflatten(1, (2, bins)).unbind(1)
        parts.append(torch.hypot(cos, sin).sum(-1))
    return torch.cat(parts)
