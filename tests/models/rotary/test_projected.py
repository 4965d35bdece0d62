"""ProjectedRotary: the formula, identity on the complement, orthogonality on the whole."""

import pytest
import torch

from cubelet.models.rotary import ProjectedRotary
from tests.reference import rotary as reference


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def build(dims=24, heads=2, **more):
    torch.manual_seed(0)
    return reference.nudge(ProjectedRotary(dims, heads, **more))


def literal(rotary, x, positions):
    """Project to r dimensions, turn each group of three about its axis by Rodrigues' formula, return the difference."""
    W, groups = rotary.projection().detach().double(), rotary.rank // 3
    z = x.double() @ W.T
    turned = z.clone()
    for g in range(groups):
        u = torch.nn.functional.normalize(rotary.axes[g].detach().double(), dim=0)
        v = z[..., 3 * g : 3 * g + 3]
        angle = (positions.double() * rotary.base.item() ** (-(g + 0.5) / groups))[:, None]
        once = torch.linalg.cross(u.expand_as(v), v)
        twice = torch.linalg.cross(u.expand_as(v), once)
        turned[..., 3 * g : 3 * g + 3] = v + angle.sin() * once + (1 - angle.cos()) * twice
    return x.double() + (turned - z) @ W


@pytest.mark.parametrize("rank", [3, 9])
def test_rotate_equals_the_formula(rank):
    rotary, x, positions = build(rank=rank, base=30.0), draw(2, 2, 6, 12), torch.tensor([0, 1, 5, 3, 77, 2])
    assert torch.allclose(rotary.rotate(x, positions).double(), literal(rotary, x, positions), atol=2e-6)
    embedded = rotary(x.transpose(1, 2), positions).transpose(1, 2)
    assert torch.allclose(embedded, rotary.rotate(x, positions), atol=1e-6)
    assert rotary.mixing() is None


def test_rows_are_orthonormal_and_their_complement_is_untouched():
    rotary = build(rank=6)
    W = rotary.projection().detach()
    assert torch.allclose(W @ W.T, torch.eye(6).double(), atol=1e-6)
    x = draw(1, 2, 9, 12)
    outside = x - ((x.double() @ W.T) @ W).float()
    assert torch.allclose(rotary.rotate(outside), outside, atol=1e-6)
    assert torch.allclose(rotary.rotate(x).norm(dim=-1), x.norm(dim=-1), rtol=1e-5)


def test_a_true_rotation_after_500_steps_of_adam():
    rotary = build(64, 2, rank=9)
    optimizer = torch.optim.Adam(rotary.parameters(), lr=1e-2)
    basis, target, positions = torch.eye(32).expand(1, 2, 32, 32), draw(1, 2, 32, 32), torch.full((32,), 7)
    start = rotary.rotate(basis, positions).detach()
    for _ in range(500):
        optimizer.zero_grad()
        (rotary.rotate(basis, positions) - target).square().sum().backward()
        optimizer.step()
    Q = rotary.rotate(basis, positions)[0, 0]
    assert (Q - start).abs().max() > 0.1
    assert reference.orthogonality_error(Q) <= 1e-6
    assert torch.linalg.det(Q.detach().double()).item() == pytest.approx(1, abs=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert reference.orthogonality_error(rotary.rotate(basis, positions)[0, 0]) <= 1e-6
    assert torch.allclose(rotary.rotate(basis, positions * 0), basis, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_depend_on_differences_only(dtype):
    for rank in (3, 9):
        spread = reference.relative_spread(build(64, 2, rank=rank), dtype)
        assert spread <= (1e-6 if dtype == torch.float32 else 1e-12)


def test_gradcheck_and_every_parameter_learns():
    rotary = build(18, rank=6)
    (rotary.rotate(draw(1, 2, 5, 9)) * draw(1, 2, 5, 9, seed=1)).sum().backward()
    for name, parameter in rotary.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 1e-6, name
    rotary.double()
    names = [name for name, _ in rotary.named_parameters()]

    def run(x, *values):
        return torch.func.functional_call(rotary, dict(zip(names, values, strict=True)), (x,))

    x = draw(1, 2, 18, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(run, (x, *rotary.parameters()))


def test_base_and_state():
    rotary, x = build(), draw(1, 2, 30, 12)
    before = rotary.rotate(x)
    rotary.set_base(99.0)
    assert not torch.allclose(rotary.rotate(x), before, atol=1e-2)
    fresh = ProjectedRotary(24, 2)
    fresh.load_state_dict(rotary.state_dict())
    assert torch.equal(fresh.rotate(x), rotary.rotate(x))


@pytest.mark.parametrize("rank", [0, 4, 15])
def test_bad_rank(rank):
    with pytest.raises(ValueError, match=rf"rank {rank} must be a multiple of 3, at most head_dim 12"):
        ProjectedRotary(24, 2, rank=rank)
