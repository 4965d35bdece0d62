"""Bounded parameters: values as usual, gradients that lead back inside and add up over ranks."""

import pytest
import torch

from cubelet.models.attention import DynamicConvAttention, RelativeForceAttention
from cubelet.models.bounded import bounded, direction, mixture, share
from cubelet.models.rotary import CombinedRotary, LearnedBaseRoPE, QuaternionRotary


def test_values_and_inner_gradients_are_those_of_the_usual_functions():
    x = torch.linspace(-3, 3, 13, dtype=torch.float64).requires_grad_()
    assert torch.equal(bounded(x, -1, 2), x.clamp(-1, 2))
    assert torch.allclose(direction(x), 2 * torch.sigmoid(x) - 1)
    assert torch.allclose(share(x), torch.sigmoid(x))
    assert torch.allclose(mixture(x), x.softmax(-1))
    inside = torch.tensor([-0.7, 0.1, 1.9], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: bounded(x, -1, 2), (inside,))
    assert all(torch.autograd.gradcheck(function, (inside,)) for function in (direction, share, mixture))


@pytest.mark.parametrize(
    ("function", "far"),
    [(bounded, 1.5), (bounded, -0.5), (direction, 30.0), (direction, -30.0), (share, 30.0), (share, -30.0)],
)
def test_descent_leads_back_from_outside(function, far):
    x = torch.tensor(far, requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=2.0 if function is share else 0.3)
    for _ in range(1500):
        optimizer.zero_grad()
        (function(x) - 0.25).square().backward()
        optimizer.step()
    assert abs(function(x).item() - 0.25) < 1e-3


def test_a_mixture_comes_back_from_each_corner():
    for corner in range(3):
        x = torch.zeros(3)
        x[corner] = 40.0
        x.requires_grad_()
        optimizer = torch.optim.SGD([x], lr=3.0)
        for _ in range(2000):
            optimizer.zero_grad()
            (mixture(x) - torch.tensor([0.2, 0.3, 0.5])).square().sum().backward()
            optimizer.step()
        assert torch.allclose(mixture(x), torch.tensor([0.2, 0.3, 0.5]), atol=1e-2)


@pytest.mark.parametrize("function", [bounded, direction, share, mixture])
def test_gradients_of_parts_add_up_to_the_gradient_of_the_whole(function):
    """What two ranks, or the micro-batches of a window, rely on: their gradients may have other signs."""
    x = torch.tensor([-3.0, 0.3, 1.4, 20.0], requires_grad=True)
    parts = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    each = [torch.autograd.grad((function(x) * part).sum(), x)[0] for part in parts]
    (whole,) = torch.autograd.grad((function(x) * parts.sum(0)).sum(), x)
    torch.testing.assert_close(torch.stack(each).sum(0), whole)


def test_every_bounded_parameter_of_the_rotaries_comes_back():
    torch.manual_seed(0)
    combined = CombinedRotary(24, 2, direction=True)
    torch.nn.init.normal_(combined.thetas)
    quaternion = QuaternionRotary(24, 2)
    x, towards = torch.randn(1, 2, 9, 12), torch.randn(1, 2, 9, 12)
    for rotary, name, far in (
        (combined, "rotation_scale", 1.7),
        (combined, "direction", 25.0),
        (quaternion, "direction", 25.0),
    ):
        parameter = getattr(rotary, name)
        torch.nn.init.constant_(parameter, far)
        for sign in (1, -1):  # one of the two asks for less, and must be heard
            (gradient,) = torch.autograd.grad((sign * rotary.rotate(x) * towards).sum(), parameter)
            if gradient.max() > 1e-4:
                break
        else:
            pytest.fail(f"{name} at {far} has no gradient that leads back")


@pytest.mark.parametrize("far", [8.0, -8.0])
def test_every_bounded_parameter_of_the_attentions_and_of_a_learned_base_comes_back(far):
    """At the far end of each, the gradient of what the loss asks for is at least a thousandth of that in the middle."""
    x, towards = torch.randn(2, 9, 32), torch.randn(2, 9, 32)
    base = LearnedBaseRoPE(32, 4, base=100.0, speed=1.0)
    force, conv = RelativeForceAttention(32, 4), DynamicConvAttention(32, 4)
    cases = [(force, "log_length"), (force, "balance"), (force, "hops"), (conv, "share")]
    for module, name in [*cases, (base, "base_shift")] if far < 0 else cases:
        parameter, sizes = getattr(module, name), []
        for value in (0.0, far):
            with torch.no_grad():
                parameter.zero_().view(-1, parameter.shape[-1] if parameter.ndim == 2 else 1)[:, :1].add_(value)
            (gradient,) = torch.autograd.grad((module(x) * towards).sum(), parameter)
            sizes.append(gradient.abs().max().item())
        assert sizes[1] > 1e-3 * sizes[0] > 0, (name, sizes)


def test_transforms_and_compilation():
    x = torch.tensor([-0.5, 0.5, 1.5])
    for function in (bounded, direction, share):
        each = torch.func.vmap(torch.func.grad(lambda x, f=function: f(x).square()))(x)
        y = x.clone().requires_grad_()
        (wanted,) = torch.autograd.grad(function(y).square().sum(), y)
        assert torch.allclose(each, wanted)
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        assert torch.allclose(torch.autograd.grad(compiled(y).square().sum(), y)[0], wanted)
