"""One table for a machine with a GPU: what each part costs beside the obvious thing it replaces.

    python benchmarks/gpu.py [--test] [--write docs/gpu.md] [--rounds 20] [--device cpu --tiny]

Rows, each the ratio of medians over interleaved rounds (a ratio below 1 is faster than the floor), in bfloat16:

- a rotary on queries and keys over a copy of them; forward, and with backward;
- a sliding window over causal SDPA on the whole sequence, and over flex_attention with the same mask;
- tokens per second of training a decoder over a plain GPT of the same size, compiled both;
- a step of FAM over a step of torch's fused AdamW on the same tensors.

`--test` first runs the tests marked `gpu`. Without a GPU it says so and ends well: `--device cpu --tiny` is only there
to try the script itself.
"""

import argparse
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from cubelet.models.attention import SlidingWindowAttention
from cubelet.models.decoder import Decoder
from cubelet.models.rotary import CombinedRotary, RoPE
from cubelet.optimizers import FAM, parameter_groups

Calls = dict[str, Callable[[], object]]
Row = tuple[str, str, float, float]  # what, over what, ratio, milliseconds


class PlainGPT(nn.Module):
    """The floor of training: torch's own layers, learned positions, no options."""

    def __init__(self, vocab: int, dims: int, layers: int, heads: int, context: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab, dims), nn.Parameter(torch.zeros(context, dims))
        layer = partial(nn.TransformerEncoderLayer, dims, heads, 4 * dims, 0.0, F.gelu, batch_first=True)
        self.layers = nn.ModuleList(layer(norm_first=True, bias=False) for _ in range(layers))
        self.norm = nn.LayerNorm(dims, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        x = self.tokens(tokens) + self.positions[:length]  # (b, s, d)
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=x.device, dtype=x.dtype)
        for layer in self.layers:
            x = layer(x, src_mask=mask, is_causal=True)
        return F.linear(self.norm(x), self.tokens.weight)


