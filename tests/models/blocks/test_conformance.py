"""Every block against the conformance suite, with and without a rotary."""

import pytest

from tests.conformance import suite
from tests.models.blocks.variants import BLOCKS, factory


@pytest.mark.parametrize("check", suite.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("rotary", ["none", "rope", "combined"])
@pytest.mark.parametrize("name", BLOCKS)
def test_conforms(name, rotary, check):
    options = {}
    if check is suite.check_fully_masked:
        options["zeros"] = BLOCKS[name].zeros
    elif check is suite.check_precision and not BLOCKS[name].smooth:
        options["flips"] = 0.5
    check(factory(name, rotary), **options)


@pytest.mark.parametrize("check", [suite.check_padding, suite.check_documents], ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", BLOCKS)
def test_conforms_both_ways(name, check):
    if name != "mixture_of_depths":  # counts the tokens so far
        check(factory(name, "combined", causal=False))


@pytest.mark.parametrize("name", [name for name, case in BLOCKS.items() if case.smooth])
def test_gradcheck(name):
    # Past its bound a parameter's gradient is not the derivative on purpose (models/bounded.py).
    suite.check_gradcheck(factory(name, "combined_inside"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["residual", "skipping", "mixture_of_depths", "myelinated"])
def test_compiles(name):
    suite.check_compile(factory(name, "combined"), backend="inductor" if name == "residual" else "aot_eager")
