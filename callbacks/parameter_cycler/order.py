"""Order of a cycle's turns: a pure function of (order, size, seed, turn), so that a resumed run continues it."""

from __future__ import annotations

import random
from typing import Literal

from cubelet.common.checks import check_at_least, check_choice
from cubelet.common.seeds import derive_seed

Order = Literal["round_robin", "random", "permutation"]


def turn_of(turn: int, size: int, order: Order, seed: int, stream: int = 0) -> int:
    """Return the index of the member that learns at a turn.

    Args:
        turn: number of the turn, 0, 1, 2, …
        size: number of members, at least 1.
        order: `round_robin` 0, 1, …, size−1, 0, …; `random` an independent uniform draw per turn; `permutation` every
            member once per cycle, in an order drawn anew per cycle.
        seed, stream: what the draws depend on, besides the turn (`random`) or the cycle (`permutation`); a stream per
            optimizer keeps their sequences apart.

    Raises:
        ValueError: size < 1 or an unknown order.

    Example:
        >>> [turn_of(turn, 3, "round_robin", seed=0) for turn in range(5)]
        [0, 1, 2, 0, 1]
    """
    check_choice("order", order, Order)
    check_at_least("size", size, 1, "members of the cycle")
    if order == "round_robin":
        return turn % size
    if order == "random":
        return random.Random(derive_seed(seed, stream, turn)).randrange(size)
    cycle, place = divmod(turn, size)
    members = list(range(size))
    random.Random(derive_seed(seed, stream, cycle)).shuffle(members)
    return members[place]
