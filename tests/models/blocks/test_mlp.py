import pytest
import torch

from cubelet.models.blocks import MLP
from cubelet.models.blocks.mlp import ACTIVATIONS
from tests.conformance.subject import build, noise
from tests.reference import blocks as reference


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_equals_its_formula(activation):
    module = build(lambda: MLP(24, activation=activation), dtype=torch.float64)
    x = noise(2, 5, 24, dtype=torch.float64)
    assert torch.allclose(module(x), reference.mlp(module, x), atol=1e-12)


def test_swiglu_has_as_many_parameters():
    plain, gated = (sum(p.numel() for p in MLP(96, activation=a).parameters()) for a in ("relu2", "swiglu"))
    assert abs(gated / plain - 1) < 0.02


def test_the_output_starts_at_zero():
    assert torch.count_nonzero(MLP(16)(noise(3, 16))) == 0
