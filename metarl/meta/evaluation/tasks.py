"""Which tasks an evaluation adapts to."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from metarl.envs.family import Family, sound_tasks
from metarl.envs.tasks import Tasks, n_tasks, take_tasks


class EvaluationTasks(NamedTuple):
    """The tasks of an evaluation.

    :param tasks: an entry for each adaptation.
    :param strata: for each entry the index of the distinct task it is; None: every entry is a task of its own.
    :param n_family: how many tasks the family has in all; None: any number.
    """

    tasks: Tasks
    strata: list[int] | None
    n_family: int | None


def evaluation_tasks(family: Family, split: str, n: int) -> EvaluationTasks:
    """Return ``n`` tasks of a split; where it has fewer, each is there several times, adapted to with its own streams.

    A family with fewer than 10 distinct tasks is tested on all of them: the unit of an interval is then the independent
    adaptation, stratified by task. A larger finite family is tested on the fifth that a split holds, which stands for
    the rest: there the task stays the unit of an interval, however often it is adapted to. Shifted tasks are draws of
    their own, but of a finite family that lists fewer than are asked for: then these are all that there are.
    """
    tasks = sound_tasks(family, "tasks", family.tasks(split, n))
    finite = family.finite_tasks()
    distinct = n_tasks(tasks)
    if finite is None or (split == "shifted" and n <= distinct):
        return EvaluationTasks(tasks, None, None)
    total = distinct if split == "shifted" else n_tasks(finite)
    if not family.splits_coincide and n <= distinct:
        return EvaluationTasks(tasks, None, total)
    index = np.arange(n) % distinct
    return EvaluationTasks(take_tasks(tasks, index), [int(i) for i in index], total)
