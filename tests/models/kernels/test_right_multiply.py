"""The convolution and the product agree, in values and gradients, in every memory order."""

import pytest
import torch

from cubelet.models.kernels import formulas_only
from cubelet.models.kernels import right_multiply as kernel
from cubelet.models.rotary.rotation_matrix import right_multiply


def orders(x):
    """The same (b, h, s, c) values in three memory orders."""
    wide = torch.cat([x, x], dim=-1)
    return [x.contiguous(), x.transpose(1, 2).contiguous().transpose(1, 2), wide[..., : x.shape[-1]]]


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("rows", [3, 400])  # few rows, and enough for the convolution
@pytest.mark.parametrize("columns", [32, 7])
def test_it_is_the_matrix_product_with_its_gradients(rows, columns, two_threads, monkeypatch):
    convolutions = []
    monkeypatch.setattr(kernel.F, "conv2d", lambda *a, f=kernel.F.conv2d: convolutions.append(a) or f(*a))
    torch.manual_seed(0)
    x, R = torch.randn(2, 3, rows, 32), torch.randn(32, columns, requires_grad=True)
    grad = torch.randn(2, 3, rows, columns)
    exact = [t.detach().double().requires_grad_() for t in (x, R)]
    (exact[0] @ exact[1]).backward(grad.double())
    for given in orders(x):
        given, R.grad = given.detach().requires_grad_(), None
        y = right_multiply(given, R)
        with formulas_only("right_multiply"):
            assert torch.allclose(y, right_multiply(given, R), atol=1e-5)
        y.backward(grad)
        assert torch.allclose(y.double(), exact[0] @ exact[1], atol=1e-5)
        assert torch.allclose(given.grad.double(), exact[0].grad, atol=1e-5)
        assert torch.allclose(R.grad.double(), exact[1].grad, rtol=1e-4, atol=1e-3)
    assert len(convolutions) == (3 if rows == 400 and columns == 32 else 0)
