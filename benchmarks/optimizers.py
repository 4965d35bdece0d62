"""What a step of each optimizer costs, beside `torch.optim.AdamW(fused=True)`.

    python benchmarks/optimizers.py [--rounds 24] [--threads 2] [--peers] [--only NAME ...] [--json FILE]

Two lists of tensors: GPT-2-shaped (12 layers of width 448, vocabulary 4,000: 148 tensors, 31 M parameters) and small
(4 layers of width 144, 65 tokens: 52 tensors, 1.0 M). Random gradients, the same for all; FAM's own groups
(`parameter_groups`) for the package's optimizers, one group for the peers. Adaptation starts at once and analysis steps
are among the timed ones. In each round every optimizer makes `analyse_every` = 10 steps (the slow peers one); a figure
is the median over rounds of the time per step, divided by AdamW's of the same run: in wall time, and in CPU time of all
threads, which other work on the machine disturbs less. State is bytes per parameter after a step; for MaxFactor also
what its matrices alone hold.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from reference_optimizers import muon_and_adamw
from torch import nn

from cubelet.optimizers import FAM, MaxFactor, SimpleFAM, parameter_groups


class Attention(nn.Module):
    def __init__(self, dims: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(dims, 3 * dims), nn.Linear(dims, dims)


class Layer(nn.Module):
    def __init__(self, dims: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dims), nn.LayerNorm(dims)
        self.attention = Attention(dims)
        self.up, self.down = nn.Linear(dims, 4 * dims), nn.Linear(4 * dims, dims)


def gpt(dims: int, layers: int, vocabulary: int, positions: int) -> nn.Module:
    """The tensors of a GPT-2, head tied to the embedding: 12 per layer and 4 more."""
    torch.manual_seed(0)
    parts = [nn.Embedding(vocabulary, dims), nn.Embedding(positions, dims), *(Layer(dims) for _ in range(layers))]
    return nn.Sequential(*parts, nn.LayerNorm(dims))


LISTS = {"31M": (448, 12, 4000, 512), "1M": (144, 4, 65, 64)}
Maker = Callable[[nn.Module], torch.optim.Optimizer]


def fam(**settings: object) -> Maker:
    return lambda model: FAM(parameter_groups(model, 1e-3), start_step=0, **settings)


OURS: dict[str, Maker] = {
    "FAM momentum, analyse_every 10": fam(base="momentum"),
    "FAM momentum, analyse_every 1": fam(base="momentum", analyse_every=1),
    "FAM momentum, time axis": fam(base="momentum", axis="time", rule="excess"),
    "FAM momentum, rule ratio": fam(base="momentum", rule="ratio"),
    "FAM momentum, weight decay 0.1": lambda model: FAM(
        parameter_groups(model, 1e-3, 0.1), base="momentum", start_step=0
    ),
    "FAM adamw, analyse_every 10": fam(),
    "FAM adamw, nu 0.7": fam(nu=0.7),
    "FAM adamw, damps along time": fam(axis="time"),
    "FAM muon": fam(base="muon", nesterov=True),
    "FAM maxfactor, analyse_every 10": fam(base="maxfactor"),
    "SimpleFAM, analyse_every 10": lambda model: SimpleFAM(parameter_groups(model, 1e-3), start_step=0),
    "SimpleFAM, analyse_every 1": lambda model: SimpleFAM(parameter_groups(model, 1e-3), start_step=0, analyse_every=1),
    "MaxFactor": lambda model: MaxFactor(parameter_groups(model, 1e-3)),
}
FLOOR: dict[str, Maker] = {
    "torch Muon and AdamW": lambda model: muon_and_adamw(parameter_groups(model, 1e-3), 1e-3),
    "AdamW, fused": lambda model: torch.optim.AdamW(model.parameters(), fused=True),
    "SGD momentum, fused": lambda model: torch.optim.SGD(
        model.parameters(), 1e-3, momentum=0.9, dampening=0.9, fused=True
    ),
}


def peers() -> dict[str, Maker]:
    import pytorch_optimizer

    return {
        "torch Adafactor": lambda model: torch.optim.Adafactor(model.parameters()),
        "pytorch_optimizer AdaFactor": lambda model: pytorch_optimizer.AdaFactor(model.parameters(), momentum=None),
    }


def state_bytes(optimizer: torch.optim.Optimizer, matrices: bool = False) -> float:
    """Bytes of state per parameter; of matrices only, without the step count, if asked."""
    held = count = 0
    parts = getattr(optimizer, "optimizers", [optimizer])
    for param, state in (item for part in parts for item in part.state.items()):
        if matrices and param.ndim < 2:
            continue
        count += param.numel()
        tensors = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
        held += sum(v.numel() * v.element_size() for key, v in tensors.items() if not (matrices and key == "step"))
    return held / count


def measure(makers: dict[str, Maker], size: str, rounds: int) -> dict[str, dict[str, float]]:
    """Wall and CPU time per step, milliseconds (medians over rounds), and state, for each optimizer."""
    optimizers = {}
    for name, make in makers.items():
        model = gpt(*LISTS[size])
        for param in model.parameters():
            param.grad = torch.randn_like(param) * 1e-3
        optimizers[name] = make(model)
        for _ in range(30):
            optimizers[name].step()
            if name in SLOW:
                break
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in makers}
    for _ in range(rounds):
        for name, optimizer in optimizers.items():
            steps = 1 if name in SLOW else 10
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(steps):
                optimizer.step()
            times[name].append((1e3 * (time.perf_counter() - wall) / steps, 1e3 * (time.process_time() - cpu) / steps))
    return {
        name: {
            "wall": statistics.median(wall for wall, _ in times[name]),
            "cpu": statistics.median(cpu for _, cpu in times[name]),
            "state": state_bytes(optimizer),
            "matrix_state": state_bytes(optimizer, matrices=True),
        }
        for name, optimizer in optimizers.items()
    }


SLOW = {"torch Adafactor", "pytorch_optimizer AdaFactor", "torch Muon and AdamW", "FAM muon"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peers", action="store_true", help="also torch's and pytorch_optimizer's Adafactor")
    parser.add_argument("--only", nargs="*", help="names (or parts of them) to time beside AdamW")
    parser.add_argument("--sizes", nargs="*", choices=LISTS, default=list(LISTS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    makers = {**FLOOR, **OURS, **(peers() if options.peers else {})}
    if options.only:
        wanted = ("AdamW, fused", *options.only)
        makers = {name: make for name, make in makers.items() if any(part in name for part in wanted)}
    found = {}
    for size in options.sizes:
        found[size] = measure(makers, size, options.rounds)
        floor = found[size]["AdamW, fused"]
        lines = [f"{size}: {floor['wall']:.2f} ms wall, {floor['cpu']:.2f} ms CPU for AdamW, {options.threads} threads"]
        lines.append("| optimizer | wall | CPU | state B/parameter | of matrices |")
        lines.append("|---|---|---|---|---|")
        for name, row in found[size].items():
            ratios = f"{row['wall'] / floor['wall']:.2f} | {row['cpu'] / floor['cpu']:.2f}"
            lines.append(f"| {name} | {ratios} | {row['state']:.3f} | {row['matrix_state']:.3f} |")
        print("\n".join(lines) + "\n", flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
