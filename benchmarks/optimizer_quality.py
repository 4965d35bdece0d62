"""Does the spectrum help? Every optimizer on the default text experiment, against constant-momentum controls.

    python benchmarks/optimizer_quality.py [--results runs/optimizer_quality.jsonl] [--minutes 60] [--only NAME ...]
    python benchmarks/optimizer_quality.py --table            # what is finished so far, as Markdown

Model and data are those of configs/text.yaml (add others with --config), trained in a bare loop: same steps, gradient
clipping, warm-up and linear decay to 0 for all, no callbacks. Weight decay is decoupled and shrinks the weights by the
same share per step whatever the optimizer and rate (lr·decay = 5e-4), in the groups of `parameter_groups`.

First each optimizer chooses its learning rate by one run per rate with a seed of its own (1000), on a small grid that
grows by a factor of 2 while its best rate lies at an edge. Then the `--seeds` at that rate, seed by seed over all
optimizers, so that an early stop leaves paired runs: these are the tables. Every finished run is appended to the
results file, and skipped when the command is given again; so it can be stopped at any time, and continued. Each run
takes two to three CPU-minutes. Rows carry the version that made them; finals are paired within a version.

Equal CPU-seconds. "…, AdamW's seconds" makes as many steps (schedule and all) as torch's AdamW would pay with its CPU
time, from the share of a step that each optimizer takes, measured inside the runs: a ratio within one process hardly
depends on what else the machine does.

Controls. For FAM that damps (ν from the spectrum along time): the same FAM with, for each kind of tensor, the constant
ν that it chose on average ("its mean ν"), QHAdamW ν = 0.7 and NAdamW of reference_optimizers.py; beside them AdamW with
other β₁, Muon and SOAP. For FAM over momentum: the same update with a
constant α for all tensors (0.9, 0.925, 0.95) and with the constant α of each tensor's kind ("by kind": FAM that never
analyses); for FAM over AdamW the same four, of which α = 0.9 is torch's AdamW.
"""

import argparse
import json
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from reference_optimizers import SOAP, QHAdamW, muon_and_adamw
from torch import nn

from cubelet import __version__
from cubelet.datamodules import TextDataModule
from cubelet.lightning_modules import LanguageModel
from cubelet.lightning_modules.component_config import from_config
from cubelet.optimizers import FAM, MaxFactor, SimpleFAM, WarmupCosine, parameter_groups
from cubelet.optimizers.momentum_rules import HANDLERS, white_bins
from cubelet.optimizers.parameter_groups import KINDS
from cubelet.optimizers.spectral_momentum import WINDOWS

ROOT = Path(__file__).parents[1]
SHRINK = 5e-4  # lr·decay at the peak rate: AdamW's 0.005 · 0.1 of the default experiment
WARMUP, CLIP, SEARCH_SEED, SEEDS = 50, 1.0, 1000, (0, 1, 2)
NEVER = 10**9
HISTORY = 24  # FAM's default record along time
QUANTILES = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571}  # Student's t, 97.5 %, for so many values

MOMENTUM_RATES, ADAM_RATES = (1.5, 3.0, 6.0), (0.01, 0.02, 0.04)
ADAM = {"base": "adamw", "beta2": 0.99}
TIME = {"axis": "time", "rule": "excess"}
QH_RATES = (0.01, 0.02)  # where AdamW and its kin were best; grows at an edge unless --no-grow


class Contender(NamedTuple):
    """An optimizer of the comparison: class, settings, first rates, constant α if any, and its controls' names."""

    make: Any
    settings: dict[str, Any]
    rates: tuple[float, ...]
    alpha: float | None = None
    controls: tuple[str, ...] = ()
    nu_of: str = ""  # the contender whose mean ν, kind by kind, this one takes as constants
    seconds_of: str = ""  # the contender with which this one shares rate and settings, at AdamW's CPU-seconds


def constants(family: str, settings: dict[str, Any], rates: tuple[float, ...]) -> dict[str, Contender]:
    never = {**settings, "min_size": NEVER}
    found = {f"{family} α={alpha}": Contender(FAM, never, rates, alpha) for alpha in (0.9, 0.925, 0.95)}
    return {**found, f"{family} α by kind": Contender(FAM, never, rates)}


