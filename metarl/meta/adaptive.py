"""What the meta-wrappers around a learner share: the inner loop, evaluation, and adapting to one task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np

from metarl.agents.parallel import single_threaded_torch
from metarl.agents.policy import Params
from metarl.agents.sampling import Episodes, Samples, collect, collect_env
from metarl.agents.vpg import VPG
from metarl.envs.family import Family, Tasks
from metarl.envs.family import n_tasks as count_tasks
from metarl.errors import ConfigError, unknown_name
from metarl.meta.base import AdaptedPolicy, MetaAlgorithm, versions
from metarl.meta.evaluation import evaluation_tasks
from metarl.meta.inner import expand, inner_path, join
from metarl.meta.objective import chunks
from metarl.meta.outer import Outer, make_outer, require_range
from metarl.meta.progress import Timer
from metarl.streams import seed_sequence

if TYPE_CHECKING:
    from metarl.meta.report import Report

LEARNERS = ("vpg",)
RATE_RULES = ("constant", "half_after_first")


class AdaptiveAlgorithm(MetaAlgorithm):
    """Base of the meta-wrappers around a learner.

    Each inner step collects its own batch at the parameters reached and learns from it.

    :param policy: ``"MlpPolicy"``.
    :param env: a registered family's name or a family.
    :param learner: ``"vpg"``.
    :param inner_lr: the inner learning rate, or one for each inner step.
    :param n_inner_steps: inner steps in training.
    :param n_episodes: episodes a task for every batch.
    :param n_transitions: instead of ``n_episodes``, at least that many env steps in whole episodes.
    :param gamma: discount factor.
    :param gae_lambda: 1 takes the whole return.
    :param normalize_advantage: standardise the advantages of each task's batch.
    :param surrogate: ``"log_likelihood"`` or ``"likelihood_ratio"``.
    :param outer: ``"trpo"``, ``"adam"`` or ``"sgd"``.
    :param outer_kwargs: arguments of the outer optimiser, see :mod:`metarl.meta.outer`.
    :param chunk_size: tasks that learn together on one thread; None chooses by the working set.

    The other parameters are those of :class:`~metarl.meta.base.MetaAlgorithm`.
    """

    def __init__(
        self,
        policy: str = "MlpPolicy",
        env: str | Family = "PointMass-v0",
        *,
        learner: str = "vpg",
        inner_lr: float | Sequence[float] = 0.1,
        n_inner_steps: int = 1,
        n_episodes: int = 20,
        n_transitions: int | None = None,
        gamma: float = 0.99,
        gae_lambda: float = 1.0,
        normalize_advantage: bool = True,
        surrogate: str = "log_likelihood",
        outer: str = "trpo",
        outer_kwargs: Mapping[str, Any] | None = None,
        chunk_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        if learner not in LEARNERS:
            raise unknown_name("learner", learner, LEARNERS)
        require_range("n_inner_steps", n_inner_steps, 0, integer=True)
        require_range("n_episodes", n_episodes, 1, integer=True)
        if n_transitions is not None:
            require_range("n_transitions", n_transitions, 1, integer=True)
        if chunk_size is not None:
            require_range("chunk_size", chunk_size, 1, integer=True)
        super().__init__(policy, env, **kwargs)
        self.learner = learner
        self.inner_lr = inner_lr
        self.n_inner_steps = n_inner_steps
        self.n_episodes = n_episodes
        self.n_transitions = n_transitions
        self.gamma = gamma
        self.gae_lambda = gae_lambda
        self.normalize_advantage = normalize_advantage
        self.surrogate = surrogate
        self.outer = outer
        self.outer_kwargs = dict(outer_kwargs or {})
        self.chunk_size = chunk_size
        self.rates = self._check_rates(inner_lr)
        """The inner learning rate of each inner step in training."""
        if not isinstance(normalize_advantage, bool):
            raise ConfigError(f"normalize_advantage={normalize_advantage!r} is not true or false")
        self.vpg = VPG(
            self.policy,
            gamma=gamma,
            gae_lambda=gae_lambda,
            normalize_advantage=normalize_advantage,
            surrogate=surrogate,
            parallel=self.parallel,
        )
        self.outer_optimizer = make_outer(outer, self.outer_kwargs)

    def _check_rates(self, inner_lr: float | Sequence[float]) -> list[float]:
        rates: list[Any] = (
            list(inner_lr) if isinstance(inner_lr, (list, tuple)) else [inner_lr] * max(1, self.n_inner_steps)
        )
        for rate in rates:
            require_range("inner_lr", rate, 0.0)
        if len(rates) != max(1, self.n_inner_steps):
            raise ConfigError(f"inner_lr has {len(rates)} rates for {self.n_inner_steps} inner steps")
        return [float(rate) for rate in rates]

    @property
    def _outer(self) -> Outer:
        return self.outer_optimizer

    # ------------------------------------------------------------------------------------------------------ inner loop
    def _statistics(self, episodes: Sequence[Episodes], steps: int, timer: Timer) -> dict[str, float]:
        after = [float(np.mean(batch.mean_returns)) for batch in episodes]
        lengths = episodes[-1].lengths
        stats = {
            "rollout/ep_rew_mean": after[-1],
            "rollout/ep_len_mean": float(lengths[lengths > 0].mean()),
            "meta/pre_adapt_rew": after[0],
            "meta/post_adapt_rew": after[-1],
            "meta/adapt_gain": after[-1] - after[0],
            "meta/n_meta_iterations": float(self.n_iterations + 1),
        }
        for k, value in enumerate(after):
            stats[f"inner/return_after_{k}"] = value
        for phase, seconds in timer.seconds.items():
            stats[f"time/{phase}"] = seconds
        stats["time/sampling_fps"] = steps / max(timer.seconds["sampling"], 1e-9)
        log_std = self.params.get("policy/log_std")
        if log_std is not None:
            stats["train/std"] = float(log_std.exp().mean())
        return stats

    def _amount(self, n_episodes: int | None, n_transitions: int | None) -> dict[str, int | None]:
        """Return how much to collect for a gradient step, as in training where nothing is said."""
        if n_episodes is None and n_transitions is None:
            n_transitions = self.n_transitions
            n_episodes = self.n_episodes if n_transitions is None else None
        amount = {"n_episodes": n_episodes, "n_transitions": n_transitions}
        for name, value in amount.items():
            if value is not None:
                require_range(name, value, 1, integer=True)
        return amount

    @single_threaded_torch()
    def _adapt_tasks(
        self,
        tasks: Tasks,
        theta: Params,
        rates: Sequence[float],
        seed: int,
        purpose: str,
        iteration: int,
        timer: Timer,
        amount: Mapping[str, int | None],
    ) -> tuple[list[Episodes], list[Samples], Params]:
        """Collect at θ₀ … θ_K, stepping in between.

        :return: the K+1 batches of episodes, the K support batches, and the stacked θ_K.
        """
        count = count_tasks(tasks)
        params = {name: tensor.contiguous() for name, tensor in expand(theta, count).items()}
        batches: list[Episodes] = []
        support: list[Samples] = []
        for k in range(len(rates) + 1):
            seeds = [seed_sequence(seed, purpose, iteration, task, k) for task in range(count)]
            with timer("sampling"):
                episodes = collect(self.family, self.policy, params, tasks, seeds, parallel=self.parallel, **amount)
            batches.append(episodes)
            if k < len(rates):
                with timer("inner"):
                    support.append(self.vpg.process(episodes, params))
                    params = self._inner_step(params, support[-1], rates[k])
        return batches, support, params

    def _inner_step(self, stacked: Params, samples: Samples, rate: float) -> Params:
        """Return every task's parameters after one step, chunk by chunk."""
        parts = chunks(len(samples), [samples], self.policy.width, self.chunk_size)

        def step(chunk: slice) -> Params:
            start = {name: tensor[chunk] for name, tensor in stacked.items()}
            return inner_path(self.vpg, start, [samples.tasks(chunk)], [rate])[1]

        return join(self.parallel.map(step, parts))

    # ------------------------------------------------------------------------------------------------------ using it
    def test_rates(self, n_inner_steps: int, rule: str = "constant") -> list[float]:
        """Return the inner rates for adaptation at test time.

        :param rule: ``"constant"`` goes on with the last training rate; ``"half_after_first"`` takes the first
            training rate and then half of it, as the reference does.
        """
        require_range("n_inner_steps", n_inner_steps, 0, integer=True)
        if rule not in RATE_RULES:
            raise ConfigError(f"inner_lr_rule={rule!r} is unknown: use {' or '.join(RATE_RULES)}")
        if rule == "half_after_first":
            return [self.rates[0] * (1.0 if k == 0 else 0.5) for k in range(n_inner_steps)]
        return [self.rates[min(k, len(self.rates) - 1)] for k in range(n_inner_steps)]

    def evaluate(
        self,
        split: str = "test",
        n_inner_steps: int | None = None,
        *,
        n_tasks: int = 40,
        n_episodes: int | None = None,
        n_transitions: int | None = None,
        inner_lr_rule: str = "constant",
        seed: int = 0,
        label: str | None = None,
        progress: Callable[[int, int], None] | None = None,
        **kwargs: Any,
    ) -> Report:
        """Adapt to held-out tasks and report the return after 0 … K inner steps.

        The return after k steps is the mean undiscounted return of the batch collected at θ_k, which then serves the
        next step, as in the reference. Runs evaluated with equal arguments share tasks and random streams, so they can
        be compared in pairs.

        :param split: ``"validation"``, ``"test"`` or ``"shifted"``.
        :param n_inner_steps: K; 3 if None.
        :param n_tasks: tasks; where the family has fewer, each is adapted to several times with its own streams.
        :param n_episodes: episodes for each gradient step; as in training if None.
        :param n_transitions: instead of episodes, env steps for each gradient step (4,000 in the reference).
        :param inner_lr_rule: see :meth:`test_rates`.
        :param seed: seed of the evaluation's streams.
        :param label: the report's name in tables; the algorithm's name if None.
        :param progress: called with (batches done, batches in all).
        """
        from metarl.meta.report import Report

        if kwargs:
            raise unknown_name("argument of evaluate:", next(iter(kwargs)), ["n_tasks", "n_episodes", "inner_lr_rule"])
        require_range("n_tasks", n_tasks, 1, integer=True)
        require_range("seed", seed, 0, integer=True)
        amount = self._amount(n_episodes, n_transitions)
        rates = self.test_rates(3 if n_inner_steps is None else n_inner_steps, inner_lr_rule)
        tasks, strata = evaluation_tasks(self.family, split, n_tasks)
        purpose = f"evaluate/{split}"
        timer = Timer()
        episodes, _, _ = self._adapt_tasks(tasks, self.policy_params, rates, seed, purpose, 0, timer, amount)
        if progress is not None:
            progress(len(episodes), len(episodes))
        returns = np.stack([batch.mean_returns for batch in episodes], axis=-1)
        steps = np.array([0.0, *np.cumsum([batch.task_steps.mean() for batch in episodes[:-1]])])
        lengths = episodes[-1].task_steps / (episodes[-1].lengths > 0).sum(1)
        return Report(
            algo=self.name,
            env=self.family.id,
            split=split,
            returns=returns[None],
            env_steps=steps,
            tasks={name: value.tolist() for name, value in tasks.items()},
            strata=None if strata is None else np.array(strata),
            seeds=[self.seed],
            label=label or self.name,
            meta={
                "num_timesteps": self.num_timesteps,
                "n_iterations": self.n_iterations,
                "inner_lr": rates,
                "inner_lr_rule": inner_lr_rule,
                **amount,
                "evaluation_seed": seed,
                "env_kwargs": self.env_kwargs,
                "ep_lengths": lengths.tolist(),
                "versions": versions(),
            },
        )

    @single_threaded_torch()
    def adapt(
        self,
        env: gym.Env[Any, Any],
        n_inner_steps: int | None = None,
        *,
        n_episodes: int | None = None,
        n_transitions: int | None = None,
        inner_lr_rule: str = "constant",
        seed: int = 0,
        **kwargs: Any,
    ) -> AdaptedPolicy:
        """Adapt to one environment of equal spaces, whose task need not be known.

        :param env: any Gymnasium environment.
        :param n_inner_steps: inner steps; as in training if None.
        :param n_episodes: episodes for each of them; as in training if None.
        :param n_transitions: instead of episodes, env steps for each of them, in whole episodes.
        :param inner_lr_rule: see :meth:`test_rates`.
        :param seed: seed of the streams that episodes and actions are drawn from.
        :raises ConfigError: spaces that differ from the family's.
        """
        if kwargs:
            raise unknown_name("argument of adapt:", next(iter(kwargs)), ["n_inner_steps", "n_episodes", "seed"])
        require_range("seed", seed, 0, integer=True)
        amount = self._amount(n_episodes, n_transitions)
        self.check_env(env)
        params = {name: tensor[None] for name, tensor in self.policy_params.items()}
        returns: list[float] = []
        steps = 0
        rates = self.test_rates(self.n_inner_steps if n_inner_steps is None else n_inner_steps, inner_lr_rule)
        for k, rate in enumerate(rates):
            own = {name: tensor[0] for name, tensor in params.items()}
            seeds = seed_sequence(seed, "adapt", k)
            episodes = collect_env(env, self.policy, own, seeds, amount["n_episodes"], amount["n_transitions"])
            params = self._inner_step(params, self.vpg.process(episodes, params), rate)
            returns.append(float(episodes.mean_returns[0]))
            steps += episodes.n_steps
        own = {name: tensor[0] for name, tensor in params.items()}
        return AdaptedPolicy(self.policy, own, steps, returns)
