"""Leaving out closed rows changes nothing but time: queries of some rows, blocks, decoding with tokens that wait."""

from functools import partial

import pytest
import torch

from cubelet.models import Decoder
from cubelet.models.attention import ContentGatedAttention, MultiHeadAttention, SlidingWindowAttention
from cubelet.models.blocks import MyelinatedBlock, ResidualBlock, ShortConvBlock, SkippingBlock
from cubelet.models.kernels import formulas_only
from cubelet.models.kernels.routing import open_rows, put_rows, take_rows
from cubelet.models.rotary import AxialRotary, CombinedRotary, RoPE
from tests.conformance.subject import assert_close, build, noise

DOCUMENTS = torch.tensor([[0] * 9 + [1] * 11, [4] * 20])
MASK = torch.arange(20) >= torch.tensor([[0], [3]])

ATTENTIONS = {
    "plain": partial(MultiHeadAttention, 32, 4),
    "rope": lambda **o: MultiHeadAttention(32, 4, rotary=RoPE(32, 4), kv_heads=2, qk_norm=True, bias=True, **o),
    "combined": lambda **o: MultiHeadAttention(32, 4, rotary=CombinedRotary(32, 4), positional_scaling=True, **o),
    "xpos": lambda **o: MultiHeadAttention(32, 4, rotary=AxialRotary(32, 4, scale_base=64.0), **o),
    "bias": partial(MultiHeadAttention, 32, 4, relative_bias=5),
    "gated": lambda **o: ContentGatedAttention(32, 4, rotary=RoPE(32, 4), gate_bias=0.0, **o),
}


@torch.no_grad()
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("told", [{}, {"key_mask": MASK}, {"documents": DOCUMENTS}], ids=["", "padded", "packed"])
@pytest.mark.parametrize("name", ATTENTIONS)
def test_queries_of_some_rows_are_those_of_all(monkeypatch, name, told, causal):
    monkeypatch.setattr("cubelet.models.kernels.routing.CHUNK", 3)
    module = build(lambda: ATTENTIONS[name](causal=causal))
    x, rows = noise(2, 20, 32), torch.tensor([[0, 3, 4, 5, 11, 19, 18], [3, 7, 9, 12, 13, 14, 15]])
    whole = module(x, **told)
    assert_close(module(x, rows=rows, **told), take_rows(whole, rows), "rows")
    if not told and causal:
        cache = module.new_cache(2, 20)
        module(x[:, :8], cache=cache)
        late = torch.tensor([[1, 5], [0, 11]])
        assert_close(module(x[:, 8:], rows=late, cache=cache), take_rows(whole, late + 8), "rows behind a cache")


def test_rows_are_taken_and_put_back():
    is_open = torch.tensor([[True, False, True, True], [False, False, True, False]])
    rows, valid = open_rows(is_open)
    x, y = noise(2, 4, 3), noise(2, 3, 3, seed=1)
    z = put_rows(x, rows, valid, y)
    assert torch.equal(z[0], torch.stack([y[0, 0], x[0, 1], y[0, 1], y[0, 2]]))
    assert torch.equal(z[1], torch.stack([x[1, 0], x[1, 1], y[1, 0], x[1, 3]]))
    assert open_rows(torch.ones(2, 3, dtype=torch.bool)) is None
    assert open_rows(torch.zeros(2, 3, dtype=torch.bool))[0].shape == (2, 0)


WINDOW = partial(SlidingWindowAttention, window=5)
BLOCKS = {
    "skipping": partial(SkippingBlock, 32, 4, gate_bias=0.0, rotary=RoPE),
    "skipping_window": partial(
        SkippingBlock, 32, 4, gate_bias=0.0, attention=partial(SlidingWindowAttention, window=5)
    ),
    "skipping_conv": partial(SkippingBlock, 32, 4, gate_bias=0.0, block=ShortConvBlock),
    "skipping_skipping": partial(SkippingBlock, 32, 4, gate_bias=0.0, block=SkippingBlock),
    "myelinated": partial(MyelinatedBlock, 32, 4, layers=4, rotary=RoPE),
}


@torch.no_grad()
@pytest.mark.parametrize("told", [{}, {"key_mask": MASK}, {"documents": DOCUMENTS}], ids=["", "padded", "packed"])
@pytest.mark.parametrize("name", BLOCKS)
def test_what_is_left_out_has_no_effect(name, told):
    module = build(BLOCKS[name])
    x = noise(2, 20, 32)
    y, cost = module(x, **told)
    with formulas_only("routing"):
        z, same = module(x, **told)
    real = told.get("key_mask", torch.ones(2, 20, dtype=torch.bool))
    assert_close(y[real], z[real], "without closed rows")
    assert (cost is None and same is None) or torch.equal(cost, same)


