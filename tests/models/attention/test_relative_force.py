import pytest
import torch

from cubelet.models.attention import RelativeForceAttention
from cubelet.models.attention.relative_force import distances
from cubelet.models.rotary import RoPE
from tests.conformance import suite
from tests.conformance.memory import AllocatedBytes
from tests.conformance.subject import assert_close, build, noise
from tests.reference import attention as reference


def make():
    return RelativeForceAttention(32, 4, dot_product=False)


@pytest.mark.parametrize("check", suite.CHECKS, ids=lambda check: check.__name__)
def test_conforms_without_dot_product(check):
    check(make)


def test_equals_its_reference_without_dot_product():
    module = build(make, dtype=torch.float64)
    x = noise(2, 9, 32, dtype=torch.float64)
    assert_close(module(x), reference.relative_force(module, x), "without q and k")


def test_distances_of_equal_tokens_have_finite_gradients():
    e = noise(1, 4, 8).requires_grad_()
    d = distances(e, e.detach().clone())
    assert d.diagonal(dim1=1, dim2=2).max() < 5e-3
    d.sum().backward()
    assert e.grad is not None
    assert e.grad.isfinite().all()


def test_never_a_tensor_of_the_square_times_dims():
    module, length = RelativeForceAttention(64, 2), 96
    largest = 0

    class Largest(AllocatedBytes):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = super().__torch_dispatch__(func, types, args, kwargs)
            for t in out if isinstance(out, tuple | list) else [out]:
                if isinstance(t, torch.Tensor):
                    largest = max(largest, t.numel())

            return out

    x = noise(1, length, 64).requires_grad_()
    with Largest():
        module(x).sum().backward()
    assert length**2 <= largest <= 4 * length**2


def test_the_length_scale_keeps_the_force_alive_when_wide():
    module = RelativeForceAttention(512, 4)
    x = noise(1, 16, 512)
    x.requires_grad_()
    module(x).square().sum().backward()
    assert module.masses.grad.abs().max() > 1e-4
    assert module.log_length.grad.abs() > 1e-6


def test_errors():
    with pytest.raises(ValueError, match="rotary=None"):
        RelativeForceAttention(32, 4, dot_product=False, rotary=RoPE(32, 4))
    with pytest.raises(ValueError, match=r"epsilon 0"):
        RelativeForceAttention(32, 4, epsilon=0)
