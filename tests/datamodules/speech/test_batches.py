"""The order of speech: bounded padding, every utterance once, the same from (seed, epoch, rank, index) alone."""

import numpy as np
import pytest

from cubelet.datamodules.speech.batches import TrainingBatches, ValidationBatches, cut_batches

LENGTHS = np.random.default_rng(0).integers(8_000, 80_000, 700)
BOUND = 480_000


def padded(indices):
    return len(indices) * int(LENGTHS[indices].max())


def epoch(order, number):
    return [order.batch(place) for place in range(number * len(order), (number + 1) * len(order))]


@pytest.mark.parametrize("number", [0, 1, 5])
def test_an_epoch_has_every_utterance_at_most_once_and_little_padding(number):
    batches = epoch(TrainingBatches(LENGTHS, BOUND, seed=1), number)
    seen = np.concatenate(batches)
    assert len(set(seen)) >= 0.97 * len(LENGTHS)  # an epoch's cut may have a batch more or less than there are places
    assert len(set(seen)) == len(seen) or len(seen) <= 1.03 * len(LENGTHS)
    assert max(map(padded, batches)) <= BOUND
    assert sum(LENGTHS[b].sum() for b in batches) >= 0.9 * sum(map(padded, batches))


def test_epochs_differ_in_order_and_in_company():
    order = TrainingBatches(LENGTHS, BOUND, seed=1)
    first, second = ({frozenset(b.tolist()) for b in epoch(order, n)} for n in (0, 1))
    assert len(first & second) < 0.1 * len(first)
    lengths = [LENGTHS[b].max() for b in epoch(order, 1)]
    assert abs(np.corrcoef(lengths, np.arange(len(lengths)))[0, 1]) < 0.4


def test_any_place_is_found_without_the_ones_before():
    whole = TrainingBatches(LENGTHS, BOUND, seed=1)
    places = range(3 * len(whole))
    expected = [whole.batch(place) for place in places]
    for place in reversed(places):
        np.testing.assert_array_equal(TrainingBatches(LENGTHS, BOUND, seed=1).batch(place), expected[place])
        if place % 17 == 0:
            break


def test_the_largest_batch_comes_first():
    batches = epoch(TrainingBatches(LENGTHS, BOUND, seed=4), 0)
    assert padded(batches[0]) == max(map(padded, batches))


def test_ranks_share_the_utterances_and_get_equal_lengths():
    ranks = [TrainingBatches(LENGTHS, BOUND, seed=1, rank=r, world_size=3) for r in range(3)]
    assert len({len(order) for order in ranks}) == 1
    steps = list(zip(*(epoch(order, 2) for order in ranks), strict=True))
    everything = np.concatenate([b for step in steps for b in step])
    dropped = len(LENGTHS) - len(set(everything))  # at most two steps' worth: what fills none, and the cut's variation
    assert dropped <= 2 * max(sum(len(b) for b in step) for step in steps)
    for step in steps:
        longest = [LENGTHS[b].max() for b in step]
        assert max(longest) <= 1.5 * min(longest)
        assert len({tuple(b) for b in step}) == 3


@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_validation_measures_every_utterance_once(world_size):
    ranks = [list(ValidationBatches(LENGTHS, BOUND, rank=r, world_size=world_size)) for r in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    measured = np.concatenate([b.indices for batches in ranks for b in batches if not b.repeated])
    assert sorted(measured) == list(range(len(LENGTHS)))


def test_an_utterance_beyond_the_bound_is_a_batch_of_its_own():
    lengths = np.array([900, 100, 100])
    assert [b.tolist() for b in cut_batches(lengths, np.array([0, 1, 2]), 500)] == [[0], [1, 2]]


def test_fewer_utterances_than_ranks_still_give_every_rank_a_batch():
    ranks = [TrainingBatches(np.array([500, 400]), 500, seed=0, rank=r, world_size=4) for r in range(4)]
    assert all(len(order.batch(0)) == 1 for order in ranks)
