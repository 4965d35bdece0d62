"""A kept value is never stale, carries no gradient, and vanishes from copies."""

import copy
import pickle

import pytest
import torch
from torch import nn

from cubelet.models.kernels import formulas_only
from cubelet.models.kernels.kept import Kept
from cubelet.models.rotary import AxialRotary, CombinedRotary, CompactRotary, QuaternionRotary, RoPE, grid_positions


@pytest.mark.parametrize("make", [RoPE, QuaternionRotary, CombinedRotary])
def test_nothing_kept_is_stale(make):
    torch.manual_seed(0)
    rotary, x = make(24, 2), torch.randn(1, 2, 5, 12)
    if make is CombinedRotary:
        nn.init.normal_(rotary.thetas)
    writes = [rotary.base.data] + [p.data for p in rotary.parameters()]  # writing through .data counts no version
    with torch.no_grad():
        for value in writes:
            before = rotary.rotate(x)
            value.sub_(0.3 * (value.abs() + 0.1) * torch.rand_like(value) + 0.1)
            after = rotary.rotate(x)
            assert not torch.equal(before, after)
            fresh = make(24, 2)
            fresh.load_state_dict(rotary.state_dict())
            assert torch.equal(after, fresh.rotate(x))
            with formulas_only("kept"):
                assert torch.equal(after, rotary.rotate(x))
            assert rotary.rotate(x[:, :, :3]).shape[2] == 3  # another length between two of the same


def test_positions_reused_for_other_numbers_are_read_again():
    """A buffer that a collective, numpy or `.data` writes to keeps its identity and its version."""
    rope, axial, x = RoPE(24, 2), AxialRotary(24, 2, axes=2), torch.randn(1, 2, 6, 12)
    for rotary, positions in ((rope, torch.arange(6)), (axial, grid_positions(2, 3))):
        first = rotary.rotate(x, positions)
        positions.numpy()[...] += 5
        assert torch.allclose(rotary.rotate(x, positions), rotary.rotate(x, positions.clone()))
        assert not torch.allclose(rotary.rotate(x, positions), first, atol=1e-3)


def test_a_value_is_made_once_and_has_no_gradient():
    weight, kept, calls = nn.Parameter(torch.ones(2)), Kept(), []

    def make():
        calls.append(1)
        return 2 * weight

    with torch.inference_mode():
        first = kept.get([weight], make)
    assert kept.get([weight], make) is first
    assert len(calls) == 1
    assert not first.requires_grad
    assert not first.is_inference()
    with formulas_only():
        kept.get([weight], make)
    assert len(calls) == 2
    kept.get([weight], make, key="another")
    assert len(calls) == 3


def test_copies_start_empty():
    kept = Kept()
    kept.get([torch.ones(1)], lambda: torch.ones(1))
    assert copy.deepcopy(kept).value is None
    assert pickle.loads(pickle.dumps(kept)).value is None


def test_R_is_kept_in_evaluation_only():
    for rotary in (CombinedRotary(24, 2), QuaternionRotary(24, 2), CompactRotary(24, 2)):
        with torch.no_grad():
            assert rotary.mixing() is rotary.mixing()
        if list(rotary.parameters()):
            assert rotary.mixing().requires_grad
