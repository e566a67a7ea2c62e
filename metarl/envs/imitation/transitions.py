"""Transitions of a random policy in a family: what it does is seen, and not what an expert does in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from metarl.checks import integer
from metarl.envs.family import Family
from metarl.envs.imitation.demonstrations import Pairs, Show, Shown, task_streams
from metarl.envs.supervised.one_step import SUPPORT_NOISE, with_noise
from metarl.envs.supervised.random_steps import random_play
from metarl.envs.supervised.real_tasks import RealTasks
from metarl.envs.tasks import Tasks, n_tasks

LARGEST = 1000.0
"""Bounds of predictions: Stable-Baselines3 takes finite ones, and nothing is clipped to them."""


class RandomTransitions(Shown):
    """Pairs of (s, a) and s' of a policy that draws each action uniformly; made and kept as demonstrations are.

    Every trajectory has ``n_steps`` transitions. Where an episode ends on the way, the next one begins.

    :param real: the family in which it acts.
    :param n_trajectories: of each task.
    :param n_steps: transitions of a trajectory.
    :param origin: see :class:`~metarl.envs.imitation.demonstrations.Shown`, as ``pool``.
    """

    fingerprint = "uniformly random actions"

    def __init__(
        self, real: Family, n_trajectories: int, n_steps: int, origin: Mapping[str, Any] | None, pool: Tasks | None
    ) -> None:
        self.n_trajectories, self.n_steps = n_trajectories, n_steps
        super().__init__(real, Show(n_trajectories, n_trajectories * n_steps, 0.0), origin, pool, self)

    def _shown(self, tasks: Tasks) -> list[Pairs]:
        batch = (n_tasks(tasks), self.n_trajectories)
        returns = np.zeros(batch)
        seen, after = [], []
        for obs, actions, step in random_play(
            self._real, tasks, task_streams(tasks, "imitation/transitions"), self.n_trajectories, self.n_steps
        ):
            seen.append(np.concatenate([obs, actions], axis=-1))
            after.append(step.obs)
            returns += step.reward
        shape = batch[0], batch[1] * self.n_steps, -1
        inputs, targets = (np.stack(each, axis=2).reshape(shape) for each in (seen, after))
        return [Pairs(inputs[i], targets[i], float(returns[i].mean())) for i in range(batch[0])]


class Transitions(RealTasks):
    """Support of families of imitation: transitions (s, a) → s' of a random policy in the real family.

    :param real: the real family.
    :param shown: what its random policy does.
    :param support_noise: σ of the normal deviate that is added to each entry of s'.
    """

    # The states on the way from a reset tell what body it is.
    observes_task = True
    clips_actions = False

    def __init__(self, id: str, real: Family, shown: RandomTransitions, support_noise: float) -> None:
        self.id = id
        self._real = real
        self.shown = shown
        self.support_noise = SUPPORT_NOISE("support_noise", support_noise)
        assert isinstance(real.action_space, spaces.Box)
        n_obs, n_actions = real.observation_space.shape[0], real.action_space.shape[0]
        self.task_space, self.shifted_space = real.task_space, real.shifted_space
        self.observation_space = spaces.Box(-np.inf, np.inf, (n_obs + n_actions,), np.float32)
        self.action_space = spaces.Box(-LARGEST, LARGEST, (n_obs,), np.float32)

    @property
    def real(self) -> Family:
        return self._real

    def examples(self, tasks: Tasks, rngs: Sequence[np.random.Generator], n: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw trajectories of every task, and return the first ``n`` of their transitions, one after the other."""
        n_steps = self.shown.n_steps
        inputs, targets = [], []
        for pairs, rng in zip(self.shown.of(tasks), rngs, strict=True):
            drawn = rng.integers(self.shown.n_trajectories, size=-(-n // n_steps))
            rows = (drawn[:, None] * n_steps + np.arange(n_steps)).ravel()[:n]
            inputs.append(pairs.obs[rows])
            targets.append(pairs.actions[rows])
        return np.stack(inputs), with_noise(np.stack(targets), rngs, self.support_noise)


TRAJECTORIES = integer(1, 10**5)
"""Checks numbers of trajectories, and of transitions of one."""
