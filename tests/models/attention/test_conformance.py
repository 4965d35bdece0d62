"""Every attention against the conformance suite, with and without a rotary."""

import pytest

from tests.conformance import suite
from tests.models.attention.variants import ATTENTIONS, ROTARIES, factory


@pytest.mark.parametrize("check", suite.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("rotary", ROTARIES)
@pytest.mark.parametrize("name", ATTENTIONS)
def test_conforms(name, rotary, check):
    check(factory(name, rotary))


@pytest.mark.parametrize("name", [name for name, case in ATTENTIONS.items() if case.smooth])
def test_gradcheck(name):
    suite.check_gradcheck(factory(name, "combined"))


@pytest.mark.parametrize("name", [name for name, case in ATTENTIONS.items() if case.window])
def test_window(name):
    suite.check_window(factory(name, "rope"), ATTENTIONS[name].window)


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTENTIONS)
def test_compiles(name):
    suite.check_compile(factory(name, "combined"), backend="inductor" if name == "multi_head" else "aot_eager")
