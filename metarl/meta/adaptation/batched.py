"""The inner loop: a batch of tasks that a learner learns from one initialisation, collecting as it goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import gymnasium as gym
import numpy as np

from metarl.agents.learners.base import Learner
from metarl.agents.learners.watching import LearnerState, Watcher
from metarl.agents.parallel import Parallel
from metarl.agents.sampling.collect import collect
from metarl.agents.sampling.episodes import Episodes
from metarl.agents.sampling.one_env import collect_env
from metarl.agents.sampling.samples import Samples
from metarl.envs.family import Family
from metarl.envs.tasks import Tasks
from metarl.envs.tasks import n_tasks as count_tasks
from metarl.meta.adaptation.adapted import AdaptedPolicy
from metarl.meta.progress import Progress, Timer
from metarl.params import Params, expand
from metarl.streams import seed_sequence

Amount = Mapping[str, int | None]
"""How much to collect for a batch: ``n_episodes`` or ``n_transitions``, the other one None."""


@dataclass(frozen=True)
class Streams:
    """Where a batch of tasks draws from: streams are addressed (seed, purpose, iteration, task, …)."""

    seed: int
    purpose: str
    iteration: int = 0
    first_task: int = 0

    def tasks(self, n: int, *address: int, part: str = "") -> list[np.random.SeedSequence]:
        """Return one stream for each of ``n`` tasks.

        :param part: is added to the purpose.
        """
        tasks = range(self.first_task, self.first_task + n)
        return [seed_sequence(self.seed, self.purpose + part, self.iteration, task, *address) for task in tasks]


class PathWatcher(Watcher, Protocol):
    """A watcher of one stack of tasks after the other."""

    def close(self) -> None:
        """End the paths of a stack; the next segment begins those of another."""
        ...


@dataclass(frozen=True)
class Learnt:
    """What came of learning a batch of tasks.

    :param params: the parameters reached, ``[task, …]``.
    :param returns: ``[task, batch]``, mean undiscounted return of the episodes of each batch; NaN where none ended.
    :param env_steps: ``[task, batch]``, env steps of each.
    :param n_episodes: ``[task, batch]``, episodes of each.
    :param support: the batches learnt from, where they were to be kept.
    :param query: the batch collected at the parameters reached, where there was one.
    :param gradient: the gradient of the learner's loss on such batches, a mean over tasks, where the learner computes
        it by itself.
    :param statistics: those with which the initialisation goes on, beside its parameters.
    :param eval_lengths: ``[task, batch]``, mean length of the episodes of evaluations that are not batches.
    """

    params: Params
    returns: np.ndarray
    env_steps: np.ndarray
    n_episodes: np.ndarray
    support: list[Samples] = field(default_factory=list)
    query: Samples | None = None
    gradient: Params | None = None
    statistics: Params = field(default_factory=dict)
    eval_lengths: np.ndarray | None = None

    @property
    def n_steps(self) -> int:
        """Env steps of all tasks and batches."""
        return round(float(self.env_steps.sum()))  # a stock learner splits a run evenly over batches

    @property
    def ep_lengths(self) -> np.ndarray:
        """``[task, batch]``, mean length of the episodes that the returns are of."""
        return self.env_steps / self.n_episodes if self.eval_lengths is None else self.eval_lengths


@dataclass(frozen=True)
class _Batch:
    """What is remembered of a batch once it was learnt from: of each task, ``[task]``."""

    returns: np.ndarray
    env_steps: np.ndarray
    n_episodes: np.ndarray

    @classmethod
    def of(cls, episodes: Episodes) -> _Batch:
        return cls(episodes.mean_returns, episodes.task_steps, (episodes.lengths > 0).sum(1))


def _learnt(
    params: Params, batches: Sequence[_Batch], support: Sequence[Samples] = (), query: Samples | None = None
) -> Learnt:
    returns, env_steps, n_episodes = (
        np.stack([getattr(batch, name) for batch in batches], axis=1) for name in ("returns", "env_steps", "n_episodes")
    )
    return Learnt(params, returns, env_steps, n_episodes, list(support), query)


class FunctionalLoop:
    """The inner loop around a learner that is batched over tasks.

    Each inner step collects its own batch at the parameters reached and learns from it.

    :param family: tasks of equal spaces.
    :param learner: learns them.
    :param parallel: the threads to collect on.
    """

    def __init__(self, family: Family, learner: Learner, parallel: Parallel) -> None:
        self.family = family
        self.learner = learner
        self._parallel = parallel

    def init(self, seed: int) -> Params:
        """Return a fresh initialisation."""
        return self.learner.policy.init(seed)

    def option(self, name: str) -> Any:
        """Return the value of a learner's argument; None where it has no such argument."""
        return getattr(self.learner, name, None)

    def policy_at(self, theta: Params) -> AdaptedPolicy:
        """Return the policy with the parameters ``theta``."""
        return AdaptedPolicy(self.learner.policy, theta)

    def learn(
        self,
        theta: Params,
        tasks: Tasks,
        rates: Sequence[float],
        streams: Streams,
        amount: Amount,
        timer: Timer,
        *,
        query: bool = False,
        keep: bool = False,
        watcher: PathWatcher | None = None,
    ) -> Learnt:
        """Learn every task from ``theta``, one inner step for each rate.

        :param query: collect once more at the parameters reached.
        :param keep: keep the batches learnt from.
        :param watcher: is told every segment.
        """
        support: list[Samples] = []
        state, batches = self._walk(theta, tasks, rates, streams, amount, timer, support if keep else None, watcher)
        if watcher is not None:
            watcher.close()
        if not query:
            return _learnt(state.params, batches, support)
        episodes = self._collect(state, tasks, streams, len(rates), amount, timer)
        with timer("outer"):
            last = self.learner.process(episodes, state.params)
        return _learnt(state.params, [*batches, _Batch.of(episodes)], support, last)

    def evaluate(
        self,
        theta: Params,
        tasks: Tasks,
        rates: Sequence[float],
        streams: Streams,
        amount: Amount,
        progress: Progress | None = None,
    ) -> Learnt:
        """Learn every task from ``theta``; the return after k inner steps is that of the batch collected there.

        :param progress: called with (batches done, batches in all).
        """
        timer = Timer()
        state, batches = self._walk(theta, tasks, rates, streams, amount, timer, progress=progress)
        episodes = self._collect(state, tasks, streams, len(rates), amount, timer)
        if progress is not None:
            progress(len(rates) + 1, len(rates) + 1)
        return _learnt(state.params, [*batches, _Batch.of(episodes)])

    def _walk(
        self,
        theta: Params,
        tasks: Tasks,
        rates: Sequence[float],
        streams: Streams,
        amount: Amount,
        timer: Timer,
        support: list[Samples] | None = None,
        watcher: PathWatcher | None = None,
        progress: Progress | None = None,
    ) -> tuple[LearnerState, list[_Batch]]:
        """Take the inner steps.

        :param support: gets the batches.
        :param progress: called with (batches done, batches in all, one at the parameters reached included).
        """
        state = self._start(theta, count_tasks(tasks))
        batches: list[_Batch] = []
        for k, rate in enumerate(rates):
            episodes = self._collect(state, tasks, streams, k, amount, timer)
            batches.append(_Batch.of(episodes))
            with timer("inner"):
                samples = self.learner.process(episodes, state.params)
                seeds = streams.tasks(len(samples), k, part="/update")
                state = self.learner.update(state, samples, rate, seeds, watcher)
            if support is not None:
                support.append(samples)
            if progress is not None:
                progress(k + 1, len(rates) + 1)
        return state, batches

    def adapt(
        self, env: gym.Env[Any, Any], theta: Params, rates: Sequence[float], seed: int, amount: Amount
    ) -> AdaptedPolicy:
        """Learn one environment, whose task need not be known, from ``theta``."""
        policy = self.learner.policy
        state = self._start(theta, 1)
        returns: list[float] = []
        steps = 0
        for k, rate in enumerate(rates):
            own = {name: tensor[0] for name, tensor in state.params.items()}
            stream = seed_sequence(seed, "adapt", k)
            episodes = collect_env(env, policy, own, stream, amount["n_episodes"], amount["n_transitions"])
            samples = self.learner.process(episodes, state.params)
            state = self.learner.update(state, samples, rate, [seed_sequence(seed, "adapt/update", k)])
            returns.append(float(episodes.mean_returns[0]))
            steps += episodes.n_steps
        own = {name: tensor[0] for name, tensor in state.params.items()}
        return AdaptedPolicy(policy, own, steps, returns, seed)

    def _start(self, theta: Params, n_tasks: int) -> LearnerState:
        return self.learner.start({name: tensor.contiguous() for name, tensor in expand(theta, n_tasks).items()})

    def _collect(
        self, state: LearnerState, tasks: Tasks, streams: Streams, k: int, amount: Amount, timer: Timer
    ) -> Episodes:
        with timer("sampling"):
            seeds = streams.tasks(count_tasks(tasks), k)
            return collect(
                self.family,
                self.learner.policy,
                state.params,
                tasks,
                seeds,
                n_episodes=amount["n_episodes"],
                n_transitions=amount["n_transitions"],
                parallel=self._parallel,
            )
