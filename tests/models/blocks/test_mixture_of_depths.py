"""Tokens are taken as a token bucket takes them, one after the other, and attention is among those alone."""

import pytest
import torch

from cubelet.models.attention import SlidingWindowAttention
from cubelet.models.blocks import MixtureOfDepthsBlock
from cubelet.models.blocks.mixture_of_depths import take_within_capacity
from cubelet.models.rotary import RoPE
from tests.conformance.subject import assert_close, build, noise


def by_definition(is_open, capacity, real, documents):
    taken = torch.zeros_like(is_open)
    for b in range(is_open.shape[0]):
        read = count = 0
        for t in range(is_open.shape[1]):
            if documents is not None and t and documents[b, t] != documents[b, t - 1]:
                read = count = 0
            if not real[b, t]:
                continue
            read += 1
            if is_open[b, t] and count + 1 <= int(read * capacity + 1e-6):
                taken[b, t] = True
                count += 1
    return taken


@pytest.mark.parametrize("capacity", [0.125, 0.4, 0.5, 1.0])
@pytest.mark.parametrize("packed", [True, False])
def test_the_bucket_is_that_of_the_loop(capacity, packed):
    generator = torch.Generator().manual_seed(0)
    is_open, real = (torch.rand(4, 50, generator=generator) < share for share in (0.6, 0.9))
    documents = (torch.rand(4, 50, generator=generator) < 0.1).cumsum(1) if packed else None
    taken = take_within_capacity(is_open, capacity, real, documents)
    assert torch.equal(taken, by_definition(is_open, capacity, real, documents))
    assert taken.sum(1).max() <= 50 * capacity


def test_the_bucket_goes_on():
    is_open = torch.rand(3, 40, generator=torch.Generator().manual_seed(1)) < 0.7
    real = torch.ones_like(is_open)
    whole, read, count, parts = take_within_capacity(is_open, 0.3, real), 0, 0, []
    for piece in is_open.split(7, dim=1):
        parts.append(take_within_capacity(piece, 0.3, torch.ones_like(piece), None, read, count))
        read, count = read + piece.shape[1], count + parts[-1].sum(1, keepdim=True)
    assert torch.equal(torch.cat(parts, 1), whole)


def test_attention_is_among_taken_tokens():
    module = build(lambda: MixtureOfDepthsBlock(32, 4, capacity=0.5, gate_bias=0.3, rotary=RoPE))
    x = noise(1, 30, 32)
    y, _ = module(x)
    open_ = module.gates(x) > 0.5
    taken = take_within_capacity(open_, 0.5, torch.ones_like(open_))[0]
    assert 0 < taken.sum() < 30
    assert torch.equal(y[0, ~taken], x[0, ~taken])
    alone, _ = module.block(x[:, taken], positions=torch.arange(30)[taken])
    assert_close(y[0, taken], alone[0], "taken tokens")


@torch.no_grad()
def test_the_cache_holds_taken_tokens_alone():
    module = build(lambda: MixtureOfDepthsBlock(32, 4, capacity=0.25, gate_bias=9.0))
    cache, x = module.new_cache(1, 40), noise(1, 40, 32)
    parts = [module(x[:, t : t + 1], cache=cache)[0] for t in range(40)]
    assert cache.length == 40
    assert cache.parts[0].length == 10
    assert_close(torch.cat(parts, 1), module(x)[0], "token by token")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capacity": 0.0}, "capacity 0.0"),
        ({"capacity": 1.5}, "capacity 1.5"),
        ({"attention": SlidingWindowAttention}, "SlidingWindowAttention depends on which token is next"),
        ({"causal": False}, "causal=True"),
    ],
)
def test_what_it_cannot_do_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MixtureOfDepthsBlock(32, 4, **options)


def test_the_cost_asks_for_the_capacity_from_both_sides():
    module = build(lambda: MixtureOfDepthsBlock(32, 4, capacity=0.5, budget_weight=2.0))
    x, bias = noise(2, 12, 32), module.gate.bias
    for value, share, sign in [(-9.0, 0.0, -1), (9.0, 1.0, 1)]:
        with torch.no_grad():
            bias.fill_(value)
        _, cost = module(x)
        assert cost.item() == 2.0 * (share - 0.5) ** 2
        assert torch.autograd.grad(cost, bias)[0].sign() == sign
