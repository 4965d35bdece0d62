"""Two processes (gloo): replicas and callback states stay bitwise equal, and decisions are those of one process."""

import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from cubelet.callbacks import DynamicBase
from cubelet.callbacks.loss_probe import SlopeDescent
from tests.reference.callbacks import Rows, Small, train

pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What the two ranks ended with, from one pair of processes for all tests here."""
    folder = tmp_path_factory.mktemp("ranks")
    root = Path(__file__).parents[2]
    shared = os.environ | {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "NODE_RANK": "0",
        "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    command = [sys.executable, "-m", "tests.reference.callbacks_ranks", str(folder)]
    workers = [
        subprocess.Popen(
            command, cwd=root, env=shared | {"LOCAL_RANK": str(rank)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for rank in range(2)
    ]
    try:
        said = [worker.communicate(timeout=240)[0].decode() for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(said)[-4000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)], folder


def same(a, b) -> bool:
    """Equal in every bit, in nested containers."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_weights_buffers_and_states_are_bitwise_equal_after_50_steps(ranks):
    (first, second), folder = ranks
    assert same(first["all"], second["all"])
    cycler, base, fam, rotation, samples, _, window, _ = first["all"]["states"]
    assert cycler["steps"] == [50]
    assert base["values"]["rotary"] != 10_000
    assert len(fam["columns"]) >= 1
    assert rotation["columns"]
    assert samples["validations"] > 0
    assert window["values"][""] != 64
    assert (folder / "logs" / "fam.jsonl").exists()


def test_cycling_is_right_under_static_graphs_bucket_views_and_frozen_members(ranks):
    (first, second), _ = ranks
    assert same(first["cyclers"], second["cyclers"])
    torch.testing.assert_close(first["cyclers"]["static"], first["cyclers"]["views"])
    torch.testing.assert_close(first["cyclers"]["frozen"], first["cyclers"]["accumulated"])


def test_requires_grad_mode_refuses_plain_ddp_and_static_graphs_with_the_fix(ranks):
    (first, _), _ = ranks
    assert 'use mode="grad"' in first["cyclers"]["refused plain"]
    assert "find_unused_parameters=True" in first["cyclers"]["refused plain"]
    assert "static_graph" in first["cyclers"]["refused static graph"]


def test_decisions_are_those_of_one_process_on_the_union_of_the_batches(ranks):
    (first, second), _ = ranks
    assert same(first["base"], second["base"])

    class Union(Small):
        def train_dataloader(self):
            return DataLoader(Rows(64), batch_size=8)

    module = Union()
    callback = DynamicBase(mode="previous", every_n_steps=1, factor=1.1)
    train(module, [callback], 8)
    assert callback.values == pytest.approx(first["base"]["state"]["values"])
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, first["base"]["weights"][name], rtol=1e-5, atol=1e-6)


def test_a_probe_moves_by_the_mean_over_ranks_and_alike_on_all(ranks):
    (first, second), _ = ranks
    assert same(first["probe"], second["probe"])
    state = first["probe"]["state"]
    rows = Rows(64).rows[:, 0].reshape(8, 2, 4).mean(-1)  # (step, rank)
    slopes = []
    values = [math.log(10_000.0)]
    descent = SlopeDescent(0.3)
    for place, step in enumerate((1, 3, 5, 7)):
        slopes.append(float(rows[step].mean()) + 0.04 * (values[-1] - 6.0))
        values.append(min(max(values[-1] + descent.step(slopes[place]), math.log(100.0)), math.log(1e6)))
    assert math.log(state["values"]["rotary"]) == pytest.approx(values[-1], abs=1e-3)


def test_a_loss_that_breaks_on_one_rank_stops_or_skips_on_both(ranks):
    (first, second), _ = ranks
    assert same(first["guards"], second["guards"])
    assert "loss of optimizer step 4 is not finite; after step 3 weights are still finite" in second["guards"]["stop 1"]
    assert "loss of optimizer step 4 is not finite; after step 5 weights are spoiled" in second["guards"]["stop 6"]
    weights, state = first["guards"]["skip 1"]
    assert state == {"skipped": 1, "in_a_row": 0}
    assert all(value.isfinite().all() for value in weights.values())


def test_sharded_models(ranks):
    (first, second), folder = ranks
    assert same(first["sharded"]["states"], second["sharded"]["states"])
    members = first["sharded"]["states"][0]["members"][0]
    for rank in (first, second):  # a rank may own nothing of a small tensor, but never moves one out of turn
        for step, moved in enumerate(rank["sharded"]["moved"]):
            assert set(moved) <= {members[step % 4]}
    everywhere = [{*a, *b} for a, b in zip(first["sharded"]["moved"], second["sharded"]["moved"], strict=True)]
    assert everywhere == [{members[step % 4]} for step in range(8)]
    assert len(first["sharded"]["states"][2]["columns"]["turning/angles"]) == 4
    assert (folder / "sharded.ckpt").exists()
