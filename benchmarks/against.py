"""What an older version took and what this one takes, step by step in turn.

    python benchmarks/against.py REVISION [--rounds 12] [--pairs 5] [--threads 1] [--only TEXT ...]

REVISION is any that git knows; it is checked out beside this tree, in a folder that is removed at the end. Each version
runs in a process of its own, with its own benchmarks: every row of rotations that both have (8 × 8 heads, s = 1,024,
c = 64; forward, forward and backward), windows at s = 4,096, attentions at s = 512, ten steps of the optimizers, and
whole training steps. The two processes take turns call by call, so that what else the machine does troubles both alike,
and keep the memory they free, or the figures would tell how the kernel handed out pages. Where a process happens to lie
matters, too: there are several pairs of them. A figure is the median over all rounds of new over old in CPU time of all
threads; beside it stand the lowest and the highest median of a pair.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHAPE = (8, 8, 1024, 64)


def calls() -> dict[str, Callable[[], object]]:
    """The rows of the version whose benchmarks come first on the path."""
    import attention
    import torch
    import training

    from cubelet.models import attention as attentions
    from cubelet.models.decoder import Decoder
    from cubelet.models.rotary import CombinedRotary, RoPE

    torch.manual_seed(0)
    found: dict[str, Callable[[], object]] = {**rotations(), **optimizers()}
    for name, call in attention.window_calls(4096, 256).items():
        if name.startswith("cubelet"):
            found[f"mixing, {name}"] = call
    for name in (
        "MultiHeadAttention", "LocalAttention", "AdaptiveSpanAttention", "HybridAttention", "ContentGatedAttention",
        "IntegratedAttention", "DynamicConvAttention", "RelativeForceAttention",
    ):  # fmt: skip
        module = getattr(attentions, name)(attention.DIMS, attention.HEADS)
        found[f"{name}, s = 512"] = attention.both_ways(module, 512)
    sizes = (training.VOCAB, training.DIMS, training.LAYERS, training.HEADS)
    models = {
        "Decoder, RoPE": {"rotary": RoPE},
        "Decoder, CombinedRotary": {"rotary": CombinedRotary},
        "Decoder, its defaults": {},
    }
    for name, parts in models.items():
        found[f"training step, {name}"] = training.training_step(Decoder(*sizes, **parts))
    return found


def rotations() -> dict[str, Callable[[], object]]:
    """Rotations of q and k, without and with the way back."""
    import rotary
    import torch

    _, heads, length, c = SHAPE
    q, k = torch.randn(SHAPE), torch.randn(SHAPE)
    rotary.GRADIENTS[q.shape] = torch.randn(SHAPE)
    rotary.GRADIENTS[torch.Size((heads * c, heads * c))] = torch.randn(heads * c, heads * c)
    found: dict[str, Callable[[], object]] = {}
    for name, row in rotary.ours(heads, length, c, False).items():
        for backward in (False, True):
            title = f"{name}, forward{' and backward' if backward else ''}"
            found[title] = lambda row=row, backward=backward: rotary.seconds(row, q, k, backward)
    return found


def optimizers() -> dict[str, Callable[[], object]]:
    """Ten steps, one of them with an analysis."""
    import torch

    import optimizers as theirs
    from cubelet.optimizers import FAM, MaxFactor, SimpleFAM, parameter_groups

    makers = {
        "FAM momentum": lambda groups: FAM(groups, start_step=0, base="momentum"),
        "FAM adamw": lambda groups: FAM(groups, start_step=0, base="adamw"),
        "SimpleFAM": lambda groups: SimpleFAM(groups, start_step=0),
        "MaxFactor": MaxFactor,
    }
    found: dict[str, Callable[[], object]] = {}
    for size, shape in theirs.LISTS.items():
        for name, make in makers.items():
            model = theirs.gpt(*shape)
            for param in model.parameters():
                param.grad = torch.randn_like(param) * 1e-3
            optimizer = make(parameter_groups(model, 1e-3))
            found[f"{name}, {size}"] = lambda optimizer=optimizer: [optimizer.step() for _ in range(10)]
    return found


def serve() -> None:
    """Print the rows' names; then, for each name read, call it and print the CPU time it took."""
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    rows = calls()
    print(json.dumps(list(rows)), flush=True)
    for line in sys.stdin:
        call = rows[json.loads(line)]
        start = time.process_time()
        call()
        print(time.process_time() - start, flush=True)


def start(tree: Path, folder: Path, threads: int) -> subprocess.Popen[str]:
    """A process that serves the rows of a tree; before 0.2.0 its root is the package."""
    folder.mkdir(exist_ok=True)
    source = tree / "src"
    if not source.exists():
        source = folder / "package"
        source.mkdir()
        package = source / "cubelet"
        package.mkdir()
        (package / "__init__.py").touch()  # a folder without one gives way to the package that is installed
        for room in filter(Path.is_dir, tree.iterdir()):
            (package / room.name).symlink_to(room, target_is_directory=True)
    path = f"{tree / 'benchmarks'}{os.pathsep}{source}"
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    env |= {"MALLOC_TRIM_THRESHOLD_": str(2**34), "MALLOC_MMAP_THRESHOLD_": str(2**34)}  # keep what is freed
    command = [sys.executable, "-c", f"import sys; sys.path.append({str(ROOT / 'benchmarks')!r}); import against; "]
    command[-1] += "against.serve()"
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env, cwd=folder)


def ask(process: subprocess.Popen[str], question: str | None = None) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    if question is not None:
        process.stdin.write(json.dumps(question) + "\n")
        process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise SystemExit("error: a version ended before it answered; what it said stands above")
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--pairs", type=int, default=5, help="of processes, one after the other")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[], metavar="TEXT", help="rows whose name holds one of these")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, old = Path(name), Path(name) / "old"
        made = subprocess.run(
            ["git", "-C", str(ROOT), "worktree", "add", "--quiet", "--detach", str(old), options.revision], check=False
        )
        if made.returncode:
            raise SystemExit(f"error: git knows no revision {options.revision!r} here; `git log --oneline` lists some")
        ratios: dict[str, list[list[float]]] = {}
        processes: list[subprocess.Popen[str]] = []
        try:
            for number in range(options.pairs):
                processes = [start(tree, folder / str(number), options.threads) for tree in (old, ROOT)]
                before, now = (json.loads(ask(process)) for process in processes)
                for row in [r for r in now if r in before and any(text in r for text in options.only or [""])]:
                    pairs = [[float(ask(process, row)) for process in processes] for _ in range(options.rounds + 2)]
                    ratios.setdefault(row, []).append([new / old for old, new in pairs[2:]])
                for process in processes:
                    process.kill()
            if not ratios:
                raise SystemExit(f"error: no row of both versions holds {' or '.join(options.only)}; all: {before}")
            print(f"| new over {options.revision}, {options.threads} thread(s) | median | of a pair |\n|---|---|---|")
            for row, lists in ratios.items():
                middle, medians = statistics.median(itertools.chain(*lists)), [*map(statistics.median, lists)]
                print(f"| {row} | {middle:.3f} | {min(medians):.3f} to {max(medians):.3f} |")
        finally:
            for process in processes:
                process.kill()
            subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(old)], check=False)


if __name__ == "__main__":
    main()
