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

RESTARTS = {3: 0, 7: 0}
COUPLED = {3: -1, 7: 0, 5: 4}  # the token behind a 3 is the first of its stretch; behind a 5 it is the sixth


def counted(rows, first=0, restarts=RESTARTS):
    """Token by token: where each row's positions stand."""
    out = []
    for row in rows.tolist():
        at, positions = first - 1, []
        for token in row:
            at = restarts.get(token, at + 1)
            positions.append(at)
        out.append(positions)
    return out


def test_against_counting_one_by_one():
    torch.manual_seed(0)
    tokens = torch.randint(9, (6, 40))
    assert restart_positions(tokens, None, RESTARTS).tolist() == counted(tokens)
    assert restart_positions(tokens, torch.arange(5, 45), RESTARTS).tolist() == counted(tokens, first=5)
    higher = {token: position + 1 for token, position in COUPLED.items()}
    assert (restart_positions(tokens, None, higher, 1) - 1).tolist() == counted(tokens, restarts=COUPLED)


def decoder(**options):
    torch.manual_seed(0)
    options = {"rotary": RoPE, "restart_tokens": tuple(RESTARTS), **options}
    model = Decoder(9, 32, 2, 4, **options).eval()
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
    "coupled": {"restart_tokens": COUPLED},
    "coupled, window": {"attention": partial(SlidingWindowAttention, window=5), "restart_tokens": COUPLED},
}


@torch.no_grad()
@pytest.mark.parametrize("name", PARTS)
def test_cached_steps_equal_the_whole_row(name):
    """In chunks that begin, hold and miss a restart; and the whole row equals one whose positions are given."""
    model, tokens = decoder(**PARTS[name]), torch.randint(9, (3, 24))
    whole = model(tokens)
    named = PARTS[name].get("restart_tokens", RESTARTS)
    positions = torch.tensor(counted(tokens, restarts=named)) + (-1 in named.values())  # none is negative
    torch.testing.assert_close(whole, model(tokens, positions=positions))
    assert not torch.allclose(whole, model(tokens, positions=torch.arange(24)), atol=1e-3)
    cache = model.new_cache(3, 24)
    parts = [model(chunk, cache=cache) for chunk in tokens.split([7, 1, 1, 5, 1, 9], dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=2e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["RoPE", "window", "forgetting", "coupled"])
def test_a_cropped_cache_goes_on_as_if_nothing_had_been_there(name):
    """What is cropped away may have begun positions again, or have been the token behind which they do."""
    model, tokens = decoder(**PARTS[name]), torch.randint(9, (2, 20))
    tokens[:, 6] = torch.tensor([3, 1])
    tokens[:, 9] = 7
    for keep in (0, 5, 7):
        cache = model.new_cache(2, 40)
        cache.reserve(20)
        model(tokens[:, :12], cache=cache)
        cache.crop(keep)
        again = model(tokens[:, 12:], cache=cache)
        whole = model(torch.cat([tokens[:, :keep], tokens[:, 12:]], 1))
        torch.testing.assert_close(again, whole[:, keep:], atol=2e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("restarts", [(0, 3), {0: 0, 3: -1}])
def test_a_padded_prompt_goes_on_as_it_would_alone(restarts):
    """Padding is written as token 0, which begins positions again here: it must not."""
    model = Decoder(9, 32, 2, 4, rotary=RoPE, restart_tokens=restarts).eval()
    nudge(model)
    prompts = [[5, 3, 6, 6, 1], [2, 4], [8]]
    together = model.generate_with_details(prompts, 12, temperature=0).new_tokens()
    assert together == [model.generate_with_details([row], 12, temperature=0).new_tokens()[0] for row in prompts]


@torch.no_grad()
@pytest.mark.parametrize("name", ["RoPE", "coupled"])
def test_a_document_comes_out_as_it_would_alone(name):
    model, first, second = decoder(**PARTS[name]), torch.randint(9, (1, 11)), torch.randint(9, (1, 8))
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


def test_random_positions_of_coupled_tokens():
    """The second and the third stretch begin where the row did, though the 3 between them is one before."""
    model, seen = decoder(position_range=9, restart_tokens={3: -1, 7: 0}).train(), []
    model.blocks[0].attention.register_forward_pre_hook(lambda m, a, k: seen.append(k["positions"]), with_kwargs=True)
    model(torch.tensor([[1, 2, 3, 1, 2, 7, 1, 2]]))
    assert (seen[0] - seen[0].min()).tolist() == [[1, 2, 0, 1, 2, 1, 2, 3]]
    with pytest.raises(ValueError, match="no room for 10 tokens"):
        model(torch.tensor([[1, 2, 3, 1, 2, 7, 1, 2, 0]]))


def test_random_positions_reach_as_far_as_a_separator_counts_ahead():
    model = decoder(position_range=30, restart_tokens={5: 20}).train()
    assert model(torch.tensor([[5, 1, 2, 1, 1, 1, 1, 1, 1]])).isfinite().all()  # positions 20 to 28


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
    with pytest.raises(ValueError, match="token 3 begins a count"):
        Decoder(9, 32, 2, 4, restart_tokens={3: -2})
