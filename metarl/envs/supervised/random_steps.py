"""What a policy that acts at random meets in a family, as a supervised family of the same tasks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from metarl.checks import choice
from metarl.envs.family import Family, State, Step
from metarl.envs.promises import require_sound_step, sound_start
from metarl.envs.supervised.one_step import SUPPORT_NOISE, with_noise
from metarl.envs.supervised.real_tasks import RealTasks
from metarl.envs.tasks import Tasks, n_tasks, one_task, take_tasks
from metarl.errors import NonFiniteError

TARGETS = ("observation", "reward")
LARGEST = 1000.0
"""Bounds of predictions: Stable-Baselines3 takes finite ones, and nothing is clipped to them."""


class RandomSteps(RealTasks):
    """Env steps of a policy that draws each action uniformly: the input is (observation, action), the target what
    follows. A family sets it as its ``support_family`` where wrappers that transfer are to see that of a task::

        family = make_family("PointMass-v0", wrap_actions=False)
        seen = RandomSteps("steps", family, "observation")
        tasks = family.tasks("test", 1)
        inputs, targets = seen.examples(tasks, [np.random.default_rng(0)], 5)
        assert np.allclose(inputs[..., :2] + inputs[..., 2:], targets, atol=1e-6)

    The examples of a task are consecutive env steps, from a reset on; where an episode ends, the next one begins.
    ``Discrete`` actions are one-hot.

    :param id: its name.
    :param real: the family that the policy acts in, whose tasks have equal spaces.
    :param target: ``"observation"``: the next one; or ``"reward"``.
    :param support_noise: σ of the normal deviate that is added to each number of the target.
    """

    # The states on the way from a reset may tell the task.
    observes_task = True
    clips_actions = False

    def __init__(self, id: str, real: Family, target: str = "observation", support_noise: float = 0.0) -> None:
        self.id = id
        self._real = real
        self._pays = choice(*TARGETS)("target", target) == "reward"
        self.support_noise = SUPPORT_NOISE("support_noise", support_noise)
        self.task_space, self.shifted_space = real.task_space, real.shifted_space
        n_obs, n_actions = (spaces.flatdim(space) for space in (real.observation_space, real.action_space))
        self.observation_space = spaces.Box(-np.inf, np.inf, (n_obs + n_actions,), np.float32)
        self.action_space = spaces.Box(-LARGEST, LARGEST, (1 if self._pays else n_obs,), np.float32)

    @property
    def real(self) -> Family:
        return self._real

    def examples(self, tasks: Tasks, rngs: Sequence[np.random.Generator], n: int) -> tuple[np.ndarray, np.ndarray]:
        """Play ``n`` env steps of every task."""
        real, seen, after = self._real, [], []
        for obs, actions, step in random_play(real, tasks, rngs, 1, n):
            seen.append(np.concatenate([_flat(obs), _told(real.action_space, actions)], axis=-1))
            after.append(_flat(step.reward[..., None] if self._pays else step.obs))
        inputs, targets = np.stack(seen, axis=1).astype(np.float32), np.stack(after, axis=1)
        return inputs, with_noise(targets, rngs, self.support_noise)


def random_play(
    real: Family, tasks: Tasks, rngs: Sequence[np.random.Generator], n_envs: int, n_steps: int
) -> Iterator[tuple[np.ndarray, np.ndarray, Step]]:
    """Play actions that are drawn uniformly, from a reset on; where an episode ends, the next one begins.

    :param rngs: one for each task.
    :param n_envs: copies of each task.
    :return: of each env step the observations before it, the actions, and the step, ``[task, env, …]``.
    :raises NonFiniteError: an observation or a reward is no finite number.
    """
    batch = (n_tasks(tasks), n_envs)
    observation_space, action_space = real.spaces(one_task(tasks, 0))

    def begun(rows: np.ndarray) -> tuple[State, np.ndarray]:
        first = real.reset(take_tasks(tasks, rows), [rngs[row] for row in rows], n_envs)
        return sound_start(real, first, (len(rows), n_envs), observation_space)

    state, obs = begun(np.arange(batch[0]))
    age = np.zeros(batch, dtype=int)
    for _ in range(n_steps):
        actions = np.stack([_drawn(action_space, rng, n_envs) for rng in rngs])
        step = real.step(tasks, state, actions, rngs, None)
        require_sound_step(real, step, batch, observation_space)
        if not (np.isfinite(step.obs).all() and np.isfinite(step.reward).all()):
            raise NonFiniteError(f"{real.id} gives a number that is not finite where actions are random")
        yield obs, actions, step
        state, obs, age = step.state, step.obs, age + 1
        over = step.ended | (age >= real.horizon)
        rows = np.flatnonzero(over.any(axis=1))
        if len(rows):
            fresh, first = begun(rows)
            state = {name: _begun_anew(value, fresh[name], over, rows) for name, value in state.items()}
            obs = _begun_anew(obs, first, over, rows)
        age[over] = 0


def _drawn(space: spaces.Space[Any], rng: np.random.Generator, n: int) -> np.ndarray:
    """Draw ``n`` actions uniformly."""
    if isinstance(space, spaces.Discrete):
        return np.asarray(space.start + rng.integers(space.n, size=n))
    assert isinstance(space, spaces.Box)
    return rng.uniform(space.low, space.high, (n, *space.shape)).astype(space.dtype)


def _told(space: spaces.Space[Any], actions: np.ndarray) -> np.ndarray:
    """Return actions ``[task, 1, *action]`` as numbers ``[task, numbers]``."""
    if isinstance(space, spaces.Discrete):
        return np.asarray(np.eye(int(space.n))[actions[:, 0] - space.start])
    return _flat(actions)


def _flat(array: np.ndarray) -> np.ndarray:
    return array.reshape(len(array), -1)


def _begun_anew(value: np.ndarray, fresh: np.ndarray, over: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return values ``[task, copy, ...]`` in which copies that are over have those of a fresh start, ``[row, ...]``."""
    result = value.copy()
    result[over] = fresh[over[rows]]
    return result
