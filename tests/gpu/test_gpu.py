"""What only a GPU can show. `make gpu` runs these; elsewhere they are skipped."""

import copy
import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from cubelet.models.attention import MultiHeadAttention, SlidingWindowAttention
from cubelet.models.decoder import Decoder
from cubelet.models.rotary import CombinedRotary, QuaternionRotary, RoPE
from cubelet.optimizers import FAM, MaxFactor, parameter_groups

HAS_GPU = torch.cuda.is_available()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not HAS_GPU, reason="needs a GPU")]
ROTARIES = {"rope": RoPE, "combined": CombinedRotary, "quaternion": QuaternionRotary}


def decoder(rotary=CombinedRotary):
    torch.manual_seed(0)
    return Decoder(64, 48, 2, 4, rotary=rotary)


def train(model, optimizer, steps, device, autocast=False):
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(steps):
        tokens = torch.randint(64, (4, 33), generator=generator).to(device)
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1).float(), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("name", ROTARIES)
def test_a_decoder_is_the_same_function_as_on_the_cpu(name):
    model = decoder(ROTARIES[name]).eval()
    tokens = torch.randint(64, (2, 40))
    expected = model(tokens)
    actual = copy.deepcopy(model).cuda()(tokens.cuda()).cpu()
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ROTARIES)
def test_forward_never_waits_for_the_device(name):
    model = decoder(ROTARIES[name]).cuda()
    tokens = torch.randint(64, (2, 40), device="cuda")
    model(tokens).sum().backward()  # tables are made once
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(tokens).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_bfloat16_training_follows_float32():
    full, half = decoder().cuda(), decoder().cuda()
    losses = [
        train(model, torch.optim.AdamW(model.parameters(), 3e-3, fused=True), 30, "cuda", autocast)
        for model, autocast in ((full, False), (half, True))
    ]
    assert max(abs(a - b) for a, b in zip(*losses, strict=True)) < 0.05


@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}, {"capturable": True}], ids=str)
@pytest.mark.parametrize("base", ["momentum", "adamw"])
def test_every_path_of_fam_takes_the_same_steps_as_on_the_cpu(base, options):
    host, device = decoder(RoPE), decoder(RoPE).cuda()
    settings = {"base": base, "start_step": 0, "analyse_every": 3}
    expected = train(host, FAM(parameter_groups(host, 1e-3), foreach=False, **settings), 12, "cpu")
    actual = train(device, FAM(parameter_groups(device, 1e-3), **settings, **options), 12, "cuda")
    assert actual == pytest.approx(expected, abs=2e-3)


def test_maxfactor_takes_the_same_steps_as_on_the_cpu():
    host, device = decoder(RoPE), decoder(RoPE).cuda()
    expected = train(host, MaxFactor(parameter_groups(host, 1e-2)), 12, "cpu")
    assert train(device, MaxFactor(parameter_groups(device, 1e-2)), 12, "cuda") == pytest.approx(expected, abs=2e-3)


def test_a_capturable_step_replays_from_a_cuda_graph():
    eager, captured = decoder(RoPE).cuda(), decoder(RoPE).cuda()
    grads = [torch.randn_like(p) for p in eager.parameters()]
    optimizers = []
    for model in (eager, captured):
        for parameter, grad in zip(model.parameters(), grads, strict=True):
            parameter.grad = grad.clone()
        optimizers.append(FAM(parameter_groups(model, 1e-3), base="adamw", start_step=0, capturable=True))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            optimizers[1].step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizers[1].step()
    for _ in range(5):
        graph.replay()
    for _ in range(8):
        optimizers[0].step()
    for a, b in zip(eager.parameters(), captured.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ROTARIES)
def test_a_compiled_decoder_is_the_same_function(name):
    model = decoder(ROTARIES[name]).cuda()
    tokens = torch.randint(64, (2, 40), device="cuda")
    compiled = torch.compile(model, fullgraph=True)
    results = []
    for run in (model, compiled):
        model.zero_grad()
        out = run(tokens)
        out.sum().backward()
        results.append([out, *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("window", [16, 100])
def test_our_window_is_flex_attention_with_the_same_mask(window):
    torch.manual_seed(0)
    attention = SlidingWindowAttention(64, 4, window=window).cuda()
    whole = MultiHeadAttention(64, 4).cuda()
    whole.load_state_dict(attention.state_dict(), strict=False)
    x = torch.randn(2, 512, 64, device="cuda")
    seen = []

    def flex(q, k, v, **_):
        mask = create_block_mask(lambda b, h, i, j: (i >= j) & (i - j < window), None, None, 512, 512, device="cuda")
        seen.append(window)
        return torch.compile(flex_attention)(q, k, v, block_mask=mask)

    original, F.scaled_dot_product_attention = F.scaled_dot_product_attention, flex
    try:
        expected = whole(x)
    finally:
        F.scaled_dot_product_attention = original
    assert seen
    torch.testing.assert_close(attention(x), expected, rtol=2e-3, atol=2e-3)


TWO = """
import os, sys, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.distributed.fsdp import fully_shard
from tests.gpu.test_gpu import decoder, train
from cubelet.optimizers import FAM, parameter_groups
rank = int(os.environ["RANK"])
torch.cuda.set_device(rank)
dist.init_process_group("nccl")
model = decoder().cuda()
losses = []
if sys.argv[1] == "ddp":
    optimizer = FAM(parameter_groups(model, 1e-3), start_step=0, analyse_every=3)
    losses = train(DistributedDataParallel(model), optimizer, 8, "cuda")
else:
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    losses = train(model, FAM(parameter_groups(model, 1e-3), start_step=0, analyse_every=3), 8, "cuda")
print("LOSSES", losses, flush=True)
dist.destroy_process_group()
"""


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_gpus_with_the_same_data_train_as_one(strategy, tmp_path):
    (tmp_path / "two.py").write_text(TWO)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    root = Path(__file__).parents[2]
    shared = os.environ | {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2",
        "PYTHONPATH": os.pathsep.join([str(root), str(root / "src")]),
    }  # fmt: skip
    start = partial(subprocess.Popen, [sys.executable, str(tmp_path / "two.py"), strategy], stdout=subprocess.PIPE)
    workers = [start(env=shared | {"RANK": str(rank)}, cwd=root) for rank in range(2)]
    said = [worker.communicate(timeout=300)[0].decode() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    model = decoder().cuda()
    expected = train(model, FAM(parameter_groups(model, 1e-3), start_step=0, analyse_every=3), 8, "cuda")
    for text in said:
        [line] = [line for line in text.splitlines() if line.startswith("LOSSES")]
        assert [float(x) for x in line[8:-1].split(",")] == pytest.approx(expected, abs=2e-3)
