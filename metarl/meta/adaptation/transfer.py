"""Adaptation by transfer: what is seen of a task is encoded, and decoded to the policy that acts.

A step of adaptation sees so many examples more (``n_episodes`` of the amount asked for), and the policy after k steps
is decoded from all that were seen. Rates have no meaning here but their number, which is that of steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch

from metarl.agents.learners.base import Learner
from metarl.agents.parallel import Parallel
from metarl.agents.sampling.examples import Examples
from metarl.agents.sampling.samples import Samples
from metarl.envs.family import Family
from metarl.envs.supervised.one_step import OneStep
from metarl.envs.tasks import Task, Tasks, stack_tasks
from metarl.envs.views.single import SingleEnv
from metarl.meta.adaptation.adapted import AdaptedPolicy
from metarl.meta.adaptation.base import Amount, Outcome, PathWatcher, Request, Told, finish, units_done
from metarl.meta.adaptation.batched import BatchedAdaptation
from metarl.meta.adaptation.batches import Batch
from metarl.meta.progress import Timer
from metarl.meta.transfer.model import TransferModel
from metarl.params import Params, Rate, expand, take
from metarl.streams import seed_sequence


class TransferAdaptation:
    """Adaptation around an encoder and a decoder.

    :param family: in which policies act.
    :param model: the encoder and the decoder, with the family in which tasks are seen.
    :param learner: has the loss of the query, and says how policies act while they are scored.
    :param n_query: episodes of a query batch: of supervised families, examples.
    :param parallel: the threads to collect on.
    """

    has_rates: ClassVar[bool] = False
    alone = False
    """Whether every task is a block of its own."""

    def __init__(
        self, family: Family, model: TransferModel, learner: Learner, n_query: int, parallel: Parallel
    ) -> None:
        self.family, self.model, self.learner = family, model, learner
        self._n_query = n_query
        self._query = BatchedAdaptation(family, learner, parallel)

    def init(self, seed: int) -> Params:
        """Return fresh meta-parameters."""
        return self.model.init(seed)

    def option(self, name: str) -> Any:
        """Return the value of an argument of the learner of the query; None where it has no such argument."""
        return self._query.option(name)

    def policy_at(self, theta: Params) -> AdaptedPolicy:
        """Return the policy of a task of which nothing was seen."""
        return AdaptedPolicy(self.model.policy, self.unseen(theta))

    def unseen(self, theta: Params) -> Params:
        """Return the tensors of that policy."""
        return take(self.model.policies(theta, self.model.nothing(1)), 0)

    def walk(
        self,
        theta: Params,
        request: Request,
        *,
        query: bool = False,
        keep: bool = False,
        second_order: bool = False,
        watcher: PathWatcher | None = None,
    ) -> TransferWalk:
        """Return the walk that sees every task; see :class:`metarl.meta.adaptation.base.Adaptation`."""
        del keep, second_order
        assert watcher is None  # nothing descends here
        return TransferWalk(self, theta, request, query=query)

    def carried(self, theta: Params, outcomes: Sequence[Outcome]) -> Params:
        """Return nothing: there are no statistics."""
        del theta, outcomes
        return {}

    def n_told(self, request: Request) -> int:
        """Return of how many units of work an evaluation tells: one for all tasks."""
        del request
        return 1

    def evaluate(self, theta: Params, request: Request, told: Told | None = None) -> Outcome:
        """See every task; the return after k steps is that of the policy that is decoded from all seen by then."""
        outcome = finish(TransferWalk(self, theta, request, measure=True), Timer())
        if told is not None:
            told(1)
        return outcome

    def adapt(
        self, env: gym.Env[Any, Any], theta: Params, rates: Sequence[Rate], seed: int, amount: Amount
    ) -> AdaptedPolicy:
        """See one task, and return the policy that is decoded.

        :param env: an environment in which the task is seen, one episode for each example; or one of ours, which knows
            its task, and stands for the environment in which that is seen.
        """
        n = examples_of(amount) * len(rates)
        if n == 0:
            return AdaptedPolicy(self.model.policy, self.unseen(theta), 0, (), seed)
        own, task = seed_sequence(seed, "adapt"), self._task_of(env, seed)
        if task is None:
            return self._decoded(theta, self.model.meet(env, theta, own, n), seed)
        return self._decoded(theta, self.model.draw(theta, stack_tasks([task]), [own], n), seed)

    def adapt_to(self, theta: Params, support: Any, seed: int) -> AdaptedPolicy:
        """Return the policy that is decoded from examples of one task, which are given."""
        return self._decoded(theta, self.model.given(support), seed)

    def _decoded(self, theta: Params, samples: Samples, seed: int) -> AdaptedPolicy:
        psi = self.model.policies(theta, self.model.seen([samples]))
        return AdaptedPolicy(self.model.policy, take(psi, 0), int(samples.counts[0]), (), seed)

    def _task_of(self, env: gym.Env[Any, Any], seed: int) -> Task | None:
        """Return the task of an environment of ours; None of others, whose task is not known."""
        inner = env.unwrapped
        if not (isinstance(inner, SingleEnv) and inner.family.task_space == self.family.task_space):
            return None
        if inner.task is None:
            env.reset(seed=seed)
        return inner.task

    # ------------------------------------------------------------------------------------------------- of many at once
    def see(self, theta: Params, request: Request, k: int) -> Samples:
        """Draw the examples of every task that the ``k``-th step sees."""
        seeds = request.streams.tasks(request.n_tasks, k, part="/support")
        return self.model.draw(theta, request.tasks, seeds, examples_of(request.amount))

    @property
    def predicts(self) -> bool:
        """Whether a query is examples, which can be drawn without acting."""
        return self.learner.predicts and isinstance(self.family, OneStep)

    def examples(self, request: Request) -> Examples:
        """Draw the query batch of every task: what a policy that acts would see."""
        k, own = len(request.rates), self.family.query_family
        family = own if own is not None and k else self.family
        assert isinstance(family, OneStep)
        seeds = request.streams.tasks(request.n_tasks, k)
        return Examples(family, self.model.policy, request.tasks, seeds, self._n_query, self.learner.info)

    def scored(self, outcome: Outcome, actions: torch.Tensor) -> Outcome:
        """Return what came of a walk with the returns of what the policies that follow predict for its query.

        :param actions: ``[task, n, *action]``; of no use where the policies have acted.
        """
        if not (isinstance(outcome, Drawn) and outcome.examples is not None):
            return outcome
        after = outcome.examples.episodes(actions).mean_returns
        return replace(outcome, returns=np.concatenate([outcome.returns[:, :-1], after[:, None]], axis=1))

    def collect(self, psi: Params, request: Request) -> tuple[Samples, Batch]:
        """Collect the query batch of every task with its policy."""
        episodes = self._query.query(psi, self._of_query(request))
        return self.learner.process(episodes, psi), Batch.of(episodes)

    def measure(self, psi: Params, request: Request, batch: Batch) -> Batch:
        """Return what is remembered of a step with the scores of the policies at its start."""
        of_query = self._of_query(request)
        batch = batch.measured_on(*self._query.measure(psi, of_query))
        if self.family.evaluation_family is None:
            return batch
        return batch.scored_by(*self._query.score(psi, of_query))

    def _of_query(self, request: Request) -> Request:
        return replace(request, amount={"n_episodes": self._n_query, "n_transitions": None})


@dataclass(frozen=True)
class Drawn(Outcome):
    """What came of a walk whose query nobody has acted in: until it is scored, its returns are those of the policy that
    has seen nothing.

    :param examples: the query.
    """

    examples: Examples | None = None


class TransferWalk:
    """Sees a stack of tasks and, where that is asked for, collects with the policies that follow; all in one unit.

    What was done is not saved, but drawn again, to the same bits: that takes no longer than to read it.

    :param adaptation: how tasks are seen.
    :param theta: the meta-parameters.
    :param request: what is asked.
    :param query: collect at the end, to learn from it.
    :param measure: score the policies after each number of steps.
    """

    n_units = 1

    def __init__(
        self,
        adaptation: TransferAdaptation,
        theta: Params,
        request: Request,
        *,
        query: bool = False,
        measure: bool = False,
    ) -> None:
        self._adaptation, self._theta, self._request = adaptation, theta, request
        self._query, self._measure = query, measure
        self.n_done = 0
        self._support: list[Samples] = []
        self._batches: list[Batch] = []
        self._last: Samples | None = None
        self._examples: Examples | None = None
        self._psi: Params = {}

    @property
    def tasks(self) -> Tasks:
        """All tasks of the stack."""
        return self._request.tasks

    @property
    def env_steps(self) -> int:
        """Env steps of the units done."""
        return sum(int(batch.env_steps.sum()) for batch in self._batches)

    def work(self, timer: Timer) -> bool:
        """Do all of it; there is no other unit."""
        # Of nothing that was seen all tasks have one policy.
        one = self._adaptation.unseen(self._theta)
        if self._query and self._adaptation.predicts:
            self._draw(one, timer)
        else:
            self._act(one, timer)
        self.n_done = 1
        return False

    def _draw(self, unseen: Params, timer: Timer) -> None:
        """See all tasks, and draw their query."""
        adaptation, request = self._adaptation, self._request
        with timer("sampling"):
            for k in range(len(request.rates)):
                self._support.append(adaptation.see(self._theta, request, k))
                self._remember(self._support[-1])
            self._examples = adaptation.examples(request)
            obs = torch.from_numpy(self._examples.obs)
            with torch.no_grad():
                actions = adaptation.model.policy.distribution(unseen, obs.flatten(end_dim=1)).mode()
            episodes = self._examples.episodes(actions.view(*obs.shape[:2], *actions.shape[1:]))
            self._last, batch = adaptation.learner.process(episodes, {}), Batch.of(episodes)
        self._batches[0] = self._batches[0].measured_on(batch.returns, batch.lengths)
        self._batches.append(batch)

    def _act(self, one: Params, timer: Timer) -> None:
        """See all tasks, and act with the policies that follow."""
        adaptation, request = self._adaptation, self._request
        unseen = {name: tensor.contiguous() for name, tensor in expand(one, request.n_tasks).items()}
        self._psi = unseen
        for k in range(len(request.rates)):
            with timer("sampling"):
                self._support.append(adaptation.see(self._theta, request, k))
            self._remember(self._support[-1])
            with timer("inner"):
                self._psi = adaptation.model.policies(self._theta, adaptation.model.seen(self._support))
        if self._measure:
            self._remember(None)
        if self._query:
            with timer("sampling"):
                self._last, batch = adaptation.collect(self._psi, request)
            self._batches.append(batch)

    def _remember(self, samples: Samples | None) -> None:
        """Remember how many examples a step saw, and the scores before it."""
        n_tasks = self._request.n_tasks
        batch = Batch.nothing(n_tasks)
        if samples is not None:
            n_episodes = np.full(n_tasks, examples_of(self._request.amount))
            batch = replace(batch, env_steps=samples.counts, n_episodes=n_episodes)
        self._batches.append(self._adaptation.measure(self._psi, self._request, batch) if self._measure else batch)

    def outcome(self) -> Outcome:
        """Return what came of it."""
        returns, lengths, env_steps, n_episodes, learning_returns = (
            np.stack([getattr(batch, each.name) for batch in self._batches], axis=1) for each in fields(Batch)
        )
        return Drawn(
            self._psi,
            returns,
            env_steps,
            n_episodes,
            self._support,
            self._last,
            eval_lengths=lengths,
            learning_returns=learning_returns,
            examples=self._examples,
        )

    def state(self) -> Params:
        """Return whether it is done."""
        return {"n_done": torch.tensor(self.n_done)}

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Do again what was done."""
        if units_done(dict(state), self.n_units):
            self.work(Timer())


def examples_of(amount: Amount) -> int:
    """Return how many examples a step sees: an episode, and an env step, is one."""
    return amount["n_episodes"] or amount["n_transitions"] or 0
