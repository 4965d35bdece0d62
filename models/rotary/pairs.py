"""Which planes the Givens rotations turn: random perfect matchings, adjacent pairs, and sorting pairs into levels."""

from collections.abc import Iterable

import torch
from torch import Tensor


def random_pairs(count: int, number: int, seed: int) -> Tensor:
    """`number` distinct unordered pairs of `count` (even) coordinates, as successive random perfect matchings.

    A round-robin tournament of `count` players has count − 1 rounds that are perfect matchings and share no pair; names
    and rounds are shuffled by `seed`, so that each matching is uniformly random.

    Returns: (number, 2) int64 on the CPU, i < j.
    """
    generator = torch.Generator().manual_seed(seed)
    names = torch.randperm(count, generator=generator)
    rounds = torch.randperm(count - 1, generator=generator).unsqueeze(1)
    # Circle method: player count−1 stays, the others sit on a circle of count−1 seats and meet across an axis.
    offset = torch.arange(count // 2)
    first = torch.where(offset == 0, count - 1, (rounds + offset) % (count - 1))
    second = (rounds - offset) % (count - 1)
    pairs = names[torch.stack((first, second), dim=-1)].flatten(0, 1)
    return pairs.sort(dim=-1).values[:number].contiguous()


def adjacent_pairs(count: int, number: int) -> Tensor:
    """(0,1), (2,3), … and then (1,2), (3,4), …, (0,count−1): at most `count` distinct pairs; (number, 2) int64."""
    i = torch.cat((torch.arange(0, count, 2), torch.arange(1, count, 2)))
    return torch.stack((i, (i + 1) % count), dim=-1).sort(dim=-1).values[:number].contiguous()


def check_pairs(pairs: object, count: int) -> list[tuple[int, int]]:
    """The pairs as a list; ValueError where one is not two different coordinates in 0…count−1, or occurs twice."""
    listed = [tuple(int(n) for n in pair) for pair in pairs] if isinstance(pairs, Iterable) else None
    if listed is None or any(len(pair) != 2 for pair in listed):
        raise ValueError(f"pairs must be a list of (i, j), got {pairs!r}")
    seen: set[frozenset[int]] = set()
    for i, j in listed:
        if i == j or not (0 <= i < count and 0 <= j < count):
            raise ValueError(f"pair ({i}, {j}) is not two different coordinates of 0…{count - 1}")
        if frozenset((i, j)) in seen:
            raise ValueError(f"pair ({i}, {j}) occurs twice; pairs must be distinct")
        seen.add(frozenset((i, j)))
    return [(pair[0], pair[1]) for pair in listed]


def levels_of(pairs: list[tuple[int, int]]) -> list[int]:
    """The earliest level of each pair such that a level's pairs are disjoint and overlapping pairs keep their order."""
    free: dict[int, int] = {}
    levels = []
    for i, j in pairs:
        level = max(free.get(i, 0), free.get(j, 0))
        free[i] = free[j] = level + 1
        levels.append(level)
    return levels