MOMENTUM = constants("momentum", {"base": "momentum"}, MOMENTUM_RATES)
ADAMW = {"torch AdamW": Contender(torch.optim.AdamW, {"betas": (0.9, 0.99), "fused": True}, ADAM_RATES)}
ADAMW |= {name: made for name, made in constants("adamw", ADAM, ADAM_RATES).items() if made.alpha != 0.9}
CONTENDERS: dict[str, Contender] = {
    "FAM adamw damps": Contender(
        FAM,
        {**ADAM, "axis": "time"},
        QH_RATES,
        controls=("FAM adamw, its mean ν", "QHAdamW ν=0.7", "NAdamW (ν=0.9)", "torch AdamW"),
    ),
    "FAM adamw, its mean ν": Contender(
        FAM, {**ADAM, "axis": "time", "rule": "listen"}, QH_RATES, controls=("torch AdamW",), nu_of="FAM adamw damps"
    ),
    "torch Muon and AdamW": Contender(muon_and_adamw, {}, (0.005, *QH_RATES), controls=("torch AdamW",)),
    "torch Muon and QHAdamW ν=0.7": Contender(muon_and_adamw, {"nu": 0.7}, QH_RATES, controls=("torch AdamW",)),
    "torch Muon (momentum 0.9) and AdamW": Contender(muon_and_adamw, {"momentum": 0.9}, QH_RATES),
    "QHAdamW ν=0.7": Contender(QHAdamW, {"nu": 0.7}, QH_RATES, controls=("torch AdamW",)),
    "NAdamW (ν=0.9)": Contender(QHAdamW, {"nu": 0.9}, QH_RATES, controls=("torch AdamW",)),
    "torch AdamW β₁=0.8": Contender(torch.optim.AdamW, {"betas": (0.8, 0.99), "fused": True}, QH_RATES),
    "torch AdamW β₁=0.95": Contender(torch.optim.AdamW, {"betas": (0.95, 0.99), "fused": True}, QH_RATES),
    "FAM muon": Contender(FAM, {**ADAM, "base": "muon", "nesterov": True, "min_size": NEVER}, QH_RATES),
    "FAM muon ν=0.8": Contender(
        FAM, {**ADAM, "base": "muon", "nu": 0.8, "min_size": NEVER}, QH_RATES, controls=("FAM muon",)
    ),
    "FAM muon damps": Contender(
        FAM, {**ADAM, "base": "muon", "axis": "time"}, QH_RATES, controls=("FAM muon", "FAM muon ν=0.8")
    ),
    "SOAP": Contender(SOAP, {}, QH_RATES, controls=("torch AdamW",)),
    **ADAMW,
    **MOMENTUM,
    "FAM momentum index": Contender(FAM, {"base": "momentum"}, MOMENTUM_RATES, controls=tuple(MOMENTUM)),
    "FAM momentum time": Contender(FAM, {"base": "momentum", **TIME}, MOMENTUM_RATES, controls=tuple(MOMENTUM)),
    "FAM momentum index, notes' rule": Contender(
        FAM, {"base": "momentum", "rule": "absolute"}, MOMENTUM_RATES, controls=tuple(MOMENTUM)
    ),
    "FAM adamw index": Contender(FAM, ADAM, ADAM_RATES, controls=tuple(ADAMW)),
    "FAM adamw time": Contender(FAM, {**ADAM, **TIME}, ADAM_RATES, controls=tuple(ADAMW)),
    "SimpleFAM": Contender(SimpleFAM, {}, MOMENTUM_RATES, controls=tuple(MOMENTUM)),
    "MaxFactor": Contender(MaxFactor, {}, (0.0125, 0.025, 0.05)),
}
SECONDS = ", AdamW's seconds"
CONTENDERS |= {
    name + SECONDS: CONTENDERS[name]._replace(controls=("torch AdamW",), seconds_of=name)
    for name in ("torch Muon and AdamW", "SOAP", "QHAdamW ν=0.7", "FAM adamw damps", "FAM muon", "FAM muon ν=0.8")
}


def experiment(configs: list[Path]) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Data and model settings, and the number of steps, of YAML files laid over each other."""
    data: dict[str, Any] = {}
    model: dict[str, Any] = {}
    steps = 2000
    for path in configs:
        read = yaml.safe_load(path.read_text())
        data.update(read.get("data", {}))
        model.update(read.get("model", {}))
        steps = read.get("trainer", {}).get("max_steps", steps)
    for key in ("optimizer", "scheduler"):
        model.pop(key, None)
    named = {k: {"class_path": v} if isinstance(v, str) and v.startswith("cubelet.") else v for k, v in model.items()}
    return data, {key: from_config(value) for key, value in named.items()}, steps


def with_constant_nu(groups: list[dict[str, Any]], nu: dict[str, float], min_size: int) -> list[dict[str, Any]]:
    """Groups in which each tensor that would be analysed takes its kind's ν; smaller ones form groups with ν = 1."""
    found = []
    for group in groups:
        hidden = group["fam"]["hidden"]
        for large in (True, False):
            chosen = [k for k, (_, w) in enumerate(group["params"]) if (w.numel() >= min_size) is large]
            if chosen:
                fam = {**group["fam"], "hidden": [hidden[k] for k in chosen]}
                value = nu.get(fam["handler"], 1.0) if large else 1.0
                found.append({**group, "params": [group["params"][k] for k in chosen], "fam": fam, "nu": value})
    return found


