"""A bias of the keys as features of the product, against the bias as a matrix."""

import pytest
import torch

from cubelet.models.kernels import formulas_only
from cubelet.models.kernels.key_bias import causal_attention_with_key_bias


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def both(q, k, v, bias, weight):
    """Heads and gradients of the fast path and of the formula."""
    for formula in (False, True):
        parts = [t.clone().requires_grad_() for t in (q, k, v, bias)]
        with formulas_only("key_bias") if formula else formulas_only("none"):
            heads = causal_attention_with_key_bias(*parts)
        yield heads.detach(), *torch.autograd.grad((heads * weight).sum(), parts)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("width", [8, 5])
def test_agrees_with_its_formula(kv_heads, width):
    q, k, v = draw(2, 4, 33, width), draw(2, kv_heads, 33, width, seed=1), draw(2, kv_heads, 33, width, seed=2)
    bias = draw(2, 4, 33, seed=3).cumsum(-1)
    for fast, formula in zip(*both(q, k, v, bias, draw(2, 4, 33, width, seed=4)), strict=True):
        if fast.shape == bias.shape:  # the same for all keys of a row: what is left of a gradient is its difference
            fast, formula = fast.diff(dim=-1), formula.diff(dim=-1)
        torch.testing.assert_close(fast, formula, atol=2e-5, rtol=1e-4)


def test_large_biases_in_half_precision_are_not_rounded_to_it():
    """2,000 has neighbours 8 apart in bfloat16; half a nat of difference must still count."""
    q, k, v = (draw(1, 2, 64, 16, seed=s).bfloat16() for s in range(3))
    bias = 2000 + 0.5 * draw(1, 2, 64, seed=3)
    half = causal_attention_with_key_bias(q, k, v, bias)
    exact = causal_attention_with_key_bias(q.double(), k.double(), v.double(), bias.double())
    assert half.dtype == torch.bfloat16
    assert (half.double() - exact).abs().max() < 0.03


def test_dropout_is_applied():
    q, k, v = (draw(1, 2, 64, 16, seed=s) for s in range(3))
    whole = causal_attention_with_key_bias(q, k, v, torch.zeros(1, 2, 64))
    torch.manual_seed(0)
    assert not torch.allclose(causal_attention_with_key_bias(q, k, v, torch.zeros(1, 2, 64), dropout=0.5), whole)
