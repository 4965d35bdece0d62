"""What attention costs, beside its peers.

    python benchmarks/attention.py [--rounds 7] [--threads 2] [--only NAME ...] [--json FILE]

Batch 1, 4 heads of 64, float32, forward and backward unless a row says otherwise. A figure is a ratio of CPU times: the
minimum over interleaved rounds of each, in the same run, divided by that of causal SDPA of the same length (or by what
the row names). CPU time counts all threads, so other work on the machine weighs little.

- window, bias, span: the mixing alone (queries, keys, values in; heads out), as causal SDPA is. Each in a process of
  its own beside causal SDPA: a tensor above 32 MB costs glibc fresh pages every time, unless rows before it left memory
  to reuse, and what a row costs should not depend on its neighbours. (Where memory is reused, as with
  MALLOC_TRIM_THRESHOLD_ and MALLOC_MMAP_THRESHOLD_ set high, what allocates most gains most.)
- biases: positions as biases on scores, the mixing alone, forward and backward, beside x-transformers' attention with
  the same bias (its fused path, where it has one for it); the last column is the ratio to cloning q and k, forward
  and backward, which is the floor of benchmarks/rotary.py.
- modules: whole modules, projections included.
- force: RelativeForceAttention's scores against the literal form with its (s, s, d) and (s, s, 2d) tensors; memory is
  the peak of live bytes allocated by torch operations during forward and backward.
- myelinated: gates open, nobody jumps, against as many plain blocks.
- decode: one cached step at a context of 1,024 and of 8,192; the ratio of the two.
- gates: evaluation without gradients at s = 1,024, blocks of which a share of the tokens is open over a plain block;
  and decoding after 1,024 tokens through 4 blocks, every other one closed.
- packed: a decoder of two layers, a row of 1,024 tokens as 8 documents over the same row as one.
"""

import argparse
import importlib.util
import json
import math
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from cubelet.models import Decoder
from cubelet.models.attention import (
    AdaptiveSpanAttention,
    ContentGatedAttention,
    CoPEAttention,
    DynamicConvAttention,
    ForgettingAttention,
    HybridAttention,
    IntegratedAttention,
    MultiHeadAttention,
    RelativeForceAttention,
    SlidingWindowAttention,
    sliding_window_attention,
)
from cubelet.models.attention.masking import AttentionScope
from cubelet.models.attention.score_bias import FIRE, ALiBi, T5Bias
from cubelet.models.blocks import MixtureOfDepthsBlock, MyelinatedBlock, ResidualBlock, SkippingBlock
from cubelet.models.rotary import RoPE

HEADS, WIDTH = 4, 64
DIMS = HEADS * WIDTH


