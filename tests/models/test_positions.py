"""Positions that nobody gave: begun again at some tokens, drawn in training; in cached, padded and packed rows."""

from functools import partial

import pytest
import torch

from cubelet.models import Decoder
from cubelet.models.attention import ForgettingAttention, MultiHeadAttention, SlidingWindowAttention
from cubelet.models.attention.score_bias import T5Bias
from cubelet.models.blocks import MixtureOfDepthsBlock, ShortConvBlock
from cubelet.models.positions import random_positions, restart_positions
from cubelet.models.rotary import CombinedRotary, RoPE
from tests.reference.nudge import nudge

RESTARTS = (3, 7)


def counted(rows, first=0):
    """Token by token: where each row's positions stand."""
    out = []
    for row in rows.tolist():
        at, positions = first - 1, []
        for token in row:
            at = 0 if token in RESTARTS else at + 1
            positions.append(at)
        out.append(positions)
    return out


def test_against_counting_one_by_one():
    torch.manual_seed(0)
    tokens = torch.randint(9, (6, 40))
    assert restart_positions(tokens, None, RESTARTS).tolist() == counted(tokens)
    assert restart_positions(tokens, torch.arange(5, 45), RESTARTS).tolist() == counted(tokens, first=5)


def decoder(**options):
    torch.manual_seed(0)
    options = {"rotary": RoPE, **options}
    model = Decoder(9, 32, 2, 4, restart_tokens=RESTARTS, **options).eval()
    nudge(model)
    return model


PARTS = {
    "RoPE": {},
    "CombinedRotary": {"rotary": CombinedRotary},
    "embedding level": {"embedding_rotary": RoPE, "rotary": None},
    "T5Bias": {"rotary": None, "attention": partial(MultiHeadAttention, score_bias=T5Bias)},
    "window": {"attention": partial(SlidingWindowAttention, window=5)},
    "forgetting": {"attention": ForgettingAttention},
    "gates and a convolution": {"block": [ShortConvBlock, MixtureOfDepthsBlock]},
}


@torch.no_grad()
@pytest.mark.parametrize("name", PARTS)
def test_cached_steps_equal_the_whole_row(name):
    """In chunks that begin, hold and miss a restart; and the whole row equals one whose positions are given."""
    model, tokens = decoder(**PARTS[name]), torch.randint(9, (3, 24))
    whole = model(tokens)
    torch.testing.assert_close(whole, model(tokens, positions=torch.tensor(counted(tokens))))
    assert not torch.allclose(whole, model(tokens, positions=torch.arange(24)), atol=1e-3)
    cache = model.new_cache(3, 24)
    parts = [model(chunk, cache=cache) for chunk in tokens.split([7, 1, 1, 5, 1, 9], dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_a_padded_prompt_goes_on_as_it_would_alone():
    """Padding is written as token 0, which begins positions again here: it must not."""
    model = Decoder(9, 32, 2, 4, rotary=RoPE, restart_tokens=(0, 3)).eval()
    nudge(model)
    prompts = [[5, 3, 6, 6, 1], [2, 4], [8]]
    together = model.generate_with_details(prompts, 12, temperature=0).new_tokens()
    assert together == [model.generate_with_details([row], 12, temperature=0).new_tokens()[0] for row in prompts]


@torch.no_grad()
def test_a_document_comes_out_as_it_would_alone():
    model, first, second = decoder(), torch.randint(9, (1, 11)), torch.randint(9, (1, 8))
    documents = torch.tensor([[1] * 11 + [2] * 8])
    packed = model(torch.cat([first, second], 1), documents=documents)
    torch.testing.assert_close(packed, torch.cat([model(first), model(second)], 1), atol=2e-5, rtol=1e-4)
    options = {"temperature": 0, "documents": documents}
    new = model.generate(torch.cat([first, second], 1), 6, **options)[:, 19:]
    assert new.tolist() == model.generate(second, 6, temperature=0)[:, 8:].tolist()


def test_random_positions_keep_what_is_shared():
    """Tokens that stand alike behind two separators share a position, and no two places of one stretch do."""
    model, seen = decoder(position_range=64).train(), []
    model.blocks[0].attention.register_forward_pre_hook(lambda m, a, k: seen.append(k["positions"]), with_kwargs=True)
    tokens = torch.tensor([[1, 2, 3, 1, 2, 3, 4, 4]])
    for _ in range(8):
        model(tokens)
        model(tokens, documents=torch.tensor([[1, 1, 1, 1, 1, 2, 2, 2]]))
    drawn = [positions[0].unique(sorted=True) for positions in seen]
    for positions, own in zip(seen, drawn, strict=True):
        assert positions[0].tolist() == own[torch.tensor([0, 1, 0, 1, 2, 0, 1, 2])].tolist()
    assert len({tuple(own.tolist()) for own in drawn}) > 8  # a draw of its own for every step


def test_random_positions_meet_every_density():
    """From one after the other to all over the range, sorted, none twice; a range that just fits is counted."""
    torch.manual_seed(0)
    draws = torch.stack([random_positions(8, 64, torch.device("cpu")) for _ in range(400)])
    assert (draws.diff(dim=1) > 0).all()
    assert draws.min() >= 0
    assert 50 < draws.max() < 64
    spans = draws[:, -1] - draws[:, 0]
    assert (spans < 12).sum() > 10  # a subset of the whole range is so dense once in a million draws
    assert (spans > 50).sum() > 10
    assert random_positions(8, 8, torch.device("cpu")).tolist() == list(range(8))


def test_a_restart_compiles_whole_and_needs_a_token_that_exists():
    model, tokens = decoder(), torch.randint(9, (2, 12))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(tokens), model(tokens), atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="restart token 9 is outside the vocabulary 0 … 8"):
        Decoder(9, 32, 2, 4, restart_tokens=[3, 9])
