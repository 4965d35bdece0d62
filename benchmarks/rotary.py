"""What a rotary costs: ours and other libraries', as ratios to copying q and k.

    python benchmarks/rotary.py [--shape 8,8,1024,64] [--shape 1,32,4096,128] [--rounds 20] [--only TEXT …]

Every row is timed once per round, right after cloning q and k, and divided by that; the table shows medians over
rounds, forward and forward + backward, and beside them the ratios of the fastest rounds, which a busy machine
disturbs less. Threads: OMP_NUM_THREADS (2 in the README). A folded row counts composing R and multiplying it into the
(d, d) weights of q and k, besides turning them; an activation row counts composing R and multiplying q and k by it.
The loop over rotations is timed at small shapes only. Rows of two axes rotate the cells of a square grid. Peers come
from the extra `bench`; one that is not installed is left out and named.

Fresh memory costs as much as copying into it, and by chance: with MALLOC_MMAP_THRESHOLD_=4000000000 and
MALLOC_TRIM_THRESHOLD_=16000000000 in the environment glibc reuses what it has, ratios repeat to a few percent, and are
higher, since the floor has lost its most expensive part.
"""

import argparse
import importlib.util
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from cubelet.models.rotary import (
    AxialRotary,
    CombinedRotary,
    LearnedBaseRoPE,
    LieRERotary,
    LongRoPEScaling,
    MixedRotary,
    ProjectedRotary,
    QuaternionRotary,
    RoPE,
    YaRNScaling,
    fold,
    grid_positions,
    worth_folding,
)
from cubelet.models.rotary.rotation_matrix import right_multiply

Row = Callable[[Tensor, Tensor], tuple[Tensor, ...]]


