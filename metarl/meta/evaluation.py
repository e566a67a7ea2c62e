"""Which tasks an evaluation adapts to."""

from __future__ import annotations

import numpy as np

from metarl.envs.family import Family, Tasks, n_tasks, take_tasks


def evaluation_tasks(family: Family, split: str, n: int) -> tuple[Tasks, list[int] | None]:
    """Return ``n`` tasks of a split, and their strata where the family is too small for the task to be the unit.

    A family with fewer than 10 distinct tasks is adapted to several times, each time with its own streams: the unit of
    an interval is then the independent adaptation, stratified by task.

    :return: the tasks, and for each the index of the distinct task it is (None: every task is its own).
    """
    tasks = family.tasks(split, n)
    if not family.splits_coincide or split == "shifted":
        return tasks, None
    distinct = n_tasks(tasks)
    index = np.arange(n) % distinct
    return take_tasks(tasks, index), [int(i) for i in index]
