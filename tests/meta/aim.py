"""A family whose episodes have one step: hit a target. Any learner improves on it within seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from metarl.envs.family import Family, State, Step
from metarl.envs.tasks import Tasks


class Aim(Family):
    """Reward: minus the squared distance of the action to the target, which is somewhere in [0.4, 0.9].

    :param discrete: three actions: −1, 0, 1.
    """

    id = "Aim-v0"

    def __init__(self, discrete: bool = False) -> None:
        self.task_space = spaces.Dict({"target": spaces.Box(0.4, 0.9, (), np.float32)})
        self.observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.action_space: spaces.Space[Any] = (
            spaces.Discrete(3) if discrete else spaces.Box(-1.0, 1.0, (1,), np.float32)
        )
        self.horizon = 1

    def reset(self, tasks: Tasks, rngs: Sequence[np.random.Generator], n_envs: int) -> tuple[State, np.ndarray]:
        x = np.zeros((len(rngs), n_envs))
        return {"x": x}, self._observe(x)

    def _observe(self, x: np.ndarray) -> np.ndarray:
        return np.ones((*x.shape, 1), dtype=np.float32)

    def step(
        self,
        tasks: Tasks,
        state: State,
        actions: np.ndarray,
        rngs: Sequence[np.random.Generator],
        active: np.ndarray | None = None,
    ) -> Step:
        discrete = isinstance(self.action_space, spaces.Discrete)
        shot = actions - 1.0 if discrete else np.clip(actions[..., 0], -1.0, 1.0)
        reward = -np.square(shot - tasks["target"][:, None]).astype(np.float64)
        return Step(state, self._observe(reward), reward, np.ones(reward.shape, dtype=bool), {"reward": reward})
