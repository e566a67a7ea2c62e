"""Families: a distribution over tasks with batched dynamics.

A *task* is one point of a family's ``task_space``, a :class:`gymnasium.spaces.Dict` of Box or Discrete parameters. A
batch of *tasks* is the same dict with a leading task axis. Dynamics are written once, for arrays ``[task, env, ...]``
with an explicit state; :mod:`metarl.envs.views.single` turns them into Gymnasium and Stable-Baselines3 environments.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from metarl.checks import COUNT, as_array
from metarl.envs.score import RETURN, SCORES, Score
from metarl.envs.tasks import (
    Task,
    Tasks,
    concatenate_tasks,
    describe_space,
    describe_task,
    inside,
    n_tasks,
    sample_uniform,
    take_tasks,
)
from metarl.errors import ConfigError, TaskError, shorten
from metarl.streams import stream

State = dict[str, np.ndarray]
"""The state of a batch of environments: every value is ``[task, env, ...]``, numbers; of a live family objects too."""

SPLITS = ("train", "validation", "test", "shifted")
"""The fixed task lists. Training draws its tasks afresh; the list ``"train"`` is for a look at how much it overfits."""


LOSSES: dict[str, type[spaces.Space[Any]]] = {"squared_error": spaces.Box, "cross_entropy": spaces.Discrete}
"""What a prediction may cost, with the actions that are such predictions."""


class Step(NamedTuple):
    """What a batched step returns; everything belongs to the state after the step."""

    state: State
    obs: np.ndarray
    """``[task, env, *observation]``, in the dtype of their space."""
    reward: np.ndarray
    """``[task, env]``, float64."""
    terminated: np.ndarray
    """``[task, env]``, bool."""
    info: dict[str, np.ndarray]
    """Every term of the reward, by name, ``[task, env]``, and what else there is to report, ``[task, env, ...]``."""
    truncated: np.ndarray | None = None
    """``[task, env]``, bool: episodes that are cut before the horizon; None where none ever is."""

    @property
    def ended(self) -> np.ndarray:
        """``[task, env]``: whether the episode is over before the horizon, by itself or because it was cut."""
        return self.terminated if self.truncated is None else self.terminated | self.truncated


class Family(ABC):
    """A distribution over tasks that share a horizon, and their batched dynamics.

    Subclasses set the five attributes below in ``__init__`` and implement :meth:`reset` and :meth:`step`. Families are
    deterministic functions of their constructor arguments and of the generators they are handed::

        class Walk(Family):  # to a hidden place on a line
            def __init__(self):
                self.id = "Walk-v0"
                self.task_space = Dict({"goal": Box(-1.0, 1.0, (), np.float64)})
                self.observation_space = Box(-9.0, 9.0, (1,), np.float32)
                self.action_space = Box(-1.0, 1.0, (1,), np.float32)
                self.horizon = 20

            def reset(self, tasks, rngs, n_envs):
                place = np.stack([rng.uniform(-0.1, 0.1, (n_envs, 1)) for rng in rngs])
                return {"place": place}, place.astype(np.float32)

            def step(self, tasks, state, actions, rngs, active=None):
                place = state["place"] + 0.2 * np.clip(actions, -1.0, 1.0)
                reward = -np.abs(place[..., 0] - tasks["goal"][:, None])
                ended = np.zeros(reward.shape, dtype=bool)
                return Step({"place": place}, place.astype(np.float32), reward, ended, {"reward_distance": reward})

        check_family(Walk())
        model = metarl.MAML("MlpPolicy", Walk(), meta_batch_size=2, n_episodes=2)
    """

    id: str = ""
    """The registered name, set by :func:`~metarl.envs.registry.make_family`."""
    _made_with: Mapping[str, Any] | None = None
    """The arguments that make_family was given; None where it did not make the family."""
    task_space: spaces.Dict
    """What tells one task from another."""
    observation_space: spaces.Box
    action_space: spaces.Space[Any]
    horizon: int
    """Longest episode, in env steps; an episode that reaches it is truncated."""

    shifted_space: spaces.Dict | None = None
    """Where the ``shifted`` split draws from, outside the training range; None where that makes no sense."""
    loss: str | None = None
    """What an action costs as a prediction of the ``target`` in ``info``, of :data:`LOSSES`; None: a reward."""
    score: Score | None = None
    """What its returns are called and how tables show them; None: as its ``loss`` says, see :func:`score_of`."""
    clips_actions: bool = True
    """Whether actions outside a Box are clipped to it; False where an action is a statement, which costs what it says
    wherever it lies, as those of imitation do."""
    evaluation_family: Family | None = None
    """The family that policies are scored in, where it is another one with the same tasks and spaces: of imitation."""
    query_family: Family | None = None
    """Of the same tasks and spaces, with other examples than those learnt from, for queries and scores; None: this."""
    support_family: Family | None = None
    """The supervised family of the same tasks whose examples wrappers that transfer see of a task; None: this one."""
    evaluation_episodes: int = 5
    """Episodes of the ``evaluation_family`` that the score of a task is the mean over."""
    concurrent: bool = False
    """Whether several threads may step the family at once, and it gains from that: its steps are native code."""
    draws_in_steps: bool = True
    """Whether steps may draw from a task's generator; where they do not, its copies can be stepped apart."""
    live: bool = False
    """Whether states hold running environments: stepped from once only, never copied; see :mod:`metarl.envs.live`."""
    max_copies: int | None = None
    """Most copies that are to run at once, all tasks together; None for any number. Collectors then take blocks of
    tasks one after another; of one task all copies run."""
    observes_task: bool = False
    """Whether the observation tells the task on purpose, as the oracle view's does."""
    observed: Mapping[str, Any] = MappingProxyType({})
    """Arguments that say how things look, beyond a space's shape: what learnt with some is not used with others."""
    render_fps: int | None = None
    """Frames a second of a video; None for a family that is not drawn, the others implement :meth:`render`."""

    def __repr__(self) -> str:
        """Return the call that makes such a family, as far as make_family knows."""
        name, arguments = self.named() or (self.id, self._made_with)
        if arguments is None:
            return f"<{' '.join(filter(None, [type(self).__name__, name]))}>"
        return f"make_family({', '.join([repr(name), *(f'{key}={value!r}' for key, value in arguments.items())])})"

    @property
    def acts_in(self) -> Family:
        """The family in which policies act once they have learnt: ``evaluation_family``, or this one."""
        return self if self.evaluation_family is None else self.evaluation_family

    # ----------------------------------------------------------------------------------------------------------- tasks
    def sample_tasks(self, rng: np.random.Generator, n: int) -> Tasks:
        """Draw ``n`` training tasks; override it for a distribution that is not uniform.

        Continuous families: uniform over ``task_space``. Finite ones: uniform over the training part.
        """
        finite = self.finite_tasks()
        if finite is None:
            return sample_uniform(self.task_space, rng, n)
        part = self.finite_split("train")
        return take_tasks(finite, part[rng.integers(len(part), size=n)])

    def sample_shifted_tasks(self, rng: np.random.Generator, n: int) -> Tasks:
        """Draw ``n`` tasks of the shifted split, uniform over ``shifted_space``; override it for a hole in that box."""
        assert self.shifted_space is not None
        return sample_uniform(self.shifted_space, rng, n)

    def in_training_range(self, tasks: Tasks) -> np.ndarray:
        """Return which tasks training may draw, ``[task]``; override it where ``task_space`` holds shifted ones too."""
        within = [inside(space, tasks[name]) for name, space in self.task_space.spaces.items()]
        return np.asarray(np.all(within, axis=0))

    def finite_tasks(self) -> Tasks | None:
        """Return every task of a finite family, None (the default) for a continuous one."""
        return None

    def tasks(self, split: str, n: int = 40) -> Tasks:
        """Return the first ``n`` tasks of a fixed, named split.

        Continuous families: independent draws that do not depend on ``n``. Finite families of 10 tasks or more: a
        fixed permutation cut into disjoint parts (60% training, 20% validation, 20% test). Smaller ones: every task,
        in every split.

        :param split: ``"validation"``, ``"test"``, ``"shifted"``, or ``"train"``: of a finite family the tasks that
            training draws from, of a continuous one draws of its distribution.
        :param n: at most that many.
        :raises TaskError: unknown split, or ``"shifted"`` where the family has none.
        :raises ConfigError: ``n`` below 1.
        """
        n = COUNT("n", n)
        if split not in SPLITS:
            raise TaskError(f"unknown split {shorten(split)}: known: {', '.join(SPLITS)}")
        if split == "shifted":
            if self.shifted_space is None:
                raise TaskError(f"{self.id} has no shifted split: known: train, validation, test")
            draws = (self.sample_shifted_tasks(self._split_stream(split, i), 1) for i in range(n))
            return concatenate_tasks([sound_tasks(self, "sample_shifted_tasks", drawn, 1) for drawn in draws])
        finite = self.finite_tasks()
        if finite is None:
            return concatenate_tasks([draw_tasks(self, self._split_stream(split, i), 1) for i in range(n)])
        sound_tasks(self, "finite_tasks", finite)
        return take_tasks(finite, self.finite_split(split)[:n])

    def finite_split(self, split: str) -> np.ndarray:
        """Return the indices into :meth:`finite_tasks` of ``"train"``, ``"validation"`` or ``"test"``."""
        finite = self.finite_tasks()
        assert finite is not None
        total = n_tasks(finite)
        return np.arange(total) if self.splits_coincide else cut_finite(self.id, total, split)

    @property
    def splits_coincide(self) -> bool:
        """Whether the family has so few tasks (below 10) that validation and test hold the training tasks."""
        finite = self.finite_tasks()
        return finite is not None and n_tasks(finite) < 10

    def _split_stream(self, split: str, index: int) -> np.random.Generator:
        return stream(zlib.crc32(self.id.encode()), f"split/{split}", index)

    def describe(self, task: Task) -> str:
        """Return a task in a few words, for progress bars: its name where it has one."""
        return describe_task(task)

    def validate_tasks(self, tasks: Mapping[str, Any]) -> Tasks:
        """Return ``tasks`` as arrays of the task space's dtype and shape.

        :raises TaskError: a missing or unknown parameter, a wrong shape, a value outside ``task_space`` and
            ``shifted_space``, or, of a finite family, a task that it does not have.
        """
        names = list(self.task_space.spaces)
        if not isinstance(tasks, Mapping):
            raise TaskError(f"tasks={shorten(tasks)}: {self.id} takes a dict of arrays, {', '.join(names)}")
        for name in tasks:
            if name not in names:
                raise TaskError(f"{self.id} has no task parameter {shorten(name)}: known: {', '.join(names)}")
        for name in names:
            if name not in tasks:
                raise TaskError(f"task parameter {shorten(name)} of {self.id} is missing")
        result = {name: _as_parameter(self, name, tasks[name]) for name in names}
        lengths = {name: len(value) for name, value in result.items()}
        if len(set(lengths.values())) > 1:
            raise TaskError(f"task parameters differ in length: {shorten(lengths)}")
        if 0 in lengths.values():
            raise TaskError(f"no tasks of {self.id} were given")
        _require_known(self, result, _require_inside(self, result))
        return result

    def spaces(self, task: Task) -> tuple[spaces.Box, spaces.Space[Any]]:
        """Return the observation and action space of one task; override it where tasks differ."""
        del task
        return self.observation_space, self.action_space

    # -------------------------------------------------------------------------------------------------------- dynamics
    @abstractmethod
    def reset(self, tasks: Tasks, rngs: Sequence[np.random.Generator], n_envs: int) -> tuple[State, np.ndarray]:
        """Start ``n_envs`` episodes of every task.

        :param tasks: a batch of tasks of equal spaces.
        :param rngs: one generator for each task; task ``i`` draws from ``rngs[i]`` only, the same numbers whatever
            other tasks are in the batch.
        :param n_envs: copies of each task.
        :return: the state, and observations ``[task, env, *observation]`` in the dtype of their space.
        """

    def restart(
        self, tasks: Tasks, state: State, rngs: Sequence[np.random.Generator], n_envs: int
    ) -> tuple[State, np.ndarray]:
        """Start the next episode of copies whose last one has ended, where a view plays one after another.

        Like :meth:`reset`, unless one episode leads to the next: a game goes on after a lost life.

        :param tasks: of the next episodes; a copy's may have changed.
        :param state: the states that the last episodes ended in; it is not used again.
        """
        del state
        return self.reset(tasks, rngs, n_envs)

    @abstractmethod
    def step(
        self,
        tasks: Tasks,
        state: State,
        actions: np.ndarray,
        rngs: Sequence[np.random.Generator],
        active: np.ndarray | None = None,
    ) -> Step:
        """Advance every copy by one env step. ``state`` is not modified.

        :param actions: ``[task, env, *action]``; values outside a Box are clipped to it, as Stable-Baselines3 does.
        :param rngs: one generator for each task, for families with random transitions.
        :param active: ``[task, env]``; copies with False need not be stepped, their results are not looked at.
        """

    def render(self, tasks: Tasks, trail: Sequence[State], task: int, env: int) -> np.ndarray:
        """Return a picture of one copy, ``[height, width, 3]``, uint8: a function of these arguments.

        :param trail: the states of the episode so far, the one to draw last.
        :param task: the copy's index along the states' task axis.
        :param env: its index along their env axis.
        """
        raise ConfigError(f"{self.id} is not drawn")

    def named(self) -> tuple[str, dict[str, Any]] | None:
        """Return a name and arguments, as JSON, from which :func:`~metarl.envs.registry.make_family` makes an equal
        family wherever that name means the same; None for one that only its object stands for.
        """
        return None

    def shared_by(self, n_callers: int) -> AbstractContextManager[None]:
        """Return a context in which ``n_callers`` threads step the family, and so share its own threads."""
        del n_callers
        return nullcontext()

    def close(self) -> None:  # noqa: B027  (most families have nothing to free)
        """Free native resources, if any. The family can be used again afterwards."""


