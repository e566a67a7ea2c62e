"""Ctrl-C and SIGTERM: the first asks for a stop where all that was done can be saved, the second stops at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any


class Interrupts:
    """A context in which SIGINT and SIGTERM first set :attr:`requested`, and only then raise ``KeyboardInterrupt``.

    Either way the last checkpoint is whole: it is replaced in one rename, and what was dropped of a meta-iteration is
    done again, number for number, when the run goes on.

    :param announce: called at the first signal, with a line to show.
    :param doing: says in a few words what is done at the moment, which the stop waits for.
    """

    def __init__(self, announce: Callable[[str], None], doing: Callable[[], str]) -> None:
        self.requested = False
        self._announce, self._doing = announce, doing
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        self._announce(f"stopping after {self._doing()}, so that all is saved (once more: at once)")
