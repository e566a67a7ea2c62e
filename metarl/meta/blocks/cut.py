"""How a batch of tasks is cut into blocks: by spaces and by number, never by workers or threads."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

from metarl.envs.family import Family
from metarl.envs.groups import Group, group_tasks, has_equal_spaces, known_groups
from metarl.envs.tasks import Tasks, take_tasks
from metarl.errors import ConfigError
from metarl.meta.adaptation.base import Adaptation, Amount, Outcome, PathWatcher, Request, Streams, Told, finish
from metarl.meta.progress import Timer
from metarl.params import Params, Rate, select, stack

BLOCK_TASKS = 64
"""Tasks of one block, at most: what a block keeps is in memory at once."""
Spaces = tuple[spaces.Box, spaces.Space[Any]]
MakeAdaptation = Callable[[spaces.Box, spaces.Space[Any]], Adaptation]
"""Returns the adaptation to a pair of spaces."""


@dataclass(frozen=True)
class Block:
    """Tasks of equal spaces that are learnt together, and keep together what they collected.

    :param indices: their places in the batch.
    :param adaptation: how they are learnt.
    :param request: what is asked.
    """

    indices: tuple[int, ...]
    adaptation: Adaptation
    request: Request

    def learn(
        self,
        theta: Params,
        timer: Timer,
        *,
        query: bool = False,
        keep: bool = False,
        second_order: bool = False,
        watcher: PathWatcher | None = None,
    ) -> Outcome:
        """Learn every task; see :meth:`metarl.meta.adaptation.base.Adaptation.walk`."""
        how = {"query": query, "keep": keep, "second_order": second_order}
        return finish(self.adaptation.walk(theta, self.request, **how, watcher=watcher), timer)

    def evaluate(self, theta: Params, told: Told | None = None) -> Outcome:
        """Learn every task and measure it; see :meth:`metarl.meta.adaptation.base.Adaptation.evaluate`."""
        return self.adaptation.evaluate(theta, self.request, told)


class Adaptations:
    """How the tasks of a family are learnt, whatever their spaces: an adaptation for each pair of them.

    Tensors that all pairs have in one shape are shared, and may be meta-learnt. The others, and those of
    ``task_local``, are every task's own: drawn anew from the task's stream, learnt with the rest, and thrown away.

    :param family: whose tasks are learnt.
    :param make: returns the adaptation to a pair of spaces.
    :param task_local: tensors or modules that are not shared although they could be.
    :raises UnknownNameError: no tensor belongs to one of them.
    :raises ConfigError: nothing is left that tasks share.
    """

    def __init__(
        self,
        family: Family,
        make: MakeAdaptation,
        task_local: Sequence[str] = (),
    ) -> None:
        self._family = family
        self._make = make
        self._known: list[tuple[Spaces, Adaptation]] = [(pair, make(*pair)) for pair in _spaces_of(family)]
        self._one = len(self._known) == 1
        fresh = [adaptation.init(0) for _, adaptation in self._known]
        names = self.names = list(dict.fromkeys(name for each in fresh for name in each))
        """Names of all tensors of the inner loop, of any pair."""
        kept_apart = set(select(names, task_local))
        self.shared = tuple(
            name
            for name in names
            if name not in kept_apart
            and all(name in other and other[name].shape == fresh[0][name].shape for other in fresh)
        )
        """Names of the tensors that tasks share, in the inner loop."""
        self.own = tuple(name for name in names if name not in self.shared)
        """Names of the tensors that are each task's own."""
        self.has_local = self._one is False or bool(kept_apart)
        """Whether tasks have tensors of their own."""
        if not self.shared:
            raise ConfigError(f"task_local={list(task_local)} leaves nothing that the tasks of {family.id} share")

    @property
    def first(self) -> Adaptation:
        """The adaptation to the first pair of spaces; the only one for families of equal spaces."""
        return self._known[0][1]

    @property
    def has_one(self) -> bool:
        """Whether all tasks have equal spaces."""
        return self._one

    @property
    def pairs(self) -> list[Spaces]:
        """The pairs of spaces that are known."""
        return [pair for pair, _ in self._known]

    def init(self, seed: int) -> Params:
        """Return a fresh initialisation: what tasks share."""
        theta = self.first.init(seed)
        return {name: theta[name] for name in self.shared}

    def of(self, observation_space: spaces.Box, action_space: spaces.Space[Any]) -> Adaptation:
        """Return the adaptation to a pair of spaces.

        :raises ConfigError: a pair that was not met before has not the tensors that tasks share.
        """
        for pair, adaptation in self._known:
            if pair == (observation_space, action_space):
                return adaptation
        adaptation, example = self._make(observation_space, action_space), self.first.init(0)
        own = adaptation.init(0)
        for name in self.shared:
            if name not in own or own[name].shape != example[name].shape:
                raise ConfigError(
                    f"{self._family.id} has tasks of the spaces {observation_space} and {action_space}, in which "
                    f"{name} has another shape: name it in task_local"
                )
        self._known.append(((observation_space, action_space), adaptation))
        return adaptation

    def local(self, adaptation: Adaptation, streams: Streams, n_tasks: int, fresh: Collection[str] = ()) -> Params:
        """Return the tensors of each task's own, ``[task, …]``, drawn from its stream; empty where all are shared.

        :param fresh: names of shared ones that are each task's own here.
        """
        if not (self.has_local or fresh):
            return {}
        seeds = [int(seed.generate_state(1)[0]) % 2**31 for seed in streams.tasks(n_tasks, part="/local")]
        drawn = [adaptation.init(seed) for seed in seeds]
        own = [name for name in drawn[0] if name not in self.shared or name in fresh]
        return stack([{name: each[name] for name in own} for each in drawn])

    def cut(
        self,
        tasks: Tasks,
        rates: Sequence[Rate],
        streams: Streams,
        amount: Amount,
        size: int | None = None,
        fresh: Collection[str] = (),
        own: Callable[[tuple[int, ...]], Params] | None = None,
    ) -> list[Block]:
        """Return the blocks of a batch of tasks, in the order of their spaces' first task.

        :param size: tasks of one block, at most; None takes :data:`BLOCK_TASKS`, or one where tasks are learnt alone.
        :param fresh: names of shared tensors that every task starts with anew.
        :param own: returns the tensors of each task's own, ``[task, …]``, of tasks with these places in the batch; None
            draws them.
        """
        blocks: list[Block] = []
        for group in self._groups(tasks):
            adaptation = self.of(group.observation_space, group.action_space)
            most = size or (1 if adaptation.alone else BLOCK_TASKS)
            for start in range(0, len(group.indices), most):
                part = slice(start, start + most)
                indices = tuple(int(i) for i in group.indices[part])
                streams_of = streams.of(indices)
                local = self.local(adaptation, streams_of, len(indices), fresh) if own is None else own(indices)
                blocks.append(
                    Block(indices, adaptation, Request(take_tasks(group.tasks, part), rates, streams_of, amount, local))
                )
        return blocks

    def _groups(self, tasks: Tasks) -> list[Group]:
        if self._one and has_equal_spaces(self._family):
            n = len(next(iter(tasks.values())))
            return [Group(np.arange(n), tasks, *self._known[0][0])]
        return group_tasks(self._family, tasks)


def gather(blocks: Sequence[Block], parts: Sequence[np.ndarray]) -> np.ndarray:
    """Return arrays ``[task, …]`` of several blocks as one, in the order of the batch that was cut."""
    order = np.argsort([index for block in blocks for index in block.indices])
    joined: np.ndarray = np.concatenate(parts)[order]
    return joined


def _spaces_of(family: Family) -> list[Spaces]:
    """Return the pairs of spaces that tasks of a family have, in the order in which they are met."""
    if has_equal_spaces(family):
        return [(family.observation_space, family.action_space)]
    return [(group.observation_space, group.action_space) for group in known_groups(family)]
