"""A kept value is never stale, carries no gradient, and vanishes from copies."""

import copy
import os
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from cubelet.models.kernels import formulas_only
from cubelet.models.kernels.kept import Kept, KeptGraph
from cubelet.models.rotary import (
    AxialRotary,
    CombinedRotary,
    CompactRotary,
    LearnedBaseRoPE,
    QuaternionRotary,
    RoPE,
    grid_positions,
)


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


RECEIVE = """
import sys, torch, torch.distributed as dist
from cubelet.models.rotary import RoPE
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
positions, rope, x = torch.arange(6), RoPE(24, 2), torch.ones(1, 2, 6, 12)
if rank:
    dist.send(positions + 5, 0)
else:
    rope.rotate(x, positions)
    dist.recv(positions, 1)
    assert positions[0] == 5
    assert torch.equal(rope.rotate(x, positions), RoPE(24, 2).rotate(x, torch.arange(6) + 5))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_positions_received_from_another_process_into_the_same_buffer_are_read_again(tmp_path):
    command = [sys.executable, "-c", RECEIVE]
    quiet = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    ranks = [subprocess.Popen([*command, str(rank), str(tmp_path / "store")], env=quiet) for rank in range(2)]
    assert [rank.wait(120) for rank in ranks] == [0, 0]


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


# -- a value that is learned, shared by layers --

LEARNED = [LearnedBaseRoPE, QuaternionRotary, lambda d, h: AxialRotary(d, h, learned_frequencies=True)]


def through_layers(rotary, x, layers=8):
    for _ in range(layers):
        x = rotary.rotate(x)
    return x


def gradients(rotary, losses, x, formula):
    """Gradients of several losses, each walked backward alone, after all forwards were made."""
    rotary.zero_grad()
    with formulas_only("kept") if formula else formulas_only("none"):
        made = [loss(through_layers(rotary, x)) for loss in losses]
        for loss in reversed(made):
            loss.backward()
    return [p.grad.clone() for p in rotary.parameters()]


@pytest.mark.parametrize("make", LEARNED)
def test_layers_that_share_learned_frequencies_make_their_table_once(make, monkeypatch):
    torch.manual_seed(0)
    rotary, x, calls = make(24, 2), torch.randn(1, 2, 9, 12, requires_grad=True), []
    original = rotary._cis
    monkeypatch.setattr(rotary, "_cis", lambda *a, **k: calls.append(1) or original(*a, **k))
    losses = [lambda y: y[..., 0].square().sum(), lambda y: y[..., 1:5].sum()]
    got = gradients(rotary, losses, x, formula=False)
    assert len(calls) == 1
    wanted = gradients(rotary, losses, x, formula=True)
    assert len(calls) == 17
    for one, other in zip(got, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_layers_get_the_gradients_of_plain_ones(reentrant):
    torch.manual_seed(0)
    rotary, x = LearnedBaseRoPE(24, 2), torch.randn(1, 2, 9, 12, requires_grad=True)
    (wanted,) = torch.autograd.grad(through_layers(rotary, x)[..., :3].sum(), rotary.base_shift)
    y = x
    for _ in range(8):
        y = checkpoint(rotary.rotate, y, use_reentrant=reentrant)
    y[..., :3].sum().backward()
    assert torch.allclose(rotary.base_shift.grad, wanted, rtol=1e-5)


def test_a_learned_value_is_never_stale_and_ends_with_its_graph():
    weight, kept, calls = nn.Parameter(torch.ones(2)), KeptGraph(), []

    def make():
        calls.append(1)
        return weight.square()

    first = kept.get([weight], make)
    weight.data.mul_(3)  # counts no version
    second = kept.get([weight], make)
    assert second.tolist() == [9, 9]
    assert len(calls) == 2
    twin = nn.Parameter(weight.detach().clone())  # another parameter of the same values has gradients of its own
    assert kept.get([twin], lambda: twin.square()) is not second
    (slope,) = torch.autograd.grad(second.sum(), weight, create_graph=True)
    assert torch.autograd.grad(slope.sum(), weight)[0].tolist() == [2, 2]
    del first, second, slope
    assert kept.value() is None
    assert copy.deepcopy(kept).value is None
    assert torch.func.grad(lambda w: kept.get([w], lambda: w.square()).sum())(weight.detach()).tolist() == [6, 6]
