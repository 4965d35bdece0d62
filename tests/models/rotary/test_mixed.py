"""MixedRotary against one token, head and pair at a time, and against the exponential of commuting generators."""

import math

import pytest
import torch

from cubelet.models.attention import MultiHeadAttention
from cubelet.models.rotary import MixedRotary, RoPE, grid_positions
from tests.reference import rotary as reference


def build(**options):
    torch.manual_seed(0)
    return reference.nudge(MixedRotary(24, 3, **options))


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("per_head", [True, False])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_every_pair_rotates_by_its_own_frequency_vector(axes, per_head):
    rotary, x = build(axes=axes, per_head=per_head), draw(2, 3, 6, 8)
    positions = torch.randint(0, 5, (2, 6) if axes == 1 else (2, 6, axes), generator=torch.Generator().manual_seed(3))
    y = rotary.rotate(x, positions)
    directions = rotary.directions.detach().double()
    for b, h, s, m in ((0, 0, 1, 0), (1, 2, 5, 3), (1, 1, 3, 2)):
        place = positions[b, s].double().reshape(-1)
        angle = float(100.0 ** (-m / 4) * (directions[h if per_head else 0, m] @ place))
        a, c = x[b, h, s, 2 * m].item(), x[b, h, s, 2 * m + 1].item()
        wanted = (a * math.cos(angle) - c * math.sin(angle), a * math.sin(angle) + c * math.cos(angle))
        assert y[b, h, s, 2 * m : 2 * m + 2].tolist() == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("family", ["STRING", "ComRoPE-LD", "ComRoPE-AP"])
def test_with_a_matrix_it_is_the_exponential_of_commuting_generators(family):
    """exp(Σ p_a L_a), L_a = R·(pairwise rotations)·Rᵀ; what stands behind R cancels in the scores.

    ComRoPE's two ways to commute are two of the choices of frequencies: all generators multiples of one (LD), or each
    pair turned by one axis alone (AP).
    """
    rotary, q, k = build(matrix=True, per_head=False), draw(1, 3, 6, 8, dtype=torch.float64), draw(1, 3, 6, 8, seed=1)
    with torch.no_grad():
        if family == "ComRoPE-LD":
            rotary.directions.copy_(rotary.directions[..., :1] * torch.tensor([1.0, -0.4]))
        elif family == "ComRoPE-AP":
            rotary.directions[:, ::2, 0] = rotary.directions[:, 1::2, 1] = 0
    rotary, k, positions = rotary.double(), k.double(), grid_positions(2, 3)
    R, theta = rotary.mixing().detach(), rotary.frequencies().detach()[0]
    generators = []
    for axis in range(2):
        J = torch.zeros(8, 8, dtype=torch.float64)
        for m in range(4):
            J[2 * m, 2 * m + 1], J[2 * m + 1, 2 * m] = theta[m, axis], -theta[m, axis]
        generators.append(R @ J @ R.T)
    assert torch.allclose(generators[0] @ generators[1], generators[1] @ generators[0], atol=1e-12)
    if family == "ComRoPE-LD":
        assert torch.allclose(generators[1], -0.4 * generators[0], atol=1e-6)
    elif family == "ComRoPE-AP":
        assert (generators[0] @ generators[1]).abs().max() < 1e-12
    scores = rotary.rotate(q, positions) @ rotary.rotate(k, positions).mT
    turns = [torch.linalg.matrix_exp(p[0] * generators[0] + p[1] * generators[1]) for p in positions]
    for i in range(6):
        for j in range(6):
            wanted = (q[0, 1, i] @ turns[i]) @ (k[0, 1, j] @ turns[j])
            assert scores[0, 1, i, j].item() == pytest.approx(wanted.item(), abs=1e-9)


def test_scores_depend_on_differences_along_each_axis():
    assert reference.relative_spread(build(matrix=True), torch.float64, axes=2) < 1e-9


def test_everything_learns_and_attention_takes_it():
    rotary = build(matrix=True)
    attention = MultiHeadAttention(24, 3, rotary=rotary, causal=False)
    positions = grid_positions(2, 3)
    (attention(draw(2, 6, 24), positions=positions) * draw(2, 6, 24, seed=1)).sum().backward()
    for parameter in rotary.parameters():
        assert parameter.grad.abs().max() > 0
    grouped = MultiHeadAttention(24, 3, rotary=MixedRotary(24, 3), kv_heads=1, causal=False)
    with pytest.raises(ValueError, match="x has 4 heads; per_head frequencies need a multiple of 3"):
        grouped(draw(2, 6, 24), positions=positions)


def test_one_axis_counts_tokens_as_rope_does():
    rotary, x = MixedRotary(24, 3, axes=1, base=50.0), draw(1, 3, 6, 8)
    torch.nn.init.ones_(rotary.directions)
    assert torch.allclose(rotary.rotate(x), RoPE(24, 3, base=50.0).rotate(x), atol=1e-6)


def test_compiled_in_one_graph():
    rotary, x, positions = build(), draw(1, 3, 6, 8), grid_positions(2, 3)
    compiled = torch.compile(rotary.rotate, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x, positions), rotary.rotate(x, positions), atol=1e-6)


def test_bad_arguments():
    with pytest.raises(ValueError, match="axes 0 must be at least 1"):
        MixedRotary(24, 3, axes=0)
    with pytest.raises(ValueError, match="positions of 2 axes have no default"):
        MixedRotary(24, 3).rotate(draw(1, 3, 6, 8))


@pytest.mark.parametrize("rotary", [RoPE(16, 2), MixedRotary(16, 2)], ids=["one axis", "several"])
def test_positions_of_a_known_length_fit_a_graph_whose_length_is_a_symbol(rotary):
    positions = torch.randint(9, (6, rotary.position_axes)[: 1 + (rotary.position_axes > 1)])
    x = torch.randn(1, 2, 6, 8)
    torch._dynamo.reset()
    torch._dynamo.maybe_mark_dynamic(x, 2)
    compiled = torch.compile(rotary.rotate, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, positions), rotary.rotate(x, positions))
    torch._dynamo.reset()
