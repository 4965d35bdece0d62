"""Random numbers are a function of (seed, batches trained, rank) and of nothing else."""

import itertools
import random

import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel

from cubelet.callbacks import StepSeed
from cubelet.common.seeds import derive_seed
from cubelet.models.decoder import Decoder
from cubelet.models.rotary import RoPE
from tests.reference.callbacks import train


class Draws(BoringModel):
    """Notes what is drawn in each batch, after whatever else was drawn before."""

    def __init__(self, waste: int = 0) -> None:
        super().__init__()
        self.waste, self.drawn = waste, []

    def training_step(self, batch, batch_idx):
        self.drawn.append((torch.rand(()).item(), random.random()))
        torch.rand(self.waste)
        return super().training_step(batch, batch_idx)


class Positions(Draws):
    """Notes the positions that a decoder in training draws for its tokens."""

    def __init__(self, waste: int = 0) -> None:
        super().__init__(waste)
        self.decoder = Decoder(30, 16, 1, 2, rotary=RoPE, position_range=512)
        self.decoder.blocks[0].register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, block, args, kwargs):
        self.drawn.append(tuple(kwargs["positions"].tolist()))

    def training_step(self, batch, batch_idx):
        loss = self.decoder(torch.arange(9)[None]).square().mean()
        torch.rand(self.waste)
        return {"loss": loss + super(Draws, self).training_step(batch, batch_idx)["loss"]}


def test_random_positions_of_a_decoder_are_those_of_the_step():
    seen = []
    for waste in (0, 7):
        module = Positions(waste)
        train(module, [StepSeed(3)], 4)
        seen.append(module.drawn)
    assert seen[0] == seen[1]
    assert len(set(seen[0])) == 4
    assert all(list(row) == sorted(set(row)) and row[-1] < 512 for row in seen[0])


def drawn(seed=None, waste=0, **settings):
    module = Draws(waste)
    train(module, [StepSeed(seed)], 4, **settings)
    return module.drawn


def test_the_numbers_of_a_batch_do_not_depend_on_what_was_drawn_before():
    assert drawn(3) == drawn(3, waste=7)
    assert drawn(3) != drawn(4)
    first = drawn(3)
    assert len({number for pair in first for number in pair}) == 8


def test_micro_batches_of_a_window_draw_different_numbers():
    numbers = drawn(3, accumulate_grad_batches=2)
    assert len(numbers) == len(set(numbers)) == 8
    assert numbers[:4] == drawn(3)


def test_the_runs_seed_is_taken_and_a_checkpoints_wins(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "11")
    assert drawn() == drawn(11)
    callback = StepSeed(5)
    callback.load_state_dict(StepSeed(6).state_dict())
    assert callback.seed == 6


@pytest.mark.parametrize("part", range(3))
def test_seeds_of_neighbours_are_unrelated(part):
    seeds = []
    for value in range(2000):
        parts = [1, 2, 3]
        parts[part] = value
        seeds.append(derive_seed(*parts))
    assert len(set(seeds)) == 2000
    assert max(seeds) < 2**63
    # a fair coin in every bit: 2000 flips stay within five standard deviations of the half
    for bit in range(63):
        ones = sum(seed >> bit & 1 for seed in seeds)
        assert abs(ones - 1000) < 5 * 22.4
    flips = [(a ^ b).bit_count() for a, b in itertools.pairwise(seeds)]
    assert 30 < sum(flips) / len(flips) < 33
