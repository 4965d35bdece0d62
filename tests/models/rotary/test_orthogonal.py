"""The product with written-out gradients is the product of its two factors, whichever way it is differentiated."""

import pytest
import torch

from cubelet.models.rotary.orthogonal import cayley, givens_places, givens_product, matching_product
from cubelet.models.rotary.pairs import random_pairs


@pytest.fixture
def parts():
    torch.manual_seed(0)
    c = 8
    where, levels = givens_places(random_pairs(c, c // 2, 0), c)
    assert levels == 1
    anchor = torch.linalg.qr(torch.randn(c, c, dtype=torch.float64)).Q
    angles, skew = torch.randn(c // 2, dtype=torch.float64), torch.randn(c, c, dtype=torch.float64)
    eye = torch.eye(c, dtype=torch.float64)

    def plain(angles, skew):
        return givens_product(angles, where, 1, eye) @ cayley(skew, anchor, eye)

    def written(angles, skew):
        return matching_product(angles, skew, anchor, where, torch.float64)

    return plain, written, angles.requires_grad_(), skew.requires_grad_()


def test_values_and_gradients(parts):
    plain, written, *inputs = parts
    assert torch.equal(plain(*inputs), written(*inputs))
    weight = torch.randn(8, 8, dtype=torch.float64)
    for one, other in zip(*(torch.autograd.grad((f(*inputs) * weight).sum(), inputs) for f in parts[:2]), strict=True):
        assert torch.allclose(one, other, atol=1e-12)
    assert torch.autograd.gradcheck(written, inputs)
    assert torch.autograd.gradgradcheck(written, inputs)


def test_one_of_the_two_may_be_frozen(parts):
    _, written, angles, skew = parts
    for frozen, learning in ((angles, skew), (skew, angles)):
        frozen.requires_grad_(False)
        (gradient,) = torch.autograd.grad(written(angles, skew).square().sum() + learning.sum(), learning)
        assert gradient.shape == learning.shape
        frozen.requires_grad_()
    with torch.no_grad():
        assert not written(angles, skew).requires_grad


def test_function_transforms(parts):
    plain, written, angles, skew = (p.detach() if isinstance(p, torch.Tensor) else p for p in parts)

    def loss(f):
        return lambda angles, skew: f(angles, skew).sin().sum()

    batch = torch.stack([angles, -angles])
    for f in (torch.func.grad, lambda g: torch.func.grad(g, argnums=1)):
        assert torch.allclose(f(loss(written))(angles, skew), f(loss(plain))(angles, skew))
        each = torch.func.vmap(f(loss(written)), (0, None))(batch, skew)
        assert torch.allclose(each[1], f(loss(plain))(-angles, skew))


def test_single_precision_is_float32_made_of_float64(parts):
    _, _, angles, skew = parts
    where, _ = givens_places(random_pairs(8, 4, 0), 8)
    anchor = torch.linalg.qr(torch.randn(8, 8)).Q
    R = matching_product(angles.float(), skew.float(), anchor, where, torch.float64)
    assert R.dtype == torch.float32
    anchor64 = anchor.double()
    exact = givens_product(angles.float().double(), where, 1, torch.eye(8).double()) @ cayley(
        skew.float().double(), anchor64, torch.eye(8).double()
    )
    assert torch.equal(R, exact.float())
