import pytest
import torch

from cubelet.models.attention import HybridAttention
from cubelet.models.rotary import CombinedRotary
from tests.conformance import suite
from tests.conformance.subject import build, noise


def test_the_local_branch_has_a_window_that_moves():
    module = build(lambda: HybridAttention(32, 4, window=6, rotary=CombinedRotary(32, 4)))
    suite.check_window(lambda: module.local, 6)
    module.set_window(3)
    assert module.window == 3
    suite.check_window(lambda: module.local, 3)
    assert module.window == module.local.window == 3


@torch.no_grad()
def test_the_local_cache_keeps_only_its_window():
    module = build(lambda: HybridAttention(32, 4, window=6))
    cache = module.new_cache(1, 64)
    module(noise(1, 50, 32), cache=cache)
    near, far = cache.parts
    assert near.streams[0].shape[2] == 5
    assert far.streams[0].shape[2] == 64
    assert cache.length == 50


def test_branches_learn_their_own_rotaries():
    module = HybridAttention(32, 4, rotary=CombinedRotary(32, 4, matrix="free"))
    assert module.local.rotary is not module.far.rotary
    storages = {tensor.untyped_storage().data_ptr() for tensor in module.state_dict().values()}
    assert len(storages) == len(module.state_dict()), "a tensor has two names"
    build(lambda: module)
    assert module.penalty() == module.local.rotary.penalty() + module.far.rotary.penalty() > 0


@pytest.mark.parametrize("join", ["sum", "concat"])
def test_zero_output(join):
    module = build(lambda: HybridAttention(32, 4, join=join))
    module.zero_output()
    assert torch.count_nonzero(module(noise(1, 5, 32))) == 0


def test_errors():
    with pytest.raises(ValueError, match="window 0"):
        HybridAttention(32, 4, window=0)
    with pytest.raises(ValueError, match="'mean' is unknown"):
        HybridAttention(32, 4, join="mean")
    with pytest.raises(ValueError, match="self-attention only"):
        HybridAttention(32, 4)(noise(1, 5, 32), noise(1, 5, 32))
