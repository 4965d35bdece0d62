"""The module under test: how the conformance checks build and call it.

A factory is a callable without arguments that builds a fresh module; attentions return a tensor and blocks a pair, both
called as module(x, key_mask=…, positions=…, cache=…). Checks draw their inputs from fixed seeds.
"""

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

Factory = Callable[[], nn.Module]


def nudge(module: nn.Module, scale: float = 0.1, seed: int = 0) -> nn.Module:
    """Add seeded normal noise of standard deviation `scale` to every parameter, in place, and return the module.

    Gates and projections that start at zero hide leaks.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(module.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise.to(parameter), alpha=scale)
    return module


@contextlib.contextmanager
def refused(kind: type[Exception], pattern: str) -> Iterator[None]:
    """Expect an exception of a class whose message matches a regular expression (pytest is not needed here)."""
    message = None
    try:
        yield
    except kind as error:
        message = str(error)
    assert message is not None, f"nothing was raised; expected {kind.__name__} with {pattern} in its message"
    assert re.search(pattern, message), f"{kind.__name__} says {message!r}, which does not name {pattern}"


def build(factory: Factory, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return a module from the factory in evaluation mode, its parameters moved away from their initial values."""
    torch.manual_seed(seed)
    return nudge(factory(), seed=seed).to(dtype).eval()


def run(module: Callable[..., Any], x: Tensor, **options: Any) -> Tensor:
    """Return the module's output, without a block's cost."""
    y = module(x, **options)
    return y[0] if isinstance(y, tuple) else y


def width(module: nn.Module) -> int:
    """Return the width of the module (`dims`)."""
    return int(module.dims)  # pyright: ignore[reportArgumentType]


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return seeded normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def assert_close(actual: Tensor, expected: Tensor, what: str, tolerance: float = 1e-5) -> None:
    """Check the largest difference, relative to the largest expected value where that is above 1."""
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)} is not {tuple(expected.shape)}"
    actual, expected = actual.detach(), expected.detach()
    scale = max(1.0, float(expected.abs().max()))
    difference = float((actual - expected).abs().max()) / scale
    assert difference <= tolerance, f"{what}: differs by {difference:.2e}, more than {tolerance:.0e}"
