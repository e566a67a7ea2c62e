"""What transfer from a support to a policy is made of: an encoder, a decoder, and the loss of a query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy

from metarl.agents.learners.base import Learner
from metarl.agents.learners.registry import Abilities, find_learner
from metarl.agents.networks.policy import FunctionalPolicy
from metarl.agents.parallel import library_torch
from metarl.checks import MAPPING, NONE, POSITIVE, SEED, choice, integer, plain, plain_tree
from metarl.envs.family import Family
from metarl.envs.groups import has_equal_spaces
from metarl.errors import ConfigError, shorten, unknown_name
from metarl.meta.adaptation.adapted import AdaptedPolicy
from metarl.meta.adaptation.base import Adaptation
from metarl.meta.adaptation.gradient import InnerRule
from metarl.meta.adaptation.learners import OF_META, require_learner
from metarl.meta.adaptation.transfer import TransferAdaptation
from metarl.meta.blocks.cut import Adaptations
from metarl.meta.environments import AnyEnv, as_env
from metarl.meta.iterating import Iterates
from metarl.meta.outer.base import Outer, make_outer
from metarl.meta.transfer.encoder import ENCODERS, gradient_encoders
from metarl.meta.transfer.exploring.model import ExploringModel
from metarl.meta.transfer.exploring.policies import GIVEN, explorer_of
from metarl.meta.transfer.exploring.surrogates import SURROGATES
from metarl.meta.transfer.model import TransferModel, support_of, task_dimension
from metarl.params import Params
from metarl.synonyms import HYPERPARAMETERS

DEFAULT_OUTER = "adam", {"learning_rate": 5e-4}


class TransferAlgorithm(Iterates):
    """Base of wrappers that lead from what is seen of a task to a policy for it.

    :param policy: ``"MlpPolicy"`` or another whose tensors are all learnt by gradients.
    :param env: a registered family's name or a family.
    :param encoder: ``"context"``, ``"nonlinear"``, ``"linear"`` (gradients), ``"mean"``, ``"max"``, ``"transformer"``,
        ``"recurrent"``, or ``"deep_kernel"``, which has no z and no decoder, and no stock policy to be exported to.
    :param encoder_kwargs: its arguments, see :mod:`metarl.meta.transfer`.
    :param n_latent: k, numbers of z; None takes as many as tell a task.
    :param n_support: examples of the support.
    :param n_query: examples of the query, episodes where it is no supervised family; None takes as many.
    :param decoder_kwargs: arguments of the decoder, see :class:`~metarl.meta.transfer.hypernetwork.Hypernetwork`.
    :param init: ``"bias"`` (Bias-HyperInit) or ``"naive"``, see there.
    :param support_surrogate: None: the support is supervised. ``"log_likelihood"``, ``"likelihood_ratio"`` (LVC) or
        ``"dice"``: it is ``n_support`` episodes of the family itself, in which the encoder's learner f acts as a policy
        at what is learnt of it, and z is the gradient of that surrogate; see
        :mod:`metarl.meta.transfer.exploring.surrogates`.
    :param exploration_std: with it, the deviation of f's continuous actions.
    :param exploration_policy: with it, who collects these episodes: None: f. ``"random"``, a file that metarl saved, or
        the zip of a PPO, A2C or TRPO of SB3 with an ``MlpPolicy``: that policy, as it is, in training and testing.
        Likelihood ratios are then importance weights, and ``"log_likelihood"`` leaves them out.
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
        encoder: str = "linear",
        encoder_kwargs: Mapping[str, Any] | None = None,
        n_latent: int | None = None,
        n_support: int = 10,
        n_query: int | None = None,
        decoder_kwargs: Mapping[str, Any] | None = None,
        init: str = "bias",
        support_surrogate: str | None = None,
        exploration_std: float = 1.0,
        exploration_policy: str | None = None,
        learner: str | None = None,
        learner_kwargs: Mapping[str, Any] | None = None,
        outer: str | None = None,
        outer_kwargs: Mapping[str, Any] | None = None,
        meta_batch_size: int = 25,
        **kwargs: Any,
    ) -> None:
        self.encoder: str = plain(encoder)
        ENCODERS.find(self.encoder)
        self.encoder_kwargs = plain_tree((MAPPING | NONE)("encoder_kwargs", encoder_kwargs) or {})
        self.decoder_kwargs = plain_tree((MAPPING | NONE)("decoder_kwargs", decoder_kwargs) or {})
        self.n_latent = (integer(1, 10**4) | NONE)("n_latent", n_latent)
        self.n_support = integer(1, 10**6)("n_support", n_support)
        self.n_query = (integer(1, 10**6) | NONE)("n_query", n_query)
        self.init = init
        self.support_surrogate = (choice(*SURROGATES) | NONE)("support_surrogate", support_surrogate)
        self.exploration_std = POSITIVE("exploration_std", exploration_std)
        self.exploration_policy = (GIVEN | NONE)("exploration_policy", exploration_policy)
        if self.exploration_policy is not None and self.support_surrogate is None:
            raise ConfigError(
                f"exploration_policy={shorten(self.exploration_policy)} collects episodes: give support_surrogate, "
                f"one of {', '.join(SURROGATES)}, as well"
            )
        if self.support_surrogate is not None and not ENCODERS.find(self.encoder).is_gradient:
            given_as, gradients = f"support_surrogate={support_surrogate!r}", ", ".join(map(repr, gradient_encoders()))
            raise ConfigError(f"{given_as} with encoder={self.encoder!r}: it takes no gradient, as {gradients} do")
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
        k = self.n_latent or task_dimension(self.family.task_space)
        sizes = (self._support, policy, self.encoder, self.encoder_kwargs, k, self.decoder_kwargs, self.init)
        model = TransferModel(*sizes)
        learner = cls(model.policy, **self.learner_kwargs, parallel=self.parallel)
        if self.support_surrogate is not None:
            how = {"surrogate": self.support_surrogate, "std": self.exploration_std}
            given = self.exploration_policy
            explorer = None if given is None else explorer_of(given, self.family)
            how |= {"explorer": explorer}
            model = ExploringModel(*sizes, **how, gamma=getattr(learner, "gamma", 0.99), parallel=self.parallel)
        return TransferAdaptation(self.family, model, learner, self.n_query or self.n_support, self.parallel)

    def _rule(self, rates: Sequence[float]) -> InnerRule:
        return InnerRule(rates)

    @property
    def _support(self) -> Family:
        """The family in which tasks are seen."""
        return support_of(self.family) if self.support_surrogate is None else self.family

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
