"""Random numbers that are a pure function of (seed, place): the same on every rank, in every process, after a resume.

- `derive_seed` is for a generator's seed; `hash_uint64` for arrays of numbers at once.
- The function is splitmix64's finaliser (Steele, Lea and Flood 2014, https://doi.org/10.1145/2660193.2660195) over each
  part in turn, so neighbouring places are unrelated. Strings go through SHA-256 first.
"""

import hashlib

import numpy as np

MASK = (1 << 64) - 1


def hash_uint64(x: np.ndarray, key: int) -> np.ndarray:
    """Hash uint64 values under a key, element by element; shape is kept."""
    x = (x ^ np.uint64(key & MASK)) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def derive_key(*parts: int | str) -> int:
    """Return a 64-bit key of integers and strings, order included.

    Example:
        >>> derive_key(0, "dropout", 7) == derive_key(0, "dropout", 7) != derive_key(0, 7, "dropout")
        True
    """
    key = 0
    for part in parts:
        if isinstance(part, str):
            part = int.from_bytes(hashlib.sha256(part.encode()).digest()[:8], "little")
        # The same arithmetic as `hash_uint64`, on Python's integers: a hundred times cheaper for a single number.
        key = ((key ^ (part & MASK)) + 0x9E3779B97F4A7C15) & MASK
        key = ((key ^ (key >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        key = ((key ^ (key >> 27)) * 0x94D049BB133111EB) & MASK
        key ^= key >> 31
    return key


def derive_seed(seed: int, *place: int | str) -> int:
    """Return a 63-bit seed for a generator, from a run's seed and a place (step, rank, a parameter's name, …)."""
    return derive_key(seed, *place) >> 1
