"""Groups: the tasks of a meta-batch that share spaces, and so can be stacked."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from metarl.envs.family import Family, draw_tasks
from metarl.envs.promises import spaces_of
from metarl.envs.tasks import Tasks, concatenate_tasks, n_tasks, one_task, take_tasks
from metarl.envs.views.around import Around
from metarl.errors import ConfigError
from metarl.streams import stream

SEARCHED = 200
"""Training tasks that are drawn to find all pairs of spaces that a family has."""


class Group(NamedTuple):
    """Tasks of equal spaces."""

    indices: np.ndarray
    """Where they stand in the batch that was grouped, ascending."""
    tasks: Tasks
    observation_space: spaces.Box
    action_space: spaces.Space[Any]


def has_equal_spaces(family: Family) -> bool:
    """Return whether all tasks of a family have its own spaces."""
    family = family.acts_in  # whose spaces it has
    inner = family
    while isinstance(inner, Around):
        inner = inner.family
    if type(inner).spaces is Family.spaces:
        return True
    finite = inner.finite_tasks()
    own = inner.observation_space, inner.action_space
    return finite is not None and all(inner.spaces(one_task(finite, index)) == own for index in range(n_tasks(finite)))


def group_tasks(family: Family, tasks: Tasks) -> list[Group]:
    """Cut a batch of tasks into groups of equal spaces, in the order in which each pair of spaces first appears.

    :param family: whose tasks they are.
    :param tasks: a batch of tasks.
    :return: groups whose ``indices`` together are ``0 … n_tasks - 1``.
    """
    found: list[tuple[tuple[spaces.Box, spaces.Space[Any]], list[int]]] = []
    for index in range(n_tasks(tasks)):
        pair = spaces_of(family, one_task(tasks, index))
        for known, members in found:
            if known == pair:
                members.append(index)
                break
        else:
            found.append((pair, [index]))
    return [Group(np.array(members), take_tasks(tasks, np.array(members)), *pair) for pair, members in found]


def known_groups(family: Family) -> list[Group]:
    """Return tasks of every pair of spaces that a family is found to have, the family's own pair first.

    They are drawn, and taken from the fixed lists.
    """
    found = [
        family.sample_tasks(stream(0, "spaces"), SEARCHED),
        *(family.tasks(split) for split in ("validation", "test")),
    ]
    # The family's own pair comes first: it is what everybody sees who asks the model for its spaces.
    own = (family.observation_space, family.action_space)
    groups = group_tasks(family, concatenate_tasks(found))
    return sorted(groups, key=lambda group: (group.observation_space, group.action_space) != own)


def example_task(family: Family, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> Tasks:
    """Return one task of a pair of spaces, as a batch.

    :raises ConfigError: none was found.
    """
    if has_equal_spaces(family):
        return draw_tasks(family, stream(0, "sb3/env"), 1)
    for group in known_groups(family):
        if (group.observation_space, group.action_space) == (observation_space, action_space):
            return take_tasks(group.tasks, slice(0, 1))
    raise ConfigError(f"no task of {family.id} is known that has the spaces {observation_space} and {action_space}")