def minimum_times(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """CPU milliseconds of each call: minimum over rounds, all calls once a round."""
    best = dict.fromkeys(calls, math.inf)
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.process_time()
            call()
            best[name] = min(best[name], time.process_time() - start)
    return {name: 1e3 * seconds for name, seconds in best.items()}


class PeakBytes(TorchDispatchMode):
    """Peak of the bytes held by storages that torch operations returned and somebody still holds."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        inputs = {t.untyped_storage()._cdata for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)}
        for t in tree_iter(out):
            if isinstance(t, Tensor) and t.untyped_storage()._cdata not in inputs:
                storage = t.untyped_storage()
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._freed, storage.nbytes())
        return out

    def _freed(self, size: int) -> None:
        self.live -= size


def peak(call: Callable[[], object]) -> int:
    """Peak bytes of a call."""
    with PeakBytes() as counted:
        call()
    return counted.peak


def qkv(length: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys, values as projections leave them, and a gradient for the output."""
    torch.manual_seed(length)
    q, k, v = (torch.randn(1, length, HEADS, WIDTH).transpose(1, 2).requires_grad_() for _ in range(3))
    return q, k, v, torch.randn(1, HEADS, length, WIDTH)


def both_ways(module: nn.Module, length: int) -> Callable[[], None]:
    """Forward and backward of a module over (1, length, dims)."""
    torch.manual_seed(length)
    x, grad = torch.randn(1, length, DIMS, requires_grad=True), torch.randn(1, length, DIMS)

    def call() -> None:
        y = module(x)
        (y[0] if isinstance(y, tuple) else y).backward(grad)

    return call


def window_calls(length: int, window: int) -> dict[str, Callable[[], object]]:
    """Windowed mixing of one shape, and causal SDPA."""
    q, k, v, grad = qkv(length)
    lags = torch.arange(length)[:, None] - torch.arange(length)
    band = (lags >= 0) & (lags < window)
    learned = torch.zeros(HEADS, window, requires_grad=True)
    spans = AdaptiveSpanAttention(DIMS, HEADS, max_span=window, ramp=32, initial_span=0.7)
    scope, unused = AttentionScope(length, length, True), torch.empty(0)
    calls: dict[str, Callable[[], object]] = {
        "causal SDPA": lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True).backward(grad),
        "cubelet window": lambda: sliding_window_attention(q, k, v, window).backward(grad),
        "cubelet window + learned bias": lambda: sliding_window_attention(q, k, v, window, bias=learned).backward(grad),
        "cubelet adaptive span (+ ramp 32)": lambda: spans.attend(unused, q, k, v, scope).backward(grad),
        "SDPA + band mask": lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=band).backward(grad),
    }
    if length >= window and importlib.util.find_spec("local_attention"):
        from local_attention import LocalAttention as Peer

        peer = Peer(window, causal=True, look_backward=1, exact_windowsize=True, autopad=True)
        calls["local-attention (exact window)"] = lambda: peer(q, k, v).backward(grad)
    return calls


def alone(length: int, window: int, name: str, rounds: int) -> None:
    """Print the times of one row and of causal SDPA: what `bench_windows` starts a process for."""
    calls = window_calls(length, window)
    print(json.dumps(minimum_times({key: calls[key] for key in ("causal SDPA", name)}, rounds)))


def bench_windows(rounds: int, window: int = 256) -> list[dict]:
    """Windowed mixing, far longer than the window and no longer than it."""
    rows = []
    for length in (4096, 1024, 256, 128):
        title = f"window {window}, s = {length}"
        print(f"\n{title}\n{'':42}{'CPU ms':>10}{'ratio':>9}")
        for name in list(window_calls(length, window))[1:]:
            row = [str(length), str(window), name]
            command = [sys.executable, __file__, "--rounds", str(rounds), "--threads", str(torch.get_num_threads())]
            done = subprocess.run([*command, "--alone", *row], check=True, capture_output=True, text=True)
            times = json.loads(done.stdout)
            ratio = times[name] / times["causal SDPA"]
            print(f"  {name:40}{times[name]:10.2f}{ratio:9.3f}", flush=True)
            rows.append({"table": title, "what": name, "ms": times[name], "ratio": ratio})
    return rows


def bias_calls(length: int) -> dict[str, Callable[[], object]]:
    """Mixing with a bias on scores, ours and x-transformers', and what they stand beside."""
    q, k, v, grad = qkv(length)
    x = torch.randn(1, length, DIMS)
    scope = AttentionScope(length, length, True)
    ours: dict[str, MultiHeadAttention | ForgettingAttention | CoPEAttention] = {
        "ALiBi": MultiHeadAttention(DIMS, HEADS, score_bias=ALiBi),
        "T5 buckets": MultiHeadAttention(DIMS, HEADS, score_bias=T5Bias),
        "FIRE": MultiHeadAttention(DIMS, HEADS, score_bias=FIRE),
        "relative_bias=128": MultiHeadAttention(DIMS, HEADS, relative_bias=128),
        "forgetting": ForgettingAttention(DIMS, HEADS),
        "CoPE": CoPEAttention(DIMS, HEADS),
    }

    def mix(attention: MultiHeadAttention | ForgettingAttention | CoPEAttention) -> None:
        scope.streams = attention.extra_streams(x)
        attention.attend(x, q, k, v, scope).backward(grad)

    def clone() -> None:
        torch.autograd.backward((q.clone(), k.clone()), (grad, grad))

    calls: dict[str, Callable[[], object]] = {
        "causal SDPA": lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True).backward(grad),
        "clone q and k": clone,
    }
    calls |= {name: partial(mix, attention) for name, attention in ours.items()}
    if importlib.util.find_spec("x_transformers"):
        from x_transformers import x_transformers as peer
        from x_transformers.attend import Attend

        fused, plain = (Attend(causal=True, heads=HEADS, flash=flash) for flash in (True, False))
        cope = Attend(causal=True, heads=HEADS, cope=peer.CoPE(WIDTH, HEADS, 64))
        alibi, decay = peer.AlibiPositionalBias(HEADS), peer.DataDependentAlibi(DIMS, HEADS)
        buckets = peer.RelativePositionBias(WIDTH**0.5, causal=True, heads=HEADS)
        biases: dict[str, tuple[nn.Module, Callable[[], Tensor | None]]] = {
            "x-transformers ALiBi": (fused, lambda: alibi(length, length)),
            "x-transformers T5 buckets": (fused, lambda: buckets(length, length)),
            "x-transformers forgetting": (fused, lambda: decay(x)),
            "x-transformers forgetting, not fused": (plain, lambda: decay(x)),
            "x-transformers CoPE": (cope, lambda: None),
        }
        for name, (attend, bias) in biases.items():
            calls[name] = lambda attend=attend, bias=bias: attend(q, k, v, attn_bias=bias())[0].backward(grad)
    return calls


