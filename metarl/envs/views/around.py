"""What views that are families themselves share: the tasks, and all that they leave as it is, of the family inside."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from metarl.envs.family import Family, State
from metarl.envs.promises import require_sound_declaration
from metarl.envs.tasks import Task, Tasks
from metarl.envs.two_levels import TwoLevels
from metarl.errors import ConfigError


class Around(Family, ABC):
    """A family around another one, with its tasks, splits and actions, and longer observations.

    :param family: any family with flat observations.
    :param reader: what reads the observation, for the error message.
    :param argument: what :func:`~metarl.envs.registry.make_family` makes the view by.
    :raises ConfigError: observations that are not vectors.
    """

    def __init__(self, family: Family, reader: str, **argument: Any) -> None:
        require_sound_declaration(family)
        if len(family.observation_space.shape) != 1:
            raise ConfigError(f"{family.id} observes {family.observation_space}: {reader} needs a vector")
        self.family = family
        self.id = family.id
        self.made_by = argument
        """The argument of make_family that makes the view."""
        self._made_with = None if family._made_with is None else {**family._made_with, **argument}
        self.task_space = family.task_space
        self.shifted_space = family.shifted_space
        self.horizon = family.horizon
        self.loss = family.loss
        self.score = family.score
        self.clips_actions = family.clips_actions
        self.evaluation_episodes = family.evaluation_episodes
        self.concurrent = family.concurrent
        self.live = family.live
        self.observed = dict(family.observed)
        self.max_copies = family.max_copies
        self.render_fps = family.render_fps
        # What is seen of a task does not depend on what its policy observes.
        self.support_family = family.support_family
        self.action_space = family.action_space

    def named(self) -> tuple[str, dict[str, Any]] | None:
        named = self.family.named()
        return None if named is None else (named[0], {**named[1], **self.made_by})

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

    def shared_by(self, n_callers: int) -> AbstractContextManager[None]:
        return self.family.shared_by(n_callers)

    def close(self) -> None:
        self.family.close()


def two_levels(family: Family) -> TwoLevels | None:
    """Return the family of two levels that a family is, or is a view of; None where its tasks have one level."""
    inner = family
    while isinstance(inner, Around):
        inner = inner.family
    return inner if isinstance(inner, TwoLevels) else None
