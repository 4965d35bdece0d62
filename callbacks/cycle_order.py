"""Whose turn it is: a pure function of (order, size, seed, turn), so that a resumed run continues the same sequence."""

from __future__ import annotations

import random
from typing import Literal, get_args

Order = Literal["round_robin", "random", "permutation"]


def turn_of(turn: int, size: int, order: Order, seed: int, stream: int = 0) -> int:
    """Index of the member that learns at a turn.

    Args:
        turn: number of the turn, 0, 1, 2, …
        size: number of members, at least 1.
        order: `round_robin` 0, 1, …, size−1, 0, …; `random` an independent uniform draw per turn; `permutation` every
            member once per cycle, in an order drawn anew per cycle.
        seed, stream: what the draws depend on, besides the turn (`random`) or the cycle (`permutation`); a stream per
            optimizer keeps their sequences apart.

    Raises:
        ValueError: size < 1 or an unknown order.
    """
    if size < 1:
        raise ValueError(f"a cycle needs at least one member, got {size}")
    if order == "round_robin":
        return turn % size
    if order == "random":
        return _generator(seed, stream, turn).randrange(size)
    if order == "permutation":
        cycle, place = divmod(turn, size)
        members = list(range(size))
        _generator(seed, stream, cycle).shuffle(members)
        return members[place]
    raise ValueError(f"order {order!r} is unknown; choose one of {', '.join(get_args(Order))}")


def _generator(*key: int) -> random.Random:
    # A string seed is hashed (SHA-512), so neighbouring turns are unrelated; the global generator is never touched.
    return random.Random(":".join(map(str, key)))
