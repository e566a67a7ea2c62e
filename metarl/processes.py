"""What belongs to one process: pools of threads, native handles, locks.

A forked child has the parent's memory but not its threads. A pool that it inherits would wait for ever, in its
destructor too, and a lock that another thread held stays locked. None of them can be copied or pickled either.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class ProcessLocal(Generic[T]):
    """A value that is made when it is first asked for, made anew in a forked child, and left out of copies.

    A copy, deep or not, and what comes out of a pickle make a value of their own.

    :param make: makes the value; a function of a module where the owner is to be pickled.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._held: dict[str, T] = {}
        _ALL.add(self)

    def get(self) -> T:
        """Return the value, the same to every thread."""
        held = self._held.get("value")
        # setdefault is atomic: of two threads that make one at the same time, both get the first.
        return self._held.setdefault("value", self._make()) if held is None else held

    def take(self) -> T | None:
        """Return the value and forget it; None where there is none."""
        return self._held.pop("value", None)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._make,)

    def _leave_to_parent(self) -> None:
        value = self.take()
        if value is not None:
            # Never given back: a pool's destructor would wait for threads that this process does not have.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))


_ALL: weakref.WeakSet[ProcessLocal[Any]] = weakref.WeakSet()


def _after_fork() -> None:
    for each in list(_ALL):
        each._leave_to_parent()


os.register_at_fork(after_in_child=_after_fork)
