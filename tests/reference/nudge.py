"""Moving parameters away from their initial values: zero-initialised gates and projections hide leaks."""

import torch
from torch import nn


def nudge(module: nn.Module, scale: float = 0.1, seed: int = 0) -> nn.Module:
    """Add seeded normal noise of standard deviation `scale` to every parameter, in place; returns the module."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(module.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise.to(parameter), alpha=scale)
    return module
