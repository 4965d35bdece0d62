"""The decoder as a whole: causality, cache, padding, generation, and that components are really used."""

import copy
import functools
from functools import partial

import pytest
import torch

from cubelet.models.attention import HybridAttention, MultiHeadAttention
from cubelet.models.blocks import ResidualBlock
from cubelet.models.decoder import Decoder
from cubelet.models.embeddings import LearnedSinusoidal
from cubelet.models.rotary import CombinedRotary, RoPE
from tests.reference.nudge import nudge

VOCAB, DIMS, LAYERS, HEADS = 17, 32, 2, 4


def make(seed=0, **options):
    torch.manual_seed(seed)
    options.setdefault("rotary", RoPE)
    return nudge(Decoder(VOCAB, DIMS, LAYERS, HEADS, **options)).eval()


def tokens_of(*shape, seed=0):
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(seed))


VARIANTS = {
    "rope": {},
    "combined": {"rotary": CombinedRotary},
    "none": {"rotary": None},
    "embedding level": {"rotary": None, "embedding_rotary": CombinedRotary},
    "positions": {"rotary": None, "position_embedding": partial(LearnedSinusoidal, max_length=64)},
    "untied": {"tie_embeddings": False},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_future_never_leaks(name):
    model, tokens = make(**VARIANTS[name]), tokens_of(2, 12)
    full = model(tokens)
    for t in (3, 7, 11):
        changed = tokens.clone()
        changed[:, t:] = (changed[:, t:] + 5) % VOCAB
        assert torch.equal(model(changed)[:, :t], full[:, :t])
        torch.testing.assert_close(model(tokens[:, :t]), full[:, :t], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(model(changed)[:, t:], full[:, t:])


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("chunks", [[1] * 12, [5, 5, 2], [7, 1, 1, 1, 1, 1]])
def test_cached_decoding_equals_the_full_forward(name, chunks):
    model, tokens = make(**VARIANTS[name]), tokens_of(3, 12)
    cache = model.new_cache(3, 12)
    parts = [model(piece, cache=cache) for piece in tokens.split(chunks, dim=1)]
    assert cache.length == 12
    torch.testing.assert_close(torch.cat(parts, 1), model(tokens), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("cross", [False, True])
def test_a_packed_row_equals_its_documents_alone(name, cross):
    model, tokens = make(cross_attention=cross, **VARIANTS[name]), tokens_of(1, 12)
    context = [torch.randn(1, 5, DIMS, generator=torch.Generator().manual_seed(3))] if cross else []
    packed = model(tokens, *context, documents=torch.tensor([[7] * 5 + [2] + [4] * 6]))
    alone = [model(part, *context) for part in tokens.split([5, 1, 6], dim=1)]
    torch.testing.assert_close(packed, torch.cat(alone, 1), rtol=1e-5, atol=1e-5)


def test_checkpointed_blocks_have_the_same_gradients_and_keep_less():
    def saved(model):
        sizes = []

        def pack(tensor):
            sizes.append(tensor.untyped_storage().nbytes())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model(tokens_of(2, 40)).square().mean()
        loss.backward()
        return sum(sizes), [p.grad for p in model.parameters()]

    plain, checkpointed = (saved(make(checkpoint_blocks=value).train()) for value in (False, True))
    assert checkpointed[0] < 0.3 * plain[0]
    for one, other in zip(plain[1], checkpointed[1], strict=True):
        assert torch.equal(one, other)


@torch.no_grad()
@pytest.mark.parametrize("attention", [MultiHeadAttention, HybridAttention])
def test_a_forward_that_fails_half_way_leaves_a_cache_that_says_so(attention):
    model, tokens = make(attention=attention), tokens_of(2, 9)
    cache = model.new_cache(2, 20)
    cache.reserve(4)
    model(tokens[:, :5], cache=cache)
    handle = model.blocks[1].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(tokens[:, 5:7], cache=cache)
    handle.remove()
    with pytest.raises(RuntimeError, match=r"half-way.*crop\(5\)"):
        model(tokens[:, 5:7], cache=cache)
    cache.crop(5)
    torch.testing.assert_close(model(tokens[:, 5:], cache=cache), model(tokens)[:, 5:], rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("attention", [MultiHeadAttention, partial(HybridAttention, window=4)])
def test_a_cropped_cache_goes_on_from_there(attention):
    model, tokens = make(attention=attention), tokens_of(2, 14)
    cache = model.new_cache(2, 20)
    cache.reserve(5)
    model(tokens, cache=cache)
    cache.crop(9)
    assert cache.length == 9
    other = torch.cat([tokens[:, :9], tokens_of(2, 4, seed=5)], 1)
    torch.testing.assert_close(model(other[:, 9:], cache=cache), model(other)[:, 9:], rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="crop to 20: the cache holds 13"):
        cache.crop(20)
    if attention is not MultiHeadAttention:
        with pytest.raises(ValueError, match="window of 4 keeps 7"):
            cache.crop(1)


@torch.no_grad()
def test_one_prompt_is_read_once_and_continued_by_many():
    model, prompt = make(attention=partial(HybridAttention, window=4)), tokens_of(1, 6)
    cache = model.new_cache(1, 20)
    model(prompt, cache=cache)
    cache.reorder(torch.zeros(3, dtype=torch.long))
    rest = tokens_of(3, 4, seed=2)
    whole = model(torch.cat([prompt.expand(3, -1), rest], 1))[:, 6:]
    torch.testing.assert_close(model(rest, cache=cache), whole, rtol=1e-5, atol=1e-5)


def test_positions_matter():
    """Without positions a decoder cannot tell the order of what stands before the last token; with rotary it can."""
    tokens = tokens_of(1, 9)
    swapped = tokens[:, [3, 1, 2, 0, 4, 5, 6, 7, 8]]
    assert tokens[0, 0] != tokens[0, 3]
    for rotary, same in ((None, True), (RoPE, False)):
        model = nudge(Decoder(VOCAB, DIMS, 1, HEADS, rotary=rotary)).eval()
        assert torch.allclose(model(tokens)[:, -1], model(swapped)[:, -1], atol=1e-5) is same


def test_cross_attention_reads_the_context_and_its_mask():
    model = make(cross_attention=True)
    tokens, context = tokens_of(2, 6), torch.randn(2, 5, DIMS)
    out = model(tokens, context)
    assert not torch.allclose(model(tokens, context + torch.randn_like(context)), out)
    mask = torch.tensor([[True] * 3 + [False] * 2, [True] * 5])
    masked = model(tokens, context, context_mask=mask)
    changed = context.clone()
    changed[0, 3:] = 30 * torch.randn(2, DIMS)
    assert torch.equal(model(tokens, changed, context_mask=mask), masked)
    cache = model.new_cache(2, 6)
    parts = [model(piece, context, cache=cache, context_mask=mask) for piece in tokens.split(2, dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), masked, rtol=1e-5, atol=1e-5)


def test_context_must_fit_the_decoder():
    with pytest.raises(ValueError, match="without cross_attention"):
        make()(tokens_of(1, 3), torch.randn(1, 2, DIMS))
    with pytest.raises(ValueError, match="needs context"):
        make(cross_attention=True)(tokens_of(1, 3))


@pytest.mark.parametrize("name", VARIANTS)
def test_left_padded_prompts_continue_as_they_would_alone(name):
    model = make(**VARIANTS[name])
    long, short = tokens_of(1, 8, seed=1), tokens_of(1, 5, seed=2)
    padded = torch.cat([long, torch.cat([torch.zeros(1, 3, dtype=torch.long), short], 1)])
    mask = torch.ones(2, 8, dtype=torch.bool)
    mask[1, :3] = False
    both = model.generate(padded, 6, temperature=0, key_mask=mask)
    assert torch.equal(both[0, 8:], model.generate(long, 6, temperature=0)[0, 8:])
    assert torch.equal(both[1, 8:], model.generate(short, 6, temperature=0)[0, 5:])


def test_generation_equals_full_forwards():
    model, prompt = make(), tokens_of(2, 4)
    out = model.generate(prompt, 8, temperature=0)
    slow = prompt
    for _ in range(8):
        slow = torch.cat([slow, model(slow)[:, -1].argmax(-1, keepdim=True)], 1)
    assert torch.equal(out, slow)


def test_generation_past_the_context_length():
    model, prompt = make(), tokens_of(1, 20)
    out = model.generate(prompt, 30, temperature=0, context_length=8)
    assert out.shape == (1, 50)
    slow, seen = prompt, prompt[:, -8:]
    for _ in range(30):
        if seen.size(1) > 8:
            seen = slow[:, -4:]
        new = model(seen)[:, -1].argmax(-1, keepdim=True)
        slow, seen = torch.cat([slow, new], 1), torch.cat([seen, new], 1)
    assert torch.equal(out, slow)


def test_generation_is_seeded_and_leaves_the_mode_alone():
    model = make().train()
    draw = lambda seed: model.generate(tokens_of(1, 4), 20, generator=torch.Generator().manual_seed(seed))  # noqa: E731
    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert model.training


def test_every_parameter_learns():
    model = nudge(Decoder(VOCAB, DIMS, LAYERS, HEADS, cross_attention=True, tie_embeddings=False))
    for block in model.blocks:
        block.attention.rotary.rotation_scale.data.fill_(0.7)  # above 1 every rotation counts whole: no slope
    model(tokens_of(2, 9), torch.randn(2, 4, DIMS)).square().mean().add(model.penalty()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_untied_logits_start_at_the_uniform_loss():
    model = Decoder(VOCAB, DIMS, LAYERS, HEADS, tie_embeddings=False)
    assert torch.equal(model(tokens_of(1, 5)), torch.zeros(1, 5, VOCAB))


def test_state_dict_deepcopy_and_meta_device():
    model, tokens = make(rotary=CombinedRotary), tokens_of(2, 7)
    twin = make(seed=9, rotary=CombinedRotary)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(tokens), model(tokens))
    assert torch.equal(copy.deepcopy(model)(tokens), model(tokens))
    with torch.device("meta"):
        empty = Decoder(VOCAB, DIMS, LAYERS, HEADS, rotary=CombinedRotary)
    empty.to_empty(device="cpu")
    empty.load_state_dict(model.state_dict())
    torch.testing.assert_close(empty.eval()(tokens), model(tokens))


@pytest.mark.parametrize("attention", [MultiHeadAttention, partial(MultiHeadAttention, kv_heads=2), HybridAttention])
def test_merging_changes_no_logits_and_leaves_plain_rotations(attention):
    model, tokens = make(rotary=CombinedRotary, attention=attention), tokens_of(2, 9)
    before = model(tokens)
    model.merge()
    torch.testing.assert_close(model(tokens), before, rtol=1e-5, atol=1e-5)
    turns = [m for m in model.modules() if isinstance(m, CombinedRotary)]
    assert turns
    assert all(m.mixing() is None for m in turns)
    twin = make(seed=3, rotary=CombinedRotary, attention=attention)
    twin.load_state_dict(model.state_dict())  # a merged checkpoint is not rotated twice
    assert torch.equal(twin(tokens), model(tokens))


@pytest.mark.slow
def test_compiles_whole():
    model, tokens = make(rotary=CombinedRotary).train(), tokens_of(2, 9)
    features = torch.compile(model.features, fullgraph=True)
    torch.testing.assert_close(features(tokens)[0], model.features(tokens)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((VOCAB, 30, 2, 4), "30.*4"),
        ((VOCAB, 32, 0, 4), "layers 0"),
        ((0, 32, 2, 4), "vocab_size 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Decoder(*arguments)


def test_bad_tokens_and_prompts_are_refused():
    model = make()
    with pytest.raises(ValueError, match="integers"):
        model(torch.randn(2, 3))
    with pytest.raises(ValueError, match=r"\(3,\)"):
        model(torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="prompt is empty"):
        model.generate(torch.zeros(1, 0, dtype=torch.long), 3)
    with pytest.raises(ValueError, match="2 blocks were given for 3 layers"):
        Decoder(VOCAB, DIMS, 3, HEADS, block=[ResidualBlock] * 2)


def test_layers_may_have_rotaries_of_their_own():
    """Local and global bases, and layers without positions."""
    local = functools.partial(RoPE, base=100.0)
    decoder = Decoder(30, 16, 3, 2, rotary=[local, None, RoPE])
    rotaries = [block.attention.rotary for block in decoder.blocks]
    assert [None if rotary is None else rotary.base.item() for rotary in rotaries] == [100.0, None, 10_000.0]
    told = []

    def by_layer(dims, heads, layer):
        told.append(layer)
        return RoPE(dims, heads, base=10.0 ** (layer + 1))

    assert Decoder(30, 16, 3, 2, rotary=by_layer).blocks[2].attention.rotary.base.item() == 1000
    assert told == [0, 1, 2]
    with pytest.raises(ValueError, match="2 rotaries were given for 3 layers"):
        Decoder(30, 16, 3, 2, rotary=[RoPE, RoPE])


def test_random_positions_are_drawn_in_training_alone():
    torch.manual_seed(0)
    decoder = Decoder(30, 16, 1, 2, rotary=RoPE, position_range=64)
    tokens, seen = torch.randint(30, (2, 9)), []
    decoder.blocks[0].attention.register_forward_pre_hook(lambda m, a, k: seen.append(k["positions"]), with_kwargs=True)
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        decoder(tokens)
    assert torch.equal(seen[0], seen[2])  # a step's seed decides
    assert not torch.equal(seen[0], seen[1])
    assert seen[0].unique(sorted=True).tolist() == seen[0].tolist()
    assert len(seen[0]) == 9
    assert 9 < seen[0].max() < 64
    decoder(tokens, positions=torch.arange(9))
    decoder.eval()(tokens)
    assert seen[3].tolist() == list(range(9))
    assert seen[4] is None
    with pytest.raises(ValueError, match="position_range 4 has no room for 9 tokens"):
        Decoder(30, 16, 1, 2, position_range=4)(tokens)


@torch.no_grad()
@pytest.mark.parametrize("rotary", [RoPE, CombinedRotary])
def test_cross_attention_with_positions_on_both_sides(rotary):
    """Places of the context matter; cached steps and a context padded on the left come out as the plain call does."""
    torch.manual_seed(0)
    options = {"rotary": RoPE, "cross_attention": True}
    model, without = (nudge(Decoder(17, 32, 2, 4, **options, cross_rotary=own)).eval() for own in (rotary, None))
    tokens, context = torch.randint(17, (2, 9)), torch.randn(2, 6, 32)
    swapped = context.flip(1)
    torch.testing.assert_close(without(tokens, swapped), without(tokens, context), rtol=1e-4, atol=1e-4)
    whole = model(tokens, context)
    assert (model(tokens, swapped) - whole).abs().max() > 1e-3
    cache = model.new_cache(2, 9)
    steps = torch.cat([model(piece, context, cache=cache) for piece in tokens.split([4, 1, 1, 3], 1)], 1)
    torch.testing.assert_close(steps, whole, rtol=1e-4, atol=1e-4)
    padded, mask = torch.cat([torch.full((2, 3, 32), torch.nan), context], 1), torch.arange(9).expand(2, -1) >= 3
    torch.testing.assert_close(model(tokens, padded, context_mask=mask), whole, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="cross_attention=True"):
        Decoder(17, 32, 1, 4, cross_rotary=rotary)
