"""Collecting in one Gymnasium environment, whose task need not be known: episodes one after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

from metarl.agents.networks.distributions import draw_noise
from metarl.agents.networks.policy import FunctionalPolicy
from metarl.agents.sampling.episodes import (
    Episodes,
    amount_of,
    kept_info,
    kept_rewards,
    require_fit,
    require_reported,
    split_streams,
)
from metarl.checks import as_array
from metarl.envs.promises import is_image
from metarl.envs.views.rules import as_actions, require_finite
from metarl.envs.views.single import SingleEnv
from metarl.errors import ConfigError, shorten
from metarl.params import Params


def collect_env(
    env: gym.Env[np.ndarray, np.ndarray],
    policy: FunctionalPolicy,
    params: Params,
    seed: np.random.SeedSequence,
    n_episodes: int | None = None,
    n_transitions: int | None = None,
    max_steps: int = 100_000,
    info: Sequence[str] = (),
    deterministic: bool = False,
) -> Episodes:
    """Run episodes one after another in any Gymnasium environment, whose task need not be known.

    :param params: one task's tensors, without a task axis.
    :param n_episodes: that many, or
    :param n_transitions: as many as hold at least that many env steps.
    :param max_steps: longest episode; an environment that never ends is an error.
    :param info: which of the terms that steps report to keep.
    :param deterministic: take the most likely action in each state, and draw none.
    :return: episodes with a task axis of length 1.
    :raises ConfigError: the policy has other spaces than the environment, which takes and gives what its spaces say; or
        a step does not report what was asked for.
    :raises NonFiniteError: a NaN or infinite reward, observation or action.
    """
    n_episodes, n_transitions = amount_of(n_episodes, n_transitions)
    name = str(env)
    require_fit(policy, env.observation_space, env.action_space, name)
    rng, action_rng = split_streams(seed)
    inner = env.unwrapped
    clips = not isinstance(inner, SingleEnv) or inner.family.clips_actions
    rows: list[tuple[list[Any], ...]] = []
    ends: list[bool] = []
    finals: list[np.ndarray] = []
    with torch.inference_mode():
        steps = 0
        while (len(rows) < n_episodes) if n_episodes is not None else (steps < (n_transitions or 0)):
            obs, _ = env.reset(seed=int(rng.integers(2**31)))
            row: tuple[list[Any], ...] = ([], [], [], *([] for _ in info))
            terminated = truncated = False
            while not (terminated or truncated):
                if len(row[0]) >= max_steps:
                    raise ConfigError(f"an episode of {env} did not end within {max_steps} env steps")
                seen = _observed(obs, policy, env, len(row[0]))
                distribution = policy.distribution(params, torch.from_numpy(seen[None]))
                if deterministic:
                    action = distribution.mode().numpy()
                else:
                    noise = torch.from_numpy(draw_noise(policy.action_space, action_rng, (1,)))
                    action = distribution.sample(noise).numpy()
                row[0].append(seen)
                row[1].append(finite_array("action", action[0], env, len(row[0]) - 1))
                acted = policy.actions_to_env(action)[0]
                chosen = as_actions(acted, env.action_space, None, name, _of(env, len(row[2])))
                # The environment's bounds, not the policy's: in float64 they may be a little narrower.
                taken = clip_actions(env.action_space, chosen) if clips else chosen
                obs, reward, terminated, truncated, told = env.step(taken)
                row[2].append(finite_reward(reward, env, len(row[2])))
                require_reported(info, told, name)
                for column, each in enumerate(info, start=3):
                    row[column].append(np.array(told[each]))
            rows.append(row)
            steps += len(row[2])
            ends.append(terminated)
            finals.append(_observed(obs, policy, env, len(row[2])))
    longest = max(len(row[2]) for row in rows)

    def table(column: int) -> np.ndarray:
        first = np.asarray(rows[0][column][0])
        out = np.zeros((1, len(rows), longest, *first.shape), dtype=first.dtype)
        for i, row in enumerate(rows):
            out[0, i, : len(row[2])] = np.asarray(row[column])
        return out

    lengths = np.array([len(row[2]) for row in rows])
    mask = (np.arange(longest) < lengths[:, None])[None]
    return Episodes(
        obs=table(0),
        actions=table(1),
        rewards=kept_rewards(table(2), mask, name),
        mask=mask,
        terminated=np.array([ends]),
        final_obs=np.stack(finals)[None],
        info={each: kept_info(table(column)) for column, each in enumerate(info, start=3)},
    )


def _observed(obs: Any, policy: FunctionalPolicy, env: gym.Env[Any, Any], time: int) -> np.ndarray:
    """Return a copy of what an environment showed: many write every observation to the same array."""
    dtype = np.uint8 if is_image(policy.observation_space) else np.float32
    seen = np.array(finite_array("observation", obs, env, time), dtype=dtype)
    shape = policy.observation_space.shape
    if seen.shape != shape:
        raise ConfigError(f"observation of shape {list(seen.shape)} from {env}: its space says {list(shape)}")
    return finite_array("observation", seen, env, time)


def finite_array(what: str, value: Any, env: gym.Env[Any, Any], time: int) -> np.ndarray:
    """Return what an environment gave or took as an array.

    :param what: ``"observation"``, ``"action"`` or ``"reward"``.
    :raises ConfigError: it is no real number.
    :raises NonFiniteError: it is NaN or infinite; :class:`~metarl.errors.DivergedError` for an action.
    """
    try:
        array = as_array(value)
    except ValueError:  # lists of different lengths, masked entries
        array = np.array(None)
    if array.dtype.kind not in "biuf":
        raise ConfigError(f"{what} {shorten(value)} of {env} at time step {time}: real numbers")
    require_finite(what, array[None], _of(env, time))
    return array


def finite_reward(value: Any, env: gym.Env[Any, Any], time: int) -> float:
    """Return an environment's reward; what it raises is said at :func:`finite_array`."""
    array = finite_array("reward", value, env, time)
    if array.size != 1:
        raise ConfigError(f"reward of shape {list(array.shape)} from {env} at time step {time}: one number")
    return float(array.reshape(()))


def _of(env: gym.Env[Any, Any], time: int) -> Callable[[int], str]:
    """Return what says for messages which step of which environment it is."""
    return lambda _: f"{env} at time step {time}"


def clip_actions(space: spaces.Space[Any], actions: np.ndarray) -> np.ndarray:
    """Return actions clipped to the action space, as SB3's collectors do outside the policy."""
    return np.clip(actions, space.low, space.high) if isinstance(space, spaces.Box) else actions


class FiniteEnv(gym.Wrapper[Any, Any, Any, Any]):
    """Raises :class:`~metarl.errors.NonFiniteError` for observations and rewards as our own collector does: in one line
    with the time step, which SB3's ``VecCheckNan`` does not say.
    """

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self._time = 0
        obs, info = self.env.reset(**kwargs)
        finite_array("observation", obs, self.env, self._time)
        return obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        finite_reward(reward, self.env, self._time)
        self._time += 1
        finite_array("observation", obs, self.env, self._time)
        return obs, reward, terminated, truncated, info
