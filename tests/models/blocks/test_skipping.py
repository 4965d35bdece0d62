from functools import partial

import pytest
import torch

from cubelet.models.attention import SlidingWindowAttention
from cubelet.models.blocks import MyelinatedBlock, SkippingBlock
from tests.conformance.subject import assert_close, build, noise


def test_tokens_with_a_closed_gate_pass_unchanged():
    module = build(lambda: SkippingBlock(32, 4, gate_bias=0.0))
    x = noise(2, 20, 32)
    y, _ = module(x)
    opened = module.gates(x) > 0.5
    assert 0 < opened.float().mean() < 1
    assert torch.equal(y[~opened], x[~opened])
    assert_close(y[opened], module.block(x)[0][opened], "open tokens")


def test_the_budget_is_paid_above_it_only_and_closes_gates():
    module = build(lambda: SkippingBlock(32, 4, budget=0.5, budget_weight=2.0))
    x = noise(2, 20, 32)
    share = module.gates(x).mean()
    assert share > 0.5
    _, cost = module(x)
    assert cost.item() == pytest.approx(2.0 * (share.item() - 0.5) ** 2, rel=1e-5)
    cost.backward()
    assert module.gate.bias.grad > 0
    assert build(lambda: SkippingBlock(32, 4, budget=1.0))(x)[1] == 0


def test_padding_is_not_counted():
    module = build(lambda: SkippingBlock(32, 4, budget=0.0))
    x, mask = noise(1, 10, 32), torch.ones(1, 10, dtype=torch.bool)
    mask[:, 6:] = False
    assert_close(module(x, key_mask=mask)[1], module(x[:, :6])[1], "cost with padding")


def test_any_block_may_be_skipped_and_its_cost_is_kept():
    inner = partial(MyelinatedBlock, layers=2, budget=0.0)
    module = build(
        lambda: SkippingBlock(32, 4, block=inner, budget=0.0, attention=partial(SlidingWindowAttention, window=4))
    )
    x = noise(1, 9, 32)
    assert module.block.layers[0].attention.window == 4
    own = module.budget_weight * module.gates(x).mean() ** 2
    assert module(x)[1].item() == pytest.approx((own + module.block(x)[1]).item(), rel=1e-5)


@pytest.mark.parametrize("options", [{"budget": 1.5}, {"budget": -0.1}, {"budget_weight": -1.0}])
def test_bad_arguments(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name} {value}"):
        SkippingBlock(32, 4, **options)
