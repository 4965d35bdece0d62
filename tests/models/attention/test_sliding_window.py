import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cubelet.models.attention import SlidingWindowAttention
from cubelet.models.rotary import RoPE
from tests.conformance import suite
from tests.conformance.subject import build, noise


def test_a_moved_window_acts_and_is_saved():
    module = SlidingWindowAttention(32, 4, window=5)
    module.set_window(9)
    suite.check_window(lambda: module, 9)
    fresh = SlidingWindowAttention(32, 4, window=5)
    fresh.load_state_dict(module.state_dict())
    assert fresh.window == 9
    assert torch.equal(fresh(noise(1, 30, 32)), module(noise(1, 30, 32)))


def test_a_window_that_moves_while_weights_are_averaged_is_the_mean_in_the_average():
    module = build(lambda: SlidingWindowAttention(32, 4, window=48))
    averaged = AveragedModel(module, use_buffers=True, multi_avg_fn=get_ema_multi_avg_fn(0.6))
    for window in (48, 64, 96):  # of binary digits alone the average would be a window of 112
        module.set_window(window)
        averaged.update_parameters(module)
    assert averaged.module.eval().window == 71  # 0.36 · 48 + 0.24 · 64 + 0.4 · 96
    fresh = build(lambda: SlidingWindowAttention(32, 4, window=48))
    fresh.load_state_dict(averaged.module.state_dict())
    x = noise(1, 120, 32)
    assert fresh.window == 71
    assert torch.equal(fresh.eval()(x), averaged.module(x))
    assert module.train().window == 96


def test_a_window_both_ways():
    suite.check_window(lambda: SlidingWindowAttention(32, 4, window=5, causal=False), 5, causal=False)


def test_a_learned_bias_covers_a_window_that_grows():
    module = build(lambda: SlidingWindowAttention(32, 4, window=5, relative_bias=True))
    module.set_window(9)
    suite.check_window(lambda: module, 9)
    assert module(noise(1, 100, 32)).isfinite().all()


@torch.no_grad()
def test_the_cache_keeps_what_the_window_needs():
    module = build(lambda: SlidingWindowAttention(32, 4, window=6, rotary=RoPE(32, 4)))
    cache = module.new_cache(1, 1000)
    module(noise(1, 200, 32), cache=cache)
    assert cache.streams[0].shape[2] == 5
    assert cache.streams[0].untyped_storage().nbytes() < 100 * 32 * 4, "the prompt's rows are not freed"
    module.set_window(7)
    with pytest.raises(RuntimeError, match=r"window is 7 .* made for 6"):
        module(noise(1, 1, 32), cache=cache)


@pytest.mark.parametrize("window", [0, -1, 1.5])
def test_bad_windows(window):
    with pytest.raises(ValueError, match=f"window {window}"):
        SlidingWindowAttention(32, 4, window=window)
    with pytest.raises(ValueError, match=f"window {window}"):
        SlidingWindowAttention(32, 4).set_window(window)


def test_a_bias_counts_back():
    with pytest.raises(ValueError, match="causal=True"):
        SlidingWindowAttention(32, 4, relative_bias=True, causal=False)
