"""What transfer from a support to a policy is made of: an encoder, a decoder, and the loss of a query."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy

from metarl.agents.learners.base import Learner
from metarl.agents.learners.registry import Abilities, find_learner
from metarl.agents.networks.policy import FunctionalPolicy
from metarl.agents.parallel import library_torch
from metarl.checks import MAPPING, NONE, SEED, integer, plain, plain_tree
from metarl.envs.family import Family
from metarl.envs.groups import has_equal_spaces
from metarl.envs.supervised.one_step import require_examples
from metarl.errors import ConfigError, shorten, unknown_name
from metarl.meta.adaptation.adapted import AdaptedPolicy
from metarl.meta.adaptation.base import Adaptation, Outcome, Streams
from metarl.meta.adaptation.gradient import InnerRule
from metarl.meta.adaptation.learners import OF_META, require_learner
from metarl.meta.adaptation.transfer import TransferAdaptation
from metarl.meta.blocks.cut import Adaptations, Block
from metarl.meta.environments import AnyEnv, as_env
from metarl.meta.iterating import Iterates
from metarl.meta.outer.base import Outer, make_outer
from metarl.meta.outer.objective import KnownGradient, MetaGradient
from metarl.meta.progress import Timer
from metarl.meta.transfer.model import TransferModel
from metarl.params import Params, total
from metarl.synonyms import HYPERPARAMETERS

DEFAULT_OUTER = "adam", {"learning_rate": 5e-4}


class Part(NamedTuple):
    """What some tasks say of the meta-parameters.

    :param loss: their part of the mean loss of all tasks.
    :param gradient: that of the loss, or their part of ξ − mean ξ_i of Reptile.
    :param actions: the most likely ones at the observations of the query, ``[task, n, *action]``.
    """

    loss: float
    gradient: Params
    actions: torch.Tensor


class TransferAlgorithm(Iterates):
    """Base of wrappers that lead from what is seen of a task to a policy for it.

    :param policy: ``"MlpPolicy"`` or another whose tensors are all learnt by gradients.
    :param env: a registered family's name or a family.
    :param n_latent: k, numbers of z; None takes as many as tell a task.
    :param n_support: examples of the support.
    :param n_query: examples of the query, episodes where it is no supervised family; None takes as many.
    :param learner: whose loss the query has; None: ``"cloning"`` of an expert, ``"supervised"`` where actions are
        predictions, and ``"vpg"`` elsewhere: the score function of episodes that the decoded policy collects.
    :param learner_kwargs: its arguments.
    :param outer: the outer optimiser; None takes Adam at 5e-4, as the paper has it.
    :param outer_kwargs: its arguments.

    The other parameters are those of :class:`~metarl.meta.base.MetaAlgorithm`.
    """

    default_test_steps: ClassVar[int] = 1

    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: str | Family | AnyEnv = "CosineSine-v0",
        *,
        n_latent: int | None = None,
        n_support: int = 10,
        n_query: int | None = None,
        learner: str | None = None,
        learner_kwargs: Mapping[str, Any] | None = None,
        outer: str | None = None,
        outer_kwargs: Mapping[str, Any] | None = None,
        meta_batch_size: int = 25,
        **kwargs: Any,
    ) -> None:
        self.n_latent = (integer(1, 10**4) | NONE)("n_latent", n_latent)
        self.n_support = integer(1, 10**6)("n_support", n_support)
        self.n_query = (integer(1, 10**6) | NONE)("n_query", n_query)
        self._learner = plain(learner)
        self.learner_kwargs = plain_tree((MAPPING | NONE)("learner_kwargs", learner_kwargs) or {})
        given = plain_tree((MAPPING | NONE)("outer_kwargs", outer_kwargs))
        self.outer: str = plain(outer) or DEFAULT_OUTER[0]
        own = DEFAULT_OUTER[1] if outer is None and given is None else given or {}
        self.outer_kwargs: Mapping[str, Any] = own
        if self.outer == "trpo":
            raise ConfigError(f"{self.name} with outer='trpo': no policy is shared by tasks: use 'adam' or 'sgd'")
        # A step of adaptation sees the support; it has no rate.
        self.rates, self.n_inner_steps = [1.0], 1
        self.n_episodes, self.n_transitions = self.n_support, None
        super().__init__(policy, env, meta_batch_size=meta_batch_size, **kwargs)
        self.outer_optimizer = make_outer(self.outer, self.outer_kwargs)

    @classmethod
    def refusal(cls, learner: type[Abilities]) -> str | None:
        """Return why a learner's loss cannot be that of the query, as the rest of a sentence; None where it can."""
        if not learner.differentiable:
            return "a stock algorithm has no loss at a policy that is decoded: use a learner that is batched over tasks"
        return None

    def _setup_model(self, seed: int) -> Params:
        support = self._support
        if not (has_equal_spaces(self.family) and has_equal_spaces(support)):
            raise ConfigError(f"{self.family.id} has tasks of different spaces: one decoder has one policy for all")
        own = "vpg" if self.family.loss is None else "supervised"
        own = own if self.family.evaluation_family is None else "cloning"
        self.learner: str = self._learner or own
        require_learner(self.learner, self.learner_kwargs)
        reason = self.refusal(self.abilities)
        if reason is not None:
            raise ConfigError(f"{self.name} around {self.learner!r}: {reason}")
        self.adaptations = Adaptations(self.family, self._make_adaptation)
        """How tasks are seen and acted in."""
        self.adaptation: TransferAdaptation = self.adaptations.first  # type: ignore[assignment]
        require_examples(self._support, self.family.id, {"n_support": self.n_support})
        asked = self.family.query_family or self.family
        require_examples(asked, self.family.id, {"n_query": self.n_query}, different=True)
        require_examples(asked, self.family.id, {"n_eval": self.adaptation.option("n_eval")})
        self.policy = self.adaptation.model.policy
        self.gamma: float | None = self.adaptation.option("gamma")
        return self.adaptations.init(seed)

    def _make_adaptation(self, observation_space: spaces.Box, action_space: spaces.Space[Any]) -> Adaptation:
        cls = self.abilities
        reason = cls.misfit(self.family)
        if reason is not None:
            raise ConfigError(f"learner {self.learner!r} does not learn {self.family.id}: {reason}")
        for option in self.learner_kwargs:
            if option in OF_META:
                raise ConfigError(f"{option} of the learner is {OF_META[option]} of the meta-algorithm")
            if option not in cls.options():
                raise unknown_name(f"argument of learner {self.learner!r}:", option, cls.options(), HYPERPARAMETERS)
        assert issubclass(cls, Learner)
        policy = FunctionalPolicy(
            self.policy_name, observation_space, action_space, self.policy_kwargs, critic=cls.needs_critic
        )
        model, learner = self._make_model(policy, lambda own: cls(own, **self.learner_kwargs, parallel=self.parallel))
        return TransferAdaptation(self.family, model, learner, self.n_query or self.n_support, self.parallel)

    @abstractmethod
    def _make_model(
        self, policy: FunctionalPolicy, make_learner: Callable[[FunctionalPolicy], Learner]
    ) -> tuple[TransferModel, Learner]:
        """Return what leads from a support to a policy, and the learner of the policies that follow.

        :param policy: of the family's spaces.
        :param make_learner: returns the learner of a policy.
        """

    def _rule(self, rates: Sequence[float]) -> InnerRule:
        return InnerRule(rates)

    @property
    def _support(self) -> Family:
        """The family in which tasks are seen."""
        return self.family

    @property
    def abilities(self) -> type[Abilities]:
        """What the learner declares."""
        return find_learner(self.learner)

    @property
    def _outer(self) -> Outer:
        return self.outer_optimizer

    @property
    def policy_params(self) -> Params:
        """The tensors, named as in SB3, of the policy of a task of which nothing was seen."""
        return self.adaptation.policy_at(self.theta).params

    @property
    def initial_policy(self) -> Params:
        return self.policy_params

    @property
    def steps_per_iteration(self) -> int:
        """Env steps of one meta-iteration where no episode ends early."""
        return self.meta_batch_size * (
            self.n_support * self._support.horizon + (self.n_query or self.n_support) * self.family.horizon
        )

    @property
    def batch_steps(self) -> int:
        """Env steps of a task's query batch."""
        return (self.n_query or self.n_support) * self.family.horizon

    @property
    def plain_rate(self) -> float:
        """The learning rate with which an export goes on: the learner's own."""
        return self.abilities.default_rate

    # -------------------------------------------------------------------------------------------------------- training
    @property
    def _block_size(self) -> int | None:
        """Tasks of a block, at most; None: as many as those of others have."""
        return None

    def train(self) -> dict[str, float]:
        timer, streams = Timer(), Streams(self.seed, "train", self.n_iterations)
        amount, steps = self._amount(None, None), self._steps(self.rates)
        blocks = self.adaptations.cut(self._sample_tasks(), steps, streams, amount, self._block_size)
        with self._whole():
            outcomes = [self._learn_block(block, timer, query=True) for block in blocks]
            with timer("outer"):
                n = sum(outcome.n_tasks for outcome in outcomes)
                parts = [self._gradient(*each, n) for each in zip(blocks, outcomes, strict=True)]
                gradients = [part.gradient for part in parts]
                whole = gradients[0] if len(parts) == 1 else total(gradients)
                found = MetaGradient(sum(part.loss for part in parts), whole)
                remaining = self._current_progress_remaining
                result = self.outer_optimizer.step(KnownGradient(found), self.meta_params, remaining)
                self._move(result.params, outcomes)
        pairs = zip(outcomes, parts, strict=True)
        outcomes = [self.adaptation.scored(outcome, part.actions) for outcome, part in pairs]
        self.num_timesteps += sum(outcome.n_steps for outcome in outcomes)
        return {**self._statistics(outcomes, timer), **result.stats}

    @abstractmethod
    def _gradient(self, block: Block, outcome: Outcome, n: int) -> Part:
        """Return what the tasks of a block, some of ``n``, say of all meta-parameters."""

    # ------------------------------------------------------------------------------------------------------ using it
    def test_rates(
        self, n_inner_steps: int, rule: str = "constant", inner_lr: float | Sequence[float] | None = None
    ) -> list[float]:
        """Return as many numbers as steps of adaptation: they see examples, and have no rate.

        :raises ConfigError: a rate is given.
        """
        if inner_lr is not None or rule != "constant":
            what = f"inner_lr={shorten(inner_lr)}" if inner_lr is not None else f"inner_lr_rule={shorten(rule)}"
            raise ConfigError(f"{what}: {self.name} takes no inner steps with a rate, but sees further examples")
        return super().test_rates(n_inner_steps)

    @library_torch()
    def adapt(
        self,
        env: str | Family | AnyEnv | None = None,
        n_inner_steps: int | None = None,
        *,
        support: Any = None,
        n_episodes: int | None = None,
        n_transitions: int | None = None,
        inner_lr_rule: str = "constant",
        inner_lr: float | Sequence[float] | None = None,
        seed: int = 0,
        **kwargs: Any,
    ) -> AdaptedPolicy:
        """Return the policy that is decoded from what is seen of one task, which need not be known.

        :param env: an environment in which the task is seen: of the spaces of the support family, whose steps report
            the ``target``; an environment of ours, which knows its task, stands for that. A registered name or a family
            stands for a training task that is drawn from ``seed``.
        :param n_inner_steps: how often ``n_episodes`` examples are seen; 1 if None.
        :param support: instead of ``env``, a pair of arrays: inputs ``[n, *input]`` and targets ``[n, *target]``.
        :param n_episodes: examples; as in training if None.
        :param n_transitions: the same: an episode has one env step.
        :param inner_lr_rule: has no effect, see :meth:`test_rates`.
        :param inner_lr: likewise.
        :param seed: of the streams that examples and actions are drawn from.
        :raises ConfigError: an environment of other spaces, or a support of another width.
        """
        if kwargs:
            raise unknown_name("argument of adapt:", next(iter(kwargs)), ["support", "n_inner_steps", "n_episodes"])
        seed, amount = SEED("seed", seed), self._amount(n_episodes, n_transitions)
        rates = self.test_rates(self.n_inner_steps if n_inner_steps is None else n_inner_steps, inner_lr_rule, inner_lr)
        if (env is None) == (support is None):
            raise ConfigError("adapt takes an environment in which the task is seen, or support=(x, y): one of the two")
        if support is not None:
            return self.adaptation.adapt_to(self.theta, support, seed)
        return self.adaptation.adapt(as_env(env, self.family), self.theta, rates, seed, amount)


def gradient_of(losses: torch.Tensor, leaves: Params) -> Params:
    """Return the gradient of the sum of losses in tensors that it may not depend on."""
    found = torch.autograd.grad(losses.sum(), list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, found, strict=True))
