import pytest
import torch
from torch import nn

from cubelet.models.linear import Linear, wide_linear


def test_weights_have_the_deviation_that_was_asked_for():
    torch.manual_seed(0)
    layer = Linear(400, 300, scale=2.0, bias_value=0.5)
    assert layer.weight.std().item() == pytest.approx(2.0 / 20, rel=0.02)
    assert torch.equal(layer.bias, torch.full((300,), 0.5))
    assert not Linear(8, 2, scale=0.0).weight.any()


@pytest.mark.parametrize("bias", [True, False])
def test_a_wide_layer_ignores_autocast(bias):
    torch.manual_seed(0)
    layer, x = nn.Linear(64, 3, bias=bias), torch.randn(5, 64)
    exact = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
        wide = wide_linear(layer, x)
    assert wide.dtype == torch.float32
    assert torch.equal(wide, exact)


@pytest.mark.parametrize(
    ("given", "weights", "result"),
    [
        (torch.bfloat16, torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float32, torch.bfloat16, torch.float32),
        (torch.float64, torch.float64, torch.float64),
    ],
)
def test_a_wide_layer_computes_in_at_least_float32(given, weights, result):
    torch.manual_seed(0)
    layer, x = nn.Linear(64, 3).to(weights), torch.randn(5, 64).to(given)
    wide = wide_linear(layer, x)
    assert wide.dtype == result
    exact = x.double() @ layer.weight.double().T + layer.bias.double()
    assert torch.allclose(wide.double(), exact, atol=1e-5)
