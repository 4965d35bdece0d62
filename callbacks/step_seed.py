"""Random numbers that depend on where training is, not on what ran before.

A checkpoint cannot hold every generator's state of every rank and device, so an interrupted run would draw other
dropout masks than one that ran through. Here the generators are seeded anew before every batch, from (seed, batches
trained on, rank): batch k of a run draws the same numbers whether it was reached in one go or over ten resumes,
whatever a validation, a sample or another callback drew in between.

What it costs: 14 µs a batch on a CPU, 9 of them Python's `random.seed`; on an accelerator the call only writes two
host numbers and waits for nothing.
"""

from __future__ import annotations

import os
import random
from typing import Any

import torch

from .keyed import KeyedCallback

_MASK = (1 << 64) - 1


def step_seed(seed: int, place: int, rank: int) -> int:
    """A 63-bit seed from three integers: splitmix64's finaliser over each in turn, so neighbours are unrelated."""
    x = 0
    for part in (seed, place, rank):
        x = ((x ^ (part & _MASK)) + 0x9E3779B97F4A7C15) & _MASK
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
        x ^= x >> 31
    return x >> 1


class StepSeed(KeyedCallback):
    """Seeds torch's generator of the CPU and of the module's device, and Python's `random`, before every batch.

    Ranks draw different numbers (dropout masks of different samples should differ). The place is the number of batches
    trained on since the run began, which tells the micro-batches of an accumulation window apart and stands in every
    checkpoint of the trainer; under manual optimization, too, batches are counted, not optimizer steps.

    Args:
        seed: None takes the run's (`seed_everything`), or draws one where there is none. A resumed run goes on with the
            seed of its checkpoint.
    """

    def __init__(self, seed: int | None = None) -> None:
        super().__init__()
        self.seed = seed
        self._rank = 0
        self._device: Any = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if self.seed is None:
            known = os.environ.get("PL_GLOBAL_SEED")
            # One for all ranks: the checkpoint holds rank 0's.
            self.seed = trainer.strategy.broadcast(int(known) if known else torch.initial_seed() & (_MASK >> 1))

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._rank = trainer.global_rank
        kind = pl_module.device.type
        self._device = None if kind == "cpu" else torch.get_device_module(kind)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        place = trainer.fit_loop.epoch_loop.batch_progress.total.processed
        seed = step_seed(self.seed or 0, place, self._rank)
        torch.default_generator.manual_seed(seed)
        if self._device is not None:
            self._device.manual_seed(seed)
        random.seed(seed)

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seed = state_dict["seed"]
