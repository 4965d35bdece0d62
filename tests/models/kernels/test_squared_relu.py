"""The squared ReLU and its gradient, written out and by autograd."""

import pytest
import torch

from cubelet.models.kernels import formulas_only
from cubelet.models.kernels.squared_relu import squared_relu


@pytest.mark.parametrize("off", ["nothing", "squared_relu"])
def test_value_and_gradient(off):
    x = torch.tensor([-2.0, 0.0, 3.0], requires_grad=True)
    with formulas_only(off):
        squared_relu(x).backward(torch.tensor([1.0, 1.0, 0.5]))
        assert squared_relu(x).tolist() == [0, 0, 9]
    assert x.grad is not None
    assert x.grad.tolist() == [0, 0, 3]
