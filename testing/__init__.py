"""Conformance suite: what any attention, block or rotary must hold, for use on your own components.

    import pytest
    from cubelet.testing import CHECKS

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_my_attention(check):
        check(lambda: MyAttention(32, 4))

- Each check takes a factory without arguments and builds a fresh module with it; a fault is an AssertionError that says
  what reached where. `CHECKS` are for attentions and blocks, `ROTARY_CHECKS` for rotaries.
- `check_gradcheck` is for smooth modules, `check_window` for local ones, `check_compile` takes seconds to minutes,
  `check_averaging` says whether an averaged copy (EMA) of the module still works.
- pytest is not needed: the checks are plain functions.
"""

from .averaging import check_averaging
from .cache import check_cache, check_cache_errors, check_cache_padding, check_cache_reorder
from .compilation import check_compile
from .documents import check_documents, check_documents_cache
from .memory import allocated, check_linear_memory
from .order import check_causality, check_window
from .padding import check_fully_masked, check_key_mask_errors, check_padding
from .rotary import (
    check_base,
    check_chunks,
    check_half_precision,
    check_own_token,
    check_rotary_copies,
    check_rotary_gradients,
    check_shapes,
)
from .state import (
    check_copies,
    check_determinism,
    check_gradcheck,
    check_gradients,
    check_precision,
    check_sizes,
)
from .subject import nudge

CHECKS = [
    check_causality,
    check_cache,
    check_cache_reorder,
    check_cache_padding,
    check_cache_errors,
    check_padding,
    check_documents,
    check_documents_cache,
    check_fully_masked,
    check_key_mask_errors,
    check_determinism,
    check_copies,
    check_averaging,
    check_gradients,
    check_precision,
    check_sizes,
]
ROTARY_CHECKS = [
    check_shapes,
    check_own_token,
    check_chunks,
    check_base,
    check_half_precision,
    check_rotary_copies,
    check_rotary_gradients,
    check_averaging,
]

__all__ = [
    "CHECKS",
    "ROTARY_CHECKS",
    "allocated",
    "check_averaging",
    "check_base",
    "check_cache",
    "check_cache_errors",
    "check_cache_padding",
    "check_cache_reorder",
    "check_causality",
    "check_chunks",
    "check_compile",
    "check_copies",
    "check_determinism",
    "check_documents",
    "check_documents_cache",
    "check_fully_masked",
    "check_gradcheck",
    "check_gradients",
    "check_half_precision",
    "check_key_mask_errors",
    "check_linear_memory",
    "check_own_token",
    "check_padding",
    "check_precision",
    "check_rotary_copies",
    "check_rotary_gradients",
    "check_shapes",
    "check_sizes",
    "check_window",
    "nudge",
]
