"""Trials: several episodes of one task as one, in which it is observed what the last step was and what it brought.

That is what a policy with a memory learns on (RL²: Duan et al., 2016; Wang et al., 2016). It sees (o_t, a_{t−1},
r_{t−1}, d_{t−1}), with d = 1 where an episode ended; at the beginning of a trial the last three are 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from metarl.checks import integer
from metarl.envs.family import Family, State, Step, score_of
from metarl.envs.tasks import Task, Tasks, take_tasks
from metarl.envs.views.around import Around
from metarl.errors import ConfigError, shorten
from metarl.streams import stream

N_EPISODES = integer(1, 10_000)
_OWN = "trial"
"""What a trial remembers beside the state of the family inside, ``[task, env, 3]``: the number of the episode, its env
steps so far, and the seed of the streams of later ones."""


def n_before(action_space: spaces.Space[Any]) -> int:
    """Return how many entries of a trial's observation tell of the step before: action, reward, end of an episode."""
    return int(spaces.utils.flatdim(action_space)) + 2


def trial_space(space: spaces.Space[Any], action_space: spaces.Space[Any]) -> spaces.Box:
    """Return the observation space of trials.

    :param space: that of an episode.
    :raises ConfigError: it is not of vectors, or actions are neither vectors nor choices.
    """
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        raise ConfigError(f"observations {shorten(space, quote=False)}: a trial needs a vector")
    if not isinstance(action_space, (spaces.Box, spaces.Discrete)):
        raise ConfigError(f"actions {shorten(action_space, quote=False)}: a trial takes a Box or a Discrete space")
    if isinstance(action_space, spaces.Box):
        bounds = action_space.low.ravel(), action_space.high.ravel()
    else:
        bounds = np.zeros(int(action_space.n)), np.ones(int(action_space.n))
    low, high = (
        np.concatenate([side, own, last]).astype(np.float32)
        for side, own, last in zip((space.low, space.high), bounds, ([-np.inf, 0.0], [np.inf, 1.0]), strict=True)
    )
    # At the beginning there was no action, whatever the bounds are.
    part = slice(space.shape[0], -2)
    low[part], high[part] = np.minimum(low[part], 0.0), np.maximum(high[part], 0.0)
    return spaces.Box(low, high, dtype=np.float32)


def with_last_step(
    obs: np.ndarray, action_space: spaces.Space[Any], actions: np.ndarray, rewards: np.ndarray, ended: np.ndarray
) -> np.ndarray:
    """Return observations of trials, ``[…, entry]``, float32.

    :param obs: ``[…, entry]``.
    :param actions: ``[…, *action]``, the last ones, as the environment took them.
    :param rewards: ``[…]``.
    :param ended: ``[…]``, whether an episode ended with them.
    """
    if isinstance(action_space, spaces.Discrete):
        told = actions[..., None] == action_space.start + np.arange(int(action_space.n))
    else:
        told = actions.reshape(*obs.shape[:-1], -1)
    with np.errstate(over="ignore"):
        return np.concatenate(
            [obs, told, rewards[..., None], ended[..., None]], axis=-1, dtype=np.float32, casting="unsafe"
        )


def at_beginning(obs: np.ndarray, action_space: spaces.Space[Any]) -> np.ndarray:
    """Return the first observations of trials, ``[…, entry]``, float32."""
    nothing = np.zeros((*obs.shape[:-1], n_before(action_space)), np.float32)
    return np.concatenate([obs, nothing], axis=-1, dtype=np.float32, casting="unsafe")


