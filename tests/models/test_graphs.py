"""Decoders in graphs: compiled with a cache, one for the prompt and one for steps, exported for any length."""

from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from cubelet.models import Decoder
from cubelet.models.blocks import MixtureOfDepthsBlock, MyelinatedBlock, ResidualBlock, ShortConvBlock, SkippingBlock
from cubelet.models.rotary import RoPE
from tests.models.attention.variants import ATTENTIONS
from tests.reference.nudge import nudge

BLOCKS = {
    "short_conv": ShortConvBlock,
    "skipping": partial(SkippingBlock, gate_bias=0.3),
    "myelinated": partial(MyelinatedBlock, layers=2),
    "every other layer a mixture of depths": [ResidualBlock, partial(MixtureOfDepthsBlock, gate_bias=0.3)],
}


def make(name):
    torch.manual_seed(0)
    given = {"block": BLOCKS[name]} if name in BLOCKS else {"attention": ATTENTIONS[name].make}
    return nudge(Decoder(17, 32, 2, 4, rotary=RoPE, **given)).eval()


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(
    "name", ["multi_head", "hybrid", "integrated", "relative_force", *BLOCKS]
)  # one a kind of cache
def test_a_decoder_with_a_cache_compiles_whole_for_prompts_and_steps(name):
    torch._dynamo.reset()
    decoder, counter = make(name), CompileCounterWithBackend("eager")
    compiled = torch.compile(decoder, fullgraph=True, dynamic=True, backend=counter)
    tokens = torch.randint(17, (2, 26))
    caches = decoder.new_cache(2, 40), decoder.new_cache(2, 40)
    for piece in tokens.split([12] + [1] * 14, dim=1):
        piece = piece.clone()
        torch.testing.assert_close(
            compiled(piece, cache=caches[0]), decoder(piece, cache=caches[1]), rtol=1e-5, atol=1e-5
        )
    assert counter.frame_count == 2
    torch._dynamo.reset()


@torch.no_grad()
@pytest.mark.parametrize("name", ["local", "adaptive_span", "integrated"])
def test_windowed_decoders_are_exported_for_any_length(name):
    decoder = make(name)
    lengths = {"tokens": {1: torch.export.Dim("s", min=2, max=4096)}}
    exported = torch.export.export(decoder, (torch.randint(17, (2, 100)),), dynamic_shapes=lengths)
    for length in (2, 37, 333):
        tokens = torch.randint(17, (2, length))
        torch.testing.assert_close(exported.module()(tokens), decoder(tokens), rtol=1e-5, atol=1e-5)
