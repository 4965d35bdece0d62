import pytest
import torch

from cubelet.models.attention import ContentGatedAttention, MultiHeadAttention
from cubelet.models.attention.content_gated import hold_last, last_taken
from cubelet.models.rotary import CombinedRotary, RoPE
from tests.conformance.subject import assert_close, build, noise


def gated(gate_bias, **options):
    module = ContentGatedAttention(32, 4, rotary=RoPE(32, 4), **options)
    torch.nn.init.constant_(module.gate.bias, gate_bias)
    return module


def test_last_taken():
    taken = torch.tensor([[0, 1, 0, 0, 1, 0], [1, 0, 0, 0, 0, 0]]).bool()
    assert last_taken(taken).tolist() == [[-1, 1, 1, 1, 4, 4], [0] * 6]


def test_open_gates_are_plain_attention_and_closed_ones_hold_the_first_token():
    module = build(lambda: gated(100.0))
    plain = build(lambda: MultiHeadAttention(32, 4, rotary=RoPE(32, 4)))
    plain.load_state_dict({k: v for k, v in module.state_dict().items() if not k.startswith("gate")})
    x = noise(2, 10, 32)
    assert_close(module(x), plain(x), "all gates open")
    torch.nn.init.constant_(module.gate.bias, -100.0)
    y = module(x)
    assert_close(y, y[:, :1].expand_as(y), "all gates closed: everybody attends to the first value")
    assert_close(y[:, :1], plain(x[:, :1]), "the first token")


def test_the_gradient_is_the_recurrences():
    rows, before = (noise(1, 2, n, 3, dtype=torch.float64, seed=n) for n in (7, 1))
    taken = torch.tensor([[1, 0, 0, 1, 1, 0, 0]]).bool()
    slope = torch.zeros(1, 7, dtype=torch.float64, requires_grad=True)
    weight = noise(1, 2, 7, 3, seed=3, dtype=torch.float64)
    (hold_last(rows, taken, slope, before) * weight).sum().backward()
    u = taken.double().requires_grad_()
    held, last = [], before[:, :, 0]
    for t in range(7):
        last = u[:, t] * rows[:, :, t] + (1 - u[:, t]) * last
        held.append(last)
    (torch.stack(held, 2) * weight).sum().backward()
    assert slope.grad is not None
    assert u.grad is not None
    assert torch.allclose(slope.grad, u.grad, atol=1e-12)


def test_gates_are_for_self_attention():
    with pytest.raises(ValueError, match="self-attention only"):
        gated(0.0)(noise(1, 3, 32), noise(1, 3, 32))


@torch.no_grad()
def test_a_held_key_is_one_row_of_the_cache():
    module = build(lambda: ContentGatedAttention(32, 4, gate_bias=0.0, rotary=RoPE(32, 4)))
    x = noise(2, 50, 32)
    cache, whole = module.new_cache(2, 80), module(x)
    parts = [module(piece, cache=cache) for piece in x.split([20] + [1] * 20 + [4] * 2 + [2], dim=1)]
    assert_close(torch.cat(parts, 1), whole, "cached")
    taken = module.gates(x) > 0.5
    taken[:, 0] = True
    assert cache.rows < 50
    assert cache.filled.sum(1).tolist() == taken.sum(1).tolist()
    assert cache.counts.sum(1).tolist() == [50, 50]
    cache.crop(33)
    assert cache.length == 33
    assert cache.counts.sum(1).tolist() == [33, 33]
    other = torch.cat([x[:, :33], noise(2, 9, 32, seed=7)], 1)
    assert_close(
        torch.cat([module(t, cache=cache) for t in other[:, 33:].split(1, 1)], 1), module(other)[:, 33:], "cropped"
    )


@torch.no_grad()
@pytest.mark.parametrize("rotary", [None, RoPE, CombinedRotary])
def test_steps_project_what_is_taken_alone(rotary):
    """A step that takes no key multiplies by the queries' weights only; mixed steps and full forwards agree."""
    options = {"kv_heads": 2, "qk_norm": True, "bias": True}
    module = build(lambda: ContentGatedAttention(32, 4, rotary=rotary and rotary(32, 4), gate_bias=0.0, **options))
    x = noise(2, 40, 32)
    x[1, 20:] = x[0, 20:]  # from here on both rows decide the same
    cache, whole, taken = module.new_cache(2, 60), module(x), module.gates(x) > 0.5
    assert 0 < taken[0, 20:].sum() < 20
    parts = [module(x[:, :10], cache=cache)]
    for t in range(10, 40):
        before = cache.rows
        weight = module.qkv.weight.data
        if not taken[:, t].any():  # keys and values are not made: their weights may be anything
            module.qkv.weight.data = weight.clone()
            module.qkv.weight.data[32:] = torch.nan
        parts.append(module(x[:, t : t + 1], cache=cache))
        module.qkv.weight.data = weight
        assert cache.rows == before + int(taken[:, t].any())
    assert_close(torch.cat(parts, 1), whole, "token by token")
    cache.reorder(torch.tensor([1, 1, 0]))
    cache.crop(31)
    order, rest = torch.tensor([1, 1, 0]), noise(3, 9, 32, seed=5)
    again = module(torch.cat([x[order, :31], rest], 1))[:, 31:]
    steps = [module(rest[:, t : t + 1], cache=cache) for t in range(9)]
    assert_close(torch.cat(steps, 1), again, "reordered and cropped")