def bench_biases(rounds: int) -> list[dict]:
    """Biases on scores, against causal SDPA and against cloning q and k."""
    rows = []
    for length in (512, 1024):
        times = minimum_times(bias_calls(length), rounds)
        print(f"\nbiases on scores, s = {length}\n{'':42}{'CPU ms':>10}{'ratio':>9}{'÷ clone':>9}")
        for name, ms in times.items():
            ratio, floor = ms / times["causal SDPA"], ms / times["clone q and k"]
            print(f"  {name:40}{ms:10.2f}{ratio:9.2f}{floor:9.1f}", flush=True)
            rows.append(
                {"table": f"biases, s = {length}", "what": name, "ms": ms, "ratio": ratio, "ratio_to_clone": floor}
            )
    return rows


class RawAttention(nn.Module):
    """The same projections around SDPA and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(DIMS, 3 * DIMS, bias=False), nn.Linear(DIMS, DIMS, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, HEADS, WIDTH).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))


def bench_modules(rounds: int) -> list[dict]:
    """Whole modules, against the same projections around SDPA."""
    rows = []
    for length in (512, 2048):
        modules = {
            "projections + SDPA": RawAttention(),
            "MultiHeadAttention": MultiHeadAttention(DIMS, HEADS),
            "SlidingWindowAttention, window 256": SlidingWindowAttention(DIMS, HEADS, window=256),
            "AdaptiveSpanAttention, max_span 256": AdaptiveSpanAttention(DIMS, HEADS),
            "HybridAttention, window 256": HybridAttention(DIMS, HEADS),
            "ContentGatedAttention": ContentGatedAttention(DIMS, HEADS),
            "IntegratedAttention": IntegratedAttention(DIMS, HEADS),
            "DynamicConvAttention, 5 taps": DynamicConvAttention(DIMS, HEADS),
            "RelativeForceAttention": RelativeForceAttention(DIMS, HEADS),
        }
        calls = {name: both_ways(module, length) for name, module in modules.items()}
        rows += table(f"modules, s = {length}", calls, "projections + SDPA", rounds)
    return rows


def literal_force(module: RelativeForceAttention, x: Tensor) -> Tensor:
    """The same scores as the formula reads: every difference and every concatenated pair spelled out."""
    e, r = module.emitter(x), module.receiver(x)
    length = x.shape[1]
    difference = e[:, :, None] - r[:, None, :]
    distance = difference.square().sum(-1).clamp_min(1e-12).sqrt()
    falloff = torch.exp(-distance / (module.log_length.exp() * math.sqrt(DIMS))) / (distance + module.epsilon)
    force = torch.einsum("hd,bijd->bhij", module.masses, difference) * falloff[:, None]
    pairs = torch.cat([e[:, :, None].expand(-1, -1, length, -1), r[:, None].expand(-1, length, -1, -1)], dim=-1)
    weight = torch.cat([module.alpha.weight, module.beta.weight], dim=1)
    edge = torch.sigmoid(F.linear(pairs, weight, module.alpha.bias)).squeeze(-1)
    edge = edge.tril() / torch.arange(1, length + 1).sqrt()[:, None]
    hops = [edge, edge @ edge, edge @ edge @ edge]
    paths = torch.einsum("hn,nbij->bhij", module.hops.softmax(-1), torch.stack(hops))
    balance = torch.sigmoid(module.balance)[:, None, None]
    return balance * force + (1 - balance) * paths


def bench_force(rounds: int, length: int = 512) -> list[dict]:
    """RelativeForce scores against the literal form, time and memory."""
    module = RelativeForceAttention(DIMS, HEADS)
    x, grad = torch.randn(1, length, DIMS, requires_grad=True), torch.randn(1, HEADS, length, length)

    def ours() -> None:
        scope = AttentionScope(length, length, True, streams=module.extra_streams(x))
        module.force(x, scope).backward(grad)

    calls = {"literal (s, s, d) form": lambda: literal_force(module, x).backward(grad), "cubelet": ours}
    with torch.no_grad():
        scope = AttentionScope(length, length, True, streams=module.extra_streams(x))
        below = torch.ones(length, length).tril().bool()
        error = (module.force(x, scope) - literal_force(module, x))[..., below].abs().max()
    assert error < 1e-4, f"the two forms differ by {float(error)}"
    name = f"relative force scores, s = {length}, dims {DIMS}"
    rows = table(name, calls, "literal (s, s, d) form", min(rounds, 3))
    bytes_ = {key: peak(call) for key, call in calls.items()}
    for row in rows:
        row["peak_mb"] = bytes_[row["what"]] / 2**20
        print(f"  peak of {row['what']}: {row['peak_mb']:.1f} MiB")
    print(f"  faster {rows[0]['ms'] / rows[1]['ms']:.1f} ×, smaller {rows[0]['peak_mb'] / rows[1]['peak_mb']:.1f} ×")
    return rows


class Stack(nn.Module):
    """Plain blocks one after the other."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ResidualBlock(DIMS, HEADS) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x, _ = block(x)
        return x


