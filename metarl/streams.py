"""Random streams: one independent generator for each (purpose, iteration, task).

There is no global generator anywhere. A stream is addressed, not drawn in order, so a result does not depend on how
many workers ran it, and a resumed run needs no generator state: the counters are the state.
"""

from __future__ import annotations

import zlib

import numpy as np


def seed_sequence(seed: int, purpose: str, *address: int) -> np.random.SeedSequence:
    """Return the seed sequence of a stream.

    :param seed: the run's seed, a non-negative integer.
    :param purpose: what the numbers are for, for instance ``"tasks"`` or ``"support"``.
    :param address: the non-negative integers that tell streams of one purpose apart, for instance
        ``(iteration, task, inner_step)``.
    """
    return np.random.SeedSequence(entropy=seed, spawn_key=(zlib.crc32(purpose.encode()), *address))


def stream(seed: int, purpose: str, *address: int) -> np.random.Generator:
    """Return the generator of a stream; the parameters are those of :func:`seed_sequence`."""
    return np.random.Generator(np.random.PCG64(seed_sequence(seed, purpose, *address)))


def task_streams(seed: int, purpose: str, iteration: int, n_tasks: int, *address: int) -> list[np.random.Generator]:
    """Return one generator for each task of a meta-batch, addressed ``(iteration, task, *address)``."""
    return [stream(seed, purpose, iteration, task, *address) for task in range(n_tasks)]
