from functools import partial

import pytest
import torch

from cubelet.models.attention import Attention, HybridAttention, MultiHeadAttention
from cubelet.models.blocks import ResidualBlock
from cubelet.models.rotary import CombinedRotary, RoPE
from tests.conformance.subject import assert_close, build, noise


def crossed():
    return build(lambda: ResidualBlock(32, 4, rotary=RoPE, cross_attention=True))


def test_an_untrained_block_is_the_identity():
    for attention in (MultiHeadAttention, partial(HybridAttention, join="concat")):
        block = ResidualBlock(32, 4, rotary=CombinedRotary, attention=attention, cross_attention=True)
        x = noise(2, 9, 32)
        y, cost = block(x, noise(2, 3, 32))
        assert torch.equal(y, x)
        assert cost is None


def test_context_reaches_every_token_and_its_order_none():
    block, x, context = crossed(), noise(2, 6, 32), noise(2, 5, 32, seed=1)
    y, _ = block(x, context)
    assert_close(block(x, context.flip(1))[0], y, "reordered context")
    changed = context.clone()
    changed[:, 2] += 1
    assert ((block(x, changed)[0] - y).abs().amax((0, 2)) > 0).all()
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[:, 2] = False
    assert torch.equal(block(x, changed, context_mask=mask)[0], block(x, context, context_mask=mask)[0])


@torch.no_grad()
def test_cross_attention_is_cached():
    block, x, context = crossed(), noise(3, 8, 32), noise(3, 5, 32, seed=1)
    y, _ = block(x, context)
    cache = block.new_cache(3, 8)
    parts = [block(part, context, cache=cache)[0] for part in x.split([3, 1, 1, 3], dim=1)]
    assert_close(torch.cat(parts, 1), y, "cached, with a context")
    cache = block.new_cache(3, 8)
    block(x[:, :5], context, cache=cache)
    order = torch.tensor([2, 2, 1])
    cache.reorder(order)
    rest, _ = block(x[:, 5:], context[order], cache=cache)
    joined, _ = block(torch.cat([x[order, :5], x[:, 5:]], 1), context[order])
    assert_close(rest, joined[:, 5:], "reordered, with a reordered context")


def test_a_context_must_be_wanted_and_given():
    with pytest.raises(ValueError, match="cross_attention=True"):
        ResidualBlock(32, 4)(noise(1, 3, 32), noise(1, 3, 32))
    with pytest.raises(ValueError, match="needs a context"):
        crossed()(noise(1, 3, 32))
    with pytest.raises(ValueError, match="without a context"):
        ResidualBlock(32, 4)(noise(1, 3, 32), context_mask=torch.ones(1, 3, dtype=torch.bool))


def test_penalty_is_the_rotarys():
    block = build(lambda: ResidualBlock(32, 4, rotary=partial(CombinedRotary, matrix="free")))
    assert block.penalty() == block.attention.rotary.penalty() > 0


def test_dropout_acts_in_training_only():
    block = build(lambda: ResidualBlock(32, 4, dropout=0.5))
    x = noise(2, 9, 32)
    assert torch.equal(block(x)[0], block(x)[0])
    block.train()
    assert not torch.equal(block(x)[0], block(x)[0])


def test_both_ways():
    block = build(lambda: ResidualBlock(32, 4, causal=False))
    x = noise(1, 9, 32).requires_grad_()
    block(x)[0][:, 0].sum().backward()
    assert x.grad is not None
    assert (x.grad.abs().amax(-1) > 0).all()


class Mean(Attention):
    """Somebody's own attention: the mean of the tokens so far. Only what it must have."""

    def __init__(self, dims, heads, *, rotary=None, causal=True, dropout=0.0):
        super().__init__(dims, heads, causal=causal, dropout=dropout)
        self.out = torch.nn.Linear(dims, dims)

    def forward(self, x, context=None, *, key_mask=None, positions=None, cache=None):
        return self.out(x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None])


def test_an_attention_of_ones_own():
    x = noise(2, 5, 32)
    block = ResidualBlock(32, 4, attention=Mean)
    assert torch.count_nonzero(block.attention.out.weight) == 0
    assert block.penalty() == 0
    assert build(lambda: block)(x)[0].shape == x.shape
    with pytest.raises(NotImplementedError, match="Mean has no cache"):
        block.new_cache(1, 5)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"norm": "batch"}, "'batch'"),
        ({"activation": "tanh"}, "'tanh'"),
        ({"mlp_ratio": 0}, "mlp_ratio 0"),
        ({"dropout": 1.0}, "dropout 1.0"),
        ({"heads": 5}, "dims 32 cannot be split over heads 5"),
    ],
)
def test_bad_arguments(options, word):
    with pytest.raises(ValueError, match=word):
        ResidualBlock(32, **{"heads": 4, **options})
