"""Attention maps: what they say of the weights is what the attention does with values."""

import pytest
import torch

from cubelet.models.attention import MultiHeadAttention, attention_maps
from cubelet.models.rotary import RoPE

from .variants import ATTENTIONS


@pytest.mark.parametrize("name", ATTENTIONS)
def test_values_weighted_by_the_maps_are_what_the_heads_give(name):
    torch.manual_seed(0)
    attention = ATTENTIONS[name].make(32, 4, rotary=RoPE(32, 4)).eval()
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x = torch.randn(2, 11, 32)
    seen = {}

    def remember(module, usual, key):
        def attend(x, q, k, v, scope):
            seen[key] = (v, getattr(module, "attend_linear", usual)(x, q, k, v, scope))
            return usual(x, q, k, v, scope)

        vars(module)["attend"] = attend

    maps = attention_maps(attention, lambda: attention(x))
    assert bool(maps) == (name != "latent")  # latents are keys and values at once
    for key in maps:
        module = attention.get_submodule(key)
        remember(module, module.attend, key)
    with torch.no_grad():
        attention(x)
    for key, weights in maps.items():
        v, heads = seen[key]
        v = v.repeat_interleave(heads.shape[1] // v.shape[1], dim=1)
        torch.testing.assert_close(weights @ v, heads, atol=1e-5, rtol=1e-5)


def test_the_model_is_left_as_it_was_and_more_keys_than_features_are_told():
    attention = MultiHeadAttention(8, 2).eval()
    x = torch.randn(1, 11, 8)
    before = attention(x)
    (weights,) = attention_maps(attention, lambda: attention(x)).values()
    assert weights.shape == (1, 2, 11, 11)
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 2, 11))
    assert weights.triu(1).abs().max() == 0
    assert "attend" not in vars(attention)
    assert torch.equal(attention(x), before)
    with pytest.raises(ZeroDivisionError):
        attention_maps(attention, lambda: 1 / 0)
    assert "attend" not in vars(attention)
