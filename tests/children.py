"""Forked children of the test process, which never hang a test."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

FORKS_WITH_THREADS = "ignore:This process .* is multi-threaded:DeprecationWarning"
"""What Python 3.12 and later say when a process with threads forks: the children of these tests are what is tested."""


def in_child(function: Callable[[], Any], timeout: float = 60.0) -> Any:
    """Return what ``function`` returns in a forked child; an error there, or no answer in time, is an error here."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_answer, args=(function, theirs), daemon=True)
    child.start()
    try:
        assert ours.poll(timeout), "the child does not answer"
        fine, result = ours.recv()
        assert fine, result
        child.join(timeout)
        assert child.exitcode == 0, "the child does not end"
        return result
    finally:
        child.kill()
        child.join()


def _answer(function: Callable[[], Any], pipe: Connection) -> None:
    try:
        pipe.send((True, function()))
    except BaseException:
        pipe.send((False, traceback.format_exc()))
