"""Counter-based random numbers: a pure function of integers, the same in every process and batch.

The mixer is the finaliser of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
generators", 2014), chained over the words of the counter.
"""

from __future__ import annotations

import numpy as np

_MASK = 2**64 - 1
_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def random_bits(seed: int, *words: int | np.ndarray) -> np.ndarray:
    """Hash ``seed`` and integer ``words`` (scalars or arrays that broadcast) to uint64."""
    state = _mix(np.array([seed & _MASK], dtype=np.uint64) + _GAMMA)
    for word in words:
        if isinstance(word, int):
            word = np.array([word & _MASK], dtype=np.uint64)
        state = _mix(state + (word.astype(np.uint64) + np.uint64(1)) * _GAMMA)
    return state


def uniforms(seed: int, *words: int | np.ndarray) -> np.ndarray:
    """Like :func:`random_bits`, as float64 strictly between 0 and 1."""
    return ((random_bits(seed, *words) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def permutation(size: int, seed: int, *words: int) -> np.ndarray:
    """A permutation of range(size), int64, that depends on ``seed`` and ``words`` alone."""
    return np.argsort(random_bits(seed, *words, np.arange(size)), kind="stable")
