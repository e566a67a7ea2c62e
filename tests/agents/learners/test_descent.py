"""Walks of stacks of tasks: each as if it were alone, whoever watches and however many threads there are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from metarl.agents import A2C, PPO, VPG, FunctionalPolicy, Learner, Samples
from metarl.agents.learners.actor_critic import ActorCriticSamples
from metarl.agents.learners.descent import task_blocks
from metarl.agents.learners.optimizers import Layout, clip_norms
from metarl.agents.parallel import Parallel
from metarl.agents.sampling.samples import mean_weights
from metarl.params import Params
from metarl.streams import seed_sequence
from tests.agents.sb3_twin import stack

TASKS = 11
"""More than a block."""


def problem(name: str, n_threads: int = 1, **options: Any) -> tuple[Learner, Params, ActorCriticSamples]:
    """Return a learner, parameters and samples of tasks with different numbers of them, some far from the policy."""
    box, action = spaces.Box(-1.0, 1.0, (3,)), spaces.Box(-1.0, 1.0, (2,))
    policy = FunctionalPolicy("MlpPolicy", box, action, {"net_arch": [6, 5]}, critic=name != "vpg")
    parallel = Parallel(n_threads)
    learner: Learner
    if name == "vpg":
        learner = VPG(policy, parallel=parallel)
    elif name == "a2c":
        learner = A2C(policy, parallel=parallel, **options)
    else:
        learner = PPO(policy, parallel=parallel, **{"n_epochs": 3, "batch_size": 8, "target_kl": 0.05, **options})
    params = stack([policy.init(seed) for seed in range(TASKS)])
    rng = np.random.default_rng(0)
    counts = rng.integers(5, 30, TASKS)
    n = int(counts.max())

    def normal(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal((TASKS, n, *shape), dtype=np.float32))

    obs, actions = normal(3), normal(2)
    with torch.no_grad():
        log_prob = policy.distribution(params, obs).log_prob(actions)
    samples = ActorCriticSamples(
        obs,
        actions,
        normal(),
        mean_weights(counts, n),
        counts,
        counts[:, None],
        log_prob,
        values=normal(),
        returns=normal(),
    )
    return learner, params, samples


def seeds(turn: int = 0) -> list[np.random.SeedSequence]:
    return [seed_sequence(0, "test", turn, task) for task in range(TASKS)]


class Recorder:
    """Keeps copies of all segments."""

    def __init__(self) -> None:
        self.segments: list[tuple[Params, Params, Params, torch.Tensor, torch.Tensor]] = []

    def segment(
        self,
        start: Params,
        end: Params,
        gradient: Params | None,
        losses: torch.Tensor | None,
        active: torch.Tensor | None = None,
    ) -> None:
        assert gradient is not None
        assert losses is not None
        who = torch.ones(TASKS, dtype=torch.bool) if active is None else active.clone()
        copies = [{name: tensor.clone() for name, tensor in part.items()} for part in (start, end, gradient)]
        self.segments.append((copies[0], copies[1], copies[2], losses.clone(), who))


def require_equal(a: Params, b: Params) -> None:
    assert list(a) == list(b)
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name


@pytest.mark.parametrize("name", ["vpg", "a2c", "ppo"])
def test_threads_and_watchers_change_no_bit(name: str) -> None:
    learner, params, samples = problem(name)
    first = learner.update(learner.start(params), samples, 0.01, seeds())
    expected = learner.update(first, samples, 0.01, seeds(1))
    for n_threads, watched in ((1, True), (2, False), (2, True), (3, False)):
        other = problem(name, n_threads)[0]
        watchers = [Recorder() if watched else None for _ in range(2)]
        state = other.update(other.start(params), samples, 0.01, seeds(), watchers[0])
        state = other.update(state, samples, 0.01, seeds(1), watchers[1])
        require_equal(state.params, expected.params)
        require_equal(state.optimizer, expected.optimizer)


@pytest.mark.parametrize("name", ["vpg", "a2c", "ppo"])
def test_a_task_in_a_stack_learns_as_it_does_alone(name: str) -> None:
    learner, params, samples = problem(name)
    together = learner.update(learner.start(params), samples, 0.01, seeds())
    for task in range(TASKS):
        own = slice(task, task + 1)
        start = learner.start({key: tensor[own] for key, tensor in params.items()})
        alone = learner.update(start, samples.tasks(own), 0.01, seeds()[own])
        for key, tensor in alone.params.items():
            torch.testing.assert_close(together.params[key][own], tensor, rtol=1e-5, atol=1e-6)
        for key, tensor in alone.optimizer.items():
            torch.testing.assert_close(together.optimizer[key][own], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("name", ["vpg", "a2c", "ppo"])
def test_a_watcher_sees_the_whole_path(name: str, n_threads: int) -> None:
    options = {} if name == "vpg" else {"optimizer": "sgd"}
    learner, params, samples = problem(name, n_threads, **options)
    recorder = Recorder()
    after = learner.update(learner.start(params), samples, 0.5, seeds(), recorder)
    here, steps = params, torch.zeros(TASKS, dtype=torch.int64)
    for start, end, gradient, _, active in recorder.segments:
        require_equal(start, here)
        assert active.any()
        layout = Layout(start)
        slope = layout.flatten(gradient)
        if name != "vpg":
            clip_norms(slope, 0.5)
        moved = layout.views(layout.flatten(start) - 0.5 * slope)
        for key, tensor in start.items():
            assert torch.equal(end[key][~active], tensor[~active])
            torch.testing.assert_close(end[key][active], moved[key][active], rtol=1e-5, atol=1e-6)
        here, steps = end, steps + active
    require_equal(after.params, here)
    if name != "ppo":
        assert steps.tolist() == [1] * TASKS
        losses, expected = loss_and_gradient(learner, params, samples)
        seen = Layout(params).flatten(recorder.segments[0][2])
        torch.testing.assert_close(recorder.segments[0][3], losses)
        if name == "a2c":
            assert (torch.linalg.vector_norm(expected, dim=1) > 0.5).any()  # what A2C clips to
        torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-6)
    else:
        full = torch.from_numpy(-(-samples.counts // 8)) * 3
        assert (steps <= full).all()
        assert (steps < full).any()
        assert (steps == full).any()


def loss_and_gradient(learner: Learner, params: Params, samples: Samples) -> tuple[torch.Tensor, torch.Tensor]:
    leaves = {key: tensor.clone().requires_grad_() for key, tensor in params.items()}
    values = learner.policy.values(leaves, samples.obs) if learner.policy.has_critic else None
    losses = learner.head_loss(learner.policy.distribution(leaves, samples.obs), samples, values)
    gradient = torch.autograd.grad(losses.sum(), list(leaves.values()))
    return losses.detach(), Layout(params).flatten(dict(zip(leaves, gradient, strict=True)))


@pytest.mark.parametrize("name", ["vpg", "a2c", "ppo"])
def test_rates_of_single_tensors(name: str) -> None:
    learner, params, samples = problem(name)
    expected = learner.update(learner.start(params), samples, 0.01, seeds()).params
    rates = {key: torch.full(tensor.shape[1:], 0.01) for key, tensor in params.items()}
    require_equal(learner.update(learner.start(params), samples, rates, seeds()).params, expected)
    rates["log_std"][0] = 0.0
    found = learner.update(learner.start(params), samples, rates, seeds()).params
    assert torch.equal(found["log_std"][:, 0], params["log_std"][:, 0])
    assert (found["log_std"][:, 1] != params["log_std"][:, 1]).all()
    # And of single tasks.
    stacked = {key: torch.full_like(tensor, 0.01) for key, tensor in params.items()}
    for tensor in stacked.values():
        tensor[9] = 0.0
    found = learner.update(learner.start(params), samples, stacked, seeds()).params
    for key, tensor in found.items():
        assert torch.equal(tensor[9], params[key][9])
        assert torch.equal(tensor[10], expected[key][10])


def test_blocks_follow_the_sizes_of_the_data() -> None:
    assert [block.stop - block.start for block in task_blocks(20, 64, 64)] == [8, 8, 4]
    assert [block.stop - block.start for block in task_blocks(5, 4000, 64)] == [1] * 5
    assert task_blocks(3, 2000, 100) == [slice(0, 2), slice(2, 3)]
    assert task_blocks(2, 10**9, 100) == [slice(0, 1), slice(1, 2)]
