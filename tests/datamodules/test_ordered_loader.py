"""Ordered loaders: the same batches every time; a training loader goes on from its place, its own or the trainer's."""

import numpy as np
import pytest
from torch.utils.data import Dataset

from cubelet.datamodules import TrainingWindows, ValidationWindows
from cubelet.datamodules.ordered_loader import OrderedLoader, ResumableOrderedLoader
from cubelet.datamodules.speech.batches import SpeechBatch, TrainingBatches, ValidationBatches

LENGTHS = np.random.default_rng(0).integers(8_000, 80_000, 60)


class Echo(Dataset):
    """Gives back what it is asked for."""

    def __getitem__(self, key):
        return key


def key(batch):
    return tuple((batch.indices if isinstance(batch, SpeechBatch) else batch).tolist())


ORDERS = {
    "text": lambda seed=0: TrainingWindows(500, 8, 3, seed=seed, batches_per_epoch=7),
    "speech": lambda seed=0: TrainingBatches(LENGTHS, 240_000, seed=seed, batches_per_epoch=7),
}


@pytest.mark.parametrize("kind", ORDERS)
@pytest.mark.parametrize("workers", [0, 1])
def test_it_goes_on_where_its_state_was_saved(kind, workers):
    whole = ResumableOrderedLoader(Echo(), ORDERS[kind]())
    expected = [key(batch) for _ in range(3) for batch in whole]
    assert len(expected) == 21
    first = ResumableOrderedLoader(Echo(), ORDERS[kind]())
    batches = iter(first)
    seen = [key(next(batches)) for _ in range(4)]
    again = ResumableOrderedLoader(Echo(), ORDERS[kind](), num_workers=workers)
    again.load_state_dict(first.state_dict())
    seen += [key(batch) for _ in range(2) for batch in again]
    assert seen == expected[:14]


@pytest.mark.parametrize("kind", ORDERS)
def test_under_a_trainer_its_count_is_the_place(kind):
    count = [0]
    loader = ResumableOrderedLoader(Echo(), ORDERS[kind](), trained=lambda: count[0])
    expected = [key(batch) for batch in loader]
    count[0] = 3
    batches = iter(loader)
    assert [key(next(batches)) for _ in range(4)] == expected[3:]
    assert loader.state_dict()["batches"] == 3


@pytest.mark.parametrize("kind", ORDERS)
def test_another_order_is_told_and_says_what_changed(kind):
    state = ResumableOrderedLoader(Echo(), ORDERS[kind](0)).state_dict()
    with pytest.warns(UserWarning, match=r"order of the training data changed since the checkpoint \(seed 0 → 1\)"):
        ResumableOrderedLoader(Echo(), ORDERS[kind](1)).load_state_dict(state)


@pytest.mark.parametrize("order", [ValidationWindows(100, 8, 4), ValidationBatches(LENGTHS, 240_000)])
def test_a_fixed_order_is_the_same_every_time(order):
    loader = OrderedLoader(Echo(), order)
    assert [key(b) for b in loader] == [key(b) for b in loader]
    assert len([key(b) for b in loader]) == len(loader)
