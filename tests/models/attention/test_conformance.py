"""Every attention against the conformance suite, with and without a rotary."""

from functools import partial

import pytest

from cubelet.models.attention import MultiHeadAttention
from cubelet.models.rotary import CombinedRotary, RoPE
from tests.conformance import suite

ROTARIES = {"none": lambda: None, "rope": lambda: RoPE(32, 4), "combined": lambda: CombinedRotary(32, 4)}

ATTENTIONS = {
    "multi_head": MultiHeadAttention,
    "multi_head_options": partial(MultiHeadAttention, kv_heads=2, qk_norm=True, relative_bias=9),
}

SMOOTH = ("multi_head", "multi_head_options")
LOCAL: dict[str, int] = {}


def factory(attention, rotary):
    return lambda: ATTENTIONS[attention](32, 4, rotary=ROTARIES[rotary]())


@pytest.mark.parametrize("check", suite.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("rotary", ROTARIES)
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_conforms(attention, rotary, check):
    check(factory(attention, rotary))


@pytest.mark.parametrize("attention", SMOOTH)
def test_gradcheck(attention):
    suite.check_gradcheck(factory(attention, "combined"))


@pytest.mark.slow
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_compiles(attention):
    suite.check_compile(factory(attention, "combined"))