def bench_blocks(rounds: int, layers: int = 4) -> list[dict]:
    """MyelinatedBlock with open gates against as many plain blocks."""
    rows = []
    for length in (256, 1024):
        block = MyelinatedBlock(DIMS, HEADS, layers=layers)
        for decider in block.deciders:
            nn.init.zeros_(decider.weight)  # open gates, no jumps: the initial biases alone decide
        block.eval()
        statistics = block.statistics(torch.randn(1, 8, DIMS))
        assert statistics["nodes_on"] == 1
        assert statistics["mean_jump"] == 0
        calls = {
            f"{layers} plain blocks": both_ways(Stack(layers), length),
            "MyelinatedBlock": both_ways(block, length),
        }
        rows += table(f"{layers} layers, s = {length}", calls, f"{layers} plain blocks", rounds)
    return rows


@torch.no_grad()
def decoding(module: nn.Module, context: int, rounds: int, steps: int = 50) -> Callable[[], None]:
    """A call that decodes `steps` more tokens after `context` cached ones."""
    cache = module.new_cache(1, context + (rounds + 1) * steps)
    module(torch.randn(1, context, DIMS), cache=cache)
    tokens = torch.randn(1, steps, DIMS).split(1, dim=1)

    @torch.no_grad()
    def call() -> None:
        for token in tokens:
            module(token, cache=cache)

    return call


def bench_decode(rounds: int) -> list[dict]:
    """Cached steps after 1,024 and after 8,192 tokens."""
    rows = []
    for name, module in {
        "SlidingWindowAttention, window 256": SlidingWindowAttention(DIMS, HEADS, window=256),
        "AdaptiveSpanAttention, max_span 256": AdaptiveSpanAttention(DIMS, HEADS),
        "MultiHeadAttention (grows)": MultiHeadAttention(DIMS, HEADS),
    }.items():
        calls = {f"context {context}": decoding(module.eval(), context, rounds) for context in (1024, 8192)}
        rows += table(f"decode 50 tokens, {name}", calls, "context 1024", rounds)
    return rows