def score_of(family: Family) -> Score:
    """Return how tables and figures show returns of a family: as it declares, else by its loss, else as they are."""
    return SCORES.get(family.loss or "", RETURN) if family.score is None else family.score


def scored_in(family: Family) -> Family:
    """Return the family in which scores are had: its ``query_family``, or where policies act."""
    return family.acts_in if family.query_family is None else family.query_family


def evaluation_score(family: Family) -> Score:
    """Return how evaluations are shown: as returns of where policies act, after what adaptation spends here."""
    return replace(score_of(family.acts_in), budget=score_of(family).budget)


def cut_finite(id: str, total: int, split: str) -> np.ndarray:
    """Return which of ``total`` tasks belong to a split: 60% to training, 20% each to validation and testing.

    :param id: the family's; each family's tasks are cut in an order of their own.
    :param split: ``"train"``, ``"validation"`` or ``"test"``.
    """
    order = stream(0, f"{id}/split").permutation(total)
    a, b = int(0.6 * total), int(0.8 * total)
    return {"train": order[:a], "validation": order[a:b], "test": order[b:]}[split]


def _require_inside(family: Family, tasks: Tasks) -> np.ndarray:
    """Return which tasks are shifted ones, ``[task]``.

    :raises TaskError: one that is outside both ranges.
    """
    shifted = {} if family.shifted_space is None else family.shifted_space.spaces
    foreign = np.zeros(n_tasks(tasks), dtype=bool)
    for name, space in family.task_space.spaces.items():
        outside = ~inside(space, tasks[name])
        if name in shifted:
            foreign |= outside
            outside &= ~inside(shifted[name], tasks[name])
        if outside.any():
            extra = f" (or {describe_space(shifted[name])}, shifted)" if name in shifted else ""
            value = tasks[name][int(np.argmax(outside))].tolist()
            raise TaskError(
                f"{name}={shorten(value)} is outside the task space of {family.id}: {describe_space(space)}{extra}"
            )
    return foreign


