"""What the meta-wrappers around a learner share: the inner loop, evaluation, and adapting to one task."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy

from metarl.agents.learners.registry import LEARNERS, Abilities, find_learner
from metarl.agents.parallel import library_torch
from metarl.checks import COUNT, MAPPING, NONE, ROUNDS, SEED, integer, number, plain, plain_tree
from metarl.envs.family import Family, draw_tasks
from metarl.envs.tasks import Tasks
from metarl.errors import ConfigError, DivergedError, MetaRLError, shorten, unknown_name
from metarl.files.schema import MOST, constructor_hints
from metarl.meta.adaptation.adapted import AdaptedPolicy
from metarl.meta.adaptation.base import Adaptation, Amount, Outcome, Streams
from metarl.meta.adaptation.batched import BatchedAdaptation
from metarl.meta.adaptation.gradient import InnerRule
from metarl.meta.adaptation.learners import make_adaptation, require_learner
from metarl.meta.base import MetaAlgorithm, versions
from metarl.meta.blocks.cut import Adaptations, Block, gather
from metarl.meta.environments import AnyEnv, as_env
from metarl.meta.evaluation.tasks import evaluation_tasks
from metarl.meta.kept import policy_name
from metarl.meta.outer.base import OUTER, Outer, make_outer
from metarl.meta.progress import Progress, Timer, counted
from metarl.meta.sb3_words import INSTEAD, SB3Words
from metarl.params import Params, norm, take
from metarl.streams import stream

if TYPE_CHECKING:
    from metarl.meta.evaluation.report import Report

RATE_RULES: dict[str, float | None] = {"constant": None, "half_after_first": 0.5, "hundredth_after_first": 0.01}
"""Test rates after the first step, as parts of the first training rate; None: the training rates go on."""

LARGEST_BATCH = 10**9
"""Env steps of all tasks of a batch together, at most: more fit no memory."""
LARGEST_GROWTH = 100.0
"""The factor by which a meta-iteration may lengthen the parameters. Fresh ones have a norm of about 10, and a trust
region on a handful of episodes, whose curvature is nearly singular, has been seen to make it 13 times that."""
LARGEST_ENTRY = 100.0
"""The root mean square entry beyond which they may not grow at all; fresh ones have one of about 0.1."""


RATE = number("(0, ∞)", "a list has a rate for each inner step, and training leaves them as they are")


def require_sound(before: Params, after: Params) -> None:
    """Raise where a meta-iteration made the parameters explode, long before they are no numbers.

    :raises DivergedError: the norm of ``after`` is more than :data:`LARGEST_GROWTH` times that of ``before`` (or 1), or
        grew although its entries are beyond :data:`LARGEST_ENTRY` already.
    """
    old, new = norm(before), norm(after)
    beyond = LARGEST_ENTRY * math.sqrt(sum(tensor.numel() for tensor in after.values()))
    if not new <= min(LARGEST_GROWTH * max(old, 1.0), max(old, beyond)):  # a NaN is none of these either
        raise DivergedError(
            f"the norm of the parameters went from {old:.4g} to {new:.4g}: training diverges; take a smaller "
            "learning_rate in outer_kwargs, or a smaller inner_lr"
        )


class AdaptiveAlgorithm(MetaAlgorithm):
    """Base of the meta-wrappers around a learner.

    An inner step collects a batch at the parameters reached and learns from it: one gradient step (``"vpg"``,
    ``"a2c"``) or epochs of them (``"ppo"``). Optimisers start afresh at every task. Around a stock SB3 algorithm the
    inner steps of a task are one call of its ``learn()``, with as many env steps as their batches have; what happens in
    between is up to its own hyperparameters.

    :param policy: ``"MlpPolicy"`` or ``"CnnPolicy"``; around a stock SB3 algorithm any of its policies.
    :param env: a registered family's name or a family.
    :param learner: ``"vpg"``, ``"a2c"``, ``"ppo"``, or a stock algorithm of SB3 or sb3-contrib, such as ``"sb3_ppo"``,
        ``"sb3_trpo"``, ``"sb3_sac"`` or ``"sb3_dqn"``.
    :param learner_kwargs: further arguments of the learner: see :class:`~metarl.agents.learners.vpg.VPG`,
        :class:`~metarl.agents.learners.a2c.A2C`, :class:`~metarl.agents.learners.ppo.PPO` and
        :class:`~metarl.agents.stock.learner.SB3Learner`. Around a stock PPO or TRPO an inner step is one rollout,
        unless ``n_steps`` is given here.
    :param inner_lr: the learner's learning rate, or one for each inner step; None takes the learner's own.
    :param n_inner_steps: inner steps in training.
    :param n_episodes: episodes a task for every batch.
    :param n_transitions: instead of ``n_episodes``, at least that many env steps in whole episodes.
    :param gamma: discount factor; this and what follows is the learner's own where it is None.
    :param gae_lambda: 1 takes the whole return.
    :param normalize_advantage: standardise the advantages of each task's batch.
    :param surrogate: of ``"vpg"``: ``"log_likelihood"`` or ``"likelihood_ratio"``.
    :param outer: ``"sgd"``, ``"adam"``, or around ``"vpg"``, for MAML and its kin, ``"trpo"``; None takes the wrapper's
        own, with its arguments.
    :param outer_kwargs: arguments of the outer optimiser, see :mod:`metarl.meta.outer.optimizers`.
    :param chunk_size: tasks that are differentiated together; None chooses by the working set.
    :param task_local: tensors, or modules such as ``"action_net"``, that every task has of its own: they are drawn anew
        from the task's stream, learnt with the rest, and never meta-learnt. Where tasks have unequal spaces, the
        tensors whose shapes differ are so by themselves.

    The other parameters are those of :class:`~metarl.meta.base.MetaAlgorithm`.
    """

    default_outer: ClassVar[tuple[str, Mapping[str, Any]]] = ("adam", {})
    """The outer optimiser where none is named, with its arguments."""

    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: str | Family | AnyEnv = "PointMass-v0",
        *,
        learner: str = "vpg",
        learner_kwargs: Mapping[str, Any] | None = None,
        inner_lr: float | Sequence[float] | None = None,
        n_inner_steps: int = 1,
        n_episodes: int = 20,
        n_transitions: int | None = None,
        gamma: float | None = None,
        gae_lambda: float | None = None,
        normalize_advantage: bool | None = None,
        surrogate: str | None = None,
        outer: str | None = None,
        outer_kwargs: Mapping[str, Any] | None = None,
        chunk_size: int | None = None,
        task_local: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        self.learner: str = plain(learner)
        require_learner(self.learner, learner_kwargs)
        options = {
            "gamma": gamma,
            "gae_lambda": gae_lambda,
            "normalize_advantage": normalize_advantage,
            "surrogate": surrogate,
        }
        self._options, self.learner_kwargs = _one_spelling(plain_tree(options), plain_tree(learner_kwargs or {}))
        self.n_inner_steps = integer(0, MOST)("n_inner_steps", n_inner_steps)
        self.n_episodes = integer(1, 10**6)("n_episodes", n_episodes)
        self.n_transitions = (COUNT | NONE)("n_transitions", n_transitions)
        self.inner_lr = self._default_rate() if inner_lr is None else checked_rates(inner_lr)
        own = self._default_outer()
        outer_kwargs = plain_tree((MAPPING | NONE)("outer_kwargs", outer_kwargs))
        self.outer: str = plain(outer) or own[0]
        self.outer_kwargs: Mapping[str, Any] = own[1] if outer is None and outer_kwargs is None else outer_kwargs or {}
        self.chunk_size = (COUNT | NONE)("chunk_size", chunk_size)
        self.task_local = names_of("task_local", task_local)
        self.rates = self._training_rates()
        """The learning rate of each inner step in training."""
        self._check_learner()
        super().__init__(policy, env, **kwargs)
        self.outer_optimizer = make_outer(self.outer, self.outer_kwargs)

    @property
    def abilities(self) -> type[Abilities]:
        """What the learner declares."""
        return find_learner(self.learner)

    @classmethod
    def refusal(cls, learner: type[Abilities]) -> str | None:
        """Return why this wrapper does not go with a learner, as the rest of a sentence; None where it does."""
        return None

    def _default_outer(self) -> tuple[str, Mapping[str, Any]]:
        return self.default_outer

    def _default_rate(self) -> float:
        """Return the inner rate where none is given."""
        return self.abilities.default_rate

    def _check_learner(self) -> None:
        """Raise :class:`ConfigError` for a learner or an outer optimiser that this wrapper does not go with."""
        reason = self.refusal(self.abilities)
        if reason is not None:
            raise ConfigError(f"{self.name} around {self.learner!r}: {reason}")
        if self.outer == "trpo":
            raise ConfigError(
                f"{self.name} with outer='trpo': a trust region needs a gradient through one policy, which a path has "
                "not: use 'adam' or 'sgd'"
            )

    def _training_rates(self) -> list[float]:
        n = max(1, self.n_inner_steps)
        rates = list(self.inner_lr) if isinstance(self.inner_lr, list) else [self.inner_lr] * n
        if len(rates) != n:
            raise ConfigError(f"inner_lr has {len(rates)} rates for {self.n_inner_steps} inner steps")
        return rates

    def _policy_name(self, policy: str | type[BasePolicy]) -> str:
        return policy_name(self.abilities.policies, policy)

    def _setup_model(self, seed: int) -> Params:
        size = self.meta_batch_size * self.batch_steps
        if size > LARGEST_BATCH:
            raise ConfigError(
                f"meta_batch_size={self.meta_batch_size:,} with {self.batch_steps:,} env steps a task is a batch of "
                f"{size:,} env steps: {LARGEST_BATCH:,} are the most"
            )
        given = {name: value for name, value in self._options.items() if value is not None}
        options = {**given, **plain_tree(self.learner_kwargs)}
        self.adaptations = Adaptations(
            self.family, lambda seen, taken: self._make_adaptation(seen, taken, options), self.task_local
        )
        """How tasks are learnt, for each pair of spaces."""
        self.adaptation = self.adaptations.first
        """How tasks of the family's own spaces are learnt."""
        self.gamma: float | None = self.adaptation.option("gamma")
        self.gae_lambda: float | None = self.adaptation.option("gae_lambda")
        self.normalize_advantage: bool | None = self.adaptation.option("normalize_advantage")
        self.surrogate: str | None = self.adaptation.option("surrogate")
        if isinstance(self.adaptation, BatchedAdaptation):
            self.policy = self.adaptation.learner.policy
        theta = self.adaptations.init(seed)
        self.stays = self._stays(theta)
        """Names of the tensors that inner steps leave as they are."""
        return {**theta, **self._further_params(theta)}

    def _make_adaptation(
        self, observation_space: spaces.Box, action_space: spaces.Space[Any], options: Mapping[str, Any]
    ) -> Adaptation:
        """Return how tasks of these spaces are learnt."""
        return make_adaptation(
            self.learner,
            self.family,
            (observation_space, action_space),
            self.policy_name,
            self.policy_kwargs,
            self.rates,
            options,
            self.parallel,
            self.n_inner_steps,
            self.batch_steps,
            self._context_size(),
        )

    def _context_size(self) -> int:
        """Return the size of a context that the policy sees beside observations; 0, unless a wrapper has one."""
        return 0

    def _stays(self, theta: Params) -> frozenset[str]:
        """Return the names of the tensors that inner steps leave as they are; none, unless a wrapper says so.

        :param theta: the initialisation.
        """
        del theta
        return frozenset()

    def _further_params(self, theta: Params) -> Params:
        """Return meta-parameters beside the initialisation, by their full names; none, unless a wrapper has some."""
        del theta
        return {}

    def _rule(self, rates: Sequence[float]) -> InnerRule:
        """Return how inner steps with these rates go."""
        return InnerRule(rates, self.stays, self.rates[0])

    @property
    def _outer(self) -> Outer:
        return self.outer_optimizer

    @property
    def plain_rate(self) -> float:
        """The learning rate of the first inner step, which an export goes on with."""
        return self.rates[0]

    def support_steps(self, n_inner_steps: int) -> int:
        """Return the env steps of one task's inner steps in training where no episode ends early."""
        return self.batch_steps * (min(1, n_inner_steps) if self.abilities.reuses_support else n_inner_steps)

    @property
    def batch_steps(self) -> int:
        """Env steps that a task's batch has in training where no episode ends early."""
        return self.n_transitions or self.n_episodes * self.family.horizon

    @staticmethod
    def _instead(name: str) -> str | None:
        return _place_of(name) or SB3Words._instead(name)

    @classmethod
    def _unknown_argument(cls, name: str) -> MetaRLError:
        place = _place_of(name)
        return (
            super()._unknown_argument(name) if place is None else ConfigError(f"{cls.__name__} has no {name}: {place}")
        )

    def __setattr__(self, name: str, value: Any) -> None:
        place = None if name in self.__dict__ or hasattr(type(self), name) else _place_of(name)
        if place is not None and (name not in self.argument_names() or name == "env"):  # it is kept as family
            raise ConfigError(f"{name} cannot be set on a {type(self).__name__}: {place}")
        super().__setattr__(name, value)

    # -------------------------------------------------------------------------------------------------------- training
    def _sample_tasks(self) -> Tasks:
        """Return the training tasks of this meta-iteration."""
        return draw_tasks(self.family, stream(self.seed, "tasks", self.n_iterations), self.meta_batch_size)

    def _blocks(self, tasks: Tasks, rates: Sequence[float], streams: Streams, amount: Amount) -> list[Block]:
        """Cut tasks into the blocks that are learnt together."""
        return self.adaptations.cut(tasks, self._rule(rates).steps(self.params), streams, amount)

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Do what is inside as a whole or not at all: an error leaves parameters and outer optimiser as they were."""
        params, state = self.params, self.outer_optimizer.state()
        try:
            yield
        except BaseException:
            self.params = params
            self.outer_optimizer.load_state(state, self.meta_params)
            raise

    def _move(self, moved: Params, outcomes: Sequence[Outcome]) -> None:
        """Replace the meta-parameters by what an outer step made of them, and statistics by those of the tasks learnt.

        :raises DivergedError: the norm of the parameters exploded.
        """
        require_sound(self.meta_params, moved)
        self.params = {**self.params, **moved, **self.adaptation.carried(self.theta, outcomes)}

    def _statistics(self, parts: Sequence[Outcome], timer: Timer) -> dict[str, float]:
        """Return what a meta-iteration saw.

        :param parts: what came of its tasks, in one part or several.
        """
        returns = np.concatenate([part.returns for part in parts])
        known = {k: column[~np.isnan(column)] for k, column in enumerate(returns.T)}
        after = {k: float(np.mean(column)) for k, column in known.items() if len(column)}
        steps = sum(part.n_steps for part in parts)
        last_steps = sum(float(part.env_steps[:, -1].sum()) for part in parts)
        n_episodes = sum(int(part.n_episodes[..., -1].sum()) for part in parts)
        self._n_ended = sum(int(part.n_episodes.sum()) for part in parts)
        done = float(self.n_iterations + 1)
        stats = {"meta/n_meta_iterations": done, "train/n_updates": done}
        if after:
            first, last = min(after), max(after)
            stats["rollout/ep_rew_mean"] = stats["meta/post_adapt_rew"] = after[last]
            stats["meta/pre_adapt_rew"] = after[first]
            stats["meta/adapt_gain"] = after[last] - after[first]
            if self.abilities.reuses_support and first < returns.shape[1] - 1 and first == last:
                # One batch for all inner steps: how good they were is not seen in training.
                del stats["meta/post_adapt_rew"], stats["meta/adapt_gain"]
        if n_episodes:
            stats["rollout/ep_len_mean"] = last_steps / n_episodes
        for k, value in after.items():
            stats[f"inner/return_after_{k}"] = value
        for phase, seconds in timer.seconds.items():
            stats[f"time/{phase}"] = seconds
        if "sampling" in timer.seconds:
            stats["time/sampling_fps"] = steps / max(timer.seconds["sampling"], 1e-9)
        log_std = self.params.get("policy/log_std")
        if log_std is not None:
            stats["train/std"] = float(log_std.exp().mean())
        return stats

    def _amount(self, n_episodes: int | None, n_transitions: int | None) -> Amount:
        """Return how much to collect for a batch, as in training where nothing is said."""
        if n_episodes is None and n_transitions is None:
            n_transitions = self.n_transitions
            n_episodes = self.n_episodes if n_transitions is None else None
        given = {"n_episodes": n_episodes, "n_transitions": n_transitions}
        return {name: (COUNT | NONE)(name, value) for name, value in given.items()}

    # ------------------------------------------------------------------------------------------------------ using it
    def _unadapted(self) -> AdaptedPolicy:
        if self.adaptations.has_local:
            raise ConfigError(
                f"{type(self).__name__} has tensors of each task's own: adapt(env) returns a policy that acts"
            )
        return self.adaptation.policy_at(self.theta)

    def test_rates(
        self, n_inner_steps: int, rule: str = "constant", inner_lr: float | Sequence[float] | None = None
    ) -> list[float]:
        """Return the inner rates for adaptation at test time.

        :param rule: ``"constant"`` goes on with the last training rate; ``"half_after_first"`` takes the first
            training rate and then half of it, as the reference does, ``"hundredth_after_first"`` a hundredth, as it
            does for AntDir.
        :param inner_lr: rates that overrule the rule; the last one goes on where there are fewer than inner steps.
        :raises ConfigError: an unknown rule, a rate that is not positive, or more rates than inner steps.
        """
        n_inner_steps = integer(0, MOST)("n_inner_steps", n_inner_steps)
        if inner_lr is not None:
            rates = checked_rates(inner_lr)
            given = rates if isinstance(rates, list) else [rates]
            if not 1 <= len(given) <= max(1, n_inner_steps):
                raise ConfigError(f"inner_lr has {len(given)} rates for {n_inner_steps} inner steps")
            return [given[min(k, len(given) - 1)] for k in range(n_inner_steps)]
        if rule not in RATE_RULES:
            raise ConfigError(f"inner_lr_rule={shorten(rule)} is unknown: use {' or '.join(RATE_RULES)}")
        later = RATE_RULES[rule]
        if later is not None:
            return [self.rates[0] * (1.0 if k == 0 else later) for k in range(n_inner_steps)]
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
        inner_lr: float | Sequence[float] | None = None,
        seed: int = 0,
        label: str | None = None,
        progress: Progress | None = None,
        **kwargs: Any,
    ) -> Report:
        """Adapt to held-out tasks and report the return after 0 … K inner steps.

        The return after k steps is the mean undiscounted return of the batch collected at θ_k, which then serves the
        next step, as in the reference. Runs evaluated with equal arguments share tasks and random streams, so they can
        be compared in pairs. The report's ``meta["ep_lengths"]`` is ``[task, step]``, the mean length of the episodes.

        :param split: ``"validation"``, ``"test"`` or ``"shifted"``.
        :param n_inner_steps: K; 3 if None.
        :param n_tasks: tasks; where the split has fewer, each is adapted to several times with its own streams, and the
            report says how many distinct ones there are.
        :param n_episodes: episodes for each gradient step; as in training if None.
        :param n_transitions: instead of episodes, env steps for each gradient step (4,000 in the reference).
        :param inner_lr_rule: see :meth:`test_rates`.
        :param inner_lr: rates that overrule it, see there.
        :param seed: seed of the evaluation's streams.
        :param label: the report's name in tables; the algorithm's name if None.
        :param progress: called with (batches done, batches in all); around a stock algorithm with tasks.
        """
        from metarl.meta.evaluation.report import Report

        if kwargs:
            raise unknown_name("argument of evaluate:", next(iter(kwargs)), ["n_tasks", "n_episodes", "inner_lr_rule"])
        n_tasks, seed = ROUNDS("n_tasks", n_tasks), SEED("seed", seed)
        amount = self._amount(n_episodes, n_transitions)
        rates = self.test_rates(3 if n_inner_steps is None else n_inner_steps, inner_lr_rule, inner_lr)
        tasks, strata, n_family = evaluation_tasks(self.family, split, n_tasks)
        blocks = self._blocks(tasks, rates, Streams(seed, f"evaluate/{split}"), amount)
        told = counted(progress, sum(block.adaptation.n_told(block.request) for block in blocks))
        with library_torch():
            outcomes = [block.evaluate(self.theta, told) for block in blocks]
        returns, env_steps, ep_lengths = (
            gather(blocks, [getattr(outcome, name) for outcome in outcomes])
            for name in ("returns", "env_steps", "ep_lengths")
        )
        return Report(
            algo=self.name,
            env=self.family.id,
            split=split,
            returns=returns[None],
            env_steps=np.array([0.0, *np.cumsum(env_steps[:, :-1].mean(0))]),
            tasks={name: value.tolist() for name, value in tasks.items()},
            strata=None if strata is None else np.array(strata),
            seeds=[self.seed],
            label=label or self.name,
            meta={
                "num_timesteps": self.num_timesteps,
                "n_iterations": self.n_iterations,
                "inner_lr": rates,
                "inner_lr_rule": inner_lr_rule if inner_lr is None else None,
                **amount,
                "evaluation_seed": seed,
                "env_kwargs": plain_tree(self.env_kwargs),
                "family_tasks": n_family,
                "ep_lengths": ep_lengths.tolist(),
                "versions": versions(),
            },
        )

    @library_torch()
    def adapt(
        self,
        env: str | Family | AnyEnv,
        n_inner_steps: int | None = None,
        *,
        n_episodes: int | None = None,
        n_transitions: int | None = None,
        inner_lr_rule: str = "constant",
        inner_lr: float | Sequence[float] | None = None,
        seed: int = 0,
        **kwargs: Any,
    ) -> AdaptedPolicy:
        """Adapt to one environment of equal spaces, whose task need not be known.

        :param env: any Gymnasium environment, or a ``VecEnv`` of a single one. A registered name or a family stands for
            one environment with a training task that is drawn from ``seed``.
        :param n_inner_steps: inner steps; as in training if None.
        :param n_episodes: episodes for each of them; as in training if None.
        :param n_transitions: instead of episodes, env steps for each of them, in whole episodes.
        :param inner_lr_rule: see :meth:`test_rates`.
        :param inner_lr: rates that overrule it, see there.
        :param seed: seed of the streams that episodes and actions are drawn from.
        :raises ConfigError: spaces that differ from the family's.
        """
        if kwargs:
            raise unknown_name("argument of adapt:", next(iter(kwargs)), ["n_inner_steps", "n_episodes", "seed"])
        seed = SEED("seed", seed)
        amount = self._amount(n_episodes, n_transitions)
        one = as_env(env, self.family)
        if self.adaptations.has_one:
            self.check_env(one)
        steps = self.n_inner_steps if n_inner_steps is None else n_inner_steps
        rule = self._rule(self.test_rates(steps, inner_lr_rule, inner_lr))
        adaptation = self.adaptations.of(one.observation_space, one.action_space)  # type: ignore[arg-type]
        local = self.adaptations.local(adaptation, Streams(seed, "adapt"), 1)
        theta = {**self.theta, **take(local, 0)}
        return adaptation.adapt(one, theta, rule.steps(self.params), seed, amount)


def names_of(argument: str, given: Any) -> list[str]:
    """Return a list of names that an argument has.

    :raises ConfigError: it is no such list.
    """
    if isinstance(given, str) or not isinstance(given, Sequence) or not all(isinstance(name, str) for name in given):
        raise ConfigError(f"{argument}={shorten(given)} is not a list of names")
    return list(given)


def checked_rates(inner_lr: Any) -> float | list[float]:
    """Return one learning rate or a list of them as plain values."""
    rates = plain_tree(inner_lr)
    if isinstance(rates, (list, tuple)):
        return [RATE("inner_lr", rate) for rate in rates]
    return RATE("inner_lr", rates)


def _place_of(name: str) -> str | None:
    """Return where an argument of SB3's, of a learner or of an outer optimiser is given; None where it is none."""
    places = []
    if name in INSTEAD:
        places.append(INSTEAD[name])
    if name in _of_outer(tuple(OUTER.values())):
        places.append(f"outer_kwargs={{'{name}': …}} is for the outer optimiser")
    if name not in INSTEAD and (kind := _of_learners(tuple(LEARNERS.values())).get(name)) is not None:
        places.append(f"learner_kwargs={{'{name}': …}} is for {kind}")
    return ", ".join(places) or None


@functools.cache
def _of_outer(classes: tuple[type, ...]) -> frozenset[str]:
    """Return the names that outer optimisers take; it is asked for every attribute that is set on a model."""
    return frozenset(name for cls in classes for name in constructor_hints(cls))


@functools.cache
def _of_learners(classes: tuple[type[Abilities], ...]) -> dict[str, str]:
    """Return the names that learners take, with which kind of learner does."""
    stock = {name: "a stock learner" for cls in classes if not cls.differentiable for name in cls.options()}
    return {**stock, **{name: "the learner" for cls in classes if cls.differentiable for name in cls.options()}}


def _one_spelling(options: dict[str, Any], learner_kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return both with what is an argument of its own among the options only."""
    for name, value in options.items():
        if name in learner_kwargs:
            other = learner_kwargs.pop(name)
            if value not in (None, other):
                raise ConfigError(f"{name}={shorten(value)} and learner_kwargs has {name}={shorten(other)}")
            options[name] = other
    return options, learner_kwargs
