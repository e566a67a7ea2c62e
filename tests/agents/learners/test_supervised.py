"""The learner of declared losses: the losses themselves, what has no gradient, and which families it takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from metarl.agents.learners.supervised import Supervised
from metarl.agents.networks.policy import FunctionalPolicy
from metarl.agents.sampling.collect import collect
from metarl.agents.sampling.samples import Samples
from metarl.envs.family import Family
from metarl.envs.registry import make_family
from metarl.params import Params, expand
from metarl.streams import seed_sequence, stream
from tests.agents.toys import Staircase
from tests.envs.supervised.test_one_step import Halves, Planes


def batch(family: Family, n: int = 7, n_tasks: int = 3) -> tuple[Supervised, Params, Samples]:
    """Return a learner, parameters that differ by task, and samples."""
    policy = FunctionalPolicy("MlpPolicy", family.observation_space, family.action_space, {"net_arch": [12]})
    learner = Supervised(policy)
    rng = np.random.default_rng(0)
    params = {
        name: tensor + 0.3 * torch.from_numpy(rng.normal(size=tensor.shape).astype(np.float32))
        for name, tensor in expand(policy.init(0), n_tasks).items()
    }
    tasks = family.sample_tasks(stream(0, "tasks"), n_tasks)
    seeds = [seed_sequence(0, "seeds", task) for task in range(n_tasks)]
    episodes = collect(
        family, policy, params, tasks, seeds, n_episodes=n, info=learner.info, deterministic=learner.deterministic
    )
    return learner, params, learner.process(episodes, params)


def test_the_squared_error_is_that_of_the_means_summed_over_entries() -> None:
    learner, params, samples = batch(Planes())
    assert samples.target is not None
    assert samples.advantages is None
    means = learner.policy.distribution(params, samples.obs).mode()
    expected = torch.nn.functional.mse_loss(means, samples.target, reduction="none").sum(-1).mean(-1)
    torch.testing.assert_close(learner.loss(params, samples), expected)
    # The reward is minus the same, where no prediction is clipped.
    assert means.abs().max() < 2.0
    torch.testing.assert_close(samples.actions, means)


def test_the_cross_entropy_counts_classes_from_the_first() -> None:
    learner, params, samples = batch(Halves())
    assert samples.target is not None
    assert set(samples.target.unique().tolist()) <= {0, 1, 2}
    logits = learner.policy.distribution(params, samples.obs).heads[0]
    expected = torch.stack([torch.nn.functional.cross_entropy(own, y) for own, y in zip(logits, samples.target)])  # noqa: B905
    torch.testing.assert_close(learner.loss(params, samples), expected)


@pytest.mark.parametrize("make", [Planes, Halves])
def test_an_update_is_a_step_along_the_gradient_of_torch(make: type[Family]) -> None:
    learner, params, samples = batch(make())
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in params.items()}
    gradients = torch.autograd.grad(learner.loss(leaves, samples).sum(), list(leaves.values()), materialize_grads=True)
    seeds = [seed_sequence(0, "update", task) for task in range(3)]
    after = learner.update(learner.start(params), samples, 0.1, seeds).params
    for (name, before), gradient in zip(params.items(), gradients, strict=True):
        torch.testing.assert_close(after[name], before - 0.1 * gradient, msg=name)
    if "log_std" in params:
        assert torch.equal(after["log_std"], params["log_std"])


def test_it_takes_families_that_declare_a_loss() -> None:
    for family in (Planes(), Halves(), make_family("Sinusoid-v0"), make_family("Sinusoid-v0", oracle=True)):
        assert Supervised.misfit(family) is None
    for other in (Staircase(), make_family("PointMass-v0")):
        assert Supervised.misfit(other) == "it takes families that declare a loss and report the target of every action"


def test_examples_of_a_query_and_of_a_score_are_counted() -> None:
    policy: Any = FunctionalPolicy("MlpPolicy", Box(0, 1, (2,), np.float32), Discrete(2))
    assert Supervised(policy).n_query is None
    assert Supervised(policy, n_query=15, n_eval=7).n_query == 15
    assert Supervised(policy, n_query=15, n_eval=7).n_eval == 7
