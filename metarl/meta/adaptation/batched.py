"""Adaptation with a learner that is batched over tasks: a batch at the parameters reached, and an update on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

from metarl.agents.learners.base import Learner
from metarl.agents.learners.optimizers import Layout
from metarl.agents.learners.returned import require_samples, require_state
from metarl.agents.learners.watching import LearnerState
from metarl.agents.parallel import Parallel
from metarl.agents.sampling.collect import collect
from metarl.agents.sampling.episodes import Episodes
from metarl.agents.sampling.examples import Examples
from metarl.agents.sampling.one_env import collect_env
from metarl.agents.sampling.samples import Samples
from metarl.envs.family import Family
from metarl.envs.supervised.one_step import OneStep
from metarl.envs.tasks import Tasks
from metarl.errors import CheckpointError, ConfigError
from metarl.meta.adaptation.adapted import AdaptedPolicy
from metarl.meta.adaptation.base import (
    Amount,
    Outcome,
    PathWatcher,
    Request,
    Told,
    require_like,
    units_done,
)
from metarl.meta.adaptation.batches import Batch
from metarl.meta.adaptation.gradient import GradientPath
from metarl.meta.progress import Timer
from metarl.params import STATISTICS, Params, Rate, expand, group, grouped, join, take
from metarl.streams import seed_sequence

KEPT_BYTES = 4_000_000
"""Parameters and activations of all inner steps of a block whose derivatives are kept while it walks: walking its path
once more for them takes a sixth of a small meta-iteration. Larger blocks do, so that memory does not grow with them."""


class BatchedAdaptation:
    """Adaptation around a learner that is batched over tasks.

    Each inner step collects its own batch at the parameters reached and learns from it, unless the learner reuses the
    first one for all of them. Then evaluations measure what is reached on further episodes, the same after each step.
    Where the family has an evaluation family, they measure it on episodes of that one, too.

    :param family: whose tasks are learnt.
    :param learner: learns them.
    :param parallel: the threads to collect on.
    """

    has_rates: ClassVar[bool] = True

    @property
    def alone(self) -> bool:
        """Whether every task is a block of its own: not where tasks are batched."""
        return False

    def __init__(self, family: Family, learner: Learner, parallel: Parallel) -> None:
        self.family = family
        self.learner = learner
        learner.take_into_use()
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

    def walk(
        self,
        theta: Params,
        request: Request,
        *,
        query: bool = False,
        keep: bool = False,
        second_order: bool = False,
        watcher: PathWatcher | None = None,
    ) -> BatchedWalk:
        """Return the walk that learns every task; see :class:`metarl.meta.adaptation.base.Adaptation`."""
        return self._walk(theta, request, query=query, keep=keep, second_order=second_order, watcher=watcher)

    def _walk(self, theta: Params, request: Request, **how: Any) -> BatchedWalk:
        return BatchedWalk(self, theta, request, **how)

    def carried(self, theta: Params, outcomes: Sequence[Outcome]) -> Params:
        """Return the running statistics of batch norm: the mean over tasks of those reached."""
        names = [name for name in theta if name.startswith(STATISTICS)]
        reached = [{name: outcome.params[name] for name in names} for outcome in outcomes]
        return {name: tensor.mean(0) for name, tensor in join(reached).items()}

    def n_told(self, request: Request) -> int:
        """Return of how many units of work an evaluation tells: batches."""
        return len(request.rates) + 1

    def evaluate(self, theta: Params, request: Request, told: Told | None = None) -> Outcome:
        """Learn every task; the return after k inner steps is that of the batch collected there, or of further episodes
        where batches are reused.
        """
        walk, timer = self._walk(theta, request, measure=True), Timer()
        while walk.n_done < walk.n_units:
            walk.work(timer)
            if told is not None:
                told(1)
        return walk.outcome()

    def adapt(
        self, env: gym.Env[Any, Any], theta: Params, rates: Sequence[Rate], seed: int, amount: Amount
    ) -> AdaptedPolicy:
        """Learn one environment, whose task need not be known, from ``theta``."""
        policy = self.learner.policy
        state = self.start(theta, 1)
        returns: list[float] = []
        steps = 0
        samples: Samples | None = None
        for k, rate in enumerate(rates):
            if samples is None or not self.learner.reuses_support:
                episodes = collect_env(
                    env,
                    policy,
                    take(state.params, 0),
                    seed_sequence(seed, "adapt", k),
                    amount["n_episodes"],
                    amount["n_transitions"],
                    info=self.learner.info,
                    deterministic=self.learner.deterministic,
                )
                samples = self.process(episodes, state.params)
                returns.append(float(episodes.mean_returns[0]))
                steps += episodes.n_steps
            state = self.update(state, samples, rate, [seed_sequence(seed, "adapt/update", k)])
        return AdaptedPolicy(policy, take(state.params, 0), steps, returns, seed)

    def start(self, theta: Params, n_tasks: int, local: Params | None = None) -> LearnerState:
        """Return the learner's state at the initialisation, for a stack of tasks."""
        stack = {**expand(theta, n_tasks), **(local or {})}
        return self.learner.start({name: tensor.contiguous() for name, tensor in stack.items()})

    def process(self, episodes: Episodes, params: Params) -> Samples:
        """Return what the learner makes of episodes that the stacked ``params`` collected."""
        return require_samples(self.learner, self.learner.process(episodes, params), len(episodes.lengths))

    def update(
        self,
        state: LearnerState,
        samples: Samples,
        rate: Rate,
        seeds: Sequence[np.random.SeedSequence],
        watcher: PathWatcher | None = None,
    ) -> LearnerState:
        """Return the learner's state after an update, with running statistics moved towards those of its batch."""
        after = require_state(self.learner, self.learner.update(state, samples, rate, seeds, watcher), state)
        moved = self.learner.policy.moved_statistics(state.params, samples.obs, samples.counts)
        statistics = {name: tensor for name, tensor in moved.items() if name.startswith(STATISTICS)}
        return replace(after, params={**after.params, **statistics}) if statistics else after

    def collect(self, params: Params, request: Request, k: int) -> Episodes:
        """Collect the ``k``-th batch of every task at the stacked ``params``; the last one has the query's size."""
        seeds = request.streams.tasks(request.n_tasks, k)
        n_episodes = self.learner.n_query if k == len(request.rates) else None
        return self._collect(self.family, params, request, seeds, n_episodes)

    def drawn(self, request: Request, k: int) -> Episodes | None:
        """Return the same without asking the policy, so that returns say nothing; None where that has to be asked."""
        n_episodes, family, policy = request.amount["n_episodes"], self.family, self.learner.policy
        if n_episodes is None or not isinstance(family, OneStep) or not self.learner.predicts:
            return None
        seeds = request.streams.tasks(request.n_tasks, k)
        examples = Examples(family, policy, request.tasks, seeds, n_episodes, self.learner.info)
        space = policy.action_space
        dtype = torch.int64 if isinstance(space, spaces.Discrete) else torch.float32
        return examples.episodes(torch.zeros((*examples.obs.shape[:2], *(space.shape or ())), dtype=dtype))

    def query(self, params: Params, request: Request) -> Episodes:
        """Collect the query batch; where tasks were learnt before, in the family that has examples for that."""
        k, own = len(request.rates), self.family.query_family
        if own is None or (k == 0 and not request.learnt):
            return self.collect(params, request, k)
        return self._collect(own, params, request, request.streams.tasks(request.n_tasks, k), self.learner.n_query)

    def measure(self, params: Params, request: Request) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean return and length, ``[task]``, of episodes of every task that nothing is learnt from, those
        of the query family, where there is one: the same ones whatever ``params`` are.
        """
        seeds, family = request.streams.tasks(request.n_tasks, part="/measured"), self.family.query_family
        batch = Batch.of(self._collect(family or self.family, params, request, seeds, self.learner.n_eval))
        return batch.returns, batch.lengths

    def score(self, params: Params, request: Request) -> tuple[np.ndarray, np.ndarray]:
        """Return the same of episodes in the evaluation family."""
        seeds, n_episodes = request.streams.tasks(request.n_tasks, part="/scored"), self.family.evaluation_episodes
        batch = Batch.of(self._collect(self.family.acts_in, params, request, seeds, n_episodes, info=()))
        return batch.returns, batch.lengths

    def _collect(
        self,
        family: Family,
        params: Params,
        request: Request,
        seeds: Sequence[np.random.SeedSequence],
        n_episodes: int | None,
        info: Sequence[str] | None = None,
    ) -> Episodes:
        amount = request.amount if n_episodes is None else {"n_episodes": n_episodes, "n_transitions": None}
        policy = self.learner.policy
        episodes = collect(
            family,
            policy,
            params,
            request.tasks,
            seeds,
            n_episodes=amount["n_episodes"],
            n_transitions=amount["n_transitions"],
            info=self.learner.info if info is None else info,
            deterministic=self.learner.deterministic,
            parallel=self._parallel,
        )
        if (
            family in (self.family, self.family.query_family)
            and policy.network.transductive
            and len(set(episodes.lengths.ravel().tolist())) > 1
        ):
            raise ConfigError(
                f"{policy.name} normalises by each batch, to which what is missing in shorter episodes would count: "
                f"those of {self.family.id} are {episodes.lengths.min()} to {episodes.lengths.max()} env steps long; "
                "features_extractor_kwargs={'batch_statistics': 'running'} takes any"
            )
        return episodes


class BatchedWalk:
    """Learns a stack of tasks; a unit is an inner step of all of them, or the query batch.

    :param adaptation: around what they are learnt.
    :param theta: the initialisation.
    :param request: what is asked.
    :param query: collect once more at the parameters reached.
    :param keep: keep the batches learnt from.
    :param second_order: keep the derivatives of plain gradient steps too, up to :data:`KEPT_BYTES` of them.
    :param measure: the batch at the parameters reached is looked at only, not made into samples.
    :param watcher: is told every segment.
    """

    def __init__(
        self,
        adaptation: BatchedAdaptation,
        theta: Params,
        request: Request,
        *,
        query: bool = False,
        keep: bool = False,
        second_order: bool = False,
        measure: bool = False,
        watcher: PathWatcher | None = None,
    ) -> None:
        self._adaptation = adaptation
        self._request = request
        self._query = query or measure
        self._keep = keep
        self._measure = measure
        self._watcher = watcher
        self._state = adaptation.start(theta, request.n_tasks, request.local)
        # Where rates differ by tensor, the learner's own steps round otherwise.
        keeps_steps = second_order and all(isinstance(rate, float) for rate in request.rates)
        learner, start = adaptation.learner, self._state.params
        self._path = GradientPath(learner, start, [], [], second_order=True) if keeps_steps else None
        self._batches: list[Batch] = []
        self._support: list[Samples] = []
        self._losses: list[np.ndarray] = []
        self._last: Samples | None = None
        self._reused: Samples | None = None
        self.n_units = len(request.rates) + self._query
        """Inner steps, and the batch at the parameters reached."""
        self.n_done = 0

    @property
    def tasks(self) -> Tasks:
        """All tasks of the stack: a unit is an inner step of each."""
        return self._request.tasks

    @property
    def env_steps(self) -> int:
        """Env steps of the units done."""
        return sum(int(batch.env_steps.sum()) for batch in self._batches)

    def work(self, timer: Timer) -> bool:
        """Do the next unit; return whether there is another one."""
        if self.n_done < len(self._request.rates):
            self._learn(timer)
        else:
            self._look(timer)
        self.n_done += 1
        if self.n_done == len(self._request.rates) and self._watcher is not None:
            self._watcher.close()
        return self.n_done < self.n_units

    def _learn(self, timer: Timer) -> None:
        """Take an inner step on a batch that is collected here, or on the first one again."""
        k, learner = self.n_done, self._adaptation.learner
        samples, batch = self._reused, Batch.nothing(self._request.n_tasks)
        if samples is None:
            # Of training, the returns before the first step and after the last one are logged.
            unseen = not self._measure and 0 < k < self.n_units - 1
            with timer("sampling"):
                drawn = self._adaptation.drawn(self._request, k) if unseen else None
                episodes = drawn or self._adaptation.collect(self._state.params, self._request, k)
            batch = Batch.of(episodes)
            if drawn is not None:
                batch = batch.measured_on(np.full(len(batch.returns), np.nan), batch.lengths)
            with timer("inner"):
                samples = self._adaptation.process(episodes, self._state.params)
        self._batches.append(self._measured(batch))
        if self._measure and not learner.reuses_support and self._adaptation.family.loss is not None:
            with torch.no_grad():
                self._losses.append(learner.loss(self._state.params, samples).numpy())
        with timer("inner"):
            self._state = self._step(samples, self._request.rates[k], k)
        if learner.reuses_support:
            self._reused = samples
        if self._keep:
            self._support.append(samples)

    def _step(self, samples: Samples, rate: Rate, k: int) -> LearnerState:
        """Return the learner's state after an inner step."""
        if self._path is not None and self._is_large(samples):
            self._path = None
        if self._path is not None:
            return replace(self._state, params=self._path.go_on(samples, rate))
        seeds = self._request.streams.tasks(len(samples), k, part="/update")
        return self._adaptation.update(self._state, samples, rate, seeds, self._watcher)

    def _is_large(self, samples: Samples) -> bool:
        """Whether more would be kept of all steps than may be."""
        policy = self._adaptation.learner.policy
        n_params = sum(tensor[0].numel() for tensor in self._state.params.values())
        n_activations = samples.obs.shape[1] * policy.network.depth * policy.width
        n_bytes = len(samples) * (n_params + n_activations) * samples.weights.element_size()
        return n_bytes * len(self._request.rates) > KEPT_BYTES

    def _look(self, timer: Timer) -> None:
        """Collect once more at the parameters reached."""
        learner = self._adaptation.learner
        if self._measure and learner.reuses_support:
            self._batches.append(self._measured(Batch.nothing(self._request.n_tasks)))
            return
        with timer("sampling"):
            if self._measure:
                episodes = self._adaptation.collect(self._state.params, self._request, self.n_done)
            else:
                episodes = self._adaptation.query(self._state.params, self._request)
        self._batches.append(self._scored(Batch.of(episodes), self._state.params))
        if not self._measure:
            with timer("outer"):
                self._last = self._adaptation.process(episodes, self._state.params)

    def _measured(self, batch: Batch) -> Batch:
        """Return a batch with the score of further episodes, where nothing is learnt from what is measured: in every
        batch of an evaluation, and in the last of training, so that its log has a return before and after.
        """
        is_last = self.n_done + 1 == self.n_units and self.n_done > 0
        if self._adaptation.learner.reuses_support and (self._measure or is_last):
            batch = batch.measured_on(*self._adaptation.measure(self._state.params, self._request))
        return self._scored(batch, self._state.params)

    def _scored(self, batch: Batch, params: Params) -> Batch:
        """Return a batch of an evaluation with its score in the evaluation or the query family, where there is one."""
        adaptation = self._adaptation
        if self._measure and adaptation.family.evaluation_family is not None:
            return batch.scored_by(*adaptation.score(params, self._request))
        if self._measure and adaptation.family.query_family is not None and not adaptation.learner.reuses_support:
            return batch.scored_by(*adaptation.measure(params, self._request))
        return batch

    def outcome(self) -> Outcome:
        """Return what came of it."""
        returns, lengths, env_steps, n_episodes, learning_returns = (
            np.stack([getattr(batch, each.name) for batch in self._batches], axis=1) for each in fields(Batch)
        )
        return Outcome(
            self._state.params,
            returns,
            env_steps,
            n_episodes,
            self._support,
            self._last,
            eval_lengths=lengths,
            path=self._path,
            learning_returns=learning_returns,
            losses=np.stack(self._losses, axis=1) if self._losses else None,
        )

    # ------------------------------------------------------------------------------------------------ stopping half-way
    def state(self) -> Params:
        """Return parameters, optimisers, batches and the watcher's sums after the units done, as named tensors."""
        found: Params = {"n_done": torch.tensor(self.n_done)}
        found |= grouped(self._state.params, "params/") | grouped(self._state.optimizer, "optimizer/")
        for k, batch in enumerate(self._batches):
            found |= {f"batch/{k}/{each.name}": _tensor(getattr(batch, each.name)) for each in fields(batch)}
        kept: dict[str, Samples | None] = {f"support/{k}/": samples for k, samples in enumerate(self._support)}
        for prefix, samples in {**kept, "query/": self._last, "reused/": self._reused}.items():
            if samples is None:
                continue
            for name, value in samples.present().items():
                found |= {prefix + (_ARRAY if isinstance(value, np.ndarray) else "") + name: _tensor(value)}
        if self._watcher is not None:
            found |= grouped(self._watcher.state(), "watcher/")
        return found

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from what :meth:`state` returned.

        :raises CheckpointError: the state of another walk.
        """
        known = dict(state)
        self.n_done = units_done(known, self.n_units)
        require_like(known, grouped(self._state.params, "params/") | grouped(self._state.optimizer, "optimizer/"))
        self._batches = [
            Batch(**{name: t.numpy() for name, t in group(known, f"batch/{k}/").items()}) for k in range(self.n_done)
        ]
        for batch in self._batches:
            require_like(
                {each.name: _tensor(getattr(batch, each.name)) for each in fields(batch)},
                {each.name: torch.empty(self._request.n_tasks) for each in fields(batch)},
                same_dtype=False,
            )
        n_support = min(self.n_done, len(self._request.rates)) if self._keep else 0
        self._support = [self._samples(group(known, f"support/{k}/")) for k in range(n_support)]
        self._state = LearnerState(self._as_left(group(known, "params/")), group(known, "optimizer/"))
        self._last, self._reused = (
            self._samples(tensors) if tensors else None for tensors in (group(known, "query/"), group(known, "reused/"))
        )
        if self._watcher is not None:
            self._watcher.load_state(group(known, "watcher/"))

    def _as_left(self, params: Params) -> Params:
        """Return parameters that were saved as the steps done leave them, in memory too: the bits of a product may
        depend on where its factors begin.
        """
        if not self.n_done:
            return params
        if not self._support or any(map(self._is_large, self._support)):
            self._path = None
        if self._path is None:
            return Layout(params).views(Layout(params).flatten(params))
        known = len(self._path.steps)  # of a state that was loaded before
        for samples, rate in zip(self._support[known:], self._request.rates[known:], strict=False):
            self._path.go_on(samples, rate)
        return self._path.end

    def _samples(self, tensors: Params) -> Samples:
        kind = self._adaptation.learner.samples_type
        absent: dict[str, Any] = dict.fromkeys(each.name for each in fields(kind))
        arrays = {name: tensor.numpy() for name, tensor in group(tensors, _ARRAY).items()}
        others = {name: tensor for name, tensor in tensors.items() if not name.startswith(_ARRAY)}
        if {len(array) for array in arrays.values()} | {len(tensor) for tensor in others.values()} != {
            self._request.n_tasks
        }:
            raise CheckpointError("samples of a walk are of other tasks")
        return kind(**{**absent, **others, **arrays})


_ARRAY = "array/"
"""Begins the names of fields that are NumPy's."""


def _tensor(value: Any) -> torch.Tensor:
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value
