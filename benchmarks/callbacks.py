"""What the callbacks cost: the default experiment's size with and without them, and the time inside each hook.

    python benchmarks/callbacks.py [--steps 100] [--rounds 6] [--threads 2]

Every round trains twice for `steps` steps on the same random tokens, once without and once with all callbacks at
their default intervals (loggers on in both, order swapped from round to round), and takes CPU time per step of the
process, so that other work on the machine weighs little. The second table is exact where the first is noisy: wall
time inside each callback's hooks, measured by wrapping them, per step.
"""

import argparse
import functools
import logging
import statistics
import tempfile
import time
import warnings
from collections import defaultdict
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch.utils.data import DataLoader, Dataset

from cubelet.callbacks import DynamicBase, FAMMonitor, NonFiniteGuard, ParameterCycler, RotationMonitor
from cubelet.lightning_modules import LanguageModel
from cubelet.models.rotary import CombinedRotary
from cubelet.optimizers import FAM

BATCH, CONTEXT, VOCABULARY = 12, 64, 65
HOOKS = ("on_train_batch_start", "on_before_backward", "on_before_optimizer_step", "on_train_batch_end")


class Tokens(Dataset):
    def __init__(self, length: int) -> None:
        self.rows = torch.randint(VOCABULARY, (length, CONTEXT + 1), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {"tokens": self.rows[i, :-1], "targets": self.rows[i, 1:]}


def all_callbacks() -> list[pl.Callback]:
    return [
        ParameterCycler("thetas"), DynamicBase(), FAMMonitor(), RotationMonitor(), NonFiniteGuard(),
    ]  # fmt: skip


class Clock(pl.Callback):
    """CPU and wall seconds of the steps after the first ones."""

    def __init__(self, skip: int) -> None:
        self.skip = skip

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.skip:
            self.cpu, self.wall = time.process_time(), time.perf_counter()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        steps = trainer.global_step - self.skip
        self.cpu, self.wall = (time.process_time() - self.cpu) / steps, (time.perf_counter() - self.wall) / steps


def train(callbacks: list[pl.Callback], steps: int, skip: int) -> Clock:
    """Train from the same start; CPU and wall seconds per step."""
    torch.manual_seed(0)
    module = LanguageModel(
        VOCABULARY, dims=128, layers=4, heads=4, rotary=CombinedRotary, optimizer=functools.partial(FAM, lr=0.01)
    )
    clock = Clock(skip)
    with tempfile.TemporaryDirectory() as folder:
        loggers = [TensorBoardLogger(folder, name="", version=""), CSVLogger(folder, name="", version="")]
        trainer = pl.Trainer(
            max_steps=steps + skip, accelerator="cpu", logger=loggers, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=20, callbacks=[clock, *callbacks],
        )  # fmt: skip
        trainer.fit(module, DataLoader(Tokens(BATCH * (steps + skip)), batch_size=BATCH))
    return clock


def timed(callback: pl.Callback, spent: dict[str, float], skip: int) -> pl.Callback:
    """Add the wall time inside the callback's hooks, after the first steps, to `spent` under its name."""

    def wrap(hook: Any) -> Any:
        def run(trainer: Any, *arguments: Any) -> None:
            start = time.perf_counter()
            hook(trainer, *arguments)
            if trainer.global_step > skip:
                spent[type(callback).__name__] += time.perf_counter() - start

        return run

    for name in HOOKS:
        if name in vars(type(callback)) or any(name in vars(kind) for kind in type(callback).__mro__[1:-2]):
            setattr(callback, name, wrap(getattr(callback, name)))
    return callback


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    log = logging.getLogger("callbacks")
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    log.setLevel(logging.INFO)

    skip = 10
    without, with_all = [], []
    for i in range(arguments.rounds):
        pair = {False: without, True: with_all}
        for attached in (False, True) if i % 2 == 0 else (True, False):
            pair[attached].append(train(all_callbacks() if attached else [], arguments.steps, skip))
    plain, loaded = (min(clock.cpu for clock in clocks) for clocks in (without, with_all))
    ratios = [b.cpu / a.cpu for a, b in zip(without, with_all, strict=True)]
    log.info("CPU ms a step, best of %d rounds: %.2f without, %.2f with", arguments.rounds, plain * 1e3, loaded * 1e3)
    log.info("ratio of bests %.4f, median of the pairs %.4f", loaded / plain, statistics.median(ratios))

    spent: dict[str, float] = defaultdict(float)
    clock = train([timed(callback, spent, skip) for callback in all_callbacks()], 3 * arguments.steps, skip)
    log.info("\n%-20s %12s %12s", "inside the hooks", "µs a step", "% of a step")
    for name, seconds in [*sorted(spent.items(), key=lambda item: -item[1]), ("together", sum(spent.values()))]:
        per_step = seconds / (3 * arguments.steps)
        log.info("%-20s %12.1f %12.2f", name, per_step * 1e6, 100 * per_step / clock.wall)


if __name__ == "__main__":
    main()
