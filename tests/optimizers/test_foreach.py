"""Host reads, and the bookkeeping of tensors that come and go."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from cubelet.optimizers import FAM, MaxFactor, SimpleFAM
from tests.reference.optimizers import ReferenceFAM, low_rank_gradients

READS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default, torch.ops.aten.nonzero.default}


class Counter(TorchDispatchMode):
    """Counts what would make an accelerator wait: scalar reads, and copies to the CPU (`tolist` of more than one)."""

    def __init__(self):
        super().__init__()
        self.reads = 0
        self.calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        self.reads += func in READS
        return func(*args, **(kwargs or {}))


@pytest.fixture
def lists(monkeypatch):
    """Counts `Tensor.tolist`, which reads all values at once and does not pass the dispatcher on the CPU."""
    count = {"n": 0}
    original = torch.Tensor.tolist

    def counted(self):
        count["n"] += 1
        return original(self)

    monkeypatch.setattr(torch.Tensor, "tolist", counted)
    for name in ("item", "__float__", "__int__", "__bool__"):
        method = getattr(torch.Tensor, name)

        def single(self, method=method):
            count["n"] += 1
            return method(self)

        monkeypatch.setattr(torch.Tensor, name, single)
    return count


@pytest.mark.parametrize("base", ["momentum", "adamw", "maxfactor"])
@pytest.mark.parametrize("axis", ["index", "time"])
def test_one_host_read_per_analysis_none_otherwise(lists, base, axis):
    groups = [
        {"params": [nn.Parameter(torch.randn(32, 64)) for _ in range(5)]},
        {"params": [nn.Parameter(torch.randn(300)) for _ in range(5)], "handler": "attention", "n_bands": 12},
    ]
    optimizer = FAM(groups, start_step=30, analyse_every=5, axis=axis, base=base)
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for param in params:
        param.grad = torch.randn_like(param)
    optimizer.step()  # makes the state
    for step in range(2, 60):
        lists["n"] = 0
        with Counter() as counter:
            optimizer.step()
        analysed = step > 30 and step % 5 == 0
        assert counter.reads + lists["n"] == int(analysed), step
    lists["n"] = 0
    assert len(optimizer.spectrum_summary()) == 10
    assert lists["n"] == 1


@pytest.mark.parametrize("make", [MaxFactor, SimpleFAM, lambda p: FAM(p, capturable=True, start_step=1)])
def test_no_host_read_where_there_is_no_analysis_or_all_stays_on_the_device(lists, make):
    params = [nn.Parameter(torch.randn(20, 64)) for _ in range(3)]
    optimizer = make(params)
    for param in params:
        param.grad = torch.randn_like(param)
    optimizer.step()
    for _ in range(12):
        lists["n"] = 0
        with Counter() as counter:
            optimizer.step()
        assert counter.reads + lists["n"] == 0


def test_calls_do_not_grow_with_the_number_of_small_tensors():
    """One fused call for all tensors of a group; the dispatcher sees a few calls, not a few per tensor."""
    calls = []
    for count in (4, 40):
        params = [nn.Parameter(torch.randn(64)) for _ in range(count)]
        optimizer = FAM(params)
        for param in params:
            param.grad = torch.randn_like(param)
        optimizer.step()
        with Counter() as counter:
            optimizer.step()
        calls.append(counter.calls)
    assert calls[0] == calls[1] <= 3


@pytest.mark.parametrize("base", ["momentum", "adamw", "maxfactor"])
@pytest.mark.parametrize("axis", ["index", "time"])
def test_tensors_that_come_and_go_keep_their_own_counts(base, axis):
    """As under a parameter cycler: each tensor is stepped on its own steps only, exactly as if it were alone."""
    shapes = [(4, 64), (5, 64), (300,), (4, 64), (5,)]
    settings = {"lr": 0.02, "base": base, "axis": axis, "start_step": 10, "analyse_every": 3, "rule": "absolute"}
    params = [nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(1))) for shape in shapes]
    slow = [ReferenceFAM(param.detach().numpy(), **settings) for param in params]
    optimizer = FAM(params, **settings)
    streams = [low_rank_gradients(shape, 200, 0.9, seed=i) for i, shape in enumerate(shapes)]
    for step in range(60 if base == "maxfactor" else 150):
        for number, (param, tensor, stream) in enumerate(zip(params, slow, streams, strict=True)):
            param.grad = None
            if step > 20 * (number == 3) and (step + number) % (number + 2):
                grad = next(stream)
                param.grad = torch.tensor(grad)
                tensor.step(grad)
        optimizer.step()
    for param, tensor in zip(params, slow, strict=True):
        torch.testing.assert_close(param.detach().double(), torch.tensor(tensor.w), atol=3e-6, rtol=3e-5)
        assert optimizer.state[param]["step"] == tensor.t
    assert optimizer.spectrum_summary()[0]["alpha"] == pytest.approx(0.95)


def test_state_entries_stay_views_of_what_the_step_uses():
    params = [nn.Parameter(torch.randn(32, 64)) for _ in range(2)]
    optimizer = FAM(params, start_step=0, analyse_every=1, rule="absolute")
    for _ in range(3):
        for param in params:
            param.grad = torch.randn_like(param)
        optimizer.step()
    optimizer.state[params[0]]["bands"].zero_()  # as a user who wants the average to start anew
    optimizer.step()
    fresh = optimizer.state[params[0]]["bands"]
    assert fresh.sum().item() == pytest.approx(1, abs=1e-5)
    assert not torch.equal(fresh, optimizer.state[params[1]]["bands"])


def test_state_moved_by_a_trainer_is_found_again():
    """Trainers put new dicts with moved tensors into the state; the step must go on with those."""
    runs = []
    for move in (False, True):
        weight = nn.Parameter(torch.ones(32, 64))
        optimizer = FAM([weight], start_step=2, analyse_every=2, rule="absolute", base="adamw")
        for step in range(12):
            if move and step == 6:
                optimizer.state[weight] = {key: value.clone() for key, value in optimizer.state[weight].items()}
            weight.grad = torch.randn(32, 64, generator=torch.Generator().manual_seed(step))
            optimizer.step()
        assert optimizer.state[weight]["step"] == 12
        runs.append((weight.detach(), optimizer.state[weight]))
    assert torch.equal(runs[0][0], runs[1][0])
    assert all(torch.equal(runs[0][1][key], runs[1][1][key]) for key in runs[0][1])