def _require_known(family: Family, tasks: Tasks, foreign: np.ndarray) -> None:
    """Raise :class:`TaskError` for a task that a finite family does not have.

    :param foreign: ``[task]``, those that need not be among them: the shifted ones.
    """
    finite = family.finite_tasks()
    if finite is None:
        return
    sound_tasks(family, "finite_tasks", finite)
    same = np.ones((n_tasks(tasks), n_tasks(finite)), dtype=bool)
    for name, value in tasks.items():
        same &= np.all(value[:, None] == finite[name], axis=tuple(range(2, value.ndim + 1)))
    unknown = ~(same.any(1) | foreign)
    if unknown.any():
        task = {name: np.asarray(value[int(np.argmax(unknown))]).tolist() for name, value in tasks.items()}
        raise TaskError(f"{shorten(task)} is not one of the {n_tasks(finite)} tasks of {family.id}")


def _as_parameter(family: Family, name: str, given: Any) -> np.ndarray:
    """Return one task parameter as a new array of its space's dtype and shape."""
    space = family.task_space.spaces[name]
    dtype = np.dtype(space.dtype)
    try:
        value = as_array(given)
        if value.dtype.kind not in "biuf":
            raise TypeError
    except (TypeError, ValueError):
        raise TaskError(f"{name}={shorten(given)} is not a number: {family.id} takes {describe_space(space)}") from None
    if value.shape[1:] != space.shape or value.ndim == 0:
        takes = ", ".join(("task", *(str(size) for size in space.shape or ())))
        raise TaskError(f"{name} has shape {list(value.shape)}: {family.id} takes [{takes}]")
    if dtype.kind in "iu" and not np.array_equal(value, np.trunc(value)):
        raise TaskError(f"{name}={value.tolist()} is not whole: {family.id} takes {describe_space(space)}")
    with np.errstate(invalid="ignore"):
        result = value.astype(dtype)
    if dtype.kind in "iu" and not np.array_equal(result, value):
        # It would wrap round, to a value inside perhaps.
        raise TaskError(
            f"{name}={shorten(value.tolist())} is outside the task space of {family.id}: {describe_space(space)}"
        )
    return result


