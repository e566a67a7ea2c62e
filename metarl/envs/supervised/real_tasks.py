"""Supervised families about another one: their tasks and splits are its own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np

from metarl.envs.family import Family
from metarl.envs.supervised.one_step import OneStep
from metarl.envs.tasks import Tasks


class RealTasks(OneStep):
    """Base of supervised families whose tasks are those of a *real* family."""

    @property
    @abstractmethod
    def real(self) -> Family:
        """The family whose tasks they are."""

    def sample_tasks(self, rng: np.random.Generator, n: int) -> Tasks:
        return self.real.sample_tasks(rng, n)

    def sample_shifted_tasks(self, rng: np.random.Generator, n: int) -> Tasks:
        return self.real.sample_shifted_tasks(rng, n)

    def in_training_range(self, tasks: Tasks) -> np.ndarray:
        return self.real.in_training_range(tasks)

    def finite_tasks(self) -> Tasks | None:
        return self.real.finite_tasks()

    def finite_split(self, split: str) -> np.ndarray:
        return self.real.finite_split(split)

    def tasks(self, split: str, n: int = 40) -> Tasks:
        return self.real.tasks(split, n)

    def validate_tasks(self, tasks: Mapping[str, Any]) -> Tasks:
        return self.real.validate_tasks(tasks)

    def close(self) -> None:
        self.real.close()
