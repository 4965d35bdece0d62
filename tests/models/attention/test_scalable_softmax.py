"""Beside the conformance suite and the slow reference (`variants.py`)."""

import pytest
import torch

from cubelet.models.attention import MultiHeadAttention, ScalableSoftmaxAttention
from cubelet.models.attention.masking import AttentionScope


def found(make, keys: int) -> float:
    """The weight of the one key that fits the query, among `keys`."""
    torch.manual_seed(0)
    attention = make(16, 1, causal=False).eval()
    q = torch.zeros(1, 1, 1, 16)
    q[..., 0] = 8.0
    k = torch.zeros(1, 1, keys, 16)
    k[0, 0, keys // 2, 0] = 4.0
    v = torch.zeros(1, 1, keys, 16)
    v[0, 0, keys // 2, 0] = 1.0
    scope = AttentionScope(1, keys, False)
    return float(attention.attend(torch.zeros(1, 1, 16), q, k, v, scope)[0, 0, 0, 0].detach())


def test_one_key_among_many_is_found_at_any_length():
    plain = [found(MultiHeadAttention, keys) for keys in (16, 256, 4096)]
    scaled = [found(ScalableSoftmaxAttention, keys) for keys in (16, 256, 4096)]
    assert plain == sorted(plain, reverse=True)
    assert plain[-1] < 0.5
    assert scaled == sorted(scaled), "8 points of score are worth more the more keys there are"
    assert scaled[-1] > 0.99


def test_sharpness_starts_where_it_was_told_and_learns():
    attention = ScalableSoftmaxAttention(16, 2, start=0.8)
    assert torch.equal(attention.sharpness, torch.full((2,), 0.8))
    attention(torch.randn(2, 5, 16)).square().sum().backward()
    assert attention.sharpness.grad is not None
    assert attention.sharpness.grad.all()
    with pytest.raises(ValueError, match="start"):
        ScalableSoftmaxAttention(16, 2, start=-1.0)