def draw_tasks(family: Family, rng: np.random.Generator, n: int) -> Tasks:
    """Return training tasks, once it is seen that they are some.

    :raises TaskError: :meth:`Family.sample_tasks` returned something else.
    """
    finite = family.finite_tasks()
    if finite is not None:
        sound_tasks(family, "finite_tasks", finite)
    return sound_tasks(family, "sample_tasks", family.sample_tasks(rng, n), n)


def sound_tasks(family: Family, source: str, tasks: Any, n: int | None = None) -> Tasks:
    """Return what a method of a family gave as a batch of tasks.

    :param source: the method.
    :param n: how many they are to be; None for any number above 0.
    :raises TaskError: no dict of arrays with the task space's names and a task axis.
    """
    names = list(family.task_space.spaces)
    sound = isinstance(tasks, Mapping) and set(tasks) == set(names)
    sound = sound and all(isinstance(value, np.ndarray) and value.ndim for value in tasks.values())
    lengths = {len(value) for value in tasks.values()} if sound else set()
    if len(lengths) != 1 or lengths != {n or max(lengths)} or lengths == {0}:
        some = "" if n is None else f" of {n}"
        raise TaskError(
            f"{source} of {family.id or type(family).__name__} gives {shorten(tasks)}, not a batch{some}: a dict of "
            f"arrays [task, ...], {', '.join(names)} (metarl.envs.check_family says more)"
        )
    return dict(tasks)
