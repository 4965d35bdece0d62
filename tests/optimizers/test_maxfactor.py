import numpy as np
import pytest
import torch
from torch import nn

from cubelet.optimizers import FAM, MaxFactor, parameter_groups
from tests.reference.optimizers import ReferenceMaxFactor, low_rank_gradients

SHAPES = [(12, 20), (5, 3, 2, 2), (1, 9), (9, 1), (30,), ()]


@pytest.mark.parametrize("path", [{"foreach": False}, {"foreach": True}, {}])
@pytest.mark.parametrize(("d", "decay", "gamma"), [(1.0, -0.8, 0.99), (0.2, -0.5, 0.9)])
def test_follows_the_reference(path, d, decay, gamma):
    rng = np.random.default_rng(0)
    for shape in SHAPES:
        start = rng.standard_normal(shape)
        weight = nn.Parameter(torch.tensor(start))
        ours = MaxFactor([weight], lr=0.3, d=d, beta2_decay=decay, gamma=gamma, weight_decay=0.1, **path)
        slow = ReferenceMaxFactor(start, lr=0.3, d=d, decay=decay, gamma=gamma, weight_decay=0.1)
        for grad in low_rank_gradients(shape, 25, 0.7):
            weight.grad = torch.tensor(grad, dtype=torch.float64)
            ours.step()
            np.testing.assert_allclose(weight.detach().numpy(), slow.step(grad), atol=1e-10, err_msg=str(shape))


def test_rows_and_columns_without_gradient_stay_and_come_back():
    weight = nn.Parameter(torch.randn(6, 8))
    optimizer = MaxFactor([weight], weight_decay=0.0)
    slow = ReferenceMaxFactor(weight.detach().numpy(), weight_decay=0.0)
    for step in range(40):
        grad = torch.randn(6, 8)
        grad[step % 6], grad[:, 3] = 0, 0
        if step < 20:
            grad[1] = 0
        before = weight.detach().clone()
        weight.grad = grad
        optimizer.step()
        want = slow.step(grad.numpy())
        np.testing.assert_allclose(weight.detach().numpy(), want, atol=1e-5)
        assert torch.equal(weight[step % 6], before[step % 6])
        assert torch.equal(weight[:, 3], before[:, 3])


def test_steps_are_bounded_by_the_size_of_the_weights():
    """|Δw| ≤ max(ε₂, RMS(w))·min(lr, 1/√t), and the largest entry reaches it, whatever the gradient's scale."""
    for scale in (1e-12, 1.0, 1e12):
        weight = nn.Parameter(torch.randn(20, 30))
        optimizer = MaxFactor([weight], lr=0.5, weight_decay=0.0)
        for step in range(1, 8):
            before = weight.detach().clone()
            weight.grad = torch.randn(20, 30) * scale
            optimizer.step()
            bound = before.square().mean().sqrt() * min(0.5, step**-0.5)
            assert (weight - before).abs().max().item() == pytest.approx(bound.item(), rel=1e-4)


def test_state_of_a_matrix_is_its_rows_and_columns():
    for shape, floats in (((512, 2048), 2560), ((64, 32, 3, 3), 64 + 288), ((7,), 7), ((), 1)):
        weight = nn.Parameter(torch.ones(shape))
        optimizer = MaxFactor([weight])
        weight.grad = torch.ones(shape)
        optimizer.step()
        held = sum(value.numel() for key, value in optimizer.state[weight].items() if key != "step")
        assert held == floats
    assert 2560 * 4 / (512 * 2048) < 0.05


def test_fam_without_momentum_over_maxfactor_is_maxfactor():
    ends = []
    for make in (
        lambda p: MaxFactor(p, lr=0.1, weight_decay=0.01),
        lambda p: FAM(p, lr=0.1, alpha=0.0, base="maxfactor", weight_decay=0.01, min_size=10**9),
    ):
        generator = torch.Generator().manual_seed(0)
        params = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
        optimizer = make(params)
        for _ in range(30):
            for param in params:
                param.grad = torch.randn(param.shape, generator=generator)
            optimizer.step()
        ends.append(params)
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_takes_the_groups_made_for_fam():
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
    optimizer = MaxFactor(parameter_groups(model, 0.1, 0.01))
    model(torch.randn(3, 8)).square().sum().backward()
    optimizer.step()
    assert {group["name"] for group in optimizer.param_groups} == {"rest", "rest_no_decay", "norm"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1}, "lr -1 must be at least 0"),
        ({"beta2_decay": 0.5}, "beta2_decay must not be positive"),
        ({"gamma": 1.0}, "gamma"),
        ({"eps": (0.0, 1e-3)}, "eps must be two positive"),
        ({"d": 0}, "d must be positive"),
        ({"weight_decay": -1}, "weight_decay"),
    ],
)
def test_silly_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MaxFactor([nn.Parameter(torch.zeros(2))], **settings)


def test_complex_parameters_are_refused():
    weight = nn.Parameter(torch.zeros(2, 2, dtype=torch.complex64))
    weight.grad = torch.ones_like(weight)
    with pytest.raises(RuntimeError, match="complex"):
        MaxFactor([weight]).step()
