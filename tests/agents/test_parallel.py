"""An ordered map whose results do not depend on the number of threads."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from metarl.agents.parallel import Parallel, available_cores, single_threaded_torch


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
