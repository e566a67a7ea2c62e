"""Values of one process: made when asked for, made anew in a child, left out of copies."""

from __future__ import annotations

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from metarl.processes import ProcessLocal
from tests.children import FORKS_WITH_THREADS, in_child


class Handle:
    """Something whose destructor must not run where its threads are not."""

    freed = 0

    def __del__(self) -> None:
        Handle.freed += 1


def test_the_value_is_made_once_and_again_after_it_was_taken() -> None:
    local = ProcessLocal(Handle)
    first = local.get()
    assert local.get() is first
    assert local.take() is first
    assert local.take() is None
    assert local.get() is not first


def test_threads_that_make_the_value_at_once_get_the_same() -> None:
    barrier = threading.Barrier(8, timeout=10)

    def make() -> object:
        barrier.wait()
        return object()

    local = ProcessLocal(make)
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: local.get(), range(8)))) == 1


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda local: pickle.loads(pickle.dumps(local))])
def test_a_copy_makes_a_value_of_its_own(way) -> None:
    local = ProcessLocal(Handle)
    first, other = local.get(), way(local)
    assert isinstance(other.get(), Handle)
    assert other.get() is not first
    assert local.get() is first


@pytest.mark.filterwarnings(FORKS_WITH_THREADS)
def test_a_child_makes_its_own_and_does_not_free_the_parents() -> None:
    local = ProcessLocal(Handle)
    address, freed = id(local.get()), Handle.freed

    def child() -> tuple[bool, int]:
        nonlocal local
        other = id(local.get()) != address
        before = Handle.freed
        del local
        return other, before

    assert in_child(child) == (True, freed)
    assert id(local.get()) == address
