"""Every attention against the conformance suite, with and without a rotary."""

import pytest

from tests.conformance import suite
from tests.models.attention.variants import ATTENTIONS, factory


@pytest.mark.parametrize("check", suite.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("rotary", ["none", "rope", "combined"])
@pytest.mark.parametrize("name", ATTENTIONS)
def test_conforms(name, rotary, check):
    check(factory(name, rotary))


@pytest.mark.parametrize("check", [suite.check_padding, suite.check_documents], ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", ATTENTIONS)
def test_conforms_both_ways(name, check):
    if ATTENTIONS[name].noncausal:
        check(factory(name, "combined", causal=False))


@pytest.mark.parametrize("name", [name for name, case in ATTENTIONS.items() if case.smooth])
def test_gradcheck(name):
    # Past its bound a parameter's gradient is not the derivative on purpose (models/bounded.py).
    suite.check_gradcheck(factory(name, "combined_inside"))


@pytest.mark.parametrize("name", [name for name, case in ATTENTIONS.items() if case.window])
def test_window(name):
    suite.check_window(factory(name, "rope"), ATTENTIONS[name].window)


# One per mechanism: the code generator for the plain case, the graphs alone for the rest.
COMPILED = {name: {} for name in ATTENTIONS if name not in ("local_bias", "multi_scale", "hybrid")}
COMPILED["integrated"] = {"passes": 1}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_compiles(name):
    backend = "inductor" if name == "multi_head" else "aot_eager"
    suite.check_compile(factory(name, "combined", **COMPILED[name]), backend=backend)