def optimizer_of(contender: Contender, model: nn.Module, lr: float, nu: dict[str, float]) -> torch.optim.Optimizer:
    groups = parameter_groups(model, lr, SHRINK / lr)
    if nu:
        groups = with_constant_nu(groups, nu, contender.settings.get("min_size", 256))
    if contender.alpha is not None:
        groups = [{**group, "alpha": contender.alpha} for group in groups]
    return contender.make(groups, lr=lr, **contender.settings)


@torch.no_grad()
def validate(model: LanguageModel, data: TextDataModule) -> float:
    """Mean loss over every target of the held-out text."""
    model.eval()
    total = count = 0.0
    for batch in data.val_dataloader():
        targets = int((batch["targets"] != -100).sum())
        total, count = total + targets * model.loss(batch)[0].item(), count + targets
    model.train()
    return total / count


def endless(data: TextDataModule) -> Iterator[dict[str, torch.Tensor]]:
    loader = data.train_dataloader()
    while True:
        yield from loader


def run(
    name: str,
    lr: float,
    seed: int,
    steps: int,
    data_settings: dict[str, Any],
    model_settings: dict[str, Any],
    nu: dict[str, float],
) -> dict[str, Any]:
    """Trains once. Returns the row for the results file."""
    torch.manual_seed(seed)
    data = TextDataModule(**data_settings, seed=seed)
    model = LanguageModel(data.vocab_size, **model_settings)
    optimizer = optimizer_of(CONTENDERS[name], model, lr, nu)
    scheduler = WarmupCosine(optimizer, min(WARMUP, steps), steps, shape="linear")
    start, batches = time.process_time(), endless(data)
    inside, curve, chosen = 0.0, [], []
    loss = mean = torch.zeros(())
    for step in range(1, steps + 1):
        loss, cost = model.loss(next(batches))
        objective = loss + model.decoder.penalty() + (0 if cost is None else cost)
        optimizer.zero_grad()
        objective.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        before = time.process_time()
        optimizer.step()
        inside += time.process_time() - before
        scheduler.step()
        mean = mean + loss.detach()
        if step % 100 == 0:
            curve.append(round(mean.item() / 100, 4))
            mean = torch.zeros(())
        if step % 50 == 0:
            chosen.append({kind: seen["nu"] for kind, seen in spectra(optimizer).items()})
    cpu = time.process_time() - start
    final = validate(model, data)
    row = {"optimizer": name, "lr": lr, "seed": seed, "val_loss": final, "cpu_seconds": cpu}
    row |= {"train_loss": loss.item(), "spectra": spectra(optimizer), "version": __version__, "steps_made": steps}
    kinds = {kind for seen in chosen for kind in seen}
    means = {kind: statistics.mean(seen.get(kind, 1.0) for seen in chosen) for kind in sorted(kinds)}
    return {**row, "optimizer_seconds": inside, "train_curve": curve, "nu_mean": means, "nu_set": nu}


