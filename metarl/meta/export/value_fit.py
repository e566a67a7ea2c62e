"""Fitting a value network to the returns of training tasks, for exports of learners that have no critic."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from stable_baselines3.common.policies import ActorCriticPolicy

from metarl.agents.learners.baseline import discounted_returns
from metarl.agents.parallel import library_torch
from metarl.agents.sampling.collect import collect
from metarl.agents.sampling.episodes import Episodes
from metarl.checks import COUNT, integer
from metarl.envs.family import draw_tasks
from metarl.envs.tasks import Tasks
from metarl.meta.model import Model
from metarl.params import Params, expand
from metarl.streams import seed_sequence, stream

ROUNDS = 60
"""Times the targets are bootstrapped anew; an error in the values shrinks by γ to the horizon each time."""
UPDATES = 25
"""Gradient steps for each of them."""
BATCH_SIZE = 512
LEARNING_RATE = 1e-3
HELD_OUT = 0.2
Actors = Callable[[Tasks], Params]
"""Returns the tensors of the policy that acts in each task, ``[task, …]``."""


class ValueFit(NamedTuple):
    """How well a value network was fitted.

    :param explained_variance: 1 - Var(return - value)/Var(return) on tasks that were not fitted on. It is limited by
        what the observation tells about the task.
    :param n_tasks: training tasks, held-out ones included.
    :param env_steps: env steps collected for it; those that actors adapted by are not counted.
    """

    explained_variance: float
    n_tasks: int
    env_steps: int


@library_torch()  # a small network on small batches: threads would only wait for each other
def fit_value(
    model: Model,
    start: Params,
    policy: ActorCriticPolicy,
    n_tasks: int,
    n_episodes: int,
    actors: Actors | None = None,
) -> tuple[ValueFit, Params]:
    """Fit the value network of ``policy`` to discounted returns of training tasks at the actor ``start``.

    Targets are what SB3 means by returns: the rewards of the episode and, where it was cut at the horizon, the value of
    the last observation. Returns that end at the horizon would be smaller the later the env step, which the network
    cannot see and SB3's advantages would be full of. So this is fitted value iteration over whole episodes (Adam, with
    a rate that falls to 0, on standardised targets; the scale is folded into the last layer).

    :param model: gives the family and the discount factor.
    :param start: the actor's tensors, such as the initialisation.
    :param policy: a stock policy; its value network is the starting point and is changed, its features are as learnt.
    :param n_tasks: training tasks to collect on, at least 2; a fifth of them is held out.
    :param n_episodes: episodes of each.
    :param actors: returns the tensors with which to act in tasks, ``[task, …]``; None: ``start`` acts in all.
    :return: the quality, and the value network's tensors by SB3's names.
    """
    n_tasks, n_episodes = integer(2)("value_tasks", n_tasks), COUNT("value_episodes", n_episodes)
    tasks = draw_tasks(model.family, stream(model.seed, "export/tasks"), n_tasks)
    seeds = [seed_sequence(model.seed, "export/value", task) for task in range(n_tasks)]
    stacked = expand(start, n_tasks) if actors is None else actors(tasks)
    theta = {name: tensor.contiguous() for name, tensor in stacked.items()}
    episodes = collect(
        model.family.acts_in, model.policy, theta, tasks, seeds, n_episodes=n_episodes, parallel=model.parallel
    )
    known: float | None = getattr(model, "gamma", None)
    gamma = 0.99 if known is None else known  # SB3's, for a learner that discounts nothing
    rng = stream(model.seed, "export/batches")
    network = torch.nn.Sequential(policy.mlp_extractor.value_net, policy.value_net)
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    held_out = max(1, round(HELD_OUT * n_tasks))
    seen = _features(policy, episodes.obs)
    train, test = (_Steps(seen, episodes.mask, part) for part in (slice(None, -held_out), slice(-held_out, None)))
    targets = discounted_returns(episodes.rewards, episodes.mask, gamma)
    for k in range(ROUNDS):
        y = train.pick(targets)
        mean, std = float(y.mean()), max(float(y.std()), 1e-6)
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1.0 - k / ROUNDS)
        _regress(network, optimizer, train.seen, (y - mean) / std, rng)
        targets = _bootstrapped(episodes, seen, gamma, network, mean, std)
    with torch.no_grad():
        policy.value_net.weight.mul_(std)
        policy.value_net.bias.mul_(std).add_(mean)
        y = test.pick(targets)
        explained = 1.0 - float((network(test.seen).squeeze(-1) - y).var()) / max(float(y.var()), 1e-12)
    tensors = {name: t.detach().clone() for name, t in policy.named_parameters() if "value_net" in name}
    return ValueFit(explained, n_tasks, episodes.n_steps), tensors


def _features(policy: ActorCriticPolicy, obs: np.ndarray) -> torch.Tensor:
    """Return what the value network sees, ``[task, env, time, feature]``, given observations.

    A features extractor that it shares with the actor is meta-learnt, and stays as it is.
    """
    features = []
    with torch.no_grad():
        for task in obs:
            flat = torch.from_numpy(task.reshape(-1, *task.shape[2:]))
            own = policy.extract_features(flat, policy.vf_features_extractor)
            assert isinstance(own, torch.Tensor)
            features.append(own.reshape(*task.shape[:2], -1))
    return torch.stack(features)


def _bootstrapped(
    episodes: Episodes, seen: torch.Tensor, gamma: float, network: torch.nn.Module, mean: float, std: float
) -> np.ndarray:
    """Return the returns to go ``[task, env, time]`` where the value of a cut episode's last observation ends it.

    The observation after the last env step is not recorded, so the one before it stands in, without its reward.
    """
    last = np.maximum(episodes.lengths - 1, 0)
    task, env = np.indices(last.shape)
    with torch.no_grad():
        values = network(seen[task, env, last]).squeeze(-1).double().numpy() * std + mean
    rewards = episodes.rewards.astype(np.float64)
    cut = ~episodes.terminated & (episodes.lengths > 0)
    rewards[task[cut], env[cut], last[cut]] = values[cut]
    return discounted_returns(rewards, episodes.mask, gamma)


class _Steps:
    """The valid steps of some tasks."""

    def __init__(self, seen: torch.Tensor, mask: np.ndarray, tasks: slice) -> None:
        self._tasks, self._mask = tasks, mask[tasks]
        self.seen = seen[tasks][torch.from_numpy(self._mask)]

    def pick(self, values: np.ndarray) -> torch.Tensor:
        """Return those of ``[task, env, time]`` values, ``[n]``."""
        return torch.from_numpy(values[self._tasks][self._mask].astype(np.float32))


def _regress(
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    x: torch.Tensor,
    y: torch.Tensor,
    rng: np.random.Generator,
) -> None:
    """Take some gradient steps on the mean squared error, each on a random batch."""
    for _ in range(UPDATES):
        batch = torch.from_numpy(rng.integers(len(x), size=BATCH_SIZE))
        loss = torch.nn.functional.mse_loss(network(x[batch]).squeeze(-1), y[batch])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
