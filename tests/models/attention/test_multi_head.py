import pytest
import torch

from cubelet.models.attention import MultiHeadAttention
from cubelet.models.rotary import CombinedRotary, RoPE
from tests.conformance import suite
from tests.conformance.subject import assert_close, build, noise


def scaled(scale):
    module = build(lambda: MultiHeadAttention(32, 4, rotary=CombinedRotary(32, 4), positional_scaling=True))
    with torch.no_grad():
        module.position_scale.fill_(scale)
    return module


def test_positions_are_scaled():
    x, plain = noise(2, 12, 32), scaled(1.0)
    assert_close(scaled(3.0)(x), plain(x, positions=3 * torch.arange(12)), "positions times 3", 1e-4)
    assert_close(scaled(0.5)(x, positions=2 * torch.arange(12)), plain(x), "positions times 2 times ½", 1e-4)


def test_the_scale_learns():
    suite.check_gradcheck(lambda: MultiHeadAttention(32, 4, rotary=RoPE(32, 4), positional_scaling=True, qk_norm=True))


def test_scaled_positions_are_cached():
    make = lambda: MultiHeadAttention(32, 4, rotary=RoPE(32, 4), positional_scaling=True)  # noqa: E731
    suite.check_cache(make)
    suite.check_cache_padding(make)


def test_positional_scaling_needs_positions_to_scale():
    with pytest.raises(ValueError, match="NoneType"):
        MultiHeadAttention(32, 4, positional_scaling=True)


def test_relative_bias_starts_without_effect_and_has_no_meaning_for_a_context():
    torch.manual_seed(0)
    module = MultiHeadAttention(32, 4, relative_bias=5)
    x = noise(2, 9, 32)
    plain = MultiHeadAttention(32, 4)
    plain.load_state_dict({k: v for k, v in module.state_dict().items() if "relative" not in k})
    assert_close(module(x), plain(x), "zero bias")
    with pytest.raises(ValueError, match="no meaning for a context"):
        module(x, x)
