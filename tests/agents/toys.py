"""A small family with known rewards, for tests of collecting: episodes end early, by themselves or at the horizon."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from metarl.agents.networks.policy import FunctionalPolicy
from metarl.envs.family import Family, State, Step
from metarl.envs.tasks import Tasks
from metarl.params import Params, expand
from metarl.streams import seed_sequence

HORIZON = 7


class Staircase(Family):
    """Step ``t`` (from 1) pays ``gain · t``, so an episode of ``L`` steps returns ``gain · L (L + 1) / 2``.

    Copy ``j`` of a task lasts ``1 + (3 j + offset) % 7`` steps; 7 is the horizon, where it is cut. Results of copies
    that are not active are NaN: nothing may look at them.

    :param random: lengths are drawn instead, and so is a part of the observation at every step.
    :param discrete: three actions, from ``start`` on.
    :param bad_offset: tasks of this offset pay NaN at the second step of copy 1.
    """

    id = "Staircase-v0"

    def __init__(
        self, random: bool = False, discrete: bool = False, start: int = 0, bad_offset: int | None = None
    ) -> None:
        self.task_space = spaces.Dict(
            {"gain": spaces.Box(-2.0, 2.0, (), np.float64), "offset": spaces.Discrete(HORIZON)}
        )
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        box = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space: spaces.Space[Any] = spaces.Discrete(3, start=start) if discrete else box
        self.horizon = HORIZON
        self.random = random
        self.bad_offset = bad_offset

    def reset(self, tasks: Tasks, rngs: Sequence[np.random.Generator], n_envs: int) -> tuple[State, np.ndarray]:
        if self.random:
            length = np.stack([rng.integers(1, HORIZON + 1, n_envs) for rng in rngs])
        else:
            length = 1 + (3 * np.arange(n_envs) + tasks["offset"][:, None]) % HORIZON
        state = {"length": length, "t": np.zeros(length.shape), "x": np.zeros(length.shape)}
        return state, self._observe(state)

    @staticmethod
    def _observe(state: State) -> np.ndarray:
        return np.stack([state["t"] / HORIZON, state["x"]], axis=-1).astype(np.float32)

    def step(
        self,
        tasks: Tasks,
        state: State,
        actions: np.ndarray,
        rngs: Sequence[np.random.Generator],
        active: np.ndarray | None = None,
    ) -> Step:
        assert self.action_space.contains(self.action_space.sample())
        if isinstance(self.action_space, spaces.Discrete):
            assert actions.min() >= self.action_space.start
            assert actions.max() < self.action_space.start + self.action_space.n
            move = actions - self.action_space.start - 1.0
        else:
            move = np.clip(actions, -1.0, 1.0).sum(-1)
        noise = np.stack([rng.standard_normal(move.shape[1]) for rng in rngs]) if self.random else 0.0
        state = {"length": state["length"], "t": state["t"] + 1, "x": state["x"] + 0.1 * move + 0.1 * noise}
        reward = tasks["gain"][:, None] * state["t"]
        if self.bad_offset is not None:
            bad = (tasks["offset"][:, None] == self.bad_offset) & (np.arange(move.shape[1]) == 1) & (state["t"] == 2)
            reward = np.where(bad, np.nan, reward)
        terminated = (state["t"] >= state["length"]) & (state["length"] < HORIZON)
        obs = self._observe(state)
        if active is not None:
            reward, obs = np.where(active, reward, np.nan), np.where(active[..., None], obs, np.nan)
        return Step(state, obs.astype(np.float32), reward, terminated, {"reward": reward})


def make_tasks(gains: Sequence[float], offsets: Sequence[int]) -> Tasks:
    """Return a batch of tasks."""
    return {"gain": np.array(gains, dtype=np.float64), "offset": np.array(offsets, dtype=np.int64)}


def make_policy(family: Family, **kwargs: Any) -> FunctionalPolicy:
    """Return a small policy for a family."""
    kwargs = {"net_arch": [8, 6], **kwargs}
    return FunctionalPolicy("MlpPolicy", family.observation_space, family.action_space, kwargs)


def make_stack(policy: FunctionalPolicy, n_tasks: int, seed: int = 0) -> Params:
    """Return ``n_tasks`` copies of fresh tensors."""
    return {name: tensor.contiguous() for name, tensor in expand(policy.init(seed), n_tasks).items()}


def make_seeds(n_tasks: int, purpose: str = "test") -> list[np.random.SeedSequence]:
    """Return one stream for each task."""
    return [seed_sequence(0, purpose, task) for task in range(n_tasks)]
