"""Pairs of coordinates: distinct, never equal, matchings, and levels that keep the order of overlapping rotations."""

import pytest
import torch

from cubelet.models.rotary.pairs import adjacent_pairs, check_pairs, levels_of, random_pairs


@pytest.mark.parametrize("count", [2, 4, 6, 8, 32])
def test_random_pairs_are_distinct_and_come_as_perfect_matchings(count):
    every = count * (count - 1) // 2
    pairs = random_pairs(count, every, seed=3)
    assert pairs.shape == (every, 2)
    assert (pairs[:, 0] < pairs[:, 1]).all()
    assert len({tuple(p) for p in pairs.tolist()}) == every
    for matching in pairs.view(count - 1, count // 2, 2):
        assert sorted(matching.flatten().tolist()) == list(range(count))


def test_random_pairs_follow_the_seed_and_are_spread_evenly():
    assert torch.equal(random_pairs(16, 8, seed=5), random_pairs(16, 8, seed=5))
    assert not torch.equal(random_pairs(16, 8, seed=5), random_pairs(16, 8, seed=6))
    seen = torch.zeros(6, 6)
    for seed in range(3000):
        for i, j in random_pairs(6, 3, seed).tolist():
            seen[i, j] += 1
    counts = seen[torch.triu(torch.ones(6, 6), 1).bool()]  # 15 pairs, each in 1/5 of the matchings: 600 ± 22
    assert counts.min() > 500
    assert counts.max() < 700


def test_adjacent_pairs_by_hand():
    assert adjacent_pairs(6, 6).tolist() == [[0, 1], [2, 3], [4, 5], [1, 2], [3, 4], [0, 5]]


def test_levels_by_hand():
    assert levels_of([(0, 1), (2, 3), (1, 2), (0, 4), (4, 5)]) == [0, 0, 1, 1, 2]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([(1, 1)], r"pair \(1, 1\) is not two different"),
        ([(0, 8)], r"pair \(0, 8\) is not two different coordinates of 0…7"),
        ([(0, 1), (1, 0)], r"pair \(1, 0\) occurs twice"),
        ([(0, 1, 2)], "list of"),
        (3, "list of"),
    ],
)
def test_bad_pairs(pairs, message):
    with pytest.raises(ValueError, match=message):
        check_pairs(pairs, 8)
