"""How the conformance checks call what they test.

A factory is a callable without arguments that builds a fresh module; attentions return a tensor and blocks a pair, both
called as module(x, key_mask=…, positions=…, cache=…). Checks draw their inputs from fixed seeds.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.reference.nudge import nudge

Factory = Callable[[], nn.Module]


def build(factory: Factory, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A module from the factory in evaluation mode, its parameters moved away from their initial values."""
    torch.manual_seed(seed)
    return nudge(factory(), seed=seed).to(dtype).eval()


def run(module: nn.Module, x: Tensor, **options: Any) -> Tensor:
    """The module's output, without a block's cost."""
    y = module(x, **options)
    return y[0] if isinstance(y, tuple) else y


def width(module: nn.Module) -> int:
    """dims of the module."""
    return int(module.dims)  # type: ignore[arg-type]


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Seeded normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def assert_close(actual: Tensor, expected: Tensor, what: str, tolerance: float = 1e-5) -> None:
    """Largest difference at most `tolerance`, relative to the largest expected value where that is above 1."""
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)} is not {tuple(expected.shape)}"
    actual, expected = actual.detach(), expected.detach()
    scale = max(1.0, float(expected.abs().max()))
    difference = float((actual - expected).abs().max()) / scale
    assert difference <= tolerance, f"{what}: differs by {difference:.2e}, more than {tolerance:.0e}"
