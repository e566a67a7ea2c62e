"""What belongs to one process: pools of threads, native handles, locks, and threads inside native code.

A forked child has the parent's memory but not its threads. A pool that it inherits would wait for ever, in its
destructor too, and a lock that another thread held stays locked. None of them can be copied or pickled either.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Generic, NoReturn, TypeVar

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


class _NativeWork:
    """A context around calls of native code, PyTorch's and MuJoCo's, that a daemon thread may make.

    Python waits for other threads before it ends, but takes daemons away in the middle of what they do, which kills
    the whole process (``terminate called``, or a segmentation fault) where that is native code. So daemons in here are
    ended before, by SystemExit as soon as they are back in Python, and no daemon comes in any more.

    Giving back what a thread held is native code too, where that is tensors, so the end of the interpreter waits until
    such a thread is gone, not only until it has left.
    """

    PATIENCE = 5.0
    """How long the end of the interpreter waits for them, s."""

    def __init__(self) -> None:
        self._depths: dict[int, int] = {}
        self._ended = False
        # The daemons on their way out, and whether the end has waited for them.
        self._ending: list[threading.Thread] = []
        self._waited = False

    def __enter__(self) -> None:
        here = threading.get_ident()
        # Before the look at what end() sets before it looks at this.
        self._depths[here] = self._depths.get(here, 0) + 1
        if self._ended and threading.current_thread().daemon:
            self._keep_out()

    def __exit__(self, *_: object) -> None:
        here = threading.get_ident()
        self._depths[here] -= 1
        if not self._depths[here]:
            del self._depths[here]

    def _keep_out(self) -> NoReturn:
        # Listed before the look at what end() sets when it has looked at the list for the last time.
        self._ending.append(threading.current_thread())
        self.__exit__()
        while self._waited:
            # Nobody waits for this thread any more, so it must not go: it stays here until the process ends.
            time.sleep(3600.0)
        raise SystemExit

    def end(self) -> None:
        """Wait until every daemon that is inside, or tries to come in, is gone."""
        self._ended = True
        inside = [thread for thread in threading.enumerate() if thread.daemon and thread.ident in self._depths]
        until = time.monotonic() + self.PATIENCE
        for thread in inside:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))
        self._ending.extend(inside)
        for thread in self._ending:
            thread.join(max(0.0, until - time.monotonic()))
        self._waited = True
        for thread in self._ending:
            thread.join(max(0.0, until - time.monotonic()))

    def forget_others(self) -> None:
        """Be a forked child, whose only thread is the calling one."""
        here = threading.get_ident()
        self._depths = {here: self._depths[here]} if here in self._depths else {}


NATIVE_WORK = _NativeWork()
atexit.register(NATIVE_WORK.end)


def _after_fork() -> None:
    NATIVE_WORK.forget_others()
    for each in list(_ALL):
        each._leave_to_parent()


os.register_at_fork(after_in_child=_after_fork)
