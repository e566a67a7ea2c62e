"""Random streams: one independent generator for each (purpose, iteration, task).

There is no global generator anywhere. A stream is addressed, not drawn in order, so a result does not depend on how
many workers ran it, and a resumed run needs no generator state: the counters are the state.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterable, Sequence
from typing import Any, overload

import numpy as np
from numpy.random.bit_generator import ISpawnableSeedSequence

POOL = 4
"""Words of entropy, at least, before those that tell streams of one seed apart."""
_HASH = np.array([0x8B51F9DD * 0x58F38DED**k % 2**32 for k in range(2 * POOL + 1)], dtype=np.uint32)
"""The constants with which NumPy's SeedSequence hashes its pool, word by word."""
_MIX = np.array([0xCA01F9DD, 0x4973F715], dtype=np.uint32)
"""Those by which it mixes a word into its pool."""


def seed_sequence(seed: int, purpose: str, *address: int) -> np.random.SeedSequence:
    """Return the seed sequence of a stream.

    :param seed: the run's seed, a non-negative integer.
    :param purpose: what the numbers are for, for instance ``"tasks"`` or ``"support"``.
    :param address: the non-negative integers that tell streams of one purpose apart, for instance
        ``(iteration, task, inner_step)``.
    """
    return np.random.SeedSequence(_entropy(seed, purpose, *address))


def stream(seed: int, purpose: str, *address: int) -> np.random.Generator:
    """Return the generator of a stream; the parameters are those of :func:`seed_sequence`."""
    return np.random.Generator(np.random.PCG64(seed_sequence(seed, purpose, *address)))


class TaskSeeds(Sequence[np.random.SeedSequence]):
    """The seed sequences of several tasks, addressed ``(iteration, task, *address)``: each is made when it is asked
    for, because most updates draw nothing.

    :param tasks: their places in the meta-batch.
    """

    def __init__(self, seed: int, purpose: str, iteration: int, tasks: Sequence[int], *address: int) -> None:
        before, after = _entropy(seed, purpose, iteration), _words(address)
        self._shared = len(before)
        self._rows = np.empty((len(tasks), len(before) + 1 + len(after)), dtype=np.uint32)
        self._rows[:, : len(before)] = before
        self._rows[:, len(before)] = tasks
        self._rows[:, len(before) + 1 :] = after

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> np.random.SeedSequence: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.random.SeedSequence]: ...
    def __getitem__(self, index: int | slice) -> np.random.SeedSequence | list[np.random.SeedSequence]:
        found = self._rows[index]
        return np.random.SeedSequence(found) if found.ndim == 1 else [np.random.SeedSequence(row) for row in found]

    def generators(self, *key: int) -> list[np.random.Generator]:
        """Return the generators of a part of each stream; see :func:`generators`."""
        rows = np.empty((len(self._rows), self._rows.shape[1] + len(key)), dtype=np.uint32)
        rows[:, : self._rows.shape[1]] = self._rows
        rows[:, self._rows.shape[1] :] = key
        if not len(rows):
            return []
        # What tasks share is hashed once.
        states = _states(_mixed(np.random.SeedSequence(rows[0, : self._shared]).pool, rows, self._shared))
        seeds: list[Any] = [_Seed(*each) for each in zip(rows, states, strict=True)]
        return [np.random.Generator(np.random.PCG64(seed)) for seed in seeds]


def task_streams(seed: int, purpose: str, iteration: int, n_tasks: int, *address: int) -> list[np.random.Generator]:
    """Return one generator for each task of a meta-batch, addressed ``(iteration, task, *address)``."""
    return TaskSeeds(seed, purpose, iteration, range(n_tasks), *address).generators()


class _Seed(ISpawnableSeedSequence):
    """A seed sequence that knows what PCG64 asks it for: NumPy takes two thirds of a generator's time to compute it.

    :param entropy: the words of the seed sequence that it stands for.
    :param known: what that generates for PCG64.
    """

    def __init__(self, entropy: np.ndarray, known: np.ndarray) -> None:
        self._entropy, self._known = entropy, known

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> Any:
        return self._known if (n_words, dtype) == (POOL, np.uint64) else self._numpys.generate_state(n_words, dtype)

    def spawn(self, n_children: int) -> Any:
        return self._numpys.spawn(n_children)

    @functools.cached_property
    def _numpys(self) -> np.random.SeedSequence:
        """The seed sequence itself, which counts its children."""
        return np.random.SeedSequence(self._entropy)


def _mixed(pool: np.ndarray, rows: np.ndarray, start: int) -> np.ndarray:
    """Return the pools of several seed sequences, ``[sequence, word]``, as NumPy computes that of each.

    :param pool: that of the words before ``start``, at least :data:`POOL` of them, which all have.
    :param rows: their words, ``[sequence, word]``.
    """
    pools = np.empty((len(rows), POOL), dtype=np.uint32)
    pools[:] = pool
    for place in range(start, rows.shape[1]):
        constants = _mixing(place)
        words = rows[:, place, None] ^ constants[:-1]
        words *= constants[1:]
        words ^= words >> 16
        pools *= _MIX[0]
        pools -= _MIX[1] * words
        pools ^= pools >> 16
    return pools


@functools.cache
def _mixing(place: int) -> np.ndarray:
    """Return the constants with which NumPy's SeedSequence hashes the word in a place behind its pool."""
    first = POOL * place
    return np.array([0x43B0D7E5 * 0x931E8875**k % 2**32 for k in range(first, first + POOL + 1)], dtype=np.uint32)


def _states(pools: np.ndarray) -> np.ndarray:
    """Return ``generate_state(4, np.uint64)`` of several seed sequences, as NumPy computes it for each.

    :param pools: theirs, ``[sequence, word]``.
    """
    words = np.tile(pools, 2) ^ _HASH[:-1]
    words *= _HASH[1:]
    words ^= words >> 16
    return words.astype("<u4").view("<u8").astype(np.uint64)


def generators(seeds: Sequence[np.random.SeedSequence], *key: int) -> list[np.random.Generator]:
    """Return one generator for each stream, of the part that is addressed by ``key`` below it.

    :param key: non-negative integers below 2³², as the last of NumPy's ``spawn_key``.
    """
    if isinstance(seeds, TaskSeeds):
        return seeds.generators(*key)
    own = (np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, *key)) for seed in seeds)
    return [np.random.Generator(np.random.PCG64(seed)) for seed in own]


def _entropy(seed: int, purpose: str, *address: int) -> np.ndarray:
    """Return the words that NumPy hashes for ``SeedSequence(seed, spawn_key=(purpose, *address))``.

    They are laid out here, because NumPy takes four times as long.
    """
    words = _words((seed,))
    words += [0] * (POOL - len(words))
    return np.array(words + _words((zlib.crc32(purpose.encode()), *address)), dtype=np.uint32)


def _words(numbers: Iterable[int]) -> list[int]:
    """Return integers as words of 32 bits, the low ones first."""
    words: list[int] = []
    for number in numbers:
        left = int(number)
        if left < 0:
            raise ValueError(f"seeds and addresses are non-negative integers: {left}")
        words.append(left & 0xFFFFFFFF)
        while left := left >> 32:
            words.append(left & 0xFFFFFFFF)
    return words
