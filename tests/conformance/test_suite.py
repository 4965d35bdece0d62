"""The suite itself: each check must fail on a module that has just the fault it looks for."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from cubelet.models.attention import MultiHeadAttention, SlidingWindowAttention
from tests.conformance import suite


class Leaky(MultiHeadAttention):
    """Adds a whisper of the mean over the whole sequence."""

    def forward(self, x, *args, **options):
        return super().forward(x, *args, **options) + 1e-6 * x.mean(1, keepdim=True)


class TopLeft(MultiHeadAttention):
    """Aligns cached queries with the first keys, as is_causal=True does."""

    def attend(self, x, q, k, v, scope):
        mask = torch.ones(scope.queries, scope.keys).tril().bool()
        return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class ForgetsPadding(MultiHeadAttention):
    def attend(self, x, q, k, v, scope):
        return super().attend(x, q, k, v, replace(scope, key_mask=None))


class Remembers(MultiHeadAttention):
    """Output depends on the number of calls."""

    calls = 0

    def forward(self, *args, **options):
        self.calls += 1
        return super().forward(*args, **options) * (1 + 0.01 * self.calls)


class Dead(MultiHeadAttention):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.unused = nn.Parameter(torch.zeros(3))

    def forward(self, *args, **options):
        return super().forward(*args, **options) + 0.0 * self.unused.sum()


class Hidden(MultiHeadAttention):
    """Has state that no state_dict holds."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.factor = float(torch.rand(()))

    def forward(self, *args, **options):
        return super().forward(*args, **options) * self.factor


@pytest.mark.parametrize(
    ("faulty", "checks"),
    [
        (Leaky, [suite.check_causality]),
        (TopLeft, [suite.check_cache]),
        (ForgetsPadding, [suite.check_padding, suite.check_cache_padding]),
        (Remembers, [suite.check_determinism]),
        (Dead, [suite.check_gradients]),
        (Hidden, [suite.check_copies]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_faulty_module_fails(faulty, checks):
    for check in checks:
        check(lambda: MultiHeadAttention(32, 4))
        with pytest.raises(AssertionError):
            check(lambda: faulty(32, 4))


@pytest.mark.parametrize("window", [6, 8])
def test_a_window_off_by_one_fails(window):
    with pytest.raises(AssertionError, match="reached by"):
        suite.check_window(lambda: SlidingWindowAttention(32, 4, window=7), window)


def test_an_output_of_zeros_fails():
    def silent():
        module = MultiHeadAttention(32, 4)
        module.register_forward_hook(lambda *args: args[-1] * 0)
        return module

    with pytest.raises(AssertionError, match="all zeros"):
        suite.check_causality(silent)
