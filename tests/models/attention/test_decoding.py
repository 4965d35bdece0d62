"""A decoder of every attention: greedy generation, cached, picks the tokens that full forwards pick."""

import pytest
import torch

from cubelet.models.decoder import Decoder
from cubelet.models.rotary import CombinedRotary
from tests.models.attention.variants import ATTENTIONS
from tests.reference.nudge import nudge


@torch.no_grad()
@pytest.mark.parametrize("name", ATTENTIONS)
def test_generation(name):
    torch.manual_seed(0)
    model = Decoder(17, 32, 2, 4, attention=ATTENTIONS[name].make, rotary=CombinedRotary)
    nudge(model).eval()
    prompt = torch.randint(17, (2, 5))
    out = model.generate(prompt, 15, temperature=0.0)
    tokens = prompt
    for _ in range(15):
        tokens = torch.cat([tokens, model(tokens)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(out, tokens)
