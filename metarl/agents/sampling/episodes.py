"""Episodes that were collected, and what every collector does in the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gymnasium import spaces

from metarl.agents.networks.acting import Acting
from metarl.agents.sampling.fields import PER_EPISODE, PER_STEP, Fields
from metarl.agents.sampling.rounding import warn_of_lost_digits
from metarl.checks import COUNT
from metarl.envs.family import Family
from metarl.envs.tasks import Tasks, one_task
from metarl.errors import ConfigError, DivergedError, NonFiniteError, shorten
from metarl.streams import generators

ENV, ACTIONS = 0, 1
"""The parts of a collecting stream: the environment draws from one, the policy from the other."""


@dataclass(frozen=True)
class Episodes(Fields):
    """Whole episodes of a batch of tasks, padded to the longest.

    :param obs: ``[task, env, time, *observation]``, in the dtype of the space: what the policy saw before each action.
    :param actions: ``[task, env, time, *action]``: what the policy chose, before clipping.
    :param rewards: ``[task, env, time]``, float32.
    :param mask: ``[task, env, time]``, True where a step was taken. An episode is a prefix of its row; a row without
        steps is no episode.
    :param terminated: ``[task, env]``, whether the episode ended by itself (False: cut at the horizon).
    :param final_obs: ``[task, env, *observation]``, as ``obs``: the observation after each episode's last step.
    :param info: ``[task, env, time, …]``, what steps reported, by name: what was asked for. float32 or int64.
    """

    obs: np.ndarray = field(metadata=PER_STEP)
    actions: np.ndarray = field(metadata=PER_STEP)
    rewards: np.ndarray = field(metadata=PER_STEP)
    mask: np.ndarray = field(metadata=PER_STEP)
    terminated: np.ndarray = field(metadata=PER_EPISODE)
    final_obs: np.ndarray = field(metadata=PER_EPISODE)
    info: Mapping[str, np.ndarray] = field(default_factory=dict, metadata=PER_STEP)

    @property
    def n_steps(self) -> int:
        """Env steps taken, over all tasks."""
        return int(self.mask.sum())

    @property
    def task_steps(self) -> np.ndarray:
        """Env steps taken by each task, ``[task]``."""
        steps: np.ndarray = self.mask.sum((1, 2))
        return steps

    @property
    def lengths(self) -> np.ndarray:
        """Env steps of each episode, ``[task, env]``."""
        lengths: np.ndarray = self.mask.sum(-1)
        return lengths

    @property
    def returns(self) -> np.ndarray:
        """Undiscounted return of each episode, ``[task, env]``, float64; NaN where a row is no episode."""
        total: np.ndarray = np.where(self.mask, self.rewards, 0.0).sum(-1, dtype=np.float64)
        return np.where(self.mask[..., 0], total, np.nan)

    @property
    def mean_returns(self) -> np.ndarray:
        """Mean undiscounted return of each task, ``[task]``."""
        returns = self.returns
        mean: np.ndarray = returns.mean(1)
        return np.nanmean(returns, axis=1) if np.isnan(mean).any() else mean


def split_streams(seed: np.random.SeedSequence) -> tuple[np.random.Generator, np.random.Generator]:
    """Return the two generators of a collecting stream: the environment's and the policy's."""
    return generators([seed], ENV)[0], generators([seed], ACTIONS)[0]


def env_stream(seed: np.random.SeedSequence) -> np.random.Generator:
    """Return the environment's generator of a collecting stream."""
    return generators([seed], ENV)[0]


def kept_rewards(rewards: np.ndarray, mask: np.ndarray, name: str) -> np.ndarray:
    """Return rewards as they are kept, float32; those that it does not hold are said, or infinite."""
    warn_of_lost_digits(name, rewards, mask)
    with np.errstate(over="ignore"):
        return rewards.astype(np.float32)


def kept_info(array: np.ndarray) -> np.ndarray:
    """Return what steps reported as it is kept: float32, or int64 for whole numbers."""
    return array.astype(np.float32 if array.dtype.kind == "f" else np.int64)


def require_finite(family: Family, tasks: Tasks, episodes: Episodes) -> None:
    """Raise for the first number in time that is not finite: it is what the others come from."""
    found: list[tuple[int, int, str, int, int]] = []
    for rank, name in enumerate(("obs", "actions", "rewards")):
        bad = ~np.isfinite(getattr(episodes, name))
        if bad.any():
            bad = bad.reshape(*episodes.mask.shape, -1).any(-1) & episodes.mask
        if bad.any():
            where = np.argwhere(bad)
            task, env, time = (int(i) for i in where[np.argmin(where[:, 2])])
            found.append((time, rank, ("observation", "action", "reward")[rank], task, env))
    if found:
        time, _, what, task, env = min(found)
        values = {key: np.asarray(value).tolist() for key, value in one_task(tasks, task).items()}
        kind = DivergedError if what == "action" else NonFiniteError
        raise kind(f"non-finite {what} in {family.id} task {task} {values}, copy {env}, time step {time}")


def require_reported(asked: Sequence[str], info: Mapping[str, Any], name: str) -> None:
    """Raise :class:`ConfigError` unless a step of the environment ``name`` reported what was asked for."""
    for each in asked:
        if each not in info:
            known = ", ".join(map(str, info)) or "nothing"
            raise ConfigError(f"info of {shorten(name, quote=False)} has no {shorten(each)}: it has {known}")


def require_fit(
    policy: Acting, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], name: str
) -> None:
    """Raise :class:`ConfigError` unless a policy observes and acts as an environment says; bounds may differ."""
    pairs = (("observes", policy.observation_space, observation_space), ("acts in", policy.action_space, action_space))
    for what, own, other in pairs:
        same = type(own) is type(other) and own.shape == other.shape
        if not same or (isinstance(own, spaces.Discrete) and own != other):
            raise ConfigError(
                f"the policy {what} {shorten(own, quote=False)}: {shorten(name, quote=False)} has "
                f"{shorten(other, quote=False)}"
            )


def amount_of(n_episodes: int | None, n_transitions: int | None) -> tuple[int | None, int | None]:
    """Return how much to collect, as plain values; one of them is None.

    :raises ConfigError: both are, or none is.
    """
    if (n_episodes is None) == (n_transitions is None):
        raise ConfigError("give either n_episodes or n_transitions")
    if n_episodes is None:
        return None, COUNT("n_transitions", n_transitions)
    return COUNT("n_episodes", n_episodes), None
