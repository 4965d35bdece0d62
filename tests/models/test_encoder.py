"""The encoder: a row in a batch is what it is alone, whatever lies in the padding; every component is really used."""

import copy
from functools import partial

import pytest
import torch

from cubelet.models import Encoder
from cubelet.models.attention import HybridAttention, MultiHeadAttention
from cubelet.models.blocks import MyelinatedBlock, ResidualBlock, SkippingBlock
from cubelet.models.embeddings import LearnedSinusoidal
from cubelet.models.encoder import ConvStem
from cubelet.models.rotary import CombinedRotary, RoPE
from tests.reference.nudge import nudge

FEATURES, DIMS = 20, 32
VARIANTS = {
    "rope": {},
    "combined": {"rotary": CombinedRotary},
    "none": {"rotary": None},
    "sinusoids": {"rotary": None, "position_embedding": partial(LearnedSinusoidal, max_length=64)},
    "embedding level": {"rotary": None, "embedding_rotary": CombinedRotary},
    "hybrid": {"attention": partial(HybridAttention, window=4)},
    "skipping": {"block": SkippingBlock},
    "myelinated": {"block": MyelinatedBlock},
    "no stride": {"stem": partial(ConvStem, strided=0)},
}


def make(**options):
    torch.manual_seed(0)
    return nudge(Encoder(FEATURES, DIMS, 2, 4, **options)).eval()


def frames_of(*lengths, filler=0.0):
    draw = torch.Generator().manual_seed(1)
    frames = torch.full((len(lengths), max(lengths), FEATURES), filler)
    for row, length in zip(frames, lengths, strict=True):
        row[:length] = torch.randn(length, FEATURES, generator=draw)
    return frames, torch.tensor(lengths)


@pytest.mark.parametrize("filler", [1e4, float("nan")])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_row_in_a_batch_is_what_it_is_alone(name, filler):
    encoder = make(**VARIANTS[name])
    frames, lengths = frames_of(41, 23, 3, 1, filler=filler)
    with torch.no_grad():
        output = encoder(frames, lengths)
        for i, length in enumerate(lengths.tolist()):
            alone = encoder(frames[i : i + 1, :length], lengths[i : i + 1])
            states = output.states[i, : alone.states.shape[1]]
            torch.testing.assert_close(states, alone.states[0], atol=1e-5, rtol=1e-5)
            assert output.lengths[i] == alone.states.shape[1] == -(-length // encoder.stride)
            assert not output.states[i, output.lengths[i] :].any()


def test_hostile_padding_leaves_gradients_alone():
    gradients = []
    for filler in (0.0, float("nan")):
        encoder = make().train()
        frames, lengths = frames_of(21, 9, filler=filler)
        encoder(frames, lengths).states.square().sum().backward()
        gradients.append([p.grad for p in encoder.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_states_see_both_directions():
    encoder = make()
    frames, lengths = frames_of(40)
    frames.requires_grad_()
    encoder(frames, lengths).states[0, 5].sum().backward()
    reach = frames.grad[0].abs().sum(-1)
    assert reach[0] > 0
    assert reach[39] > 0


def test_without_positions_states_cannot_tell_order_and_with_them_they_can():
    # Behind a stem of width 1 nothing but the encoder's positions can tell where a frame stands.
    stem = partial(ConvStem, layers=1, strided=0, kernel=1)
    frames, lengths = frames_of(12)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    for name in ("rope", "combined", "none", "sinusoids", "embedding level"):
        encoder = make(stem=stem, **VARIANTS[name])
        with torch.no_grad():
            straight = encoder(frames, lengths).states[:, order]
            mixed = encoder(frames[:, order], lengths).states
        assert torch.allclose(straight, mixed, atol=1e-5) == (name == "none"), name


@pytest.mark.parametrize("name", ["rope", "combined", "hybrid"])
def test_it_compiles_copies_and_loads(name):
    encoder = make(**VARIANTS[name])
    frames, lengths = frames_of(20, 9)
    expected = encoder(frames, lengths).states
    again = make(**VARIANTS[name])
    again.load_state_dict(copy.deepcopy(encoder).state_dict())
    torch.testing.assert_close(again(frames, lengths).states, expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert encoder(frames, lengths).states.isfinite().all()


@pytest.mark.slow
def test_it_compiles_to_one_graph():
    encoder = make()
    frames, lengths = frames_of(20, 9)
    compiled = torch.compile(encoder, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(frames, lengths).states, encoder(frames, lengths).states)


def test_costs_and_penalties_come_through():
    skipping = make(block=partial(SkippingBlock, budget=0.1)).train()
    assert skipping(*frames_of(20)).cost > 0
    assert float(make(rotary=partial(CombinedRotary, matrix="free")).penalty().detach()) > 0
    assert make().penalty() == 0


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="dims 30 is not divisible by heads 4"):
        Encoder(FEATURES, 30, 2, 4)
    with pytest.raises(ValueError, match="layers 0"):
        Encoder(FEATURES, DIMS, 0, 4)
    with pytest.raises(ValueError, match="1 blocks were given for 2 layers"):
        Encoder(FEATURES, DIMS, 2, 4, block=[ResidualBlock])
    with pytest.raises(ValueError, match="kernel 4 must be odd"):
        ConvStem(FEATURES, DIMS, kernel=4)
    with pytest.raises(ValueError, match="strided 3 must lie between"):
        ConvStem(FEATURES, DIMS, layers=2, strided=3)
    assert isinstance(make().blocks[0].attention, MultiHeadAttention)
    assert isinstance(make().blocks[0].attention.rotary, RoPE)
