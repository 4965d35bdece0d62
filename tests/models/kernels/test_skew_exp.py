"""The products of skew_exp against torch's exponential, values and gradients."""

import pytest
import torch

from cubelet.models.kernels import formulas_only
from cubelet.models.kernels.skew_exp import skew_exp


def skew(*shape, scale):
    W = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (W - W.mT) * scale


@pytest.mark.parametrize("scale", [0.0, 1e-6, 0.01, 1.0, 300.0])
@pytest.mark.parametrize("n", [2, 5, 16])
def test_agrees_with_its_formula(n, scale):
    weight = torch.randn(4, 3, n, n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = []
    for formula in (False, True):
        A = skew(4, 3, n, n, scale=scale).requires_grad_()
        with formulas_only("skew_exp") if formula else formulas_only("none"):
            E = skew_exp(A)
            (gradient,) = torch.autograd.grad((E * weight).sum(), A)
        found.append((E.detach(), (gradient - gradient.mT) / 2))  # what reaches a skew-symmetric A
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-10, rtol=0)
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-8, rtol=1e-8)


def test_nothing_in_nothing_out():
    assert skew_exp(torch.zeros(0, 4, 4)).shape == (0, 4, 4)
