"""Cloning: its gradient is exactly that of what a policy is paid for imitating, and the score function's on average."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from metarl.agents.learners.supervised import Cloning, Supervised
from metarl.agents.networks.policy import FunctionalPolicy
from metarl.agents.sampling.collect import collect
from metarl.agents.sampling.samples import Samples
from metarl.envs.family import Family
from metarl.params import Params, expand
from metarl.streams import seed_sequence, stream
from tests.contract.kinds import WalkHome, WalkHomeDiscrete

BLOCKS, SIZE = 100, 400


def problem(family: Family, n: int, sampled: bool, net_arch: list[int]) -> tuple[Cloning, Params, Samples, np.ndarray]:
    """Return a learner, parameters of one task, samples of it, and the rewards of their actions."""
    kwargs = {"net_arch": net_arch, "log_std_init": -0.3}
    policy = FunctionalPolicy("MlpPolicy", family.observation_space, family.action_space, kwargs)
    rng = np.random.default_rng(0)
    params = {
        name: tensor + 0.3 * torch.from_numpy(rng.normal(size=tensor.shape).astype(np.float32))
        for name, tensor in expand(policy.init(0), 1).items()
    }
    learner = Cloning(policy)
    tasks, seeds = family.sample_tasks(stream(0, "tasks"), 1), [seed_sequence(0, "seeds")]
    episodes = collect(family, policy, params, tasks, seeds, n_episodes=n, info=learner.info, deterministic=not sampled)
    return learner, params, learner.process(episodes, params), episodes.rewards[0, :, 0]


def gradient(value: torch.Tensor, leaves: Params) -> np.ndarray:
    """Return the gradient of a number, as one vector."""
    parts = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
    whole = torch.cat([part.flatten() for part in parts])
    assert whole.dtype == torch.float64
    return whole.numpy()


def paid(family: Family, learner: Cloning, params: Params, samples: Samples) -> tuple[Samples, np.ndarray]:
    """Return samples whose actions a policy of float64 drew, and the rewards of these."""
    rng, shape = np.random.default_rng(1), tuple(samples.actions.shape)
    noise = rng.standard_normal(shape) if isinstance(family.action_space, Box) else rng.random(shape)
    with torch.no_grad():
        distribution = learner.policy.distribution(params, samples.obs)
        actions = distribution.sample(torch.from_numpy(noise))
    return replace(samples, actions=actions), pay(family, samples, actions.numpy())


def pay(family: Family, samples: Samples, actions: np.ndarray) -> np.ndarray:
    """Return what the family pays for actions at the samples, ``[n]``."""
    assert samples.target is not None
    target = samples.target.numpy()
    state = {"input": samples.obs.numpy(), "target": target, "prediction": np.zeros_like(target)}
    return np.asarray(family.step({}, state, actions, []).reward[0])


def errors(family: Family, exact: Any) -> tuple[np.ndarray, list[str]]:
    """Return by how many standard errors the score function's gradient differs from an exact one, number by number.

    All of it is in float64: the policy, what it draws, what the family pays for that, and both gradients.

    :param exact: what the policy is paid on average for some samples, as a function of learner, parameters, samples.
    """
    learner, params, samples, _ = problem(family, BLOCKS * SIZE, True, [3])
    leaves = {name: tensor.double().requires_grad_() for name, tensor in params.items()}
    samples, rewards = paid(family, learner, leaves, samples.to(torch.float64))
    differences = []
    for block in range(BLOCKS):
        some = slice(block * SIZE, (block + 1) * SIZE)
        part = samples.map(lambda axes, each, s=some: each[:, s] if "sample" in axes else each)  # type: ignore[misc]
        log_prob = learner.policy.distribution(leaves, part.obs).log_prob(part.actions)[0]
        reward = torch.from_numpy(rewards[some])
        # Without the mean of all, on which one action has next to no influence, the variance is less.
        score = (log_prob * (reward - float(rewards.mean()))).mean()
        differences.append(gradient(score, leaves) - gradient(exact(learner, leaves, part), leaves))
    names = [name for name, tensor in leaves.items() for _ in range(tensor.numel())]
    found = np.array(differences)
    spread = found.std(0, ddof=1) / BLOCKS**0.5
    return found.mean(0) / np.where(spread > 0, spread, 1.0), names


def _expected(cls: type[Supervised]) -> Any:
    def value(learner: Cloning, params: Params, part: Samples) -> torch.Tensor:
        # The weights are those of all samples.
        loss = cls(learner.policy).head_loss(learner.policy.distribution(params, part.obs), _mean_of(part))
        return -loss[0]

    return value


def _mean_of(part: Samples) -> Samples:
    return part.map(lambda axes, each: torch.full_like(each, 1 / SIZE) if each is part.weights else each)


def test_the_score_function_agrees_on_average_with_the_exact_gradient_of_the_quadratic_reward() -> None:
    family = WalkHome()
    found, names = errors(family, _expected(Cloning))
    assert len(found) > 10
    assert np.abs(found).max() < 4.5  # of 20 or so numbers, by chance once in 10,000
    # The test can tell: without the part of the standard deviation it is far off, there and only there.
    without, _ = errors(family, _expected(Supervised))
    off = {name for name, error in zip(names, without, strict=True) if abs(error) > 4.5}
    assert off == {"log_std"}


def test_the_score_function_agrees_on_average_with_the_enumerated_reward_of_choices() -> None:
    family = WalkHomeDiscrete()
    n_actions = 3

    def enumerated(learner: Cloning, params: Params, part: Samples) -> torch.Tensor:
        """Σ_a π(a|s) r(s, a), with what the family pays for each action."""
        probs = torch.softmax(learner.policy.distribution(params, part.obs).heads[0], -1)[0]
        assert probs.dtype == torch.float64
        rewards = [pay(family, part, np.full(part.actions.shape, a)) for a in range(n_actions)]
        return (probs * torch.from_numpy(np.stack(rewards, -1))).sum(-1).mean()

    found, _ = errors(family, enumerated)
    assert np.abs(found).max() < 4.5
    # The logarithm's gradient is another one: it weighs states by how unlikely the expert's action is.
    without, _ = errors(family, _expected(Cloning))
    assert np.abs(without).max() > 10.0


@pytest.mark.parametrize("base", [WalkHome, WalkHomeDiscrete])
def test_the_loss_is_the_expectation(base: Any) -> None:
    learner, params, samples, _ = problem(base(), 30, False, [5])
    exact = {name: tensor.double() for name, tensor in params.items()}
    samples = replace(samples.to(torch.float64), weights=torch.full((1, 30), 1 / 30, dtype=torch.float64))
    assert samples.target is not None
    distribution = learner.policy.distribution(exact, samples.obs)
    if base is WalkHome:
        # Gauss and Hermite: exact for polynomials.
        nodes, weights = np.polynomial.hermite_e.hermegauss(5)
        mean, log_std = distribution.heads
        actions = mean.unsqueeze(-1) + torch.exp(log_std)[:, None, :, None] * torch.from_numpy(nodes)
        costs = (actions - samples.target.unsqueeze(-1)).square()
        expected = (costs * torch.from_numpy(weights / weights.sum())).sum(-1).sum(-1).mean(-1)
    else:
        expected = -distribution.log_prob(samples.target).mean(-1)
    torch.testing.assert_close(learner.head_loss(distribution, samples), expected, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("base", [WalkHome, WalkHomeDiscrete])
def test_the_gradient_and_the_curvature_are_those_of_autograd(base: Any) -> None:
    learner, params, samples, _ = problem(base(), 30, False, [5])
    exact = {name: tensor.double() for name, tensor in params.items()}
    samples = samples.to(torch.float64)
    found = learner.policy.differentiate(
        exact, samples.obs, lambda heads, values: learner.head_loss(heads, samples, values), second_order=True
    )
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in exact.items()}
    loss = learner.loss(leaves, samples).sum()
    gradients = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
    direction = {name: torch.randn(t.shape, dtype=t.dtype, generator=torch.manual_seed(0)) for name, t in exact.items()}
    slope = sum((g * direction[name]).sum() for name, g in zip(leaves, gradients, strict=True))
    curved = torch.autograd.grad(slope, list(leaves.values()), materialize_grads=True)  # type: ignore[arg-type]
    product = found.product(direction)
    for name, g, h in zip(leaves, gradients, curved, strict=True):
        torch.testing.assert_close(found.gradient[name], g, rtol=1e-9, atol=1e-12, msg=name)
        torch.testing.assert_close(product[name], h, rtol=1e-9, atol=1e-12, msg=name)
    if base is WalkHome:
        assert (found.gradient["log_std"] > 0.0).all()


def test_the_standard_deviation_shrinks() -> None:
    learner, params, samples, _ = problem(WalkHome(), 10, False, [5])
    state = learner.start(params)
    for k in range(3):
        state = learner.update(state, samples, 0.1, [seed_sequence(0, "update", k)])
    assert (state.params["log_std"] < params["log_std"] - 0.1).all()


def test_it_takes_what_supervised_takes() -> None:
    assert Cloning.misfit(WalkHome()) is None
    assert Cloning.misfit(WalkHome().real) == Supervised.misfit(WalkHome().real)
    assert Cloning.misfit(WalkHome().real) is not None
