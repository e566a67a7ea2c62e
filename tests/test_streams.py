"""Addressed streams: NumPy's own, laid out faster."""

from __future__ import annotations

import copy
import pickle
import zlib
from typing import Any

import numpy as np
import pytest

from metarl.streams import TaskSeeds, generators, seed_sequence, stream, task_streams

ADDRESSES: list[tuple[int, ...]] = [(), (0,), (3, 24, 1), (2**32, 7), (2**70,)]


def numpys(seed: int, purpose: str, *address: int) -> np.random.SeedSequence:
    return np.random.SeedSequence(entropy=seed, spawn_key=(zlib.crc32(purpose.encode()), *address))


def state(seed: Any) -> list[int]:
    found: list[int] = seed.generate_state(8).tolist()
    return found


@pytest.mark.parametrize("seed", [0, 7, 2**31, 2**32 - 1, 2**32, 2**64 + 5, 2**200])
def test_a_stream_is_numpys(seed: int) -> None:
    for address in ADDRESSES:
        own, other = seed_sequence(seed, "tasks", *address), numpys(seed, "tasks", *address)
        assert state(own) == state(other)
        assert [state(child) for child in own.spawn(2)] == [state(child) for child in other.spawn(2)]
        assert (
            stream(seed, "tasks", *address).random() == np.random.default_rng(numpys(seed, "tasks", *address)).random()
        )


@pytest.mark.parametrize("numbers", [(-1, ()), (0, (3, -2))])
def test_a_negative_number_has_no_stream(numbers: Any) -> None:
    seed, address = numbers
    with pytest.raises(ValueError, match="non-negative"):
        seed_sequence(seed, "tasks", *address)


def test_seeds_of_several_tasks_are_those_of_each() -> None:
    places = (4, 0, 9)
    for address in ADDRESSES:
        seeds = TaskSeeds(3, "train", 5, places, *address)
        expected = [numpys(3, "train", 5, task, *address) for task in places]
        assert len(seeds) == 3
        assert [state(seed) for seed in seeds] == [state(seed) for seed in expected]
        drawn = [stream(3, "train", 5, task, *address).random() for task in range(3)]
        assert [rng.random() for rng in task_streams(3, "train", 5, 3, *address)] == drawn
        assert [state(seed) for seed in seeds[1:]] == [state(seed) for seed in expected[1:]]
        for key in ((0,), (2, 1, 1)):
            children = [np.random.SeedSequence(3, spawn_key=(*seed.spawn_key, *key)) for seed in expected]
            drawn = [np.random.default_rng(child).random() for child in children]
            for given in (seeds, list(seeds), expected):
                assert [rng.random() for rng in generators(given, *key)] == drawn


def test_a_generator_is_copied_and_has_children_as_numpys() -> None:
    (own,) = TaskSeeds(3, "train", 5, [4]).generators(0)
    seed = numpys(3, "train", 5, 4, 0)
    other = np.random.default_rng(seed)
    assert state(own.bit_generator.seed_seq) == state(seed)
    for each in (copy.deepcopy(own), pickle.loads(pickle.dumps(own)), own):
        assert each.bit_generator.state == other.bit_generator.state
    assert [child.random() for child in own.spawn(2)] == [child.random() for child in other.spawn(2)]
