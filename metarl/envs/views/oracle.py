"""The oracle view: the observation ends with the task, so that nothing has to be found out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from gymnasium import spaces

from metarl.envs.family import Family, State, Step
from metarl.envs.stepping import Earned, Reached, Stepper, stepper_of
from metarl.envs.tasks import Task, Tasks
from metarl.envs.views.around import Around


class Oracle(Around):
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
        super().__init__(family, "an oracle", oracle=True)
        if family.evaluation_family is not None:
            self.evaluation_family = Oracle(family.evaluation_family)
        self.draws_in_steps = family.draws_in_steps
        self.observation_space = self._extend(family.observation_space)

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

    def stepper(
        self, tasks: Tasks, state: State, rngs: Sequence[np.random.Generator], info: Sequence[str] = ()
    ) -> Stepper:
        return _Told(stepper_of(self.family, tasks, state, rngs, info), partial(self._append, tasks))

    def spaces(self, task: Task) -> tuple[spaces.Box, spaces.Space[Any]]:
        observation_space, action_space = self.family.spaces(task)
        return self._extend(observation_space), action_space


class _Told(Stepper):
    """Steps a family, and tells the task.

    :param inner: steps the family.
    :param append: returns observations with the task.
    """

    def __init__(self, inner: Stepper, append: Callable[[np.ndarray], np.ndarray]) -> None:
        self._inner, self._append = inner, append

    def step(self, actions: np.ndarray, active: np.ndarray) -> Reached:
        reached = self._inner.step(actions, active)
        return reached._replace(obs=self._append(reached.obs))

    def earned(self) -> Earned:
        return self._inner.earned()
