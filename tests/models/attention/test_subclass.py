"""What people build on top: constructors call nothing that a subclass overrides, and draw each weight once."""

import pytest
import torch
from torch import nn

from cubelet.models import Decoder
from cubelet.models.attention import HybridAttention, LatentAttention, ProjectedAttention, masked_attention
from cubelet.models.linear import Linear
from tests.models.attention.variants import ATTENTIONS
from tests.models.blocks.variants import BLOCKS


class Sharpened(ProjectedAttention):
    """A learned temperature per head, with its own initial values."""

    def __init__(self, dims: int, heads: int, *, start: float = 2.0, **options) -> None:
        super().__init__(dims, heads, **options)
        self.start = start
        self.sharpness = nn.Parameter(torch.full((heads,), start))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.constant_(self.sharpness, self.start)

    def attend(self, x, q, k, v, scope):
        return masked_attention(q * self.sharpness[:, None, None], k, v, scope)


def test_a_subclass_with_a_parameter_of_its_own():
    model = Decoder(17, 32, 2, 4, attention=Sharpened)
    assert model.generate([[1, 2], [3]], 3).shape == (2, 5)
    attention = model.blocks[0].attention
    attention.sharpness.data.zero_()
    attention.reset_parameters()
    assert attention.sharpness.tolist() == [2.0] * 4
    with torch.device("meta"):
        empty = Sharpened(32, 4)
    empty.to_empty(device="cpu").reset_parameters()
    assert empty.sharpness.tolist() == [2.0] * 4


@pytest.mark.parametrize("make", [c.make for c in (*ATTENTIONS.values(), *BLOCKS.values())], ids=[*ATTENTIONS, *BLOCKS])
def test_each_weight_is_drawn_once_and_no_override_runs(monkeypatch, make):
    draws = []
    original = nn.init.normal_
    monkeypatch.setattr(
        nn.init, "normal_", lambda tensor, **options: draws.append(id(tensor)) or original(tensor, **options)
    )
    monkeypatch.setattr(nn.init, "kaiming_uniform_", lambda *_, **__: pytest.fail("drawn with torch's default first"))
    module = make(32, 4)
    linears = [m for m in module.modules() if isinstance(m, nn.Linear)]
    assert all(isinstance(m, Linear) for m in linears)
    # Latent attention puts a projection of another width in the place of the one its base has drawn.
    replaced = isinstance(module, LatentAttention)
    assert len(draws) == len(set(draws)) == sum(m.scale > 0 for m in linears) + replaced


def test_a_checkpoint_of_0_1_0_finds_the_joining_map():
    module = HybridAttention(32, 4, join="concat")
    state = module.state_dict()
    old = {
        name.replace("out.weight", "join_layer.weight") if name == "out.weight" else name: t
        for name, t in state.items()
    }
    assert "join_layer.weight" in old
    HybridAttention(32, 4, join="concat").load_state_dict(old)
