import random
from collections import Counter

import pytest

from cubelet.callbacks.parameter_cycler.order import turn_of


def test_round_robin_goes_round():
    assert [turn_of(k, 3, "round_robin", seed=9) for k in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_permutation_visits_everyone_once_per_cycle_in_changing_order():
    cycles = [[turn_of(5 * c + k, 5, "permutation", seed=2) for k in range(5)] for c in range(20)]
    assert all(sorted(cycle) == [0, 1, 2, 3, 4] for cycle in cycles)
    assert len({tuple(cycle) for cycle in cycles}) > 10


def test_random_is_about_uniform():
    counts = Counter(turn_of(k, 4, "random", seed=0) for k in range(2000))
    assert sorted(counts) == [0, 1, 2, 3]
    assert max(counts.values()) - min(counts.values()) < 150


@pytest.mark.parametrize("order", ["random", "permutation"])
def test_draws_depend_on_seed_and_stream_only(order):
    def draws(seed, stream=0):
        return [turn_of(k, 6, order, seed, stream) for k in range(60)]

    random.seed(1)
    state = random.getstate()
    first = draws(3)
    assert random.getstate() == state
    random.seed(2)
    assert draws(3) == first
    assert draws(4) != first
    assert draws(3, stream=1) != first


@pytest.mark.parametrize(("size", "order"), [(0, "round_robin"), (3, "alphabetical")])
def test_bad_arguments(size, order):
    with pytest.raises(ValueError, match=r"at least 1|alphabetical"):
        turn_of(0, size, order, seed=0)
