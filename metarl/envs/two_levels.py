"""Two levels of tasks: a distribution over families of related tasks, and in each a distribution over its tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from metarl.checks import COUNT
from metarl.envs.family import SPLITS, Family
from metarl.envs.tasks import Tasks, concatenate_tasks, inside, n_tasks, sample_uniform
from metarl.errors import TaskError, shorten


class TwoLevels(Family, ABC):
    """A family whose tasks come in families of their own: p(j) over those, and p_j(T) over the tasks of each.

    What tasks of one family share is a point of ``family_space``, drawn by :meth:`sample_families`. It may be a part of
    the task, such as a frequency, or say where tasks lie, such as a rectangle of goals. To whoever does not ask, it is
    a family like any other: ``sample_tasks(rng, n)`` draws over all families. Sines of one phase each::

        from metarl.envs import Sinusoid

        class Phases(TwoLevels, Sinusoid):
            def __init__(self):
                super().__init__()
                self.id = "Phases-v0"
                self.family_space = Dict({"phase": self.task_space["phase"]})

            def tasks_within(self, rng, families):
                amplitude = rng.uniform(0.1, 5.0, len(families["phase"]))
                return {"amplitude": amplitude, "phase": families["phase"]}

        family, rng = Phases(), np.random.default_rng(0)
        families = family.sample_families(rng, 3)
        tasks = family.sample_tasks(rng, 2, families=families)  # two of each family, one family after the other
        assert np.array_equal(tasks["phase"], np.repeat(families["phase"], 2))
        check_family(family)
    """

    family_space: spaces.Dict
    """What tells one family of tasks from another: bounded Box and Discrete parameters, as in ``task_space``."""

    def sample_families(self, rng: np.random.Generator, n: int) -> Tasks:
        """Draw ``n`` training families, ``[family, …]``; override it for a distribution that is not uniform."""
        return sample_uniform(self.family_space, rng, n)

    @abstractmethod
    def tasks_within(self, rng: np.random.Generator, families: Tasks) -> Tasks:
        """Draw one task of each family, in their order.

        :param families: ``[family, …]``; one that is there several times gets as many draws.
        """

    def sample_tasks(self, rng: np.random.Generator, n: int, families: Tasks | None = None) -> Tasks:
        """Draw training tasks.

        :param n: how many: in all, of a family of its own each; of given families, how many of each.
        :param families: ``[family, …]``; the result has ``n`` tasks of the first, then ``n`` of the second, and so on.
        """
        if families is None:
            return self.tasks_within(rng, self.sample_families(rng, n))
        return self.tasks_within(rng, {name: np.repeat(value, n, axis=0) for name, value in families.items()})

    def families(self, split: str, n: int = 40) -> Tasks:
        """Return the first ``n`` families of a named split: draws that do not depend on ``n``.

        :param split: ``"train"``, ``"validation"`` or ``"test"``.
        :raises TaskError: another split.
        """
        n = COUNT("n", n)
        if split not in SPLITS[:3]:
            raise TaskError(f"unknown split of families {shorten(split)}: known: {', '.join(SPLITS[:3])}")
        streams = (self._split_stream(f"families/{split}", i) for i in range(n))
        return concatenate_tasks([draw_families(self, rng, 1) for rng in streams])


def draw_families(family: TwoLevels, rng: np.random.Generator, n: int) -> Tasks:
    """Return families of tasks, once it is seen that they are some.

    :raises TaskError: ``sample_families`` returned something else.
    """
    found: Any = family.sample_families(rng, n)
    names = list(family.family_space.spaces)
    sound = isinstance(found, Mapping) and set(found) == set(names)
    sound = sound and all(isinstance(value, np.ndarray) and value.ndim and len(value) == n for value in found.values())
    if not sound or not all(inside(space, found[name]).all() for name, space in family.family_space.spaces.items()):
        raise TaskError(
            f"sample_families of {family.id or type(family).__name__} gives {shorten(found)}, not {n} points of its "
            f"family_space: a dict of arrays [family, ...], {', '.join(names)} (metarl.envs.check_family says more)"
        )
    return dict(found)


def draw_tasks_of(family: TwoLevels, rng: np.random.Generator, n: int, families: Tasks) -> Tasks:
    """Return ``n`` tasks of each family, once it is seen that they are some.

    :raises TaskError: ``sample_tasks`` returned another number of them.
    """
    tasks, expected = family.sample_tasks(rng, n, families=families), n * n_tasks(families)
    if not tasks or any(len(value) != expected for value in tasks.values()):
        raise TaskError(
            f"sample_tasks(rng, {n}, families) of {family.id or type(family).__name__} gives {shorten(tasks)}, not "
            f"{expected} tasks: {n} of each family (metarl.envs.check_family says more)"
        )
    return tasks
