"""Score biases against the libraries that have them, and against one score at a time."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from cubelet.models.attention import MultiHeadAttention
from cubelet.models.attention.score_bias import FIRE, ALiBi, T5Bias
from cubelet.models.decoder import Decoder
from tests.reference.nudge import nudge

BIASES = {"alibi": ALiBi, "t5": T5Bias, "fire": FIRE}


def distances(q, k):
    return (torch.arange(q)[:, None] + k - q) - torch.arange(k)


@pytest.mark.parametrize("heads", [1, 4, 6, 8])
def test_alibi_has_the_slopes_of_bloom(heads):
    bloom = pytest.importorskip("transformers.models.bloom.modeling_bloom", reason="extra `bench` is not installed")
    theirs = bloom.build_alibi_tensor(torch.ones(1, 9), heads, torch.float32).view(1, heads, 1, 9)
    ours = ALiBi(heads)(distances(1, 9))  # theirs differs by a constant in each row, which softmax does not see
    assert torch.allclose(ours - ours[..., -1:], theirs - theirs[..., -1:], atol=1e-6)


PLACES = [{"score_bias": make} for make in (ALiBi, partial(ALiBi, learned=True), T5Bias, FIRE)] + [{"relative_bias": 5}]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("place", PLACES)
def test_rows_that_are_counted_equal_rows_at_these_positions(place, causal):
    """Counted rows are asked for by lag, or as a bias of the keys; positions that are given, for every pair."""
    torch.manual_seed(0)
    attention, x = nudge(MultiHeadAttention(16, 4, causal=causal, **place)), torch.randn(2, 9, 16)
    found = []
    for positions in (None, torch.arange(9)):
        attention.zero_grad()
        y = attention(x, positions=positions)
        y.square().sum().backward()
        found.append([y.detach(), *(p.grad.clone() for p in attention.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_buckets_are_those_of_t5(bidirectional):
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5", reason="extra `bench` is not installed")
    d = torch.arange(-300, 300)
    theirs = t5.T5Attention._relative_position_bucket(-d, bidirectional=bidirectional, num_buckets=32, max_distance=128)
    assert torch.equal(T5Bias(2, bidirectional=bidirectional).bucket(d), theirs)


def test_fire_one_score_at_a_time():
    fire, d = nudge(FIRE(2, threshold=3.0)), distances(7, 7)
    bias = fire(d)
    c, L = fire.log_c.exp().item(), abs(fire.threshold_scale.item() * 3.0)
    for i in range(7):
        for j in range(i + 1):
            ratio = math.log(1 + c * (i - j)) / math.log(1 + c * max(L, i))
            hidden = torch.relu(fire.hidden.weight[:, 0] * ratio + fire.hidden.bias)
            assert torch.allclose(bias[0, :, i, j], fire.out.weight @ hidden + fire.out.bias, atol=1e-5)


@pytest.mark.parametrize("name", BIASES)
def test_decoding_step_by_step_equals_the_whole_and_no_token_sees_the_future(name):
    torch.manual_seed(0)

    def attention(dims, heads, **options):
        return MultiHeadAttention(dims, heads, score_bias=BIASES[name], **options)

    model = nudge(Decoder(30, 16, 2, 4, rotary=None, attention=attention)).eval()
    tokens = torch.randint(30, (2, 9))
    whole = model(tokens)
    assert not torch.allclose(whole[:, -1], model(tokens[:, [3, 1, 2, 0, 4, 5, 6, 7, 8]])[:, -1], atol=1e-6)
    cache = model.new_cache(2, 9)
    steps = [model(tokens[:, a:b], cache=cache) for a, b in ((0, 4), (4, 5), (5, 9))]
    assert torch.allclose(torch.cat(steps, dim=1), whole, atol=1e-5)
    changed = tokens.clone()
    changed[:, 6:] += 1
    assert torch.allclose(model(changed % 30)[:, :6], whole[:, :6], atol=1e-6)


@pytest.mark.parametrize("make", [lambda: ALiBi(4, learned=True), lambda: T5Bias(4), lambda: FIRE(4)])
def test_parameters_learn_and_come_back(make):
    bias = nudge(make())
    (bias(distances(9, 9)) * torch.randn(1, 4, 9, 9)).sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in bias.parameters())
    fresh = make()
    fresh.load_state_dict(bias.state_dict())
    assert torch.equal(fresh(distances(5, 9)), bias(distances(5, 9)))
    with torch.device("meta"):
        late = make()
    late.to_empty(device="cpu").reset_parameters()
    assert torch.isfinite(late(distances(3, 3))).all()
    batch = torch.stack([distances(5, 9), distances(5, 9) + 1])
    assert bias(batch).shape == (2, 4, 5, 9)


def test_bad_arguments():
    with pytest.raises(ValueError, match="leave no room for growing buckets"):
        T5Bias(2, buckets=32, max_distance=16)
    with pytest.raises(ValueError, match="take the same place"):
        MultiHeadAttention(16, 2, relative_bias=4, score_bias=ALiBi)
    with pytest.raises(ValueError, match="no meaning for a context"):
        MultiHeadAttention(16, 2, score_bias=ALiBi, causal=False)(torch.randn(1, 3, 16), torch.randn(1, 4, 16))
    assert isinstance(MultiHeadAttention(16, 2, score_bias=ALiBi).relative_bias, nn.Module)
