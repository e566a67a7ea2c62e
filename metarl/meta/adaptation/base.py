"""Adaptation as a contract: from meta-parameters, and what a task shows, to a policy that acts.

Gradient steps that are batched over tasks (``batched.py``) and a stock algorithm's ``learn()`` (``stock.py``) are two
implementations. Meta-wrappers, evaluation and the command line know what stands here, and no more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import gymnasium as gym
import numpy as np
import torch

from metarl.agents.learners.watching import Watcher
from metarl.agents.sampling.samples import Samples
from metarl.envs.tasks import Tasks, n_tasks
from metarl.errors import CheckpointError, shorten
from metarl.meta.adaptation.adapted import AdaptedPolicy
from metarl.meta.adaptation.gradient import GradientPath
from metarl.meta.progress import Timer
from metarl.params import Params, Rate
from metarl.streams import TaskSeeds

Amount = Mapping[str, int | None]
"""How much to collect for a batch: ``n_episodes`` or ``n_transitions``, the other one None."""
Told = Callable[[int], None]
"""Is called with the number of units of work that were done since the last call."""


@dataclass(frozen=True)
class Streams:
    """Where a batch of tasks draws from: streams are addressed (seed, purpose, iteration, task, …).

    :param indices: the tasks' places in the meta-batch; None: they are all of it.
    """

    seed: int
    purpose: str
    iteration: int = 0
    indices: tuple[int, ...] | None = None

    def of(self, indices: Sequence[int]) -> Streams:
        """Return the streams of some tasks of the batch."""
        known = indices if self.indices is None else [self.indices[i] for i in indices]
        return Streams(self.seed, self.purpose, self.iteration, tuple(int(i) for i in known))

    def tasks(self, n: int, *address: int, part: str = "") -> TaskSeeds:
        """Return one stream for each of ``n`` tasks.

        :param part: is added to the purpose.
        """
        places = range(n) if self.indices is None else self.indices
        return TaskSeeds(self.seed, self.purpose + part, self.iteration, places, *address)


@dataclass(frozen=True)
class Request:
    """What is asked of adaptation.

    :param tasks: of equal spaces, ``[task]``.
    :param rates: the learning rate of each inner step.
    :param streams: where they draw from.
    :param amount: what is collected for a batch.
    :param local: tensors of each task's own, ``[task, …]``, that it starts with instead of the initialisation's.
    :param learnt: whether these were learnt from the tasks before, so that the query is one of what was not shown.
    """

    tasks: Tasks
    rates: Sequence[Rate]
    streams: Streams
    amount: Amount
    local: Params = field(default_factory=dict)
    learnt: bool = False

    @property
    def n_tasks(self) -> int:
        """How many tasks there are."""
        return n_tasks(self.tasks)


class PathWatcher(Watcher, Protocol):
    """A watcher of one stack of tasks after the other."""

    def close(self) -> None:
        """End the paths of a stack; the next segment begins those of another."""
        ...

    def state(self) -> Params:
        """Return what was added up so far, as named tensors."""
        ...

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from what :meth:`state` returned."""
        ...


@dataclass(frozen=True)
class Outcome:
    """What came of learning a batch of tasks.

    :param params: the parameters reached, ``[task, …]``.
    :param returns: ``[task, batch]``, mean undiscounted return of the episodes of each batch; NaN where none ended.
    :param env_steps: ``[task, batch]``, env steps of each.
    :param n_episodes: ``[task, batch]``, episodes of each.
    :param support: the batches learnt from, where they were to be kept.
    :param query: the batch collected at the parameters reached, where there was one.
    :param gradient: the gradient of the learner's loss on such batches, summed over tasks, where the learner computes
        it by itself.
    :param statistics: those that tasks went on with, beside their parameters, one dict for each.
    :param eval_lengths: ``[task, batch]``, mean length of the episodes of evaluations that are not batches.
    :param path: the gradient steps taken, with their derivatives, where they were to be kept and are small enough.
    :param learning_returns: ``[task, batch]``, the returns in the family that is learnt in, where evaluations measure
        them; ``returns`` of an evaluation are those in its evaluation family, where it has one.
    :param losses: ``[task, step]``, of an evaluation on supervised tasks whose inner steps learn from a batch each: the
        loss of that batch before the step.
    """

    params: Params
    returns: np.ndarray
    env_steps: np.ndarray
    n_episodes: np.ndarray
    support: list[Samples] = field(default_factory=list)
    query: Samples | None = None
    gradient: Params | None = None
    statistics: list[Params] = field(default_factory=list)
    eval_lengths: np.ndarray | None = None
    path: GradientPath | None = None
    learning_returns: np.ndarray | None = None
    losses: np.ndarray | None = None

    @property
    def n_tasks(self) -> int:
        """How many tasks were learnt."""
        return len(self.returns)

    @property
    def n_steps(self) -> int:
        """Env steps of all tasks and batches."""
        return round(float(self.env_steps.sum()))  # a stock learner splits a run evenly over batches

    @property
    def ep_lengths(self) -> np.ndarray:
        """``[task, batch]``, mean length of the episodes that the returns are of."""
        return self.env_steps / self.n_episodes if self.eval_lengths is None else self.eval_lengths

    @property
    def ep_steps(self) -> np.ndarray:
        """``[task, batch]``, env steps of the episodes that the returns are of; NaN where none ended."""
        if self.eval_lengths is None:
            return self.env_steps
        steps: np.ndarray = np.round(self.eval_lengths * self.n_episodes)
        return steps


