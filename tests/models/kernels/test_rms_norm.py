import pytest
import torch
import torch.nn.functional as F

from cubelet.models.kernels import formulas_only
from cubelet.models.kernels.rms_norm import rms_norm


def test_equals_the_formula_in_value_and_gradient():
    x = torch.randn(3, 5, 16, dtype=torch.float64, requires_grad=True)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    (slope,) = torch.autograd.grad(expected.square().sum() + expected[0].sum(), x)
    for names in (["nothing"], ["rms_norm"]):
        with formulas_only(*names):
            y = rms_norm(x)
            assert torch.allclose(y, expected, atol=1e-12)
            (own,) = torch.autograd.grad(y.square().sum() + y[0].sum(), x)
            assert torch.allclose(own, slope, atol=1e-12)
    assert torch.autograd.gradcheck(rms_norm, x)


def test_rows_of_zeros_have_finite_gradients():
    x = torch.zeros(2, 8, requires_grad=True)
    rms_norm(x).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_squared_in_float32(dtype):
    x = torch.full((4, 64), 300.0).to(dtype)  # 300² overflows float16
    assert rms_norm(x).dtype == dtype
    assert torch.allclose(rms_norm(x).float(), F.rms_norm(x.float(), (64,)), atol=1e-2)
