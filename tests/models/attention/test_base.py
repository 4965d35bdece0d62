"""What all projected attentions share: folding, caches and rotaries, contexts, and errors with numbers."""

import pytest
import torch

from cubelet.models.attention import HybridAttention, MultiHeadAttention, SlidingWindowAttention, base
from cubelet.models.rotary import AxialRotary, CombinedRotary, RoPE
from cubelet.models.rotary.axial import grid_positions
from tests.conformance import suite
from tests.conformance.subject import assert_close, build, noise


@pytest.mark.parametrize("options", [{}, {"qk_norm": True, "bias": True}, {"kv_heads": 2}], ids=str)
@pytest.mark.parametrize("matrix", ["orthogonal", "free"])
def test_folding_changes_nothing(monkeypatch, options, matrix):
    module = build(lambda: MultiHeadAttention(32, 4, rotary=CombinedRotary(32, 4, matrix=matrix), **options))
    x = noise(2, 20, 32)
    results = []
    for folds in (True, False):
        monkeypatch.setattr(base, "worth_folding", lambda *_, folds=folds: folds)
        module.zero_grad()
        y = module(x)
        y.square().sum().backward()
        results.append((y, {n: p.grad.clone() for n, p in module.named_parameters()}))
    assert_close(results[0][0], results[1][0], "folded output")
    for name, gradient in results[0][1].items():
        assert_close(gradient, results[1][1][name], f"folded gradient of {name}")


def test_many_tokens_are_folded(monkeypatch):
    calls = []
    monkeypatch.setattr(base, "fold", lambda *a: calls.append(a[0].shape) or base_fold(*a))
    module = MultiHeadAttention(32, 4, rotary=CombinedRotary(32, 4))
    module(noise(4, 64, 32))
    assert calls == [(64, 32)], "queries and keys are folded once, together"
    module(noise(1, 4, 32))
    assert len(calls) == 1, "a few tokens are not worth it"


base_fold = base.fold


def test_scores_depend_on_relative_positions_alone():
    module = build(lambda: MultiHeadAttention(32, 4, rotary=RoPE(32, 4)))
    x = noise(2, 12, 32)
    assert_close(module(x, positions=torch.arange(12) + 1000), module(x), "positions shifted by 1000", 1e-4)
    assert (module(x, positions=2 * torch.arange(12)) - module(x)).abs().max() > 1e-3


def test_order_not_positions_decides_who_is_seen():
    module = build(lambda: MultiHeadAttention(32, 4, rotary=RoPE(32, 4)))
    x, positions = noise(1, 8, 32), torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
    changed = x.clone()
    changed[:, 4:] += 1
    one, other = module(x, positions=positions), module(changed, positions=positions)
    assert torch.equal(one[:, :4], other[:, :4])


@torch.no_grad()
def test_a_cache_refuses_keys_of_another_base():
    rotary = RoPE(32, 4)
    module = build(lambda: MultiHeadAttention(32, 4, rotary=rotary))
    cache = module.new_cache(1, 10)
    module(noise(1, 5, 32), cache=cache)
    rotary.set_base(500.0)
    with pytest.raises(RuntimeError, match="5 keys"):
        module(noise(1, 1, 32), cache=cache)
    suite.check_cache(lambda: module)


@torch.no_grad()
def test_positions_go_on_in_the_cache():
    module = build(lambda: MultiHeadAttention(32, 4, rotary=RoPE(32, 4), relative_bias=40))
    x, positions = noise(2, 9, 32), torch.tensor([0, 3, 4, 5, 9, 10, 11, 12, 13])
    cache = module.new_cache(2, 9)
    parts = [module(x[:, :5], positions=positions[:5], cache=cache), module(x[:, 5:], cache=cache)]
    assert_close(torch.cat(parts, 1), module(x, positions=positions), "positions with gaps, then counted on")


@pytest.mark.parametrize("make", [MultiHeadAttention, HybridAttention])
def test_positions_of_two_axes(make):
    module = build(lambda: make(32, 4, rotary=AxialRotary(32, 4, axes=2), causal=False))
    x, grid = noise(2, 12, 32), grid_positions(3, 4)
    y = module(x, positions=grid)
    assert_close(module(x, positions=grid + torch.tensor([5, 9])), y, "shifted along both axes", 1e-4)
    assert (module(x, positions=grid.flip(1)) - y).abs().max() > 1e-3
    with pytest.raises(ValueError, match=r"expected \(12, 2\) or \(2, 12, 2\)"):
        module(x, positions=torch.arange(12))
    causal = build(lambda: make(32, 4, rotary=AxialRotary(32, 4, axes=2)))
    whole, cache = causal(x, positions=grid), causal.new_cache(2, 12)
    parts = [causal(x[:, i : i + 3], positions=grid[i : i + 3], cache=cache) for i in range(0, 12, 3)]
    assert_close(torch.cat(parts, 1), whole, "cached")


