import json
import pickle
from functools import partial

import pytest
import torch

from cubelet.models.blocks import ShortConvBlock, draw_blocks, varied_blocks
from cubelet.models.blocks.varied import divisors
from cubelet.models.decoder import Decoder
from cubelet.models.rotary import RoPE


def test_the_draw_depends_on_the_seed_alone_and_is_plain():
    drawn = draw_blocks(96, 12, seed=3)
    torch.manual_seed(5)
    assert draw_blocks(96, 12, seed=3) == drawn == json.loads(json.dumps(drawn))
    assert draw_blocks(96, 12, seed=4) != drawn
    for key in ("heads", "activation", "norm", "dropout"):
        assert len({one[key] for one in drawn}) > 1
    assert all(96 % one["heads"] == 0 for one in drawn)
    assert divisors(12) == [1, 2, 3, 6]


def test_a_decoder_of_drawn_blocks():
    drawn = draw_blocks(48, 3, seed=1, heads=[2, 3, 6])
    makers = pickle.loads(pickle.dumps(varied_blocks(drawn, block=partial(ShortConvBlock, taps=2))))
    model = Decoder(11, 48, 3, 4, block=makers, rotary=RoPE)
    assert [block.attention.heads for block in model.blocks] == [one["heads"] for one in drawn]
    assert [block.attention.rotary.head_dim for block in model.blocks] == [48 // one["heads"] for one in drawn]
    assert [block.mlp.activation for block in model.blocks] == [one["activation"] for one in drawn]
    assert [block.dropout for block in model.blocks] == [one["dropout"] for one in drawn]
    tokens = torch.randint(11, (2, 8))
    model.eval()
    cache = model.new_cache(2, 8)
    parts = [model(part, cache=cache) for part in tokens.split(3, dim=1)]
    assert torch.allclose(torch.cat(parts, 1), model(tokens), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"layers": 0}, "layers 0"),
        ({"heads": [5]}, r"heads \[5\]"),
        ({"heads": [48]}, r"heads \[48\]"),
        ({"activations": ["tanh"]}, "tanh"),
        ({"norms": []}, "norm"),
    ],
)
def test_bad_arguments(options, word):
    with pytest.raises(ValueError, match=word):
        draw_blocks(48, **{"layers": 2, **options})
