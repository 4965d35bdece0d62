"""Order of windows: against Python integers, as a bijection, as coverage, and over ranks."""

import numpy as np
import pytest

from cubelet.common.seeds import derive_key
from cubelet.datamodules.sampler import (
    TrainingWindows,
    ValidationWindows,
    permute,
    training_offsets,
    windows_per_pass,
)
from tests.reference.data import slow_key, slow_offset, slow_permute


@pytest.mark.parametrize("size", [1, 2, 3, 7, 16, 17, 1000, 15_692])
def test_permute_is_the_reference_and_a_bijection(size):
    key = derive_key(3, size)
    assert key == slow_key(3, size)
    got = permute(np.arange(size), size, key)
    assert sorted(got.tolist()) == list(range(size))
    for i in range(0, size, max(1, size // 50)):
        assert got[i] == slow_permute(i, size, key)


def test_permute_needs_no_table_and_reaches_far():
    size = 10**15 + 37
    index = np.array([0, 1, 12_345_678_901, size - 1])
    assert permute(index, size, 9).tolist() == [slow_permute(int(i), size, 9) for i in index]


def test_permutations_look_random():
    size, keys = 64, 512
    orders = np.stack([permute(np.arange(size), size, derive_key(0, key)) for key in range(keys)])
    # Each place holds each value about keys / size = 8 times: chi-squared with 63·63 degrees of freedom.
    counts = np.stack([np.bincount(orders[:, place], minlength=size) for place in range(size)])
    freedom = (size - 1) ** 2
    assert abs(((counts - 8) ** 2 / 8).sum() - freedom) < 5 * np.sqrt(2 * freedom)
    neighbours = (np.diff(orders, axis=1) == 1).mean()
    assert abs(neighbours - 1 / size) < 5 * np.sqrt(1 / size / (keys * size))


@pytest.mark.parametrize(("length", "context_length"), [(17, 16), (33, 16), (100, 7), (1003, 10), (10_000, 64)])
def test_offsets_are_the_reference(length, context_length):
    index = np.arange(0, 3 * windows_per_pass(length, context_length), 2)
    got = training_offsets(5, 2, index, length, context_length)
    assert got.tolist() == [slow_offset(5, 2, int(i), length, context_length) for i in index]
    assert got.min() >= 0
    assert got.max() + context_length < length


def test_a_pass_visits_no_target_twice_and_almost_all():
    length, context_length = 1003, 10
    starts = set()
    for epoch in range(6):
        offsets = training_offsets(
            0, epoch, np.arange(windows_per_pass(length, context_length)), length, context_length
        )
        targets = (offsets[:, None] + np.arange(1, context_length + 1)).ravel()
        assert len(set(targets.tolist())) == len(targets)
        assert len(targets) > length - 2 * context_length - 1
        starts.add(offsets.min())
    assert len(starts) > 1  # the cut moves, so windows differ between epochs


def test_every_offset_is_eventually_drawn():
    seen = {int(o) for e in range(400) for o in training_offsets(1, e, np.arange(9), 101, 10)}
    assert seen == set(range(91))


def test_seed_epoch_and_index_all_matter():
    base = training_offsets(0, 0, np.arange(50), 5000, 8)
    assert not np.array_equal(base, training_offsets(1, 0, np.arange(50), 5000, 8))
    assert not np.array_equal(base, training_offsets(0, 1, np.arange(50), 5000, 8))
    assert np.array_equal(base[[7, 3]], training_offsets(0, 0, np.array([7, 3]), 5000, 8))


def test_global_random_state_is_neither_used_nor_moved():
    import torch

    torch.manual_seed(1), np.random.seed(1)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = list(TrainingWindows(500, 8, 4, seed=3))
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002
    torch.manual_seed(2)
    assert np.array_equal(first, list(TrainingWindows(500, 8, 4, seed=3)))


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_together_see_what_one_process_sees(world_size):
    rows = 4
    alone = list(TrainingWindows(2000, 8, rows * world_size, seed=1))
    ranks = [list(TrainingWindows(2000, 8, rows, seed=1, rank=r, world_size=world_size)) for r in range(world_size)]
    together = [np.concatenate(batch) for batch in zip(*ranks, strict=True)]
    assert np.array_equal(alone, together)


def test_the_stream_goes_on_over_epochs_wherever_it_is_entered():
    order = TrainingWindows(300, 8, 5, seed=2)  # 7 batches an epoch
    assert len(order) == 7
    order.span = range(21)
    whole = np.stack(list(order))
    for epoch in range(3):
        index = np.arange(7 * 5)
        assert np.array_equal(whole[epoch * 7 : epoch * 7 + 7].ravel(), training_offsets(2, epoch, index, 300, 8))
    order.span = range(9, 16)
    assert np.array_equal(list(order), whole[9:16])


def test_long_spans_agree_with_single_batches():
    order = TrainingWindows(50_000, 2, 3, seed=0)
    order.span = range(1300, 4200)  # crosses the blocks in which offsets are drawn
    drawn = np.stack(list(order))
    for place in (1300, 2664, 2665, 2666, 4199):
        assert np.array_equal(drawn[place - 1300], order.offsets(np.array([place]))[0])


def test_more_batches_than_a_pass_run_on_and_fewer_are_kept():
    order = TrainingWindows(81, 8, 4, seed=0, batches_per_epoch=9)  # a pass is 9 windows, the epoch 36
    offsets = np.concatenate(list(order))
    assert len(offsets) == 36
    for start in range(0, 36, 9):
        assert len(set(offsets[start : start + 9].tolist())) == 9
    assert len(list(TrainingWindows(2000, 8, 4, seed=0, batches_per_epoch=2))) == 2


def test_repeat_starts_over():
    order = TrainingWindows(2000, 8, 4, seed=0)
    order.repeat, order.span = 2, range(6)
    a, b, *rest = list(order)
    assert np.array_equal(np.stack(rest), np.stack([a, b, a, b]))
    assert not np.array_equal(a, b)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize(
    ("length", "context_length", "rows"), [(2, 8, 4), (9, 8, 4), (10, 8, 4), (100, 8, 3), (97, 8, 50)]
)
def test_validation_meets_every_target_once(length, context_length, rows, world_size):
    seen, sizes = [], set()
    for rank in range(world_size):
        order = ValidationWindows(length, context_length, rows, rank=rank, world_size=world_size)
        batches = list(order)
        sizes.add((len(batches), len(order), *(len(batch) for batch in batches)))
        places = [o + 1 + i for batch in batches for o in batch for i in range(context_length)]
        seen += [int(place) for place in places if place < length]
    assert sorted(seen) == list(range(1, length))
    assert len(sizes) == 1  # the same number of batches of the same size on every rank


def test_validation_batches_are_no_larger_than_the_text():
    assert ValidationWindows(97, 8, 50).batch_size == 12
    assert ValidationWindows(97, 8, 50, world_size=5).batch_size == 3
    assert ValidationWindows(97, 8, 5).batch_size == 5


def test_validation_leaves_no_rank_much_emptier():
    real = []
    for rank in range(2):
        order = ValidationWindows(8 * 10 + 1, 8, 4, rank=rank, world_size=2)  # 10 windows in 2 global batches of 8
        real.append([int((batch < 80).sum()) for batch in order])
    assert real == [[4, 1], [4, 1]]


def test_too_short_a_text_is_refused_with_the_numbers():
    with pytest.raises(ValueError, match=r"training text has 16 tokens.*needs 17.*context_length 16"):
        TrainingWindows(16, 16, 2, seed=0)
    assert len(list(TrainingWindows(17, 16, 2, seed=0))) == 1
    with pytest.raises(ValueError, match="validation text has 1 tokens"):
        ValidationWindows(1, 16, 2)
