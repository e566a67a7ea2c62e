"""Fitting a value network to the returns of training tasks, for exports of learners that have no critic."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from stable_baselines3.common.policies import ActorCriticPolicy

from metarl.agents.baseline import discounted_returns
from metarl.agents.policy import Params
from metarl.agents.sampling import collect
from metarl.errors import ConfigError
from metarl.meta.inner import expand
from metarl.streams import seed_sequence, stream

if TYPE_CHECKING:
    from metarl.meta.base import MetaAlgorithm

MIN_EPOCHS = 10
MIN_UPDATES = 1000
BATCH_SIZE = 512
LEARNING_RATE = 1e-3
HELD_OUT = 0.2


class ValueFit(NamedTuple):
    """How well a value network was fitted.

    :param explained_variance: 1 - Var(return - value)/Var(return) on tasks that were not fitted on. It is limited by
        what the observation tells about the task.
    :param n_tasks: training tasks, held-out ones included.
    :param env_steps: env steps collected for it.
    """

    explained_variance: float
    n_tasks: int
    env_steps: int


def fit_value(
    model: MetaAlgorithm, policy: ActorCriticPolicy, n_tasks: int, n_episodes: int
) -> tuple[ValueFit, Params]:
    """Fit the value network of ``policy`` to discounted returns at the meta-learnt initialisation.

    Targets are Monte-Carlo returns to go that end at the horizon. They are standardised for the regression (Adam, the
    epoch that does best on held-out tasks), and the scale is folded into the last layer.

    :param model: gives the initialisation, the family and the discount factor.
    :param policy: a stock policy; its value network is the starting point and is changed.
    :param n_tasks: training tasks to collect on, at least 2; a fifth of them is held out.
    :param n_episodes: episodes of each.
    :return: the quality, and the value network's tensors by SB3's names.
    """
    if n_tasks < 2 or n_episodes < 1:
        raise ConfigError(f"value_tasks={n_tasks} and value_episodes={n_episodes}: use at least 2 and 1")
    tasks = model.family.sample_tasks(stream(model.seed, "export/tasks"), n_tasks)
    seeds = [seed_sequence(model.seed, "export/value", task) for task in range(n_tasks)]
    theta = {name: tensor.contiguous() for name, tensor in expand(model.policy_params, n_tasks).items()}
    episodes = collect(model.family, model.policy, theta, tasks, seeds, n_episodes=n_episodes)
    returns = discounted_returns(episodes.rewards, episodes.mask, getattr(model, "gamma", 0.99))
    held_out = max(1, round(HELD_OUT * n_tasks))
    x, y = _pick(episodes.obs[:-held_out], returns[:-held_out], episodes.mask[:-held_out])
    x_test, y_test = _pick(episodes.obs[-held_out:], returns[-held_out:], episodes.mask[-held_out:])
    mean, std = float(y.mean()), max(float(y.std()), 1e-6)
    error = _regress(policy, x, (y - mean) / std, x_test, (y_test - mean) / std, stream(model.seed, "export/batches"))
    with torch.no_grad():
        policy.value_net.weight.mul_(std)
        policy.value_net.bias.mul_(std).add_(mean)
    explained = 1.0 - error * std**2 / max(float(y_test.var()), 1e-12)
    tensors = {name: t.detach().clone() for name, t in policy.named_parameters() if "value_net" in name}
    return ValueFit(explained, n_tasks, episodes.n_steps), tensors


def _pick(obs: np.ndarray, returns: np.ndarray, mask: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the valid steps as ``[n, observation]`` and ``[n]``."""
    x = obs.reshape(*mask.shape, -1)[mask].astype(np.float32)
    return torch.from_numpy(x), torch.from_numpy(returns[mask].astype(np.float32))


def _regress(
    policy: ActorCriticPolicy,
    x: torch.Tensor,
    y: torch.Tensor,
    x_test: torch.Tensor,
    y_test: torch.Tensor,
    rng: np.random.Generator,
) -> float:
    """Fit to standardised targets; return the variance of the held-out error in the best epoch, which is kept."""
    network = torch.nn.Sequential(policy.mlp_extractor.value_net, policy.value_net)
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    best, kept = np.inf, [p.detach().clone() for p in network.parameters()]
    for _ in range(max(MIN_EPOCHS, -(-MIN_UPDATES * BATCH_SIZE // len(x)))):
        order = torch.from_numpy(rng.permutation(len(x)))
        for start in range(0, len(x), BATCH_SIZE):
            batch = order[start : start + BATCH_SIZE]
            loss = torch.nn.functional.mse_loss(network(x[batch]).squeeze(-1), y[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            error = float((network(x_test).squeeze(-1) - y_test).var(correction=0))
        if error < best:
            best, kept = error, [p.detach().clone() for p in network.parameters()]
    with torch.no_grad():
        for parameter, value in zip(network.parameters(), kept, strict=True):
            parameter.copy_(value)
    return best
