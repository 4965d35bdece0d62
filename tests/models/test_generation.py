"""Generation against slow full forwards: prompts of several lengths, ends, beams, contexts, caches that go on."""

import itertools

import pytest
import torch

from cubelet.models import Decoder
from cubelet.models.attention import SlidingWindowAttention
from cubelet.models.blocks import MyelinatedBlock, ShortConvBlock
from cubelet.models.generation import pad_prompts
from cubelet.models.rotary import RoPE
from tests.reference.nudge import nudge

VOCAB = 17


def make(seed=0, **options):
    torch.manual_seed(seed)
    return nudge(Decoder(VOCAB, 32, 2, 4, **{"rotary": RoPE, **options})).eval()


def slow_greedy(model, prompt, count, stop=None, **options):
    """New tokens of one prompt by full forwards, up to and including the stop token."""
    tokens, new = torch.tensor([prompt]), []
    for _ in range(count):
        new.append(int(model(tokens, **options)[0, -1].argmax()))
        tokens = torch.cat([tokens, torch.tensor([new[-1:]])], 1)
        if new[-1] == stop:
            break
    return new


PROMPTS = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3]]


@pytest.mark.parametrize("options", [{}, {"block": ShortConvBlock}, {"block": MyelinatedBlock}], ids=str)
def test_prompts_of_different_lengths_end_each_by_itself(options):
    model = make(**options)
    alone = [slow_greedy(model, prompt, 12) for prompt in PROMPTS]
    stop = alone[0][4]
    expected = [new[: new.index(stop) + 1] if stop in new else new for new in alone]
    out = model.generate_with_details(PROMPTS, 12, temperature=0, stop_tokens=[stop, VOCAB - 1], pad_token=1)
    assert out.new_tokens() == [slow_greedy(model, p, 12, stop) for p in PROMPTS] == expected
    assert out.lengths.tolist() == [len(new) for new in expected]
    for row, new in zip(out.tokens, expected, strict=True):
        assert (row[5 + len(new) :] == 1).all()
    assert out.tokens.shape[1] == 5 + max(map(len, expected))


def test_stopping_drops_rows_from_the_batch_and_streams_the_same():
    model = make()
    stop = slow_greedy(model, PROMPTS[1], 1)[0]  # the second row ends at once, and likely others
    options = {"temperature": 0, "stop_tokens": stop}
    sizes = []
    handle = model.blocks[0].register_forward_hook(lambda module, inputs, output: sizes.append(inputs[0].shape[0]))
    whole = model.generate([PROMPTS[1], PROMPTS[1], PROMPTS[0]], 9, **options)
    handle.remove()
    assert sizes[0] == 3
    assert sizes[-1] == 1
    streamed = torch.stack(list(model.stream([PROMPTS[1], PROMPTS[1], PROMPTS[0]], 9, **options)), 1)
    assert torch.equal(whole[:, 5:], streamed)
    assert whole[2, 5:].tolist() == slow_greedy(model, PROMPTS[0], 9, stop)


@pytest.mark.parametrize("side", ["left", "right", "holes"])
def test_padding_of_any_side_is_moved_to_the_left(side):
    tokens = torch.tensor([[3, 1, 4, 1], [9, 2, 0, 0]])
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    if side == "left":
        tokens[1], mask[1] = tokens[1].roll(2), mask[1].roll(2)
    elif side == "holes":
        tokens[1], mask[1] = torch.tensor([9, 0, 2, 0]), torch.tensor([True, False, True, False])
    model = make()
    out = model.generate(tokens, 5, temperature=0, key_mask=mask)
    assert out[1].tolist() == [0, 0, 9, 2, *slow_greedy(model, [9, 2], 5)]
    assert out[0, 4:].tolist() == slow_greedy(model, [3, 1, 4, 1], 5)


