"""Random numbers without the global generators, and with them one thread at a time."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from metarl.agents.generators import drawing_from, sb3_alone, sb3_generators
from tests.children import FORKS_WITH_THREADS, in_child

DRAWS: dict[str, Callable[[], torch.Tensor]] = {
    "a linear layer": lambda: nn.Linear(5, 3).bias,
    "an orthogonal matrix": lambda: nn.init.orthogonal_(torch.empty(6, 4)),
    "randn": lambda: torch.randn(5),
    "randint": lambda: torch.randint(9, (5,)),
    "randint from": lambda: torch.randint(3, 9, (5,)),
    "randperm": lambda: torch.randperm(7),
    "a Gaussian": lambda: torch.distributions.Normal(torch.zeros(4), 1.0).rsample(),
    "a categorical": lambda: torch.distributions.Categorical(logits=torch.zeros(3, 5)).sample(),
    "dropout": lambda: nn.functional.dropout(torch.ones(9)),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_draws_are_those_after_manual_seed_and_the_global_generator_is_left_alone(
    draw: Callable[[], torch.Tensor],
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        expected = [draw(), draw()]
    before = torch.get_rng_state()
    with drawing_from(3):
        drawn = [draw(), draw()]
    assert all(map(torch.equal, drawn, expected))
    assert torch.equal(torch.get_rng_state(), before)


def test_what_else_an_operator_is_given_reaches_it() -> None:
    own = torch.Generator().manual_seed(9)
    expected = torch.randn(3, generator=torch.Generator().manual_seed(9))
    with torch.random.fork_rng():
        torch.manual_seed(3)
        wide = torch.randn(3, dtype=torch.float64)
    with drawing_from(3):
        assert torch.equal(torch.randn(3, generator=own), expected)
        assert torch.equal(torch.randn(3, dtype=torch.float64), wide)
        assert torch.equal(torch.full((2,), 7, dtype=torch.int64), torch.tensor([7, 7]))


def test_threads_draw_from_streams_of_their_own() -> None:
    barrier = threading.Barrier(4, timeout=10)

    def draw(seed: int) -> list[float]:
        with drawing_from(seed):
            barrier.wait()
            return [nn.Linear(2, 1).bias.item() for _ in range(50)]

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(draw, range(4)))
    barrier = threading.Barrier(1)
    assert together == [draw(seed) for seed in range(4)]


def test_one_thread_at_a_time_has_the_global_generators() -> None:
    inside: list[int] = []
    most: list[int] = []

    def draw(seed: int) -> tuple[float, ...]:
        with sb3_generators(), sb3_generators():
            inside.append(seed)
            random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)  # noqa: NPY002
            numbers = (random.random(), np.random.rand(), float(torch.rand(())))  # noqa: NPY002
            most.append(len(inside))
            inside.remove(seed)
            return numbers

    states = random.getstate(), np.random.get_state()[1], torch.get_rng_state()  # noqa: NPY002
    alone = [draw(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(draw, list(range(4)) * 10)) == alone * 10
    assert max(most) == 1
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])


@pytest.mark.filterwarnings(FORKS_WITH_THREADS)
def test_a_child_does_not_wait_for_a_thread_that_stayed_with_its_parent() -> None:
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with sb3_alone():
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)

    def child() -> str:
        with sb3_alone():
            return "inside"

    try:
        assert in_child(child) == "inside"
    finally:
        done.set()
        thread.join()


@pytest.mark.filterwarnings(FORKS_WITH_THREADS)
def test_a_child_forked_inside_goes_on_inside() -> None:
    def child() -> str:
        with sb3_generators():
            return "inside"

    with sb3_generators():
        assert in_child(child) == "inside"