class Walk(Protocol):
    """Learning a stack of tasks, one unit of work after another, so that it can stop in between and go on later.

    A unit is a segment of all tasks (an inner step, the query batch), or all of one task, whichever the learner can
    stop after. Its streams are addressed by iteration, task and segment, so a walk that goes on elsewhere is the same.
    """

    n_units: int
    n_done: int

    @property
    def tasks(self) -> Tasks:
        """The tasks that the next unit learns; those of the last one where all are done."""
        ...

    @property
    def env_steps(self) -> int:
        """Env steps of the units done."""
        ...

    def work(self, timer: Timer) -> bool:
        """Do the next unit; return whether there is another one."""
        ...

    def outcome(self) -> Outcome:
        """Return what came of it, when all units are done."""
        ...

    def state(self) -> Params:
        """Return everything that later units go on from, as named tensors."""
        ...

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from what :meth:`state` returned, in a walk that was begun with the same arguments."""
        ...


class Adaptation(Protocol):
    """How tasks of equal spaces are learnt from an initialisation."""

    has_rates: ClassVar[bool]
    """Whether an inner step takes a rate for each tensor."""

    @property
    def alone(self) -> bool:
        """Whether every task is a block of its own: learnt by itself, so that worker processes can share them."""
        ...

    def init(self, seed: int) -> Params:
        """Return a fresh initialisation, by the names of the inner loop."""
        ...

    def option(self, name: str) -> Any:
        """Return the value of one of the learner's arguments; None where it has no such argument."""
        ...

    def policy_at(self, theta: Params) -> AdaptedPolicy:
        """Return the policy before adaptation."""
        ...

    def walk(
        self,
        theta: Params,
        request: Request,
        *,
        query: bool = False,
        keep: bool = False,
        second_order: bool = False,
        watcher: PathWatcher | None = None,
    ) -> Walk:
        """Return the walk that learns every task from ``theta``, one inner step for each rate.

        :param theta: the initialisation.
        :param query: collect once more at the parameters reached.
        :param keep: keep the batches learnt from.
        :param second_order: keep the derivatives of gradient steps too, where they are small.
        :param watcher: is told every segment.
        """
        ...

    def carried(self, theta: Params, outcomes: Sequence[Outcome]) -> Params:
        """Return the statistics with which the initialisation goes on after tasks were learnt; most have none."""
        ...

    def n_told(self, request: Request) -> int:
        """Return of how many units of work an evaluation tells."""
        ...

    def evaluate(self, theta: Params, request: Request, told: Told | None = None) -> Outcome:
        """Learn every task from ``theta``; the return after k inner steps is that of fresh episodes there.

        :param told: hears of units of work.
        """
        ...

    def adapt(
        self, env: gym.Env[Any, Any], theta: Params, rates: Sequence[Rate], seed: int, amount: Amount
    ) -> AdaptedPolicy:
        """Learn one environment, whose task need not be known, from ``theta``."""
        ...


def finish(walk: Walk, timer: Timer) -> Outcome:
    """Do all of a walk, and return what came of it."""
    while walk.n_done < walk.n_units:
        walk.work(timer)
    return walk.outcome()


def units_done(state: Params, n_units: int) -> int:
    """Return how many units of a walk are done, as its saved state says.

    :raises CheckpointError: not a number of units that it has.
    """
    n_done = int(state["n_done"])
    if not 0 <= n_done <= n_units:
        raise CheckpointError(f"a walk of {n_units} units has done {n_done}")
    return n_done


def require_like(state: Params, expected: Params, same_dtype: bool = True) -> None:
    """Raise :class:`CheckpointError` unless a saved state has tensors of these names and shapes, and finite ones."""
    for name, tensor in expected.items():
        found = state.get(name)
        if found is None or found.shape != tensor.shape or (same_dtype and found.dtype != tensor.dtype):
            raise CheckpointError(f"tensor {shorten(name)} of a walk is missing or of another shape")
        if same_dtype and not bool(torch.isfinite(found).all()):
            raise CheckpointError(f"tensor {shorten(name)} of a walk holds a NaN or infinity")
