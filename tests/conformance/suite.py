"""The conformance suite: what any attention or block of this project must hold, for use on your own modules too.

    from tests.conformance.suite import CHECKS
    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_mine(check):
        check(lambda: MyAttention(32, 4, rotary=RoPE(32, 4)))

Each check takes a factory without arguments; see `subject.py` for what it must build. `check_gradcheck` is for smooth
modules, `check_window` for local ones, `check_compile` takes seconds to minutes.
"""

from .cached import check_cache, check_cache_errors, check_cache_padding, check_cache_reorder
from .compiled import check_compile
from .memory import check_linear_memory
from .order import check_causality, check_window
from .padding import check_fully_masked, check_key_mask_errors, check_padding
from .state import (
    check_copies,
    check_determinism,
    check_gradcheck,
    check_gradients,
    check_precision,
    check_sizes,
)

CHECKS = [
    check_causality,
    check_cache,
    check_cache_reorder,
    check_cache_padding,
    check_cache_errors,
    check_padding,
    check_fully_masked,
    check_key_mask_errors,
    check_determinism,
    check_copies,
    check_gradients,
    check_precision,
    check_sizes,
]

__all__ = [
    "CHECKS",
    *(check.__name__ for check in CHECKS),
    "check_compile",
    "check_gradcheck",
    "check_linear_memory",
    "check_window",
]
