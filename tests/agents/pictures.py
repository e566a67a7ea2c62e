"""Small families of images: one of reinforcement learning with known rewards, and one of few-shot classification."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np
from gymnasium import spaces

from metarl.envs.family import Family, State, Step
from metarl.envs.supervised.one_step import OneStep
from metarl.envs.tasks import Tasks

SIDE = 36


class Pictures(Family):
    """Each step shows a bright half on a random side; naming it pays 1, or the other side where ``flip`` is 1.

    :param continuous: the sign of one number names a side, instead of one of two actions.
    """

    id = "Pictures-v0"

    def __init__(self, continuous: bool = False, horizon: int = 4) -> None:
        self.task_space = spaces.Dict({"flip": spaces.Discrete(2)})
        self.observation_space = spaces.Box(0, 255, (1, SIDE, SIDE), np.uint8)
        box = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.action_space: spaces.Space[Any] = box if continuous else spaces.Discrete(2)
        self.horizon = horizon

    def reset(self, tasks: Tasks, rngs: Sequence[np.random.Generator], n_envs: int) -> tuple[State, np.ndarray]:
        return self._show(rngs, n_envs)

    def step(
        self,
        tasks: Tasks,
        state: State,
        actions: np.ndarray,
        rngs: Sequence[np.random.Generator],
        active: np.ndarray | None = None,
    ) -> Step:
        chosen = actions[..., 0] > 0.0 if isinstance(self.action_space, spaces.Box) else actions == 1
        wanted = state["right"] ^ (tasks["flip"][:, None] == 1)
        reward = (chosen == wanted).astype(np.float64)
        after, obs = self._show(rngs, reward.shape[1])
        return Step(after, obs, reward, np.zeros(reward.shape, dtype=bool), {"reward": reward})

    @staticmethod
    def _show(rngs: Sequence[np.random.Generator], n_envs: int) -> tuple[State, np.ndarray]:
        right = np.stack([rng.integers(2, size=n_envs) for rng in rngs]) == 1
        obs = np.stack([rng.integers(56, size=(n_envs, 1, SIDE, SIDE), dtype=np.uint8) for rng in rngs])
        obs[right, :, :, SIDE // 2 :] += 200
        obs[~right, :, :, : SIDE // 2] += 200
        return {"right": right}, obs


class Patterns(OneStep):
    """Three patterns among noise, whose classes are permuted in each task: nobody knows them who has not seen some."""

    id = "Patterns-v0"
    loss = "cross_entropy"

    def __init__(self) -> None:
        self.task_space = spaces.Dict({"permutation": spaces.Discrete(6)})
        self.observation_space = spaces.Box(0, 255, (1, 16, 16), np.uint8)
        self.action_space = spaces.Discrete(3)
        row, column = np.indices((16, 16)) // 2 % 2
        self._patterns = np.stack([row, column, row ^ column])[:, None] * 150
        self._permutations = np.array(list(permutations(range(3))))

    def examples(self, tasks: Tasks, rngs: Sequence[np.random.Generator], n: int) -> tuple[np.ndarray, np.ndarray]:
        shown = np.stack([rng.integers(3, size=n) for rng in rngs])
        noise = np.stack([rng.integers(100, size=(n, 1, 16, 16)) for rng in rngs])
        targets = self._permutations[tasks["permutation"][:, None], shown]
        return self._patterns[shown] + noise, targets