def ours(heads: int, length: int, c: int, compiled: bool) -> dict[str, Row]:
    """Rows of this project; each takes q and k (b, h, s, c) and returns what depends on them or on parameters."""
    d = heads * c
    rope, combined = RoPE(d, heads), moved(CombinedRotary(d, heads))
    weights = [nn.Parameter(torch.randn(d, d) / d**0.5) for _ in range(2)]
    frame = moved(QuaternionRotary(d, heads, direction=False, stay_in_frame=True))
    learned = moved(QuaternionRotary(d, heads, stay_in_frame=True))
    back = moved(QuaternionRotary(d, heads, direction=False))
    projected = moved(ProjectedRotary(d, heads))
    merged = moved(CombinedRotary(d, heads)).eval()
    merged.merge(nn.Linear(d, d))

    def folded(rotary) -> Row:
        def run(q: Tensor, k: Tensor) -> tuple[Tensor, ...]:
            R = rotary.mixing()
            new = [fold(weight, None, R, heads)[0] for weight in weights]
            return rotary.apply_positions(q), rotary.apply_positions(k), *new

        return run

    def on_activations(rotary) -> Row:
        def run(q: Tensor, k: Tensor) -> tuple[Tensor, ...]:
            R = rotary.mixing()
            return rotary.apply_positions(right_multiply(q, R)), rotary.apply_positions(right_multiply(k, R))

        return run

    def both(turn) -> Row:
        return lambda q, k: (turn(q), turn(k))

    side = math.isqrt(length)
    grid = grid_positions(side, length // side)  # (s, 2)

    def in_grid(rotary) -> Row:
        return lambda q, k: (rotary.rotate(q, grid), rotary.rotate_keys(k, grid))

    factors = tuple(1.0 + m for m in range(c // 2))
    long = LongRoPEScaling(4.0, original_length=length // 2, short_factor=factors, long_factor=factors)

    rows = {
        "RoPE": both(rope.rotate),
        "RoPE, YaRN": both(RoPE(d, heads, scaling=YaRNScaling(4.0)).rotate),
        "RoPE, LongRoPE": both(RoPE(d, heads, scaling=long).rotate),
        "LearnedBaseRoPE": both(moved(LearnedBaseRoPE(d, heads)).rotate),
        "AxialRotary, two axes": in_grid(AxialRotary(d, heads, axes=2)),
        "MixedRotary, two axes": in_grid(moved(MixedRotary(d, heads))),
        "MixedRotary, two axes, shared by heads": in_grid(moved(MixedRotary(d, heads, per_head=False))),
        "LieRERotary, two axes, blocks of 8": in_grid(moved(LieRERotary(d, heads))),
        "CombinedRotary, folded": folded(combined),
        "CombinedRotary, on activations": on_activations(combined),
        "CombinedRotary, merged": both(merged.rotate),
        "QuaternionRotary, in its frame, folded": folded(frame),
        "QuaternionRotary, learned directions, in its frame, folded": folded(learned),
        "QuaternionRotary, returned": both(back.rotate),
        "ProjectedRotary": both(projected.rotate),
    }
    if compiled:
        rows["RoPE, compiled"] = torch.compile(both(rope.rotate), fullgraph=True)
        rows["CombinedRotary, folded, compiled"] = torch.compile(folded(combined), fullgraph=True)
    return rows


def torchtune_rotary() -> type[nn.Module]:
    """torchtune's class from its file: importing the package would need all it depends on (`pip install --no-deps
    torchtune` is enough).

    Raises:
        ImportError: torchtune is not installed.
    """
    package = importlib.util.find_spec("torchtune")
    if package is None or not package.submodule_search_locations:
        raise ImportError("torchtune")
    path = Path(package.submodule_search_locations[0]) / "modules" / "position_embeddings.py"
    spec = importlib.util.spec_from_file_location("torchtune_position_embeddings", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # the compiler looks for it there
    spec.loader.exec_module(module)
    return module.RotaryPositionalEmbeddings


def peers(heads: int, length: int, c: int, compiled: bool) -> dict[str, Row]:
    """Rows of other libraries, tables made beforehand where the library lets one."""
    rows: dict[str, Row] = {}
    missing = []

    def attempt(name: str, make: Callable[[], Row]) -> None:
        try:
            rows[name] = make()
        except ImportError:
            missing.append(name)

    def embedding_torch() -> Row:
        from rotary_embedding_torch import RotaryEmbedding

        rotary = RotaryEmbedding(dim=c)
        return lambda q, k: (rotary.rotate_queries_or_keys(q), rotary.rotate_queries_or_keys(k))

    def embedding_torch_axes() -> Row:
        from rotary_embedding_torch import RotaryEmbedding, apply_rotary_emb

        side = math.isqrt(length)
        freqs = RotaryEmbedding(dim=c // 2, freqs_for="pixel").get_axial_freqs(side, length // side).flatten(0, 1)
        return lambda q, k: (apply_rotary_emb(freqs, q), apply_rotary_emb(freqs, k))

    def x_transformers() -> Row:
        from x_transformers.x_transformers import RotaryEmbedding, apply_rotary_pos_emb

        angles, scale = RotaryEmbedding(c).forward_from_seq_len(length)
        return lambda q, k: (apply_rotary_pos_emb(q, angles, scale), apply_rotary_pos_emb(k, angles, scale))

    def transformers() -> Row:
        from transformers import LlamaConfig
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

        config = LlamaConfig(hidden_size=heads * c, num_attention_heads=heads, max_position_embeddings=length)
        cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(length)[None])
        return lambda q, k: apply_rotary_pos_emb(q, k, cos, sin)

    def local_attention() -> Row:
        from local_attention.rotary import SinusoidalEmbeddings, apply_rotary_pos_emb

        angles, scale = SinusoidalEmbeddings(c)(torch.zeros(1, length, c))
        return lambda q, k: apply_rotary_pos_emb(q, k, angles, scale)

    def torchtune() -> Row:
        rotate = torchtune_rotary()(c, length)
        return lambda q, k: (rotate(q.transpose(1, 2)).transpose(1, 2), rotate(k.transpose(1, 2)).transpose(1, 2))

    def torchtune_compiled() -> Row:
        return torch.compile(torchtune(), fullgraph=True)

    attempt("torchtune", torchtune)
    if compiled:
        attempt("torchtune, compiled", torchtune_compiled)
    attempt("rotary-embedding-torch", embedding_torch)
    attempt("rotary-embedding-torch, two axes", embedding_torch_axes)
    attempt("x-transformers", x_transformers)
    attempt("transformers (Llama)", transformers)
    attempt("local-attention", local_attention)
    if missing:
        sys.stderr.write(f"not installed, left out: {', '.join(missing)}\n")
    return rows


def literal_loop(heads: int, c: int) -> Row:
    """One (c, c) matrix and one product with the activations for every rotation, as one would first write it."""
    rotary = moved(CombinedRotary(heads * c, heads))
    pairs = rotary.pairs.tolist()

    def turn(x: Tensor) -> Tensor:
        for (i, j), angle in zip(pairs, rotary.angles(), strict=True):
            G = torch.eye(c)
            G[i, i], G[j, j], G[i, j], G[j, i] = angle.cos(), angle.cos(), angle.sin(), -angle.sin()
            x = x @ G
        return rotary.apply_positions(x)

    return lambda q, k: (turn(q), turn(k))


def moved(module):
    """Parameters off their initial values."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
GRADIENTS: dict[torch.Size, Tensor] = {}


def seconds(row: Row, q: Tensor, k: Tensor, backward: bool, clock: str = "wall") -> float:
    q, k = q.detach().requires_grad_(backward), k.detach().requires_grad_(backward)
    with torch.set_grad_enabled(backward):
        start = CLOCKS[clock]()
        out = row(q, k)
        if backward:
            torch.autograd.backward(out, [GRADIENTS[t.shape] for t in out])
        return CLOCKS[clock]() - start


def peak_extra_bytes(row: Row, q: Tensor, k: Tensor) -> int:
    """Peak of memory allocated by one forward + backward above what there was, from the profiler's records."""
    q, k = q.detach().requires_grad_(), k.detach().requires_grad_()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        out = row(q, k)
        torch.autograd.backward(out, [GRADIENTS[t.shape] for t in out])
    assert profile.profiler is not None
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def measure(shape: tuple[int, ...], rounds: int, compiled: bool, clock: str, only: list[str]) -> list[dict]:
    _, heads, length, c = shape
    q, k = torch.randn(shape), torch.randn(shape)
    GRADIENTS.clear()
    GRADIENTS[q.shape] = torch.randn(shape)
    GRADIENTS[torch.Size((heads * c, heads * c))] = torch.randn(heads * c, heads * c)
    mine = ours(heads, length, c, compiled)
    rows = {**mine, **peers(heads, length, c, compiled)}
    rows = {name: row for name, row in rows.items() if not only or any(text in name for text in only)}
    floor: Row = lambda q, k: (q.clone(), k.clone())  # noqa: E731
    times: dict[str, tuple[list, list]] = {name: ([], []) for name in rows}
    for number in range(-2, rounds):  # two rounds to warm up
        for which, backward in enumerate((False, True)):
            for name, row in rows.items():  # beside its floor: what else the machine does troubles both alike
                unit = seconds(floor, q, k, backward, clock)
                spent = seconds(row, q, k, backward, clock)
                if number >= 0:
                    times[name][which].append((spent, unit))
    size = q.nbytes + k.nbytes
    results = []
    for name in rows:
        forward, both = (statistics.median(spent / unit for spent, unit in pairs) for pairs in times[name])
        best = [round(min(spent for spent, _ in pairs) / min(unit for _, unit in pairs), 2) for pairs in times[name]]
        memory = None if "compiled" in name else round(peak_extra_bytes(rows[name], q, k) / size, 2)
        medians = {"forward": round(forward, 2), "both": round(both, 2)}
        results.append({"row": name, **medians, "minima": best, "memory": memory})
    if q.numel() <= 2**22 and not only:  # keeps a copy of q and k for every rotation: 9 GB at the second shape
        loop, folded = literal_loop(heads, c), mine["CombinedRotary, folded"]
        ratio = [
            min(seconds(loop, q, k, backward) for _ in range(2))
            / min(seconds(folded, q, k, backward) for _ in range(5))
            for backward in (False, True)
        ]
        results.append({"row": "a loop over rotations ÷ folded", "forward": round(ratio[0]), "both": round(ratio[1])})
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", action="append", help="b,h,s,c; may be given several times")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: of all threads, for a busy machine")
    parser.add_argument("--only", nargs="*", default=[], metavar="TEXT", help="rows whose name holds one of these")
    parser.add_argument("--no-compile", action="store_true", help="leave out the compiled rows")
    parser.add_argument("--json", type=Path, default=Path("bench-results/rotary.json"))
    arguments = parser.parse_args()
    torch.manual_seed(0)
    shapes = [tuple(int(n) for n in text.split(",")) for text in arguments.shape or ["8,8,1024,64", "1,32,4096,128"]]
    report = {"torch": torch.__version__, "threads": torch.get_num_threads(), "rounds": arguments.rounds}
    report |= {"clock": arguments.clock, "shapes": {}}
    for shape in shapes:
        batch, heads, length, c = shape
        fits = "pays" if worth_folding(batch * length, heads * c, heads) else "does not pay"
        results = measure(shape, arguments.rounds, not arguments.no_compile, arguments.clock, arguments.only)
        report["shapes"][",".join(map(str, shape))] = results
        lines = [f"\nq, k {shape}: ratios to cloning both; folding {fits} here\n"]
        lines.append(
            "| row | forward | forward + backward | of minima | peak memory ÷ (q + k) |\n|---|---|---|---|---|\n"
        )
        for r in results:
            best = " / ".join(map(str, r.get("minima", ["–"])))
            lines.append(f"| {r['row']} | {r['forward']} | {r['both']} | {best} | {r.get('memory') or '–'} |\n")
        sys.stdout.writelines(lines)
        sys.stdout.flush()
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    sys.stdout.write(f"\nwritten: {arguments.json}\n")


if __name__ == "__main__":
    main()
