"""An ordered map whose results do not depend on the number of threads."""

from __future__ import annotations

import copy
import os
import pickle
import platform
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import torch

from metarl.agents.parallel import Parallel, available_cores, library_torch, single_threaded_torch
from metarl.processes import _NativeWork
from tests.children import FORKS_WITH_THREADS, in_child


@pytest.fixture
def two_torch_threads() -> Iterator[None]:
    """PyTorch as a user has it."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_results_come_in_order(n_threads: int) -> None:
    def slow_first(item: int) -> int:
        time.sleep(0.02 if item == 0 else 0.0)
        return item * item

    parallel = Parallel(n_threads)
    assert parallel.map(slow_first, range(7)) == [item * item for item in range(7)]
    assert parallel.map(slow_first, []) == []
    parallel.close()
    assert parallel.map(slow_first, range(3)) == [0, 1, 4]
    parallel.close()


def test_operators_run_on_one_thread_inside_and_as_before_outside() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for n_threads in (1, 2):
            parallel = Parallel(n_threads)
            assert parallel.map(lambda _: torch.get_num_threads(), range(4)) == [1] * 4
            assert torch.get_num_threads() == 2
            parallel.close()
        with pytest.raises(ValueError, match="inside"), single_threaded_torch():
            raise ValueError(f"inside with {torch.get_num_threads()} thread")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_several_threads_take_part() -> None:
    barrier = threading.Barrier(2, timeout=10)
    parallel = Parallel(2)
    assert parallel.map(lambda item: (barrier.wait(), item)[1], range(2)) == [0, 1]
    parallel.close()


def test_an_error_reaches_the_caller() -> None:
    def fail(item: int) -> int:
        if item == 2:
            raise ValueError("third")
        return item

    for n_threads in (1, 2):
        parallel = Parallel(n_threads)
        with pytest.raises(ValueError, match="third"):
            parallel.map(fail, range(5))
        assert parallel.map(fail, range(2)) == [0, 1]
        parallel.close()


def test_reductions_have_the_same_bits_on_any_number_of_threads() -> None:
    generator = torch.Generator().manual_seed(0)
    blocks = [torch.randn(300, 200, generator=generator) for _ in range(6)]

    def work(block: torch.Tensor) -> torch.Tensor:
        leaf = block.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(torch.tanh(leaf @ leaf.T).square().mean(), leaf)
        return gradient

    results = []
    for n_threads in (1, 2, 4):
        parallel = Parallel(n_threads)
        results.append(torch.stack(parallel.map(work, blocks)))
        parallel.close()
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_every_core_by_default() -> None:
    assert Parallel().n_threads == available_cores() >= 1


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no such limit here")
def test_cores_that_the_process_may_not_use_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 5, 7})
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert Parallel().n_threads == 3


def test_of_several_errors_the_first_items_is_raised_and_nothing_goes_on_behind_it() -> None:
    running: set[int] = set()

    def fail(item: int) -> None:
        running.add(item)
        time.sleep(0.02 if item == 0 else 0.0)
        running.discard(item)
        raise ValueError(f"item {item}")

    parallel = Parallel(3)
    for _ in range(5):
        with pytest.raises(ValueError, match="item 0"):
            parallel.map(fail, range(6))
        assert not running
    parallel.close()


def test_a_map_inside_a_map_ends() -> None:
    parallel = Parallel(2)
    inner = parallel.map(lambda item: sum(parallel.map(lambda other: item * other, range(4))), range(6))
    assert inner == [6 * item for item in range(6)]
    parallel.close()


def test_several_threads_may_use_and_close_one_pool() -> None:
    parallel = Parallel(2)

    def use(item: int) -> list[int]:
        result = parallel.map(lambda other: item + other, range(5))
        parallel.close()
        return result

    with ThreadPoolExecutor(4) as pool:
        for item, result in enumerate(pool.map(use, range(60))):
            assert result == [item + other for other in range(5)]


@pytest.mark.parametrize("way", [copy.deepcopy, lambda parallel: pickle.loads(pickle.dumps(parallel))])
def test_a_used_pool_can_be_copied(way) -> None:
    parallel = Parallel(2)
    parallel.map(abs, range(3))
    other = way(parallel)
    parallel.close()
    assert other.map(abs, [-1, -2, -3]) == [1, 2, 3]
    other.close()


@pytest.mark.filterwarnings(FORKS_WITH_THREADS)
@pytest.mark.parametrize("busy", [False, True])
def test_a_used_pool_works_in_a_child_too(busy: bool) -> None:
    parallel = Parallel(2)
    barrier = threading.Barrier(2, timeout=10)
    parallel.map(lambda _: barrier.wait(), range(2))
    done = threading.Event()
    thread = threading.Thread(target=lambda: parallel.map(lambda _: done.wait(60), range(4)))
    if busy:
        thread.start()
    try:
        assert in_child(lambda: (parallel.map(abs, [-1, -2, -3]), parallel.close())[0]) == [1, 2, 3]
    finally:
        done.set()
        if busy:
            thread.join()
        parallel.close()


@pytest.mark.usefixtures("two_torch_threads")
def test_threads_that_enter_and_leave_at_once_keep_their_numbers() -> None:
    first_inside, second_inside, first_outside = (threading.Event() for _ in range(3))

    def first() -> int:
        with single_threaded_torch():
            first_inside.set()
            second_inside.wait(10)
        first_outside.set()
        return torch.get_num_threads()

    def second() -> tuple[int, int]:
        first_inside.wait(10)
        # PyTorch meets this thread while the other one has set the process's number to 1.
        with single_threaded_torch():
            second_inside.set()
            first_outside.wait(10)
            inside = torch.get_num_threads()
        return inside, torch.get_num_threads()

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.submit(first), pool.submit(second)
        assert one.result(10) == 2
        assert other.result(10) == (1, 2)
    assert torch.get_num_threads() == 2
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 2


@pytest.mark.filterwarnings(FORKS_WITH_THREADS)
@pytest.mark.usefixtures("two_torch_threads")
def test_a_child_knows_who_is_inside() -> None:
    inside, done = threading.Event(), threading.Event()

    def stay() -> None:
        with single_threaded_torch():
            inside.set()
            done.wait(60)

    def child() -> list[int]:
        # The thread that is inside in the parent never leaves here.
        torch.set_num_threads(3)
        numbers = []
        with single_threaded_torch():
            numbers.append(torch.get_num_threads())
        with ThreadPoolExecutor(1) as pool:
            numbers.append(pool.submit(torch.get_num_threads).result())
        return [*numbers, torch.get_num_threads()]

    thread = threading.Thread(target=stay)
    thread.start()
    inside.wait(10)
    try:
        assert in_child(child) == [1, 3, 3]
    finally:
        done.set()
        thread.join()


@pytest.mark.filterwarnings(FORKS_WITH_THREADS)
@pytest.mark.usefixtures("two_torch_threads")
def test_a_child_does_not_wait_for_threads_of_openmp() -> None:
    large = torch.ones(1000, 1000)
    expected = float(torch.tanh(large).sum())  # on two threads, which OpenMP keeps

    def child() -> tuple[int, float]:
        return torch.get_num_threads(), float(torch.tanh(large).sum())

    assert in_child(child) == (1, pytest.approx(expected))


@pytest.mark.filterwarnings(FORKS_WITH_THREADS)
def test_a_child_forked_inside_leaves_what_its_parent_entered() -> None:
    with ExitStack() as stack:
        stack.enter_context(library_torch())

        def child() -> str:
            stack.close()
            with library_torch():
                return "left and came back"

        assert in_child(child) == "left and came back"


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_library_records_gradients_whatever_the_caller_does(mode) -> None:
    with mode():
        with library_torch():
            leaf = torch.ones(2, requires_grad=True)
            leaf.square().sum().backward()
            assert not leaf.is_inference()
        assert not torch.is_grad_enabled()
    assert leaf.grad.tolist() == [2.0, 2.0]


END = """
import threading, time
from metarl.agents.parallel import Parallel
parallel = Parallel(2)
def work(rounds):
    for _ in range(rounds):
        assert parallel.map(lambda item: (time.sleep(0.001), item)[1], range(6)) == list(range(6))
    print("done")
