"""The oracle view: the observation ends with the task, so that nothing has to be found out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from gymnasium import spaces

from metarl.envs.family import Family, State, Step
from metarl.envs.promises import require_sound_declaration
from metarl.envs.tasks import Task, Tasks
from metarl.errors import ConfigError


class Oracle(Family):
    """A family whose observation is followed by the flattened task parameters, float32, in ``task_space``'s order.

    A Discrete parameter becomes one entry for each of its values, 1 at the task's. Tasks, splits, dynamics, rewards
    and streams are those of the family inside::

        env = gymnasium.make("PointMass-v0", oracle=True, goal=[0.2, 0.1])
        obs, _ = env.reset(seed=0)
        assert np.allclose(obs, [0.0, 0.0, 0.2, 0.1])
        assert Oracle(make_family("PointMass-v0")).observation_space == env.observation_space

    :param family: any family with flat observations.
    :raises ConfigError: observations that are not vectors.
    """

    observes_task = True

    def __init__(self, family: Family) -> None:
        require_sound_declaration(family)
        if len(family.observation_space.shape) != 1:
            raise ConfigError(f"{family.id} observes {family.observation_space}: an oracle needs a vector")
        self.family = family
        self.id = family.id
        self._made_with = None if family._made_with is None else {**family._made_with, "oracle": True}
        self.task_space = family.task_space
        self.shifted_space = family.shifted_space
        self.horizon = family.horizon
        self.loss = family.loss
        self.score = family.score
        self.clips_actions = family.clips_actions
        if family.evaluation_family is not None:
            self.evaluation_family = Oracle(family.evaluation_family)
        self.evaluation_episodes = family.evaluation_episodes
        self.concurrent = family.concurrent
        self.live = family.live
        self.observed = dict(family.observed)
        self.max_copies = family.max_copies
        self.render_fps = family.render_fps
        self.observation_space = self._extend(family.observation_space)
        self.action_space = family.action_space

    def _extend(self, space: spaces.Box) -> spaces.Box:
        bounds = [(space.low, space.high)]
        for name, part in self.task_space.spaces.items():
            if isinstance(part, spaces.Discrete):
                bounds.append((np.zeros(int(part.n)), np.ones(int(part.n))))
                continue
            assert isinstance(part, spaces.Box)
            low, high = part.low.ravel(), part.high.ravel()
            if self.shifted_space is not None:
                shifted = self.shifted_space.spaces[name]
                assert isinstance(shifted, spaces.Box)
                low, high = np.minimum(low, shifted.low.ravel()), np.maximum(high, shifted.high.ravel())
            bounds.append((low, high))
        low, high = (np.concatenate(side).astype(np.float32) for side in zip(*bounds, strict=True))
        return spaces.Box(low, high, dtype=np.float32)

    def flatten_tasks(self, tasks: Tasks) -> np.ndarray:
        """Return the task parameters as they stand in the observation, ``[task, parameter]``, float32."""
        columns = []
        for name, part in self.task_space.spaces.items():
            value = tasks[name]
            if isinstance(part, spaces.Discrete):
                columns.append(value[:, None] == part.start + np.arange(int(part.n)))
            else:
                columns.append(value.reshape(len(value), -1))
        return np.concatenate(columns, axis=1, dtype=np.float32, casting="unsafe")

    def _append(self, tasks: Tasks, obs: np.ndarray) -> np.ndarray:
        flat = self.flatten_tasks(tasks)[:, None]
        return np.concatenate([obs, np.broadcast_to(flat, (*obs.shape[:2], flat.shape[-1]))], axis=-1)

    # ------------------------------------------------------------------------------------------ the family, extended
    def reset(self, tasks: Tasks, rngs: Sequence[np.random.Generator], n_envs: int) -> tuple[State, np.ndarray]:
        state, obs = self.family.reset(tasks, rngs, n_envs)
        return state, self._append(tasks, obs)

    def step(
        self,
        tasks: Tasks,
        state: State,
        actions: np.ndarray,
        rngs: Sequence[np.random.Generator],
        active: np.ndarray | None = None,
    ) -> Step:
        step = self.family.step(tasks, state, actions, rngs, active)
        return step._replace(obs=self._append(tasks, step.obs))

    def spaces(self, task: Task) -> tuple[spaces.Box, spaces.Space[Any]]:
        observation_space, action_space = self.family.spaces(task)
        return self._extend(observation_space), action_space

    # --------------------------------------------------------------------------------------------- the family, as it is
    def sample_tasks(self, rng: np.random.Generator, n: int) -> Tasks:
        return self.family.sample_tasks(rng, n)

    def sample_shifted_tasks(self, rng: np.random.Generator, n: int) -> Tasks:
        return self.family.sample_shifted_tasks(rng, n)

    def in_training_range(self, tasks: Tasks) -> np.ndarray:
        return self.family.in_training_range(tasks)

    def finite_tasks(self) -> Tasks | None:
        return self.family.finite_tasks()

    def finite_split(self, split: str) -> np.ndarray:
        return self.family.finite_split(split)

    def tasks(self, split: str, n: int = 40) -> Tasks:
        return self.family.tasks(split, n)

    def describe(self, task: Task) -> str:
        return self.family.describe(task)

    def validate_tasks(self, tasks: Mapping[str, Any]) -> Tasks:
        return self.family.validate_tasks(tasks)

    def render(self, tasks: Tasks, trail: Sequence[State], task: int, env: int) -> np.ndarray:
        return self.family.render(tasks, trail, task, env)

    def named(self) -> tuple[str, dict[str, Any]] | None:
        named = self.family.named()
        return None if named is None else (named[0], {**named[1], "oracle": True})

    def shared_by(self, n_callers: int) -> AbstractContextManager[None]:
        return self.family.shared_by(n_callers)

    def close(self) -> None:
        self.family.close()