@pytest.mark.parametrize("limit", [5, 8])
def test_a_padded_row_goes_on_as_alone_when_the_context_length_is_full(limit):
    model = make()
    both = model.generate([list(range(7)), [9, 2, 3]], 20, temperature=0, context_length=limit)
    for row, prompt in ((0, list(range(7))), (1, [9, 2, 3])):
        alone = model.generate([prompt], 20, temperature=0, context_length=limit)
        assert torch.equal(both[row, 7:], alone[0, len(prompt) :])


def test_every_argument_of_forward_reaches_the_loop():
    model = make(cross_attention=True)
    context = torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    spoiled = context.clone()
    spoiled[1, 3:] = torch.nan
    calls = []
    linear = torch.nn.functional.linear
    cross = model.blocks[0].cross_attention.qkv.weight
    out = model.generate(PROMPTS[:2], 6, temperature=0, context=spoiled, context_mask=mask)
    for row, length in ((0, 6), (1, 3)):
        expected = slow_greedy(model, PROMPTS[row], 6, context=context[row : row + 1, :length])
        assert out[row, 5:].tolist() == expected
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch.nn.functional, "linear", lambda x, w, b=None: calls.append(w.shape == (64, 32)) or linear(x, w, b)
        )
        model.generate(PROMPTS[:2], 6, temperature=0, context=spoiled, context_mask=mask)
    assert cross.shape == (96, 32)
    assert sum(calls) == 2, "keys and values of the context are projected once a layer"


def test_documents_and_positions_of_a_prompt():
    model, row = make(), [9, 2, 3, 7, 1]
    out = model.generate([row], 6, temperature=0, documents=torch.tensor([[0, 0, 1, 1, 1]]))
    assert out[0, 5:].tolist() == slow_greedy(model, row[2:], 6)
    shifted = model.generate([row], 6, temperature=0, positions=torch.arange(5) + 40)
    assert shifted[0, 5:].tolist() == slow_greedy(model, row, 6)  # distances are what counts


def test_a_cache_goes_on_where_it_stood():
    model = make()
    whole = model.generate([PROMPTS[0], PROMPTS[1]], 10, temperature=0)
    cache = model.new_cache(2, 40)
    tokens, mask = pad_prompts([PROMPTS[0], PROMPTS[1]])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    model(tokens[:, :-1], key_mask=mask[:, :-1], positions=positions[:, :-1], cache=cache)
    first = model.generate_with_details(tokens[:, -1:], 4, temperature=0, cache=cache)
    assert first.cache is cache
    second = model.generate(first.tokens[:, -1:], 6, temperature=0, cache=cache)
    assert torch.equal(torch.cat([first.tokens[:, 1:], second[:, 1:]], 1), whole[:, 5:])


def test_log_probabilities_are_the_models_own():
    model = make()
    generator = torch.Generator().manual_seed(0)
    out = model.generate_with_details(PROMPTS[:1], 8, temperature=2.0, top_k=5, generator=generator)
    logits = model(out.tokens)[0, 4:-1].log_softmax(-1)
    expected = logits.gather(1, out.tokens[0, 5:, None])[:, 0]
    torch.testing.assert_close(out.log_probabilities[0], expected, rtol=1e-4, atol=1e-4)