class Trials(Around):
    """A family whose episode is a trial: ``n_episodes`` episodes of one task, one after another.

    The observation is followed by the last action (of a Discrete space one entry for each choice, 1 at the one taken),
    the last reward, and whether an episode ended with it. An episode that ends early is followed by the next one at
    once, so a trial has a fixed number of episodes, not of env steps; it terminates or is cut as the last of them
    does. Tasks, splits, dynamics and rewards are those of the family inside. A stock recurrent algorithm learns on
    trials, since its memory begins anew with an episode, which is a trial here::

        env = gymnasium.make("PointMass-v0", trial_episodes=2, horizon=3, goal=[0.2, 0.1])
        obs, _ = env.reset(seed=0)
        assert obs.shape == (2 + 2 + 1 + 1,)
        ended = [env.step(np.zeros(2, np.float32))[0][-1] for _ in range(6)]
        assert ended == [0.0, 0.0, 1.0, 0.0, 0.0, 1.0]
        assert Trials(make_family("PointMass-v0"), 4).horizon == 400

    :param family: any family with flat observations that learns where it acts.
    :param n_episodes: episodes of a trial.
    :raises ConfigError: observations that are not vectors, or a family of imitation.
    """

    observes_task = True  # by the rewards
    n_episodes: int

    def __init__(self, family: Family, n_episodes: int = 4) -> None:
        self.n_episodes = N_EPISODES("n_episodes", n_episodes)
        super().__init__(family, "a trial", trial_episodes=self.n_episodes)
        if isinstance(family, Trials):
            raise ConfigError(
                f"{family.id} has trials already, of {family.n_episodes} episodes: take the family inside"
            )
        if family.evaluation_family is not None:
            raise ConfigError(
                f"{family.id} is scored in another family than it is learnt in: trials are of one, so take that family"
            )
        self.horizon = self.n_episodes * family.horizon
        self.loss, self.score = None, score_of(family)
        self.observation_space = trial_space(family.observation_space, family.action_space)

    def _acts(self, tasks: Tasks) -> spaces.Space[Any]:
        """Return the action space of tasks, which is one."""
        return self.family.spaces({name: value[0] for name, value in tasks.items()})[1]

    def spaces(self, task: Task) -> tuple[spaces.Box, spaces.Space[Any]]:
        observation_space, action_space = self.family.spaces(task)
        return trial_space(observation_space, action_space), action_space

    def reset(self, tasks: Tasks, rngs: Sequence[np.random.Generator], n_envs: int) -> tuple[State, np.ndarray]:
        state, obs = self.family.reset(tasks, rngs, n_envs)
        # Later episodes draw from streams of their own: when one begins depends on how long the copy's last ones were.
        seeds = np.stack([rng.integers(2**31, size=n_envs) for rng in rngs])
        own = np.stack([np.zeros_like(seeds), np.zeros_like(seeds), seeds], axis=-1)
        return {**state, _OWN: own}, at_beginning(obs, self._acts(tasks))

    def step(
        self,
        tasks: Tasks,
        state: State,
        actions: np.ndarray,
        rngs: Sequence[np.random.Generator],
        active: np.ndarray | None = None,
    ) -> Step:
        space = self._acts(tasks)
        step = self.family.step(tasks, _inside(state), actions, rngs, active)
        episode, elapsed, seed = np.moveaxis(state[_OWN], -1, 0)
        elapsed = elapsed + 1
        ended = step.ended | (elapsed >= self.family.horizon)
        is_last = ended & (episode + 1 >= self.n_episodes)
        follows = ended & ~is_last
        if active is not None:
            follows = follows & active
        after, obs = step.state, step.obs
        if follows.any():
            after, obs = self._next_episodes(tasks, after, obs, follows, state[_OWN])
        own = np.stack([episode + follows, np.where(follows, 0, elapsed), seed], axis=-1)
        taken = (
            np.clip(actions, space.low, space.high) if isinstance(space, spaces.Box) and self.clips_actions else actions
        )
        terminated = is_last & step.terminated
        return Step(
            {**after, _OWN: own},
            with_last_step(obs, space, taken, step.reward, ended),
            step.reward,
            terminated,
            step.info,
            is_last & ~terminated,
        )

    def _next_episodes(
        self, tasks: Tasks, after: State, obs: np.ndarray, follows: np.ndarray, own: np.ndarray
    ) -> tuple[State, np.ndarray]:
        """Return states and observations in which the next episode of some copies has begun.

        :param after: states that their last episodes ended in.
        :param follows: ``[task, env]``, which copies they are.
        :param own: what the trials remember.
        """
        task, env = np.nonzero(follows)
        rngs = [stream(seed, "trial", number + 1) for number, _, seed in own[task, env].tolist()]
        ended = {name: value[task, env][:, None] for name, value in after.items()}
        fresh, first = self.family.restart(take_tasks(tasks, task), ended, rngs, 1)
        result = {name: np.array(value) for name, value in after.items()}
        for name, value in result.items():
            value[task, env] = fresh[name][:, 0]
        obs = np.array(obs)
        obs[task, env] = first[:, 0]
        return result, obs

    def render(self, tasks: Tasks, trail: Sequence[State], task: int, env: int) -> np.ndarray:
        now = trail[-1][_OWN][task, env, 0]
        episode = [_inside(state) for state in trail if state[_OWN][task, env, 0] == now]
        return self.family.render(tasks, episode, task, env)


def _inside(state: State) -> State:
    """Return the state of the family inside."""
    return {name: value for name, value in state.items() if name != _OWN}


class TrialEnv(gym.Wrapper[np.ndarray, Any, np.ndarray, Any]):
    """Trials in any Gymnasium environment with flat observations, whose task need not be known::

        env = TrialEnv(gymnasium.make("CartPole-v1"), n_episodes=2)
        obs, _ = env.reset(seed=0)
        assert obs.shape == (4 + 2 + 1 + 1,)

    :param env: the environment; an episode of it that ends is followed by a reset.
    :param n_episodes: episodes of a trial.
    :raises ConfigError: observations that are not vectors.
    """

    def __init__(self, env: gym.Env[Any, Any], n_episodes: int = 1) -> None:
        super().__init__(env)
        self.n_episodes = N_EPISODES("n_episodes", n_episodes)
        self.observation_space = trial_space(env.observation_space, env.action_space)
        self._episode = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin a trial; the arguments are those of the environment's."""
        self._episode = 0
        obs, info = self.env.reset(seed=seed, options=options)
        return at_beginning(np.asarray(obs), self.env.action_space), info

    def step(self, action: Any) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        """Take a step; where it ends an episode that is not the trial's last, the next one has begun."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        ended = bool(terminated or truncated)
        if ended and self._episode + 1 < self.n_episodes:
            self._episode += 1
            terminated = truncated = False
            obs, _ = self.env.reset()
        taken = with_last_step(
            np.asarray(obs), self.env.action_space, np.asarray(action), np.asarray(reward), np.asarray(ended)
        )
        return taken, reward, terminated, truncated, info