def nudged(module: nn.Module) -> nn.Module:
    """The module in evaluation, its parameters moved away from zero."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return module.eval()


def open_for(block: SkippingBlock, x: Tensor, share: float) -> SkippingBlock:
    """The block with its gate's bias at the quantile that opens `share` of the tokens of x."""
    with torch.no_grad():
        scores = block.gate(x).flatten() - block.gate.bias
        block.gate.bias.copy_(-scores.quantile(1 - share))
        assert abs(float((block.gates(x) > 0.5).float().mean()) - share) < 0.01
    return block


def closed_layers(layers: int, x: Tensor, tokens: bool) -> MyelinatedBlock:
    """A MyelinatedBlock half of whose nodes are off: every other layer, or in each layer half of the tokens of x."""
    block = nudged(MyelinatedBlock(DIMS, HEADS, layers=layers))
    assert isinstance(block, MyelinatedBlock)
    with torch.no_grad():
        for index, decider in enumerate(block.deciders):
            decider.weight.zero_()
            decider.bias.copy_(torch.tensor([9.0, 9.0, 0.0, 0.0])[: decider.out_features])
            if tokens:
                decider.weight[0, :DIMS] = torch.randn(DIMS)
            elif index % 2:
                decider.bias[0] = -9.0
        for layer, decider in zip(block.layers, block.deciders, strict=True) if tokens else ():
            seen: list[Tensor] = []  # what the layer reads depends on the gates before it, so layers go in order
            hook = layer.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
            decider.bias[0] = 9.0
            block(x)
            hook.remove()
            decider.bias[0] = -(seen[0] @ decider.weight[0, :DIMS]).median()
        assert abs(float(block.statistics(x)["nodes_on"]) - 0.5) < 0.01
    return block


@torch.no_grad()
def bench_gates(rounds: int, length: int = 1024, layers: int = 4) -> list[dict]:
    """What closed gates save without gradients."""
    torch.manual_seed(0)
    x, long = torch.randn(1, length, DIMS), torch.randn(1, 2048, DIMS)
    plain = nudged(ResidualBlock(DIMS, HEADS))
    calls: dict[str, Callable[[], object]] = {"plain block": lambda: plain(x)}
    for share in (0.5, 0.25):
        block = open_for(nudged(SkippingBlock(DIMS, HEADS)), x, share)
        calls[f"SkippingBlock, {share:.0%} open"] = partial(block, x)
    for capacity in (0.5, 0.125):
        block = nudged(MixtureOfDepthsBlock(DIMS, HEADS, capacity=capacity, gate_bias=20.0))
        calls[f"MixtureOfDepthsBlock, capacity {capacity}"] = partial(block, x)
    rows = table(f"gates, s = {length}", calls, "plain block", rounds)
    calls = {f"{layers} plain blocks": partial(nudged(Stack(layers)), x)}
    for kind in ("layers", "tokens"):
        calls[f"MyelinatedBlock({layers}), half of the {kind} off"] = partial(
            closed_layers(layers, x, kind == "tokens"), x
        )
    rows += table(f"{layers} layers without gradients, s = {length}", calls, f"{layers} plain blocks", rounds)
    span = nudged(AdaptiveSpanAttention(DIMS, HEADS))
    span.span_scale.fill_(0.05)
    span.eval()
    calls = {"MultiHeadAttention": partial(nudged(MultiHeadAttention(DIMS, HEADS)), long)}
    calls["AdaptiveSpanAttention, spans at 5%"] = partial(span, long)
    rows += table("trimmed spans, s = 2048", calls, "MultiHeadAttention", rounds)
    held = nudged(ContentGatedAttention(DIMS, HEADS, rotary=RoPE(DIMS, HEADS)))
    held.gate.bias.copy_(held.gate.bias - held.gates(torch.randn(1, 8192, DIMS)).logit().quantile(0.9))
    calls = {
        "MultiHeadAttention": decoding(nudged(MultiHeadAttention(DIMS, HEADS, rotary=RoPE(DIMS, HEADS))), 8192, rounds),
        "ContentGatedAttention, 90% held": decoding(held, 8192, rounds),
    }
    rows += table("decode 50 tokens after 8192", calls, "MultiHeadAttention", rounds)
    gates: dict[str, list[float] | None] = {"plain": None, "all open": [5.0], "every other closed": [5.0, -5.0]}
    stacks = {}
    for name, biases in gates.items():
        blocks = [
            nudged(
                ResidualBlock(DIMS, HEADS, rotary=RoPE) if biases is None else SkippingBlock(DIMS, HEADS, rotary=RoPE)
            )
            for _ in range(layers)
        ]
        for index, block in enumerate(blocks if biases else []):
            block.gate.weight.zero_()
            block.gate.bias.fill_(biases[index % len(biases)])
        stacks[name] = stack_decoding(blocks, length, rounds)
    return rows + table(f"decode 20 tokens through {layers} blocks after {length}", stacks, "plain", rounds)


