"""Adaptation with a learner whose episodes go on from one update to the next: an inner step is many updates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from metarl.agents.learners.base import Continuing
from metarl.agents.sampling.episodes import split_streams
from metarl.agents.sampling.one_env import FiniteEnv
from metarl.agents.sampling.rollouts import Copies
from metarl.meta.adaptation.adapted import AdaptedPolicy
from metarl.meta.adaptation.base import Amount, Request
from metarl.meta.adaptation.batched import BatchedAdaptation, BatchedWalk
from metarl.meta.adaptation.batches import Batch
from metarl.meta.progress import Timer
from metarl.params import Params, Rate, take
from metarl.streams import seed_sequence


class ContinuingAdaptation(BatchedAdaptation):
    """Adaptation around a learner that learns from rollouts of ``n_steps`` env steps in ``n_envs`` copies of a task.

    An inner step is a segment of learning: as many updates as take its env steps. It begins with fresh copies, whose
    streams are addressed by task and segment, so that nothing of an environment has to be kept between segments; the
    parameters and the optimiser go on. Evaluations measure what each segment reached on fresh episodes.
    """

    def _walk(self, theta: Params, request: Request, **how: Any) -> ContinuingWalk:
        return ContinuingWalk(self, theta, request, **how)

    @property
    def alone(self) -> bool:
        """Whether every task is a block of its own: in live families, where steps are not batched over tasks."""
        return self.family.live

    @property
    def continuing(self) -> Continuing:
        """How the learner learns."""
        assert self.learner.continuing is not None
        return self.learner.continuing

    def size(self, amount: Amount) -> int:
        """Return the env steps of an inner step, at least."""
        return amount["n_transitions"] or (amount["n_episodes"] or 1) * self.family.horizon

    def copies(self, request: Request, seeds: Sequence[np.random.SeedSequence], n_envs: int) -> Copies:
        """Return fresh copies of the tasks."""
        return Copies.of(self.family, self.learner.policy, request.tasks, seeds, n_envs, self._parallel)

    def measure(self, params: Params, request: Request) -> tuple[np.ndarray, np.ndarray]:
        n_episodes = request.amount["n_episodes"] or -(-self.size(request.amount) // self.family.horizon)
        seeds = request.streams.tasks(request.n_tasks, part="/measured")
        returns, lengths = self.copies(request, seeds, n_episodes).play(params)
        return returns.mean(1), lengths.mean(1)

    def adapt(
        self, env: gym.Env[Any, Any], theta: Params, rates: Sequence[Rate], seed: int, amount: Amount
    ) -> AdaptedPolicy:
        """Learn one environment, whose task need not be known, from ``theta``.

        There is one copy of it, so an update takes as many env steps of it as of all copies in training.
        """
        learner, how, state, one = self.learner, self.continuing, self.start(theta, 1), FiniteEnv(env)
        returns: list[float] = []
        n_updates = how.n_updates(self.size(amount))
        for k, rate in enumerate(rates):
            stream = seed_sequence(seed, "adapt", k)
            view = DummyVecEnv([lambda: Monitor(one)])
            view.seed(int(stream.generate_state(1)[0]))
            copies = Copies(view, learner.policy, [split_streams(stream)[1]])
            for u in range(n_updates):
                samples = how.process(copies.collect(state.params, how.size, how.keeps))
                seeds = [seed_sequence(seed, "adapt/update", k, u)]
                state = self.update(replace(state, spent=True), samples, rate, seeds)
            returns.append(float(Batch.of_copies(copies, 0).returns[0]))
        return AdaptedPolicy(learner.policy, take(state.params, 0), len(rates) * n_updates * how.size, returns, seed)


class ContinuingWalk(BatchedWalk):
    """Learns a stack of tasks; a unit is a segment of all of them, or the query rollout."""

    _adaptation: ContinuingAdaptation

    def _learn(self, timer: Timer) -> None:
        """Take the updates of a segment."""
        adaptation, request, k = self._adaptation, self._request, self.n_done
        how, n_tasks = adaptation.continuing, request.n_tasks
        before = self._state.params
        copies = adaptation.copies(request, request.streams.tasks(n_tasks, k), how.n_envs)
        n_updates = how.n_updates(adaptation.size(request.amount))
        for u in range(n_updates):
            with timer("sampling"):
                rollout = copies.collect(self._state.params, how.n_steps, how.keeps)
            with timer("inner"):
                seeds = request.streams.tasks(n_tasks, k, u, part="/update")
                samples = how.process(rollout)
                # What the segment begins with is looked at after it.
                state = replace(self._state, spent=u > 0)
                self._state = adaptation.update(state, samples, request.rates[k], seeds, self._watcher)
        batch = Batch.of_copies(copies, n_updates * how.size)
        if self._measure:
            batch = self._scored(batch.measured_on(*adaptation.measure(before, request)), before)
        self._batches.append(batch)

    def _look(self, timer: Timer) -> None:
        """Measure the parameters reached, or collect one rollout there, as long as an inner step."""
        adaptation, request, how = self._adaptation, self._request, self._adaptation.continuing
        if self._measure:
            reached = self._state.params
            batch = Batch.nothing(request.n_tasks).measured_on(*adaptation.measure(reached, request))
            self._batches.append(self._scored(batch, reached))
            return
        n_steps = -(-adaptation.size(request.amount) // how.n_envs)
        with timer("sampling"):
            copies = adaptation.copies(request, request.streams.tasks(request.n_tasks, self.n_done), how.n_envs)
            rollout = copies.collect(self._state.params, n_steps)
        with timer("outer"):
            self._last = how.process(rollout)
        self._batches.append(Batch.of_copies(copies, n_steps * how.n_envs))
