"""A family like a shelf of video games: images of bytes, buttons of each game's own, episodes that end anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from metarl.envs.family import Family, State, Step
from metarl.envs.tasks import Task, Tasks

BUTTONS = (2, 3, 5)


class Games(Family):
    """A lamp in one of the picture's corners says which button pays; a step in ten ends the episode.

    :param horizon: env steps after which an episode is cut.
    :param buttons: of the games; the task is a game's number.
    """

    def __init__(self, horizon: int = 7, buttons: Sequence[int] = BUTTONS) -> None:
        self.id = "Games-v0"
        self.buttons = tuple(buttons)
        self.task_space = spaces.Dict({"game": spaces.Discrete(len(self.buttons))})
        self.observation_space = spaces.Box(0, 255, (1, 36, 36), np.uint8)
        self.action_space = spaces.Discrete(self.buttons[0])
        self.horizon = horizon

    def finite_tasks(self) -> Tasks:
        return {"game": np.arange(len(self.buttons))}

    def finite_split(self, split: str) -> np.ndarray:
        return np.arange(len(self.buttons))

    def spaces(self, task: Task) -> tuple[spaces.Box, spaces.Space[Any]]:
        return self.observation_space, spaces.Discrete(self.buttons[int(task["game"])])

    def reset(self, tasks: Tasks, rngs: Sequence[np.random.Generator], n_envs: int) -> tuple[State, np.ndarray]:
        return self._draw(rngs, n_envs)

    def _draw(self, rngs: Sequence[np.random.Generator], n_envs: int) -> tuple[State, np.ndarray]:
        lamp = np.stack([rng.integers(4, size=n_envs) for rng in rngs])
        obs = np.zeros((*lamp.shape, *self.observation_space.shape), np.uint8)
        for corner, (y, x) in enumerate([(0, 0), (0, 18), (18, 0), (18, 18)]):
            obs[..., 0, y : y + 18, x : x + 18] = np.where(lamp == corner, 255, 20)[..., None, None]
        return {"lamp": lamp}, obs

    def step(
        self,
        tasks: Tasks,
        state: State,
        actions: np.ndarray,
        rngs: Sequence[np.random.Generator],
        active: np.ndarray | None = None,
    ) -> Step:
        n = np.array(self.buttons)[tasks["game"]][:, None]
        reward = (actions == state["lamp"] % n).astype(np.float64)
        over = np.stack([rng.random(actions.shape[1]) for rng in rngs]) < 0.1
        after, obs = self._draw(rngs, actions.shape[1])
        return Step(after, obs, reward, over, {"reward_button": reward})
