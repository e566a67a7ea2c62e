"""Work on blocks of tasks side by side, with results that do not depend on the number of threads.

At the sizes of meta-RL one operator does not fill two cores, two blocks of tasks do. So every block runs on one thread,
with PyTorch's own threads switched off, and the results come back in order.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


@contextmanager
def single_threaded_torch() -> Iterator[None]:
    """Switch PyTorch's threads off inside an operator, and back on at the end."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Parallel:
    """An ordered map over a pool of threads.

    :param n_threads: None takes every core.
    """

    def __init__(self, n_threads: int | None = None) -> None:
        self.n_threads = available_cores() if n_threads is None else n_threads
        self._pool: ThreadPoolExecutor | None = None

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """Return ``[function(item) for item in items]``."""
        with single_threaded_torch():
            if self.n_threads <= 1 or len(items) <= 1:
                return [function(item) for item in items]
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.n_threads, initializer=torch.set_num_threads, initargs=(1,))
            return list(self._pool.map(function, items))

    def close(self) -> None:
        """End the threads; the object can be used again."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