@torch.no_grad()
def stack_decoding(blocks: list[nn.Module], context: int, rounds: int, steps: int = 20) -> Callable[[], None]:
    """A call that decodes `steps` more tokens through blocks one after the other."""
    caches = [block.new_cache(1, context + (rounds + 1) * steps) for block in blocks]
    x, token = torch.randn(1, context, DIMS), torch.randn(1, 1, DIMS)
    for block, cache in zip(blocks, caches, strict=True):
        x, _ = block(x, cache=cache)

    @torch.no_grad()
    def call() -> None:
        for _ in range(steps):
            y = token
            for block, cache in zip(blocks, caches, strict=True):
                y, _ = block(y, cache=cache)

    return call


def bench_packed(rounds: int, length: int = 1024, documents: int = 8) -> list[dict]:
    """A packed row over the same row as one document."""
    torch.manual_seed(0)
    tokens = torch.randint(65, (1, length))
    borders = torch.zeros(1, length, dtype=torch.long)
    borders[0, 1 + torch.randperm(length - 1)[: documents - 1]] = 1
    numbers = borders.cumsum(1)
    rows = []
    for name, attention in {
        "MultiHeadAttention": MultiHeadAttention,
        "SlidingWindowAttention, window 256": partial(SlidingWindowAttention, window=256),
    }.items():
        decoder = Decoder(65, DIMS, 2, HEADS, attention=attention)
        calls: dict[str, Callable[[], object]] = {
            "one document": lambda model=decoder: model.features(tokens)[0].sum().backward(),
            f"{documents} documents": lambda model=decoder: (
                model.features(tokens, documents=numbers)[0].sum().backward()
            ),
        }
        rows += table(f"packed row of {length}, {name}", calls, "one document", rounds)
    return rows


def table(title: str, calls: dict[str, Callable[[], object]], base: str, rounds: int) -> list[dict]:
    """Measure, print and return one table."""
    times = minimum_times(calls, rounds)
    print(f"\n{title}\n{'':2}{'':40}{'CPU ms':>10}{'ratio':>9}")
    for name, ms in times.items():
        print(f"  {name:40}{ms:10.2f}{ms / times[base]:9.3f}", flush=True)
    return [{"table": title, "what": name, "ms": ms, "ratio": ms / times[base]} for name, ms in times.items()]


BENCHES = {
    "windows": bench_windows,
    "biases": bench_biases,
    "modules": bench_modules,
    "force": bench_force,
    "blocks": bench_blocks,
    "decode": bench_decode,
    "gates": bench_gates,
    "packed": bench_packed,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", choices=list(BENCHES), default=list(BENCHES))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--flush-denormals", action="store_true", help="torch.set_flush_denormal(True) for all threads")
    parser.add_argument("--alone", nargs=3, metavar=("LENGTH", "WINDOW", "ROW"), help="one row of windows, as JSON")
    args = parser.parse_args()
    torch.set_flush_denormal(args.flush_denormals)  # before there are threads, which take it over
    torch.set_num_threads(args.threads)
    if args.alone:
        alone(int(args.alone[0]), int(args.alone[1]), args.alone[2], args.rounds)
        return
    rows = [row for name in args.only for row in BENCHES[name](args.rounds)]
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
