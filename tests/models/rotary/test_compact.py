"""CompactRotary: the literal product of its rotations, and what it leaves unchanged."""

import math

import pytest
import torch

from cubelet.models.rotary import CompactRotary, RoPE
from tests.reference import rotary as reference


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("rotations", "count"), [(None, 4), (3, 3), (8, 8)])
def test_mixing_equals_the_literal_product(rotations, count):
    rotary, x = CompactRotary(16, 2, rotations=rotations), draw(2, 2, 5, 8)
    pairs = [(0, 1), (2, 3), (4, 5), (6, 7), (1, 2), (3, 4), (5, 6), (0, 7)][:count]
    R = reference.combined_mixing(pairs, [2 * math.pi / count] * count, 8, count, 1.0, None)
    assert torch.allclose(rotary.mixing().double(), R, atol=1e-6)
    assert torch.allclose(rotary.rotate(x).double(), reference.rope(x.double() @ R), atol=2e-6)
    assert not list(rotary.parameters())
    assert set(rotary.state_dict()) == set(RoPE(16, 2).state_dict())


def test_scores_are_those_of_rope_while_pairs_are_ropes_own():
    q, k = draw(1, 2, 9, 8), draw(1, 2, 9, 8, seed=1)
    own, plain = CompactRotary(16, 2), RoPE(16, 2)
    assert torch.allclose(own.rotate(q) @ own.rotate(k).mT, plain.rotate(q) @ plain.rotate(k).mT, atol=1e-5)
    assert not torch.allclose(own.rotate(q), plain.rotate(q), atol=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_depend_on_differences_only(dtype):
    spread = reference.relative_spread(CompactRotary(64, 2, rotations=30), dtype)
    assert spread <= (1e-6 if dtype == torch.float32 else 1e-12)
    assert reference.orthogonality_error(CompactRotary(64, 2, rotations=30).mixing()) <= 1e-6


def test_built_on_meta_then_loaded_or_reset():
    x, built = draw(1, 2, 5, 8), CompactRotary(16, 2)
    for finish in (lambda r: r.load_state_dict(built.state_dict()), lambda r: r.reset_parameters()):
        with torch.device("meta"):
            rotary = CompactRotary(16, 2)
        rotary.to_empty(device="cpu")
        finish(rotary)
        assert torch.equal(rotary.rotate(x), built.rotate(x))
    assert torch.equal(built.bfloat16().rotate(x), CompactRotary(16, 2).rotate(x))


def test_merged_projection_keeps_the_result():
    rotary, q, x = CompactRotary(16, 2, rotations=7), torch.nn.Linear(16, 16), draw(2, 5, 16)
    wanted = rotary.rotate(q(x).unflatten(-1, (2, 8)).transpose(1, 2))
    rotary.merge(q)
    assert torch.allclose(rotary.rotate(q(x).unflatten(-1, (2, 8)).transpose(1, 2)), wanted, atol=2e-6)


@pytest.mark.parametrize("rotations", [0, 9])
def test_bad_count(rotations):
    with pytest.raises(ValueError, match=rf"rotations {rotations} is outside 1…8: head_dim 8 has 8 adjacent pairs"):
        CompactRotary(16, 2, rotations=rotations)
