"""What encoder and decoder share: sizes that do not fit are refused, layers may differ, penalties and costs add up."""

from functools import partial

import pytest
import torch
from torch import nn

from cubelet.models import Decoder, Encoder
from cubelet.models.attention import MultiHeadAttention
from cubelet.models.blocks import ResidualBlock, ShortConvBlock
from cubelet.models.rotary import CombinedRotary, RoPE
from cubelet.models.stack import add_cost, check_sizes, make_blocks, sum_penalties


class LayerRotary(RoPE):
    """Told which layer it turns."""

    def __init__(self, dims, heads, *, layer):
        super().__init__(dims, heads)
        self.layer = layer


@pytest.mark.parametrize("make", [partial(Decoder, 10), partial(Encoder, 20)])
def test_layers_may_have_rotaries_of_their_own_and_are_told_their_index(make):
    stack = make(32, 3, 4, rotary=[RoPE, None, LayerRotary])
    rotaries = [block.attention.rotary for block in stack.blocks]
    assert [type(rotary) for rotary in rotaries] == [RoPE, type(None), LayerRotary]
    assert rotaries[2].layer == 2
    assert [block.attention.rotary.layer for block in make(32, 3, 4, rotary=LayerRotary).blocks] == [0, 1, 2]


@pytest.mark.parametrize("make", [partial(Decoder, 10), partial(Encoder, 20)])
def test_a_pattern_of_layers_is_repeated(make):
    stack = make(32, 4, 4, rotary=[RoPE, None], block=[ResidualBlock, partial(ShortConvBlock, taps=3)])
    assert [type(block) for block in stack.blocks] == [ResidualBlock, ShortConvBlock] * 2
    assert [block.attention.rotary is None for block in stack.blocks] == [False, True] * 2


@pytest.mark.parametrize("make", [partial(Decoder, 10), partial(Encoder, 20)])
def test_sizes_that_do_not_fit_are_refused(make):
    for message, arguments, options in [
        ("dims 30 is not divisible by heads 4", (30, 2, 4), {}),
        ("layers 0 must be at least 1", (32, 0, 4), {}),
        ("1 blocks were given for 2 layers", (32, 2, 4), {"block": [ResidualBlock]}),
        ("3 rotaries were given for 2 layers", (32, 2, 4), {"rotary": [None] * 3}),
    ]:
        with pytest.raises(ValueError, match=message):
            make(*arguments, **options)
    with pytest.raises(ValueError, match="features 0"):
        check_sizes(features=0, dims=8, heads=2)


def test_penalties_and_costs_add_up_and_may_be_absent():
    rotary = partial(CombinedRotary, matrix="free")
    options = {"block": ResidualBlock, "attention": MultiHeadAttention, "causal": False, "dropout": 0.0}
    torch.manual_seed(0)
    blocks = make_blocks(32, 2, 4, rotary=rotary, **options)
    with torch.no_grad():
        for parameter in blocks.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    like = torch.zeros(3, dtype=torch.float64)
    total = sum_penalties([*blocks, None, nn.Identity()], like)
    assert float(total.detach()) == pytest.approx(sum(float(block.penalty().detach()) for block in blocks))
    assert total > 0
    assert sum_penalties([None], like).dtype == torch.float64
    one, two = torch.tensor(1.0), torch.tensor(2.0)
    assert add_cost(None, None) is None
    assert [float(add_cost(*pair)) for pair in ((one, None), (None, two), (one, two))] == [1.0, 2.0, 3.0]