def spectra(optimizer: torch.optim.Optimizer) -> dict[str, dict[str, float]]:
    """For each handler: how many tensors, mean and extremes of α', mean and extremes of the upper half's share."""
    seen: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in optimizer.spectrum_summary() if isinstance(optimizer, FAM) else []:
        seen[row["handler"]].append(row)
    found = {}
    for handler, rows in seen.items():
        alphas = [row["alpha"] for row in rows]
        upper = [sum(row["bands"][len(row["bands"]) // 2 :]) for row in rows]
        found[handler] = {
            "tensors": len(rows), "nu": statistics.mean(row["nu"] for row in rows),
            "alpha": statistics.mean(alphas), "alpha_min": min(alphas), "alpha_max": max(alphas),
            "upper": statistics.mean(upper), "upper_min": min(upper), "upper_max": max(upper),
        }  # fmt: skip
    return found


class Results:
    """The finished runs, one JSON object a line."""

    def __init__(self, path: Path, steps: int, configs: list[str], version: str = __version__) -> None:
        self.grows, self.version = True, version
        self.path, self.experiment = path, {"steps": steps, "configs": configs}
        lines = path.read_text().splitlines() if path.exists() else []
        rows = [{"version": "0.1.0", **json.loads(line)} for line in lines]
        self.rows = [row for row in rows if all(row.get(key) == value for key, value in self.experiment.items())]

    def get(self, name: str, lr: float, seed: int) -> dict[str, Any] | None:
        """The run, of this version; one of the search, of any."""
        wanted = (name, lr, seed)
        rows = [row for row in self.rows if (row["optimizer"], row["lr"], row["seed"]) == wanted]
        return next((row for row in rows if row["version"] == self.version or seed == SEARCH_SEED), None)

    def add(self, row: dict[str, Any]) -> None:
        row = {**row, **self.experiment}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.rows.append(row)

    def searched(self, name: str) -> dict[float, float]:
        """Validation loss at each rate of the search; a run that broke counts as infinitely bad."""
        name = CONTENDERS[name].seconds_of or name
        rows = [row for row in self.rows if row["optimizer"] == name and row["seed"] == SEARCH_SEED]
        return {row["lr"]: row["val_loss"] if math.isfinite(row["val_loss"]) else math.inf for row in rows}

    def next_rate(self, name: str) -> float | None:
        """The rate the search has still to try, or None when the best one lies inside the grid."""
        name = CONTENDERS[name].seconds_of or name
        found = self.searched(name)
        for lr in CONTENDERS[name].rates:
            if lr not in found:
                return lr
        best = min(found, key=lambda lr: found[lr])
        if not self.grows:
            return None
        at_edge = {min(found): best / 2, max(found): best * 2}
        return at_edge.get(best) if len(found) < len(CONTENDERS[name].rates) + 3 else None

    def best_rate(self, name: str) -> float:
        found = self.searched(name)
        return min(found, key=lambda lr: found[lr])

    def constant_nu(self, name: str) -> dict[str, float]:
        """The ν of each kind that a contender is to hold: the mean over steps and tensors of another's search run."""
        other = CONTENDERS[name].nu_of
        row = self.get(other, self.best_rate(other), SEARCH_SEED) if other and self.searched(other) else None
        return {kind: round(nu, 4) for kind, nu in row["nu_mean"].items()} if row else {}

    def overhead(self, name: str) -> float | None:
        """Median of (optimizer's seconds) / (all other seconds of a step)."""
        rows = [r for r in self.rows if r["optimizer"] == name and "optimizer_seconds" in r]
        found = [r["optimizer_seconds"] / (r["cpu_seconds"] - r["optimizer_seconds"]) for r in rows]
        return statistics.median(found) if found else None

    def steps_of(self, name: str, steps: int) -> int:
        """How many steps a contender makes; those at AdamW's seconds as many in every run as in their first."""
        other = CONTENDERS[name].seconds_of
        if not other:
            return steps
        made = [row["steps_made"] for row in self.rows if row["optimizer"] == name and row["version"] == self.version]
        ours, adamw = self.overhead(other), self.overhead("torch AdamW")
        if not made and (ours is None or adamw is None):
            raise SystemExit(f"{name} needs finished runs of {other} and torch AdamW, for what a step of them costs")
        return made[0] if made else round(steps * (1 + adamw) / (1 + ours))


def differences(results: Results, name: str, control: str) -> list[float]:
    """Validation loss of one minus the other's, seed by seed."""
    pairs = []
    for seed in range(SEARCH_SEED):
        ours, theirs = (results.get(who, results.best_rate(who), seed) for who in (name, control))
        if ours and theirs:
            pairs.append(ours["val_loss"] - theirs["val_loss"])
    return pairs


def interval(values: list[float]) -> str:
    """Mean and 95 % interval of Student's t for these few values."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:+.4f}"
    half = QUANTILES[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:+.4f} [{mean - half:+.4f}, {mean + half:+.4f}]"


def white_level(name: str, kind: str) -> float:
    """The share of the upper half of the bands that white noise would have."""
    simple = CONTENDERS[name].make is SimpleFAM
    axis = "first" if simple else CONTENDERS[name].settings.get("axis", "index")
    length = HISTORY if axis == "time" else WINDOWS[axis][1]
    if axis == "time" and "rule" not in CONTENDERS[name].settings:  # "damp": the bands are the bins
        white = white_bins(length)
        return white[len(white) // 2 :].sum().item()
    n_bands = 2 if simple else max(made.n_bands for made in KINDS.values() if made.handler == kind)
    pooling = HANDLERS[kind].pooling(length // 2 + 1, n_bands)
    return (white_bins(length) @ pooling)[n_bands // 2 :].sum().item()


def tables(results: Results) -> str:
    """Markdown: losses and CPU time, and differences seed by seed to each control.

    Of the first seed also the spectra at the last step, and ν' on average over the run.
    """
    finals: dict[str, list[dict[str, Any]]] = {}
    for name in CONTENDERS:
        if results.searched(name):
            rows = [row for seed in range(SEARCH_SEED) if (row := results.get(name, results.best_rate(name), seed))]
            if rows:
                finals[name] = rows
    losses = [
        "| optimizer | rates tried | best | steps | seeds | validation loss | CPU s | of these in the optimizer |",
        "|---|---|---|---|---|---|---|---|",
    ]
    paired = ["| optimizer | control | seeds | difference seed by seed [95 %] |", "|---|---|---|---|"]
    spectra = [
        "| optimizer | kind | tensors | α' | ν' | upper half's share | white noise's |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, rows in finals.items():
        values = [row["val_loss"] for row in rows]
        spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
        cpu = statistics.mean(row["cpu_seconds"] for row in rows)
        tried = sorted(results.searched(name))
        overhead = results.overhead(name)
        inside = "" if overhead is None else f"{100 * overhead / (1 + overhead):.1f} %"
        losses.append(
            f"| {name} | {tried[0]:g} to {tried[-1]:g} | {rows[0]['lr']:g} | {rows[0].get('steps_made', 2000)} "
            f"| {len(rows)} | {statistics.mean(values):.4f}{spread} | {cpu:.0f} | {inside} |"
        )
        for control in CONTENDERS[name].controls:
            if pairs := differences(results, name, control) if control in finals else []:
                paired.append(f"| {name} | {control} | {len(pairs)} | {interval(pairs)} |")
        for kind, seen in rows[0]["spectra"].items():
            alpha, upper = (
                f"{seen[key]:.3f} ({seen[key + '_min']:.3f} to {seen[key + '_max']:.3f})" for key in ("alpha", "upper")
            )
            nu = rows[0].get("nu_mean", {}).get(kind, 1.0)
            white = white_level(name, kind)
            spectra.append(f"| {name} | {kind} | {seen['tensors']} | {alpha} | {nu:.2f} | {upper} | {white:.3f} |")
    return "\n\n".join("\n".join(lines) for lines in (losses, paired, spectra) if len(lines) > 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "runs" / "optimizer_quality.jsonl")
    parser.add_argument("--config", type=Path, nargs="*", default=[], help="laid over configs/text.yaml")
    parser.add_argument("--steps", type=int, help="instead of the experiment's own number")
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS, help="of the finals")
    parser.add_argument("--version", default=__version__, help="whose finals the tables show (0.1.0 has some, too)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no run after this long")
    parser.add_argument("--only", nargs="*", help="names of optimizers, or parts of them")
    parser.add_argument("--no-grow", action="store_true", help="choose among the first rates only")
    parser.add_argument("--search-only", action="store_true", help="choose rates, run no finals")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="print the tables of finished runs and stop")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data, model, steps = experiment([ROOT / "configs" / "text.yaml", *options.config])
    steps = options.steps or steps
    results = Results(options.results, steps, [path.name for path in options.config], options.version)
    results.grows = not options.no_grow
    only = options.only or [""]
    names = [n for n in CONTENDERS if any(part == n or (part not in CONTENDERS and part in n) for part in only)]
    begun = time.monotonic()

    def do(name: str, lr: float, seed: int) -> bool:
        """One run, unless it is finished already; False when there is no time left for it."""
        if results.get(name, lr, seed) is None:
            if time.monotonic() - begun > 60 * options.minutes:
                return False
            row = run(name, lr, seed, results.steps_of(name, steps), data, model, results.constant_nu(name))
            results.add(row)
            print(f"{name}, lr {lr:g}, seed {seed}: {row['val_loss']:.4f} ({row['cpu_seconds']:.0f} CPU s)", flush=True)
        return True

    def search(name: str) -> bool:
        while (lr := results.next_rate(name)) is not None:
            if not do(CONTENDERS[name].seconds_of or name, lr, SEARCH_SEED):
                return False
        return True

    if not options.table:
        complete = all(search(name) for name in names)
        for seed in () if options.search_only else options.seeds:
            complete = complete and all(do(name, results.best_rate(name), seed) for name in names)
        print("all runs are finished" if complete else "out of time; the same command goes on from here")
    print(tables(results))


if __name__ == "__main__":
    main()
