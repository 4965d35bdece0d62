"""The chunked kernel against masked attention, over shapes that cut chunks everywhere, and its memory."""

import pytest
import torch
import torch.nn.functional as F

from cubelet.models.kernels import formulas_only
from cubelet.models.kernels.sliding_window import sliding_window_attention
from tests.conformance import suite
from tests.conformance.subject import assert_close, noise
from tests.models.attention.variants import factory

KINDS = ("plain", "both_ways", "bias", "padded", "padded_bias", "grouped", "documents", "documents_bias_both_ways")


def by_definition(q, k, v, window, causal, key_mask, bias, documents):
    length, heads = q.shape[2], q.shape[1]
    k, v = (t.repeat_interleave(heads // t.shape[1], 1) for t in (k, v))
    lags = torch.arange(length)[:, None] - torch.arange(length)
    allowed = ((lags >= 0) & (lags < window) if causal else lags.abs() <= window).expand(q.shape[0], 1, -1, -1)
    if key_mask is not None:
        allowed = allowed & key_mask[:, None, None]
    if documents is not None:
        allowed = allowed & (documents[:, None, :, None] == documents[:, None, None])
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if bias is not None:
        scores = scores + bias[:, lags.abs().clamp(max=window)]
    empty = ~allowed.any(-1, keepdim=True)
    return F.softmax(scores.masked_fill(~allowed & ~empty, -torch.inf), -1).masked_fill(empty, 0.0) @ v


@pytest.mark.parametrize("length", [5, 16, 37])
@pytest.mark.parametrize(("window", "chunk"), [(1, 4), (6, 4), (4, 16), (12, 5), (40, 4)])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_masked_attention(length, window, chunk, kind):
    kv = 2 if kind == "grouped" else 4
    q, k, v = (noise(3, h, length, 8, seed=h + i, dtype=torch.float64) for i, h in enumerate((4, kv, kv)))
    bias = noise(4, window + 1, dtype=torch.float64) if "bias" in kind else None
    key_mask = None
    if "padded" in kind:
        key_mask = noise(3, length, seed=5) > 0
        key_mask[0] = False
        key_mask[1, : length // 2] = False
    inputs = [t.requires_grad_() for t in (q, k, v, *([] if bias is None else [bias]))]
    causal = "both_ways" not in kind
    documents = None
    if "documents" in kind:
        documents = (torch.rand(3, length, generator=torch.Generator().manual_seed(3)) < 0.2).cumsum(1)
    options = {"causal": causal, "key_mask": key_mask, "bias": bias, "documents": documents}
    y = sliding_window_attention(q, k, v, window, chunk=chunk, **options)
    z = by_definition(q, k, v, window, causal, key_mask, bias, documents)
    assert_close(y, z, "output", 1e-10)
    with torch.no_grad():
        assert_close(sliding_window_attention(q, k, v, window, chunk=chunk, **options), z, "without gradients", 1e-10)
    with formulas_only("sliding_window"):
        assert_close(sliding_window_attention(q, k, v, window, **options), z, "formula", 1e-10)
    weight = noise(*y.shape, seed=9, dtype=torch.float64)
    for one, other in zip(*(torch.autograd.grad((out * weight).sum(), inputs) for out in (y, z)), strict=True):
        assert_close(one, other, "gradient", 1e-10)


def test_dropout_keeps_the_mean():
    torch.manual_seed(0)
    q, k, v = (noise(1, 2, 30, 4, seed=i) for i in range(3))
    mean = torch.stack([sliding_window_attention(q, k, v, 8, chunk=8, dropout=0.3) for _ in range(400)]).mean(0)
    assert_close(mean, sliding_window_attention(q, k, v, 8, chunk=8), "mean over dropouts", 0.2)


@pytest.mark.parametrize("name", ["local", "local_bias", "adaptive_span", "multi_scale"])
def test_memory_is_linear(name):
    suite.check_linear_memory(factory(name, "rope"))


@pytest.mark.parametrize("name", ["hybrid", "integrated"])
def test_memory_of_a_local_branch_is_linear(name):
    suite.check_linear_memory(lambda: factory(name, "rope")().local)


def test_memory_of_full_attention_with_a_bias_is_not():
    with pytest.raises(AssertionError, match="memory grows"):
        suite.check_linear_memory(factory("multi_head_options", "rope"), lengths=(256, 1024))
