"""Adaptation with a stock on-policy algorithm whose learning of a task is cut into segments that can be saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from metarl.agents.stock.learner import LearningRun
from metarl.envs.tasks import Tasks, one_task, take_tasks
from metarl.meta.adaptation.base import Outcome, PathWatcher, Request, Told, require_like, units_done
from metarl.meta.adaptation.stock import Row, StockAdaptation, StockWalk
from metarl.meta.progress import Timer
from metarl.params import Params, Rate, group, grouped, take


class SegmentedAdaptation(StockAdaptation):
    """Adaptation around a stock algorithm that calls its ``learn()`` once for each inner step.

    An inner step is a segment: it begins with fresh episodes, whose streams are addressed by task and segment, and
    parameters and optimisers go on. So a walk can be saved after each of them, and what it holds of an environment is
    nothing. Adapting to one environment takes all inner steps in one ``learn()``.
    """

    def walk(
        self,
        theta: Params,
        request: Request,
        *,
        query: bool = False,
        keep: bool = False,
        second_order: bool = False,
        watcher: PathWatcher | None = None,
    ) -> SegmentedWalk:
        del keep, second_order
        return SegmentedWalk(self, theta, request, query, watcher)

    def segment(
        self,
        phi: Params,
        optimizers: Params,
        request: Request,
        i: int,
        k: int,
        watcher: PathWatcher | None = None,
    ) -> LearningRun:
        """Learn the ``k``-th segment of the ``i``-th task, from where the one before led."""
        (seed,) = request.streams.of([i]).tasks(1, k, part="/segment")
        rates: Sequence[Rate] = request.rates
        size = self.size(request.amount)
        return self.at(rates).run(phi, one_task(request.tasks, i), seed, size, watcher=watcher, optimizers=optimizers)

    def evaluate(self, theta: Params, request: Request, told: Told | None = None) -> Outcome:
        n_episodes = request.amount["n_episodes"] or -(-self.size(request.amount) // self.family.horizon)
        seeds, learner = request.streams.tasks(request.n_tasks), self.at(request.rates)
        reached: list[Params] = []
        rows: list[list[tuple[float, float, int]]] = []
        for i in range(request.n_tasks):
            phi, row = {**theta, **take(request.local, i)}, []
            optimizers: Params = {}
            for k in range(len(request.rates) + 1):
                score = learner.evaluate(phi, one_task(request.tasks, i), seeds[i], n_episodes)
                env_steps = 0
                if k < len(request.rates):
                    run = self.segment(phi, optimizers, request, i, k)
                    phi, optimizers, env_steps = run.params, run.optimizers, run.env_steps
                row.append((*score, env_steps))
            reached.append(phi)
            rows.append(row)
            if told is not None:
                told(1)
        returns, lengths, steps = np.moveaxis(np.array(rows, dtype=np.float64), -1, 0)
        return Outcome(self.stacked(reached), returns, steps, np.full(returns.shape, n_episodes), eval_lengths=lengths)


class SegmentedWalk(StockWalk):
    """Learns one task after another, segment by segment; a unit is a segment, or a task's query rollout.

    The parameters are those of :class:`~metarl.meta.adaptation.stock.StockWalk`.
    """

    _adaptation: SegmentedAdaptation

    def __init__(
        self,
        adaptation: SegmentedAdaptation,
        theta: Params,
        request: Request,
        query: bool,
        watcher: PathWatcher | None,
    ) -> None:
        super().__init__(adaptation, theta, request, query, watcher)
        self._per_task = max(1, len(request.rates) + query)
        self.n_units = request.n_tasks * self._per_task
        """Segments and query rollouts of all tasks."""
        self._phi: Params = {}
        self._optimizers: Params = {}
        self._row = Row()

    @property
    def tasks(self) -> Tasks:
        at = min(self.n_done, self.n_units - 1) // self._per_task
        return take_tasks(self._request.tasks, slice(at, at + 1))

    @property
    def env_steps(self) -> int:
        unfinished = sum(self._row.env_steps) if self.n_done % self._per_task else 0.0
        return super().env_steps + round(unfinished)

    def work(self, timer: Timer) -> bool:
        request, (i, k) = self._request, divmod(self.n_done, self._per_task)
        n_steps = len(request.rates)
        if k == 0:
            self._phi, self._optimizers, self._row = {**self._theta, **take(request.local, i)}, {}, Row()
        if k < n_steps:
            with timer("inner"):
                run = self._adaptation.segment(self._phi, self._optimizers, request, i, k, self._watcher)
            self._phi, self._optimizers = run.params, run.optimizers
            self._row.add(run.episode_returns, run.env_steps, 1)
            if k + 1 == n_steps and self._watcher is not None:
                self._watcher.close()
        elif self._query:
            self._look(self._phi, self._row, i, timer)
        if k + 1 == self._per_task:
            self._reached.append(self._phi)
            self._rows.append(self._row)
        self.n_done += 1
        return self.n_done < self.n_units

    # ------------------------------------------------------------------------------------------------ stopping half-way
    def state(self) -> Params:
        found = super().state()
        if self.n_done % self._per_task:
            found |= grouped(self._phi, "now/params/") | grouped(self._optimizers, "now/optimizers/")
            found |= grouped(self._row.state(), "now/row/")
        return found

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        known = dict(state)
        self._load_tasks(known, units_done(known, self.n_units) // self._per_task)
        self.n_done = int(known["n_done"])
        if self.n_done % self._per_task:
            require_like(group(known, "now/params/"), {**self._theta, **take(self._request.local, 0)})
            self._phi, self._optimizers = group(known, "now/params/"), group(known, "now/optimizers/")
            self._row = Row.of(group(known, "now/row/"))
