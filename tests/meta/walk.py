"""A small family for exports: a point on a line walks towards the side that the task names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from metarl.envs.family import Family, State, Step
from metarl.envs.tasks import Tasks


class Walk(Family):
    """Reward: side times velocity, minus the squared distance to the origin. Episodes end beyond ±2, or at the horizon.

    :param discrete: three actions (left, stay, right) instead of a velocity.
    :param start: the first action's number, for discrete actions.
    """

    def __init__(self, discrete: bool = False, start: int = 0) -> None:
        self.id = "Walk-v0"
        self.task_space = spaces.Dict({"side": spaces.Box(-1.0, 1.0, (), np.float32)})
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.discrete = discrete
        self.action_space: spaces.Space[Any] = (
            spaces.Discrete(3, start=start) if discrete else spaces.Box(-1.0, 1.0, (1,), np.float32)
        )
        self.horizon = 8

    def reset(self, tasks: Tasks, rngs: Sequence[np.random.Generator], n_envs: int) -> tuple[State, np.ndarray]:
        x = np.stack([rng.uniform(-1.5, 1.5, n_envs) for rng in rngs])
        state = {"x": x, "t": np.zeros_like(x)}
        return state, self._observe(state)

    def _observe(self, state: State) -> np.ndarray:
        return np.stack([state["x"], state["t"] / self.horizon], axis=-1).astype(np.float32)

    def step(
        self,
        tasks: Tasks,
        state: State,
        actions: np.ndarray,
        rngs: Sequence[np.random.Generator],
        active: np.ndarray | None = None,
    ) -> Step:
        move = actions - 1.0 if self.discrete else np.clip(actions[..., 0], -1.0, 1.0)
        state = {"x": state["x"] + 0.3 * move, "t": state["t"] + 1}
        progress, cost = 0.3 * tasks["side"][:, None] * move, -np.square(state["x"])
        terminated = np.abs(state["x"]) > 2.0
        return Step(state, self._observe(state), progress + cost, terminated, {"progress": progress, "cost": cost})
