"""LieRERotary against the exponential series of one token at a time, and against RoPE, which it holds."""

import pytest
import torch
from torch import nn

from cubelet.models.attention import MultiHeadAttention
from cubelet.models.rotary import LieRERotary, RoPE, grid_positions, install
from tests.reference import rotary as reference


def build(**options):
    torch.manual_seed(0)
    return reference.nudge(LieRERotary(24, 3, **options), 0.1)


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("per_head", [True, False])
@pytest.mark.parametrize(("axes", "block"), [(1, 8), (2, 4), (3, 2)])
@pytest.mark.parametrize("own", [True, False])
def test_every_token_is_multiplied_by_the_exponential_of_its_generator(axes, block, per_head, own):
    rotary, x = build(axes=axes, block=block, per_head=per_head), draw(2, 3, 6, 8)
    shape = (2,) * own + (6,) + (axes,) * (axes > 1)
    positions = torch.randint(0, 5, shape, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(rotary.rotate(x, positions).double(), reference.liere(rotary, x, positions), atol=1e-5)


def test_a_generator_of_pairs_is_rope():
    rotary, x = LieRERotary(24, 3, axes=1, base=50.0, block=4), draw(2, 3, 9, 8)
    with torch.no_grad():
        rotary.generators.zero_()
        for m in range(2):
            rotary.generators[..., 2 * m, 2 * m + 1] = 1
    assert torch.allclose(rotary.rotate(x), RoPE(24, 3, base=50.0).rotate(x), atol=1e-6)
    assert rotary.is_relative


def test_rotations_are_orthogonal_and_relative_only_where_generators_commute():
    rotary = build(axes=2, block=8)
    E = rotary.rotations(grid_positions(3, 40).double()).detach()
    assert (E @ E.mT - torch.eye(8, dtype=torch.float64)).abs().max() < 1e-12
    assert torch.linalg.det(E).sub(1).abs().max() < 1e-10
    assert not rotary.is_relative
    assert reference.relative_spread(rotary, torch.float64, axes=2) > 1e-3
    for commuting in (build(axes=2, block=2), build(axes=1, block=8)):
        assert commuting.is_relative
        shape = {"axes": 2} if commuting.axes == 2 else {}
        assert reference.relative_spread(commuting, torch.float64, **shape) < 1e-9


def test_everything_learns_and_attention_takes_it():
    rotary, positions = build(), grid_positions(2, 3)
    attention = MultiHeadAttention(24, 3, rotary=rotary, causal=False, kv_heads=1)
    y = attention(draw(2, 6, 24), positions=positions)
    (y * draw(2, 6, 24, seed=1)).sum().backward()
    gradient = rotary.generators.grad
    assert gradient.abs().amax((-1, -2)).min() > 0
    assert torch.allclose(gradient, -gradient.mT)
    each = attention(draw(2, 6, 24), positions=torch.stack((positions, positions + 1)))  # (b, s, n)
    assert torch.allclose(each[0], y[0], atol=1e-5)
    assert not torch.allclose(each[1], y[1], atol=1e-5)


def test_gradients_equal_difference_quotients():
    rotary, x, positions = build(block=4).double(), draw(1, 3, 4, 8, dtype=torch.float64), grid_positions(2, 2)
    values = rotary.generators.detach().clone().requires_grad_()

    def rotated(x, generators):
        return torch.func.functional_call(rotary, {"generators": generators}, (x.transpose(1, 2), positions))

    assert torch.autograd.gradcheck(rotated, (x.requires_grad_(), values), fast_mode=True)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="block 3 must divide head_dim 8"):
        LieRERotary(24, 3, block=3)
    with pytest.raises(ValueError, match="axes 0 must be at least 1"):
        LieRERotary(24, 3, axes=0)
    with pytest.raises(ValueError, match="positions of 2 axes have no default"):
        LieRERotary(24, 3).rotate(draw(1, 3, 6, 8))
    with pytest.raises(ValueError, match="x has 1 heads; per_head generators need 3"):
        LieRERotary(24, 3, axes=1, per_head=True).rotate(draw(1, 1, 6, 8))
    with pytest.raises(ValueError, match="positional_scaling scales the positions"):
        MultiHeadAttention(24, 3, rotary=LieRERotary(24, 3, axes=1), positional_scaling=True)
    model = nn.ModuleDict({"embed": nn.Embedding(5, 24)})
    install(model, LieRERotary(24, 3, axes=1), at="embed")
