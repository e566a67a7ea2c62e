"""What the meta-wrappers around a learner share: the inner loop."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy

from metarl.agents.learners.registry import LEARNERS, Abilities, find_learner
from metarl.checks import COUNT, MAPPING, NONE, integer, plain, plain_tree
from metarl.envs.family import Family
from metarl.envs.supervised.one_step import require_examples
from metarl.errors import ConfigError, MetaRLError, shorten
from metarl.files.schema import MOST, constructor_hints
from metarl.meta.adaptation.base import Adaptation
from metarl.meta.adaptation.batched import BatchedAdaptation
from metarl.meta.adaptation.gradient import InnerRule
from metarl.meta.adaptation.learners import make_adaptation, require_learner
from metarl.meta.blocks.cut import Adaptations, MakeAdaptation
from metarl.meta.environments import AnyEnv
from metarl.meta.evaluating import checked_rates
from metarl.meta.kept import policy_name
from metarl.meta.outer.base import OUTER, Outer, make_outer
from metarl.meta.sb3_words import INSTEAD, SB3Words
from metarl.meta.two_levels.sequence import EvaluatesSequences
from metarl.params import STATISTICS, Params

LARGEST_BATCH = 10**9
"""Env steps of all tasks of a batch together, at most: more fit no memory."""


class AdaptiveAlgorithm(EvaluatesSequences):
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
        unless ``n_steps`` is given here. With ``n_steps`` of ``"a2c"`` and ``"ppo"`` an inner step is as many updates
        as its env steps give, on episodes that go on; with ``segments`` of a stock on-policy algorithm it is a
        ``learn()`` of its own. Training that is stopped inside a meta-iteration goes on after the last inner step.
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
    :param outer_kwargs: arguments of the outer optimiser, see :mod:`metarl.meta.outer`.
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
        self.adaptations = self._make_adaptations(functools.partial(self._make_adaptation, options=options))
        """How tasks are learnt, for each pair of spaces."""
        self.adaptation = self.adaptations.first
        """How tasks of the family's own spaces are learnt."""
        self.gamma: float | None = self.adaptation.option("gamma")
        self.gae_lambda: float | None = self.adaptation.option("gae_lambda")
        self.normalize_advantage: bool | None = self.adaptation.option("normalize_advantage")
        self.surrogate: str | None = self.adaptation.option("surrogate")
        asked = self.family.query_family or self.family
        require_examples(asked, self.family.id, {"n_query": self.adaptation.option("n_query")}, different=True)
        require_examples(asked, self.family.id, {"n_eval": self.adaptation.option("n_eval")})
        self._amount(None, None)
        if isinstance(self.adaptation, BatchedAdaptation):
            self.policy = self.adaptation.learner.policy
        theta = self.adaptations.init(seed)
        self.stays = self._stays(theta)
        """Names of the tensors that inner steps leave as they are."""
        return {**theta, **self._further_params(theta)}

    def _make_adaptations(self, make: MakeAdaptation) -> Adaptations:
        """Return how tasks of all spaces are learnt.

        :param make: see :meth:`_make_adaptation`.
        """
        return Adaptations(self.family, make, self.task_local)

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
            self._n_together(),
        )

    def _classes(self) -> list[type]:
        networks = [type(self.policy.network)] if isinstance(self.adaptation, BatchedAdaptation) else []
        return [*super()._classes(), self.abilities, *networks]

    def _n_together(self) -> int:
        """Return how many tasks a stock algorithm learns together; 1, unless a wrapper does so."""
        return 1

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
        statistics = [name for name in self.adaptations.shared if name.startswith(STATISTICS)]
        return InnerRule(rates, self.stays, self.rates[0], (*self.adaptations.own, *statistics))

    @property
    def _outer(self) -> Outer:
        return self.outer_optimizer

    @property
    def plain_rate(self) -> float:
        """The learning rate of the first inner step, which an export goes on with."""
        return self.rates[0]

    def support_steps(self, n_inner_steps: int) -> int:
        """Return the env steps of one task's inner steps in training where no episode ends early."""
        return self.batch_steps * (min(1, n_inner_steps) if self.adaptation.option("reuses_support") else n_inner_steps)

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


def names_of(argument: str, given: Any) -> list[str]:
    """Return a list of names that an argument has.

    :raises ConfigError: it is no such list.
    """
    if isinstance(given, str) or not isinstance(given, Sequence) or not all(isinstance(name, str) for name in given):
        raise ConfigError(f"{argument}={shorten(given)} is not a list of names")
    return list(given)


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
