"""Two processes: replicas under DDP stay bit-equal, and shards under FSDP2 follow the unsharded run.

The file runs itself as a script for each rank; one pair of processes serves all tests.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn

from cubelet.common.sharded_tensors import to_local
from cubelet.optimizers import FAM, MaxFactor, SimpleFAM, parameter_groups
from cubelet.optimizers.foreach import LocalParameter, to_real

STEPS = {"index": 200}  # of the attention handler's run; the others take 60
ADAPT = {"lr": 0.05, "start_step": 20, "analyse_every": 5}
REPLICATED = {
    "index": lambda groups: FAM(groups, **ADAPT, rule="absolute"),
    "time": lambda groups: FAM(groups, **ADAPT, axis="time", base="adamw", history=22),
    "simple": lambda groups: SimpleFAM(groups, **ADAPT),
    "maxfactor": lambda groups: MaxFactor(groups),
}
SHARDED = {
    "momentum": {"base": "momentum", "lr": 0.05, "weight_decay": 0.1},
    "adamw": {"base": "adamw", "lr": 0.002},
    "time": {"base": "momentum", "lr": 0.05, "axis": "time", "history": 22},
    "capturable": {"base": "momentum", "lr": 0.05, "capturable": True},
}


class SelfAttention(nn.Module):
    """Enough of one to be routed as attention."""

    def __init__(self):
        super().__init__()
        # No bias: that of the keys has no gradient but rounding, of which AdamW makes steps of full length.
        self.qkv = nn.Linear(64, 96, bias=False)
        self.out = nn.Linear(32, 64)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return x + self.out(nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True))


def model():
    torch.manual_seed(0)
    # 33 rows and a single row: shards of unequal size, one of them empty.
    return nn.Sequential(nn.Embedding(40, 64), SelfAttention(), nn.LayerNorm(64), nn.Linear(64, 33), nn.Linear(33, 1))


def loss_of(net, step, rank):
    generator = torch.Generator().manual_seed(step * 10 + rank)
    tokens = torch.randint(40, (4, 12), generator=generator)
    return (net(tokens).squeeze(-1) - torch.sin(tokens.float())).square().mean()


def train(net, optimizer, rank, steps):
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(net, step, rank).backward()
        optimizer.step()


def replicated(rank):
    results = {}
    for name, make in REPLICATED.items():
        net = model()
        wrapped = nn.parallel.DistributedDataParallel(net)
        optimizer = make(parameter_groups(net, 0.05))
        train(wrapped, optimizer, rank, STEPS.get(name, 60))
        summary = optimizer.spectrum_summary() if isinstance(optimizer, FAM) else []
        results[name] = {"params": list(net.state_dict().values()), "summary": summary}
    return results


def sharded(rank):
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.debug import CommDebugMode

    results = {}
    for name, settings in SHARDED.items():
        settings = {**settings, "start_step": 20, "analyse_every": 5, "rule": "absolute"}
        plain, net = model(), model()
        for layer in net:
            fully_shard(layer)
        fully_shard(net)
        reference, optimizer = FAM(plain.named_parameters(), **settings), FAM(net.named_parameters(), **settings)
        train(plain, reference, 0, 40)
        traffic = []
        for step in range(40):
            optimizer.zero_grad()
            loss_of(net, step, 0).backward()
            with CommDebugMode() as comms:
                optimizer.step()
            traffic.append({str(op): count for op, count in comms.get_comm_counts().items()})
        full = [param.full_tensor().detach() for param in net.parameters()]
        results[name] = {
            "params": full, "plain": [param.detach() for param in plain.parameters()], "traffic": traffic,
            "local": sum(to_local(state["exp_avg"]).numel() for state in optimizer.state.values()),
            "summary": optimizer.spectrum_summary(), "plain_summary": reference.spectrum_summary(),
        }  # fmt: skip
    return {"runs": results, "refusals": [refusal(make, net) for make in NEED_MATRICES], "resumed": resumed()}


NEED_MATRICES = (lambda net: MaxFactor(net.parameters()), lambda net: FAM(net.named_parameters(), base="muon"))


def refusal(make, net):
    try:
        make(net)
    except RuntimeError as error:
        return str(error)
    return ""


def resumed():
    """State of a run along time, whole and gone on from a checkpoint in one piece; shards of unequal size, too."""
    from torch.distributed.checkpoint import state_dict as sharding
    from torch.distributed.fsdp import fully_shard

    settings = {"lr": 0.01, "axis": "time", "history": 8, "start_step": 2, "analyse_every": 2, "min_size": 1}
    runs = []
    for _ in range(2):
        net = model()
        for layer in net:
            fully_shard(layer)
        fully_shard(net)
        runs.append((net, FAM(net.named_parameters(), **settings)))
    (whole, optimizer), (again, second) = runs
    train(whole, optimizer, 0, 13)
    again.load_state_dict({name: value.clone() for name, value in whole.state_dict().items()})
    whole_file = sharding.StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    saved = sharding.get_optimizer_state_dict(whole, optimizer, options=whole_file)
    sharding.set_optimizer_state_dict(again, second, saved, options=whole_file)
    for net, own in runs:
        for step in range(13, 22):
            own.zero_grad()
            loss_of(net, step, 0).backward()
            own.step()
    return [[to_local(value) for state in own.state.values() for value in state.values()] for _, own in runs]


def main(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save({"ddp": replicated(rank), "fsdp": sharded(rank)}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks():
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            subprocess.Popen(
                [sys.executable, __file__, str(rank), folder], env=environment, stderr=subprocess.PIPE, text=True
            )
            for rank in range(2)
        ]
        for process in processes:
            _, errors = process.communicate(timeout=400)
            assert process.returncode == 0, errors[-3000:]
        return [torch.load(f"{folder}/{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", REPLICATED)
def test_replicas_stay_bit_equal(ranks, name):
    one, two = (rank["ddp"][name] for rank in ranks)
    for a, b in zip(one["params"], two["params"], strict=True):
        assert torch.equal(a, b)
    assert one["summary"] == two["summary"]
    if name in ("index", "simple"):
        assert any(abs(row["alpha"] - row["base_alpha"]) > 0.01 for row in one["summary"])
    if name == "index":
        assert "attention" in {row["handler"] for row in one["summary"]}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARDED)
def test_shards_follow_the_unsharded_run(ranks, name):
    one, two = (rank["fsdp"]["runs"][name] for rank in ranks)
    for sharded_value, plain, other in zip(one["params"], one["plain"], two["params"], strict=True):
        assert torch.equal(sharded_value, other)
        torch.testing.assert_close(sharded_value, plain, atol=1e-6, rtol=1e-6)
    assert one["summary"] == two["summary"]
    for row, plain in zip(one["summary"], one["plain_summary"], strict=True):
        assert row["alpha"] == plain["alpha"] > 0.94


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARDED)
def test_only_bands_are_sent_and_state_is_sharded(ranks, name):
    """One all-reduce per analysis (of a capturable step: per step), nothing gathered, state split over the ranks."""
    runs = [rank["fsdp"]["runs"][name] for rank in ranks]
    for step, traffic in enumerate(runs[0]["traffic"], 1):
        analysed = name == "capturable" or (step > 20 and step % 5 == 0 and (name != "time" or step >= 22))
        assert sum(traffic.values()) == int(analysed), (step, traffic)
        assert all("allreduce" in op or "all_reduce" in op for op in traffic)
    assert sum(run["local"] for run in runs) == sum(param.numel() for param in runs[0]["params"])


@pytest.mark.slow
def test_what_needs_whole_matrices_refuses_shards_with_the_way_out_when_it_is_made(ranks):
    for rank in ranks:
        maxfactor, muon = rank["fsdp"]["refusals"]
        assert "is sharded" in maxfactor
        assert 'base="momentum"' in maxfactor
        assert "Muon needs whole matrices, and a (40, 64) one is sharded" in muon


@pytest.mark.slow
def test_shards_go_on_bit_by_bit_with_the_windows_of_every_rank(ranks):
    bands = []
    for rank in ranks:
        whole, again = rank["fsdp"]["resumed"]
        assert len(whole) == len(again) > 40
        assert all(torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(whole, again, strict=True))
        bands.append([value for value in whole if value.shape == (5,)])
    # The ranks agree about spectra, whatever the size of their shards.
    assert all(torch.equal(a, b) for a, b in zip(*bands, strict=True))
    assert sum(bool(value.any()) for value in bands[0]) >= 8


def test_plain_and_complex_tensors_are_their_own_local_part():
    plain, pair = torch.zeros(3), torch.zeros(3, dtype=torch.complex64)
    assert to_real(plain) is plain
    assert to_real(pair).shape == (3, 2)
    local = LocalParameter(plain, 0, "w")
    assert local.plain
    assert local.process_groups == ()
    assert not LocalParameter(pair, 0, "w").plain


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
