"""Two processes (gloo) under every strategy: equal replicas, and the training of one process on the whole batch."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.reference.strategies_ranks import MATRIX, WORDS, fit, model, weights

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "words.txt").write_text(WORDS * 60)
    return folder


@pytest.fixture(scope="module")
def ranks(folder):
    """What the two ranks ended with, from one pair of processes for all tests here."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    shared = os.environ | {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "NODE_RANK": "0",
        "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    command = [sys.executable, "-m", "tests.reference.strategies_ranks", str(folder)]
    files = [(folder / f"said{rank}.txt").open("w+") for rank in range(2)]
    workers = [
        subprocess.Popen(command, cwd=ROOT, env=shared | {"LOCAL_RANK": str(rank)}, stdout=file, stderr=file)
        for rank, file in enumerate(files)
    ]
    try:
        ends = [worker.wait(timeout=400) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    said = [(folder / f"said{rank}.txt").read_text() for rank in range(2)]
    assert ends == [0, 0], "\n".join(said)[-4000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


def same(a, b) -> bool:
    """Equal in every bit, in nested containers."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("case", ["fifty", "fifty sharded"])
def test_replicas_are_bitwise_equal_after_50_steps_with_all_callbacks(ranks, case):
    first, second = (rank[case] for rank in ranks)
    assert "error" not in first, first["error"]
    assert same(first, second)
    bases = [value for name, value in first["weights"].items() if name.endswith("rotary.base")]
    assert first["states"][0]["steps"] == [50]
    assert len(bases) == 2
    assert all(base != 10_000 for base in bases)


@pytest.mark.parametrize("name", MATRIX)
def test_two_ranks_train_as_one_process_on_both_batches(ranks, folder, name):
    first, second = (rank["matrix"][name] for rank in ranks)
    assert isinstance(first, dict), first
    assert same(first, second)
    _, settings, own = MATRIX[name]
    own = {key: value for key, value in own.items() if key != "compile"}  # eager, since compiling changes little
    alone, _ = fit(folder, 8, own, **settings)
    start = model(alone.hparams["vocab_size"], **own).state_dict()
    for key, value in weights(alone).items():
        if "bf16" in name and value.is_floating_point():  # the halves' gradients are rounded before they are averaged
            moved = (value - start[key]).norm()
            assert (first[key] - value).norm() <= 0.05 * moved + 1e-6, key
        else:
            torch.testing.assert_close(first[key], value, rtol=0, atol=1e-5, msg=key)
    learned = [(value - start[key]).abs().max() for key, value in alone.named_parameters()]
    assert min(learned) > 1e-4  # every parameter moved by more than the tolerance


def test_a_sharded_run_resumes_bitwise(ranks):
    result = ranks[0]["sharded resume"]
    assert "error" not in result, result["error"]
    assert not same(result["first"], result["whole"])
    assert same(result["resumed"], result["whole"])


def test_two_nodes_of_one_process_by_torchrun(folder):
    """As on two machines: torchrun on each, here both on the loopback, and the command line itself."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    run = [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"),
        *("--master-addr=127.0.0.1", f"--master-port={port}"),
    ]
    fit_arguments = [
        *("--no-python", str(Path(sys.executable).with_name("cubelet")), "fit", "--config=configs/text.yaml"),
        *("--config=configs/strategy/multi_node.yaml", "--trainer.accelerator=cpu", "--trainer.devices=1"),
        *(f"--data.corpus={folder}/words.txt", f"--data.cache_dir={folder}/c", "--data.context_length=16"),
        *("--model.dims=32", "--model.layers=1", "--trainer.max_steps=4", "--trainer.val_check_interval=2"),
        *("--callbacks.progress=null", "--trainer.enable_progress_bar=false", '--callbacks.samples.prompts=["the "]'),
        *(f"--trainer.default_root_dir={folder}/nodes", "--run_name=both"),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    nodes = [
        subprocess.Popen(
            [*run, f"--node-rank={rank}", *fit_arguments], cwd=ROOT, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        said = [node.communicate(timeout=200)[0] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(said)[-4000:]
    assert [p.name for p in (folder / "nodes").iterdir() if p.name != ".claim"] == ["both"]
    checkpoint = torch.load(folder / "nodes/both/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 4
    assert "MEMBER: 2/2" in "".join(said)
