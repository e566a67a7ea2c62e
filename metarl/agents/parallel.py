"""Work on blocks of tasks side by side, with results that do not depend on the number of threads.

At the sizes of meta-RL one operator does not fill two cores, two blocks of tasks do. So every block runs on one thread,
with PyTorch's own threads switched off, and the results come back in order.
"""

from __future__ import annotations

import functools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from typing import Generic, TypeVar

import torch

from metarl.processes import NATIVE_WORK, ProcessLocal

Item = TypeVar("Item")
Result = TypeVar("Result")


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


class _Inside:
    """Which Python threads of this process have switched PyTorch's threads off.

    PyTorch's number of threads is each Python thread's own, but one that PyTorch has not met before starts with the
    number that was set last, by whichever thread: while another one is in here that is 1, and not what it is to go
    back to.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._depths: dict[int, int] = {}
        self._outside = 1

    def enter(self) -> int:
        """Switch the calling thread's off; return the number that it is to go back to."""
        here, before = threading.get_ident(), torch.get_num_threads()
        with self._lock:
            if not self._depths:
                self._outside = before
            elif before == 1 and here not in self._depths:
                before = self._outside
            self._depths[here] = self._depths.get(here, 0) + 1
        torch.set_num_threads(1)
        return before

    def leave(self, before: int) -> None:
        """Go back to what :meth:`enter` returned."""
        here = threading.get_ident()
        with self._lock:
            self._depths[here] -= 1
            if not self._depths[here]:
                del self._depths[here]
        torch.set_num_threads(before)

    def forget_others(self) -> None:
        """Be a forked child, whose only thread is the calling one."""
        here = threading.get_ident()
        self._lock = threading.Lock()
        self._depths = {here: self._depths[here]} if here in self._depths else {}
        # OpenMP's threads stayed with the parent: an operator that is to run on several waits for them for ever, also
        # where PyTorch itself copies tensors for another process. PyTorch's own DataLoader does the same.
        torch.set_num_threads(1)


_INSIDE = _Inside()
os.register_at_fork(after_in_child=_INSIDE.forget_others)


LARGEST_KEPT = 31 << 20
"""Bytes of the largest tensor whose memory is kept when it is freed: glibc keeps none of 32 MiB or more."""


@functools.cache
def keep_freed_memory() -> None:
    """Have the C library keep what tensors free for the next ones, once in a process.

    At first glibc gives memory of 128 KiB or more back to the system, which hands it out again page by page, empty:
    that takes several times as long as most operators. When a large block was freed, it keeps all that are smaller.
    This one is never touched, so that it costs nothing. Other libraries do as they do.
    """
    torch.empty(LARGEST_KEPT, dtype=torch.uint8)


@contextmanager
def single_threaded_torch() -> Iterator[None]:
    """Switch PyTorch's threads off inside an operator, and back on at the end.

    Numbers then do not depend on how many cores there are.
    """
    keep_freed_memory()
    with NATIVE_WORK:
        before = _INSIDE.enter()
        try:
            yield
        finally:
            _INSIDE.leave(before)


@contextmanager
def library_torch() -> Iterator[None]:
    """Let PyTorch be as it is needed here, whatever the caller has set: one thread inside an operator, and gradients.

    It is around everything public that computes, so that ``torch.no_grad()`` or ``torch.inference_mode()`` around a
    call changes nothing.
    """
    with single_threaded_torch(), torch.inference_mode(False), torch.enable_grad():
        yield


class Parallel:
    """An ordered map over a pool of threads, of which the calling thread is one.

    Several threads may use it at once; copies and forked children start threads of their own.

    :param n_threads: None takes every core.
    """

    def __init__(self, n_threads: int | None = None) -> None:
        self.n_threads = available_cores() if n_threads is None else n_threads
        self._pool = ProcessLocal(functools.partial(ThreadPoolExecutor, self.n_threads))

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """Return ``[function(item) for item in items]``; of several errors the first item's is raised."""
        with single_threaded_torch():
            n_threads = min(self.n_threads, len(items))
            if n_threads <= 1:
                return [function(item) for item in items]
            work = _Work(function, items)
            helpers: list[Future[None]] = []
            # A pool takes nothing any more when another thread has closed it, or when the interpreter is about to end:
            # the calling thread does without.
            with suppress(RuntimeError):
                helpers.extend(self._pool.get().submit(work.take_part) for _ in range(n_threads - 1))
            work.take_part()
            wait([helper for helper in helpers if not helper.cancel()])
            return work.finish()

    def close(self) -> None:
        """End the threads; the object can be used again."""
        pool = self._pool.take()
        if pool is not None:
            pool.shutdown()


class _Work(Generic[Item, Result]):
    """Items that several threads take one after another."""

    def __init__(self, function: Callable[[Item], Result], items: Sequence[Item]) -> None:
        self._function = function
        self._left = deque(enumerate(items))
        self._results: dict[int, Result] = {}
        self._errors: dict[int, BaseException] = {}

    def take_part(self) -> None:
        """Take items until none is left; after an error nobody takes another."""
        with single_threaded_torch(), suppress(IndexError):
            while True:
                index, item = self._left.popleft()
                try:
                    self._results[index] = self._function(item)
                except BaseException as error:
                    self._errors[index] = error
                    self._left.clear()

    def finish(self) -> list[Result]:
        """Return the results in order."""
        if self._errors:
            raise self._errors[min(self._errors)]
        return [self._results[index] for index in range(len(self._results))]