def test_several_continuations_of_one_prompt_and_a_generator_a_row():
    model = make()
    generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
    out = model.generate(PROMPTS[:2], 8, num_return_sequences=2, generator=generators)
    assert out.shape == (4, 13)
    assert not torch.equal(out[0], out[1])
    for row in range(4):
        alone = model.generate([PROMPTS[row // 2]], 8, generator=torch.Generator().manual_seed(row))
        assert torch.equal(out[row, 5:], alone[0, -8:])


@torch.no_grad()
def test_repetition_is_penalised_and_hooks_see_every_step():
    model = make(tie_embeddings=False)
    plain = model.generate([[3, 3, 3]], 12, temperature=0)[0, 3:]
    varied = model.generate([[3, 3, 3]], 12, temperature=0, repetition_penalty=50.0)
    for t in range(3, 15):
        logits = model(varied[:, :t])[0, -1]
        for token in set(varied[0, :t].tolist()):
            logits[token] = logits[token] / 50 if logits[token] > 0 else logits[token] * 50
        assert varied[0, t] == logits.argmax()
    assert len(set(varied[0, 3:].tolist())) > len(set(plain.tolist()))
    seen = []

    def only_even(tokens, logits):
        seen.append(tokens.shape[1])
        return logits.masked_fill(torch.arange(VOCAB) % 2 == 1, -torch.inf)

    even = model.generate([[3, 3, 3]], 5, logits_hook=only_even, generator=torch.Generator().manual_seed(0))
    assert (even[0, 3:] % 2 == 0).all()
    assert seen == [3, 4, 5, 6, 7]


@torch.no_grad()
@pytest.mark.parametrize("penalty", [0.0, 1.0])
@pytest.mark.parametrize("attention", [None, SlidingWindowAttention])
def test_a_wide_beam_finds_what_trying_everything_finds(penalty, attention):
    torch.manual_seed(0)
    options = {} if attention is None else {"attention": attention}
    model = nudge(Decoder(4, 32, 1, 4, **options)).eval()
    stop, steps = 3, 3

    def value(sequence):
        tokens = torch.tensor([[1, 2, *sequence]])
        logits = model(tokens)[0, 1:-1].log_softmax(-1)
        return float(logits.gather(1, torch.tensor(sequence)[:, None]).sum()) / len(sequence) ** penalty

    ends = [s for n in range(1, steps) for s in itertools.product(range(3), repeat=n - 1)]
    sequences = [[*s, stop] for s in ends] + [list(s) for s in itertools.product(range(4), repeat=steps)]
    sequences = [s for s in sequences if stop not in s[:-1]]
    ranked = sorted(sequences, key=value, reverse=True)
    out = model.beam_search([[1, 2]], steps, beams=64, length_penalty=penalty, stop_tokens=stop, num_return_sequences=3)
    assert out.new_tokens() == ranked[:3]
    assert out.log_probabilities.sum(1)[0] / len(ranked[0]) ** penalty == pytest.approx(value(ranked[0]), abs=1e-5)


def test_beams_of_a_batch_equal_beams_alone_and_one_beam_is_greedy():
    model = make(cross_attention=True)
    context = torch.randn(3, 4, 32, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[True] * 4, [True, True, False, False], [True] * 4])
    stop = 2
    out = model.beam_search(PROMPTS, 8, beams=3, stop_tokens=stop, context=context, context_mask=mask).new_tokens()
    for row, prompt in enumerate(PROMPTS):
        options = {"context": context[row : row + 1], "context_mask": mask[row : row + 1]}
        assert model.beam_search([prompt], 8, beams=3, stop_tokens=stop, **options).new_tokens()[0] == out[row]
        greedy = model.beam_search([prompt], 8, beams=1, stop_tokens=stop, **options).new_tokens()[0]
        assert (
            greedy
            == model.generate_with_details([prompt], 8, temperature=0, stop_tokens=stop, **options).new_tokens()[0]
        )


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([[1, 99]], 3), {}, "token 99 is outside the vocabulary 0 … 16"),
        (([[1, -1]], 3), {}, "token -1"),
        (([[1], []], 3), {}, "a prompt is empty"),
        (([[1]], -1), {}, "max_new_tokens -1"),
        (([[1]], 3), {"context_length": 1}, "context_length 1"),
        (([[1]], 3), {"repetition_penalty": 0.0}, "repetition_penalty 0.0"),
        (([[1]], 3), {"num_return_sequences": 0}, "num_return_sequences 0"),
        (([[1]], 3), {"generator": [torch.Generator()] * 2}, "2 generators were given for 1 rows"),
        (([[1, 2], [1]], 3), {"positions": torch.arange(2)}, "positions of their own"),
    ],
)
def test_what_cannot_be_generated_is_named(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        make().generate(*arguments, **options)


def test_nan_logits_are_one_sentence():
    model = make()
    model.embedding.weight.data[3] = torch.nan
    for call in (model.generate, model.beam_search):
        with pytest.raises(ValueError, match="the logits are NaN"):
            call([[1, 2]], 3)