threading.Thread(target=work, args=(100,)).start()
threading.Thread(target=work, args=(100_000,), daemon=True).start()
time.sleep(0.1)
"""


def test_the_interpreter_waits_for_a_thread_that_works_and_not_for_a_daemon() -> None:
    done = subprocess.run([sys.executable, "-c", END], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "done\n")


DAEMONS = """
import threading, time
import gymnasium, numpy, torch
import metarl
from metarl.envs import make_family
from metarl.envs.views.vec_env import FamilyVecEnv
family = make_family("AntVel-v0")
batch = FamilyVecEnv(family, family.tasks("test", 8), n_envs=4, seed=0)
view = gymnasium.make("AntVel-v0")
model = metarl.FOMAML("MlpPolicy", "PointMass-v0", meta_batch_size=2, n_episodes=2, n_threads=2)
batch.reset()

def forever(work):
    started = threading.Event()
    def run():
        while True:
            work()
            started.set()
    threading.Thread(target=run, daemon=True).start()
    return started

def episode():
    view.reset()
    for _ in range(20):
        view.step(numpy.zeros(8))

for started in list(map(forever, (lambda: batch.step(numpy.zeros((32, 8))), episode, lambda: model.learn(1)))):
    assert started.wait(60)
batch.family.close()
print("done")
"""


def test_daemons_inside_native_code_do_not_kill_the_interpreter_that_ends() -> None:
    done = subprocess.run([sys.executable, "-c", DAEMONS], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "done\n")


def test_a_daemon_that_comes_after_the_end_stays_out_and_lives() -> None:
    """Within one process: a daemon that is inside is ended by SystemExit, another does not come in
    and does not end either: nobody waits until it has given back what it holds."""
    work, inside, seen = _NativeWork(), threading.Event(), []

    def stay() -> None:
        try:
            with work:
                inside.set()
                while True:
                    time.sleep(0.001)
        except SystemExit:
            seen.append("ended")

    def come() -> None:
        with work:
            seen.append("in")

    first, second = (threading.Thread(target=target, daemon=True) for target in (stay, come))
    first.start()
    assert inside.wait(30)
    work.end()
    assert not first.is_alive()
    second.start()
    second.join(0.2)
    assert second.is_alive()
    assert seen == ["ended"]
    with work:  # the main thread may go on, in what else is called at the end
        pass


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep memory by other rules")
def test_memory_that_tensors_free_is_there_for_the_next_ones() -> None:
    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(4 << 20, dtype=torch.uint8)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    with library_torch():
        found = [faults() for _ in range(24)]
    # The first ones may fill holes that were given back before.
    assert sorted(found[12:])[6] < 100, found  # of 1024 pages
