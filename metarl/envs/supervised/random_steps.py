"""What a policy that acts at random meets in a family, as a supervised family of the same tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from metarl.checks import choice
from metarl.envs.family import Family, State
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
        real, batch = self._real, (n_tasks(tasks), 1)
        observation_space = real.spaces(one_task(tasks, 0))[0]

        def begun(rows: np.ndarray) -> tuple[State, np.ndarray]:
            first = real.reset(take_tasks(tasks, rows), [rngs[row] for row in rows], 1)
            return sound_start(real, first, (len(rows), 1), observation_space)

        state, obs = begun(np.arange(batch[0]))
        age, seen, after = np.zeros(batch[0], dtype=int), [], []
        for _ in range(n):
            actions = np.stack([_drawn(real.action_space, rng) for rng in rngs])[:, None]
            step = real.step(tasks, state, actions, rngs, None)
            require_sound_step(real, step, batch, observation_space)
            target = step.reward[..., None] if self._pays else step.obs
            if not np.isfinite(target).all():
                raise NonFiniteError(f"{real.id} gives a number that is not finite where actions are random")
            seen.append(np.concatenate([_flat(obs), _told(real.action_space, actions)], axis=-1))
            after.append(_flat(target))
            age += 1
            state, obs = step.state, step.obs
            over = np.flatnonzero(step.ended[:, 0] | (age >= real.horizon))
            if len(over):
                fresh, first = begun(over)
                state = {name: _with_rows(value, over, fresh[name]) for name, value in state.items()}
                obs = _with_rows(obs, over, first)
                age[over] = 0
        inputs, targets = np.stack(seen, axis=1).astype(np.float32), np.stack(after, axis=1)
        return inputs, with_noise(targets, rngs, self.support_noise)


def _drawn(space: spaces.Space[Any], rng: np.random.Generator) -> np.ndarray:
    """Draw an action uniformly."""
    if isinstance(space, spaces.Discrete):
        return np.asarray(space.start + rng.integers(space.n))
    assert isinstance(space, spaces.Box)
    return rng.uniform(space.low, space.high).astype(space.dtype)


def _told(space: spaces.Space[Any], actions: np.ndarray) -> np.ndarray:
    """Return actions ``[task, 1, *action]`` as numbers ``[task, numbers]``."""
    if isinstance(space, spaces.Discrete):
        return np.asarray(np.eye(int(space.n))[actions[:, 0] - space.start])
    return _flat(actions)


def _flat(array: np.ndarray) -> np.ndarray:
    return array.reshape(len(array), -1)


def _with_rows(value: np.ndarray, rows: np.ndarray, fresh: np.ndarray) -> np.ndarray:
    """Return values ``[task, 1, ...]`` with others in some rows."""
    result = value.copy()
    result[rows] = fresh
    return result