@torch.no_grad()
def test_closed_rows_are_not_computed():
    module = build(BLOCKS["skipping"])
    x, seen = noise(2, 20, 32), []
    module.block.mlp.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0].shape[1]))
    module(x)
    most = int((module.gates(x) > 0.5).sum(1).max())
    assert seen == [most]
    assert 0 < most < 18


@torch.no_grad()
@pytest.mark.parametrize("name", ["skipping", "skipping_window", "myelinated"])
def test_tokens_wait_until_somebody_asks(name):
    """Decoding where whole steps are closed: caches that are reordered and cropped while tokens wait in them."""
    module = build(BLOCKS[name])
    gates = [module.gate] if name != "myelinated" else list(module.deciders)
    for gate in gates:
        gate.weight.mul_(4.0)
    x = noise(2, 40, 32)
    whole = module(x)[0]
    cache, parts = module.new_cache(2, 40), []
    for t in range(40):
        parts.append(module(x[:, t : t + 1], cache=cache)[0])
        assert cache.length == t + 1
    assert_close(torch.cat(parts, 1), whole, "token by token")
    if name == "myelinated":
        return
    order = torch.tensor([1, 0, 1])
    cache = module.new_cache(2, 60)
    for t in range(12):
        module(x[:, t : t + 1], cache=cache)
    cache.reorder(order)
    rest = noise(3, 8, 32, seed=4)
    joined = module(torch.cat([x[order, :12], rest], 1))[0][:, 12:]
    assert_close(torch.cat([module(rest[:, t : t + 1], cache=cache)[0] for t in range(8)], 1), joined, "reordered")
    if name == "skipping":
        cache.crop(14)
        assert cache.length == 14
        assert_close(module(rest[:, 2:], cache=cache)[0], joined[:, 2:], "cropped")


@torch.no_grad()
def test_waiting_tokens_keep_their_padding_positions_and_documents():
    module = build(partial(SkippingBlock, 32, 4, gate_bias=-20.0, rotary=RoPE))
    x, positions = noise(2, 20, 32), torch.arange(20) + torch.tensor([[5], [0]])
    told = {"key_mask": MASK, "positions": positions, "documents": DOCUMENTS}
    cache = module.new_cache(2, 20)
    for t in range(19):
        own = {name: value[:, t : t + 1] for name, value in told.items()}
        assert torch.equal(module(x[:, t : t + 1], cache=cache, **own)[0][MASK[:, t]], x[:, t : t + 1][MASK[:, t]])
    assert cache.parts[0].length == 0, "nothing was written for tokens that nobody asked about"
    module.gate.bias.fill_(20.0)
    last = module(x[:, 19:], cache=cache, **{name: value[:, 19:] for name, value in told.items()})[0]
    assert cache.parts[0].length == 20
    assert_close(last, module.block(x, **told)[0][:, 19:], "the first token that asks")


@pytest.mark.parametrize("make", [SkippingBlock, MyelinatedBlock])
def test_gates_that_start_closed_learn(make):
    """With a branch that starts at zero, too, nothing would have a gradient for ever."""
    torch.manual_seed(0)
    module = make(32, 4)
    for gate in [module.gate] if make is SkippingBlock else module.deciders:
        gate.bias.data[0] = -3.0
        gate.weight.data.mul_(0.1)
    block = module.block if make is SkippingBlock else module.layers[0]
    x, target = noise(4, 8, 32), noise(4, 8, 32, seed=1)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    for _ in range(2):
        optimizer.zero_grad()
        (module(x)[0] - target).square().mean().backward()
        optimizer.step()
    assert block.mlp.down.weight.abs().max() > 0
    gate = module.gate if make is SkippingBlock else module.deciders[0]
    assert gate.weight.grad is not None
    assert gate.weight.grad.abs().max() > 0


@torch.no_grad()
def test_decisions_are_the_same_under_autocast():
    module = build(partial(SkippingBlock, 32, 4, gate_bias=0.0))
    x = noise(4, 500, 32)
    exact = module.gates(x) > 0.5
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module.gates(x) > 0.5, exact)


@torch.no_grad()
def test_a_decoder_of_skipping_blocks_generates_as_full_forwards_do():
    torch.manual_seed(0)
    model = build(lambda: Decoder(17, 32, 3, 4, block=partial(SkippingBlock, gate_bias=-0.2), rotary=RoPE))
    prompt = torch.randint(17, (2, 5))
    out = model.generate(prompt, 12, temperature=0)
    tokens = prompt
    for _ in range(12):
        tokens = torch.cat([tokens, model(tokens)[:, -1:].argmax(-1)], 1)
    assert torch.equal(out, tokens)
    assert isinstance(model.blocks[0].block, ResidualBlock)