def test_keys_of_a_scaling_rotary_are_turned_as_keys():
    module = build(lambda: MultiHeadAttention(32, 4, rotary=AxialRotary(32, 4, scale_base=64.0)))
    x = noise(2, 12, 32)
    assert_close(module(x, positions=torch.arange(12) + 100), module(x), "positions shifted by 100", 1e-4)


def test_cross_attention_is_neither_causal_nor_rotated():
    module = build(lambda: MultiHeadAttention(32, 4, rotary=RoPE(32, 4)))
    plain = build(lambda: MultiHeadAttention(32, 4, causal=False))
    plain.load_state_dict({k: v for k, v in module.state_dict().items() if not k.startswith("rotary")})
    x, context = noise(2, 5, 32), noise(2, 7, 32, seed=1)
    y = module(x, context)
    assert torch.equal(y, plain(x, context))
    order = torch.randperm(7)
    assert_close(module(x, context[:, order]), y, "reordered context")
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[0, 4:] = False
    spoiled = context.clone()
    spoiled[0, 4:] = torch.nan
    assert_close(module(x, spoiled, key_mask=mask)[0], module(x[:1], context[:1, :4])[0], "masked context")
    mask[1] = False
    assert torch.count_nonzero(module(x, context, key_mask=mask)[1]) == 0


@torch.no_grad()
def test_a_context_is_projected_once():
    module = build(lambda: MultiHeadAttention(32, 4, causal=False))
    x, context = noise(2, 3, 32), noise(2, 7, 32, seed=1)
    cache = module.new_context_cache()
    assert torch.equal(module(x, context, cache=cache), module(x, context))
    keys = cache.keys
    assert_close(module(x[:, :1], context, cache=cache), module(x[:, :1], context), "cached context")
    assert cache.keys is keys
    other = context.flip(0)
    assert_close(module(x, other, cache=cache), module(x, other), "another context")
    assert cache.keys is not keys


@torch.no_grad()
def test_a_context_is_found_again_with_a_mask_and_not_after_a_change_in_place():
    module = build(lambda: MultiHeadAttention(32, 4, causal=False))
    x, context = noise(2, 3, 32), noise(2, 7, 32, seed=1)
    mask = torch.arange(7) < torch.tensor([[4], [7]])
    cache = module.new_context_cache()
    module(x, context, key_mask=mask, cache=cache)
    keys = cache.keys
    assert torch.equal(module(x, context, key_mask=mask.clone(), cache=cache), module(x, context, key_mask=mask))
    assert cache.keys is keys
    module(x, context, key_mask=~mask, cache=cache)
    assert cache.keys is not keys
    context += 1
    assert torch.equal(module(x, context, key_mask=~mask, cache=cache), module(x, context, key_mask=~mask))


def test_penalty_is_the_rotarys():
    assert MultiHeadAttention(32, 4).penalty() == 0
    module = build(lambda: MultiHeadAttention(32, 4, rotary=CombinedRotary(32, 4, matrix="free")))
    assert module.penalty() == module.rotary.penalty() > 0


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: MultiHeadAttention(30, 4), "dims 30"),
        (lambda: MultiHeadAttention(32, 0), "heads 0"),
        (lambda: MultiHeadAttention(32, 4, kv_heads=3), "kv_heads 3"),
        (lambda: MultiHeadAttention(32, 4, dropout=1.0), "dropout 1.0"),
        (lambda: MultiHeadAttention(32, 4, relative_bias=0), "relative_bias 0"),
        (lambda: MultiHeadAttention(32, 4, rotary=RoPE(64, 4)), "head_dim 16; this attention has head_dim 8"),
        (lambda: HybridAttention(32, 4, rotary=RoPE(64, 4)), "head_dim 16; this attention has head_dim 8"),
    ],
)
def test_bad_arguments(make, word):
    with pytest.raises(ValueError, match=word):
        make()


def test_bad_calls():
    module, x = MultiHeadAttention(32, 4), noise(2, 5, 32)
    with pytest.raises(ValueError, match=r"context has shape \(3, 5, 32\)"):
        module(x, noise(3, 5, 32))
    with pytest.raises(ValueError, match=r"positions have shape \(4,\)"):
        module(x, positions=torch.arange(4))
    with pytest.raises(ValueError, match=r"shape \(3, 5\); expected \(5,\) or \(2, 5\)"):
        module(x, positions=torch.zeros(3, 5, dtype=torch.long))
    with pytest.raises(TypeError, match="float32"):
        module(x, positions=torch.zeros(5))
    with pytest.raises(ValueError, match="self-attention only"):
        SlidingWindowAttention(32, 4)(x, x)
    with pytest.raises(ValueError, match="self-attention only"):
        SlidingWindowAttention(32, 4).new_context_cache()


def test_dropout_acts_in_training_only():
    module = MultiHeadAttention(32, 4, dropout=0.5)
    x = noise(2, 9, 32)
    assert not torch.equal(module(x), module(x))
    assert torch.equal(module.eval()(x), module(x))
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[0, :3] = False
    assert module.train()(x, key_mask=mask).isfinite().all()
