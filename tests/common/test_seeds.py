import numpy as np
import pytest

from cubelet.common.seeds import derive_key, derive_seed, hash_uint64


def splitmix64(state: int) -> int:
    """The first output of the published generator from a state."""
    z = (state + 0x9E3779B97F4A7C15) % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return z ^ (z >> 31)


def test_the_hash_is_the_published_generator():
    assert splitmix64(0) == 0xE220A8397B1DCDAF  # the value its authors give for seed 0
    values = np.arange(5, dtype=np.uint64)
    assert hash_uint64(values, 7).tolist() == [splitmix64(v ^ 7) for v in range(5)]
    assert derive_key(3) == splitmix64(3)
    assert derive_key(3, 4) == splitmix64(splitmix64(3) ^ 4)


def test_arrays_and_single_numbers_agree():
    assert hash_uint64(np.array([5], dtype=np.uint64), derive_key(1, 2))[0] == derive_key(1, 2, 5)


def test_seeds_fit_a_generator_and_tell_places_apart():
    places = [(0, 0, 1), (0, 1, 0), (1, 0, 0), (0, "a"), (0, "b"), (0,), (0, 0), (-1, 0)]
    seeds = [derive_seed(*place) for place in places]
    assert len(set(seeds)) == len(places)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seeds == [derive_seed(*place) for place in places]


@pytest.mark.parametrize("bit", [0, 31, 62])
def test_neighbouring_places_are_unrelated(bit):
    ones = sum(derive_seed(0, step) >> bit & 1 for step in range(1000))
    assert 420 < ones < 580  # five standard deviations
    changes = sum((derive_seed(0, step) ^ derive_seed(0, step + 1)) >> bit & 1 for step in range(1000))
    assert 420 < changes < 580