class Clock:
    """Milliseconds of calls: CUDA events on a GPU, otherwise the wall clock."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def time(self, call: Callable[[], object]) -> float:
        if self.device.type != "cuda":
            begun = time.perf_counter()
            call()
            return 1e3 * (time.perf_counter() - begun)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    def medians(self, calls: Calls, rounds: int, warmup: int = 3) -> dict[str, float]:
        """Median of each call, one of each in turn, after rounds of warming up and compiling."""
        taken: dict[str, list[float]] = {name: [] for name in calls}
        for round_ in range(rounds + warmup):
            for name, call in calls.items():
                took = self.time(call)
                if round_ >= warmup:
                    taken[name].append(took)
        return {name: statistics.median(values) for name, values in taken.items()}

    def rows(self, calls: Calls, floor: str, rounds: int) -> list[Row]:
        medians = self.medians(calls, rounds)
        return [(name, floor, took / medians[floor], took) for name, took in medians.items() if name != floor]


def rotary_rows(clock: Clock, rounds: int, b: int, h: int, s: int, c: int) -> list[Row]:
    """Rotaries over a copy of queries and keys (b, h, s, c), forward and with backward."""
    device = clock.device
    q, k = (torch.randn(b, h, s, c, device=device, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    grad = torch.randn_like(q)
    rows = []
    rotaries = {"RoPE": RoPE, "CombinedRotary, R multiplied": CombinedRotary}
    for compiled in (False, True):
        functions: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {"copy": _copy}
        for name, kind in rotaries.items():
            rotary = kind(h * c, h).to(device)
            functions[name] = partial(_rotate, rotary)
        if compiled:
            functions = {name: torch.compile(function) for name, function in functions.items()}
        kind = "compiled" if compiled else "eager"
        forward = {f"{name}, {kind}, forward": partial(_forward, f, q, k) for name, f in functions.items()}
        both = {f"{name}, {kind}, with backward": partial(_both, f, q, k, grad) for name, f in functions.items()}
        for calls in (forward, both):
            rows += clock.rows(calls, next(iter(calls)), rounds)
    return rows


def _copy(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    return q.clone(), k.clone()


def _rotate(rotary: nn.Module, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    return rotary.rotate(q), rotary.rotate_keys(k)


def _forward(function: Callable, q: Tensor, k: Tensor) -> None:
    with torch.no_grad():
        function(q, k)


def _both(function: Callable, q: Tensor, k: Tensor, grad: Tensor) -> None:
    q.grad = k.grad = None
    torch.autograd.backward(function(q, k), (grad, grad))


def window_rows(clock: Clock, rounds: int, b: int, h: int, s: int, c: int, window: int) -> list[Row]:
    """Our window, causal SDPA and flex_attention with the same mask, all behind the same projections, with backward."""
    device = clock.device
    torch.manual_seed(0)
    ours = SlidingWindowAttention(h * c, h, window=window).to(device, torch.bfloat16)
    x = torch.randn(b, s, h * c, device=device, dtype=torch.bfloat16, requires_grad=True)

    def projected(attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        qkv, out = (nn.Linear(h * c, n * h * c, bias=False).to(device, torch.bfloat16) for n in (3, 1))

        def run(x: Tensor) -> Tensor:
            q, k, v = qkv(x).unflatten(-1, (3, h, c)).permute(2, 0, 3, 1, 4)  # (b, h, s, c) each
            return out(attend(q, k, v).transpose(1, 2).flatten(2))

        return run

    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "causal SDPA": projected(partial(F.scaled_dot_product_attention, is_causal=True)),
        f"window {window}": ours,
    }
    if device.type == "cuda":

        def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return (q >= k) & (q - k < window)

        mask = create_block_mask(visible, None, None, s, s, device=str(device))
        functions["flex_attention, same mask"] = projected(partial(flex_attention, block_mask=mask))
    grad = torch.randn_like(x)

    def step(function: Callable[[Tensor], Tensor]) -> None:
        x.grad = None
        function(x).backward(grad)

    calls = {name: partial(step, torch.compile(function)) for name, function in functions.items()}
    rows = clock.rows(calls, "causal SDPA", rounds)
    if device.type == "cuda":
        rows += clock.rows({name: calls[name] for name in list(calls)[1:]}, "flex_attention, same mask", rounds)
    return rows


def training_rows(clock: Clock, rounds: int, dims: int, layers: int, heads: int, context: int, batch: int) -> list[Row]:
    """Whole training steps of a decoder over those of a plain GPT, under autocast and compiled; time, so below 1 is
    more tokens per second."""
    device, vocab = clock.device, 4096
    tokens = torch.randint(vocab, (batch, context + 1), device=device)

    def stepper(model: nn.Module) -> Callable[[], None]:
        model.to(device)
        compiled = torch.compile(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

        def step() -> None:
            with torch.autocast(device.type, torch.bfloat16):
                loss = F.cross_entropy(compiled(tokens[:, :-1]).flatten(0, 1).float(), tokens[:, 1:].flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    decoder = partial(Decoder, vocab, dims, layers, heads)
    calls = {
        "plain GPT": stepper(PlainGPT(vocab, dims, layers, heads, context)),
        "decoder, RoPE": stepper(decoder(rotary=RoPE)),
        "decoder, CombinedRotary (folded)": stepper(decoder(rotary=CombinedRotary)),
    }
    return clock.rows(calls, "plain GPT", rounds)


def optimizer_rows(clock: Clock, rounds: int, dims: int, layers: int, heads: int) -> list[Row]:
    """A step of FAM over a step of fused AdamW, on the tensors of a decoder with fixed gradients."""

    def stepper(make: Callable[[nn.Module], torch.optim.Optimizer]) -> Callable[[], object]:
        torch.manual_seed(0)
        model = Decoder(4096, dims, layers, heads, rotary=RoPE).to(clock.device)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        return make(model).step

    calls: Calls = {
        "AdamW, fused": stepper(lambda model: torch.optim.AdamW(model.parameters(), fused=True)),
        "FAM": stepper(lambda model: FAM(parameter_groups(model, 1e-3), start_step=0)),
        "FAM, capturable": stepper(lambda model: FAM(parameter_groups(model, 1e-3), start_step=0, capturable=True)),
        "FAM over adamw": stepper(lambda model: FAM(parameter_groups(model, 1e-3), start_step=0, base="adamw")),
    }
    return clock.rows(calls, "AdamW, fused", rounds)


def machine(device: torch.device) -> str:
    """Date, card and versions."""
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    cuda = f", CUDA {torch.version.cuda}" if device.type == "cuda" else ""
    return f"{time.strftime('%Y-%m-%d')}, {card}, torch {torch.__version__}{cuda}, Python {platform.python_version()}"


def measure(device: torch.device, rounds: int, tiny: bool) -> str:
    """All rows as Markdown."""
    clock = Clock(device)
    sections = {
        "Rotary over a copy of queries and keys": rotary_rows(
            clock, rounds, *((1, 2, 32, 8) if tiny else (8, 16, 4096, 64))
        ),
        "Sliding window, with projections and backward": window_rows(
            clock, rounds, *((1, 2, 64, 8, 16) if tiny else (4, 16, 8192, 64, 256))
        ),
        "Training step": training_rows(clock, rounds, *((16, 1, 2, 16, 2) if tiny else (768, 12, 12, 1024, 16))),
        "Optimizer step": optimizer_rows(clock, rounds, *((16, 1, 2) if tiny else (768, 12, 12))),
    }
    parts = [f"# On a GPU\n\nWritten by `python benchmarks/gpu.py`. {machine(device)}."]
    for title, rows in sections.items():
        lines = [f"| {what} | {over} | {ratio:.2f} | {took:.3f} |" for what, over, ratio, took in rows]
        parts.append(f"## {title}\n\n| what | over | ratio of times | ms |\n|---|---|---|---|\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--test", action="store_true", help="run the tests marked gpu first")
    options.add_argument("--write", type=Path, help="write the table into this file, too")
    options.add_argument("--rounds", type=int, default=20)
    options.add_argument("--device", default="cuda")
    options.add_argument("--tiny", action="store_true", help="sizes that mean nothing, to try the script")
    given = options.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        print("No GPU here: nothing was tested or measured, and no table was written.")
        return
    if given.test:
        subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests"], check=True)
    table = measure(torch.device(given.device), given.rounds, given.tiny)
    print(table)
    if given.write:
        given.write.write_text(table, encoding="utf-8")


if __name__ == "__main__":
    main()
