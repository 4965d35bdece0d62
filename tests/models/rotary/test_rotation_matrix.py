"""Folding R into projections: same values, same gradients, with biases and fewer key heads; merging for good."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cubelet.models.rotary import CombinedRotary, RoPE, fold, worth_folding
from tests.reference import rotary as reference


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def build():
    return reference.nudge(CombinedRotary(24, 3, seed=2, rotations=9))


def heads(y, count):
    return y.unflatten(-1, (count, 8)).transpose(1, 2)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("count", [3, 1])
def test_folded_equals_multiplied_in_values_and_gradients(count, bias):
    rotary, x, w = build(), draw(2, 5, 24), draw(2, count, 5, 8, seed=3)
    projection = nn.Linear(24, count * 8, bias=bias)
    leaves = [*projection.parameters(), *rotary.parameters()]

    multiplied = rotary.rotate(heads(projection(x), count))
    wanted = torch.autograd.grad((multiplied * w).sum(), leaves)
    weight, b = fold(projection.weight, projection.bias, rotary.mixing(), count)
    folded = rotary.turn(heads(F.linear(x, weight, b), count))
    got = torch.autograd.grad((folded * w).sum(), leaves)

    assert torch.allclose(folded, multiplied, atol=2e-6)
    for a, b in zip(got, wanted, strict=True):
        assert torch.allclose(a, b, atol=2e-5)


def test_fold_head_by_head():
    weight, bias, R = draw(24, 10), draw(24, seed=1), draw(8, 8, seed=2)
    new_weight, new_bias = fold(weight, bias, R, 3)
    for h in range(3):
        rows = slice(8 * h, 8 * h + 8)
        assert torch.allclose(new_weight[rows], (weight[rows].T @ R).T, atol=1e-5)
        assert torch.allclose(new_bias[rows], bias[rows] @ R, atol=1e-5)


def test_fold_keeps_dtype_and_ignores_autocast():
    weight, R = draw(24, 10), reference.nudge(CombinedRotary(24, 3)).mixing().detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = fold(weight, None, R, 3)[0]
    assert torch.equal(inside, fold(weight, None, R, 3)[0])
    assert fold(weight.bfloat16(), None, R, 3)[0].dtype == torch.bfloat16
    assert fold(weight, None, None, 3)[0] is weight


def test_gain_free_norm_between_commutes_with_folding():
    rotary, x = build(), draw(2, 5, 24)
    projection = nn.Linear(24, 24)
    weight, bias = fold(projection.weight, projection.bias, rotary.mixing(), 3)
    multiplied = rotary.rotate(F.rms_norm(heads(projection(x), 3), (8,)))
    folded = rotary.turn(F.rms_norm(heads(F.linear(x, weight, bias), 3), (8,)))
    assert torch.allclose(folded, multiplied, atol=2e-6)


def test_merged_equals_unmerged_and_costs_nothing_afterwards():
    rotary, x = build(), draw(2, 5, 24)
    q, k = nn.Linear(24, 24), nn.Linear(24, 8, bias=False)
    wanted = rotary.rotate(heads(q(x), 3)), rotary.rotate(heads(k(x), 1))
    rotary.merge(q, k)
    assert rotary.mixing() is None
    assert torch.allclose(rotary.rotate(heads(q(x), 3)), wanted[0], atol=2e-6)
    assert torch.allclose(rotary.rotate(heads(k(x), 1)), wanted[1], atol=2e-6)
    assert torch.equal(rotary.rotate(heads(q(x), 3)), RoPE(24, 3).rotate(heads(q(x), 3)))
    rotary.merge(q, k)  # R is the identity now: nothing may happen
    assert torch.allclose(rotary.rotate(heads(q(x), 3)), wanted[0], atol=2e-6)


@pytest.mark.parametrize("matrix", ["orthogonal", "fixed", "none", "free"])
def test_a_checkpoint_of_a_merged_model_is_not_rotated_twice(matrix):
    rotary, x = reference.nudge(CombinedRotary(24, 3, matrix=matrix)), draw(2, 5, 24)
    q = nn.Linear(24, 24)
    wanted = rotary.rotate(heads(q(x), 3))
    rotary.merge(q)
    fresh = reference.nudge(CombinedRotary(24, 3, matrix=matrix))
    fresh.load_state_dict(rotary.state_dict())
    assert torch.allclose(fresh.rotate(heads(q(x), 3)), wanted, atol=2e-6)
    rotary.load_state_dict(reference.nudge(CombinedRotary(24, 3, matrix=matrix)).state_dict())
    assert rotary.mixing() is not None


def test_rows_of_a_fused_projection_are_merged_in_place():
    rotary, x = build(), draw(2, 5, 24)
    fused = nn.Linear(24, 72)
    q, k, v = (heads(part, 3) for part in fused(x).chunk(3, dim=-1))
    wanted = rotary.rotate(q), rotary.rotate(k), v
    rotary.merge((fused.weight[:48], fused.bias[:48]))
    q, k, v = (heads(part, 3) for part in fused(x).chunk(3, dim=-1))
    for got, want in zip((rotary.rotate(q), rotary.rotate(k), v), wanted, strict=True):
        assert torch.allclose(got, want, atol=2e-6)


def test_worth_folding_is_a_matter_of_tokens_against_dims():
    assert worth_folding(12 * 64, 128, 4)
    assert worth_folding(8 * 1024, 512, 8)
    assert not worth_folding(4096, 4096, 32)
    assert not worth_folding(1, 128, 4)


def test_bad_head_count():
    with pytest.raises(ValueError, match="24 rows; folding needs heads 2 x head_dim 8 = 16"):
        fold(draw(24, 10), None, draw(8, 8), 2)
