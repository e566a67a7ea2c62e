"""MAML (Finn et al., 2017), its first-order form, and the baselines that are configurations of the same code."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from stable_baselines3.common.policies import BasePolicy

from metarl.agents.learners.registry import LEARNERS, Abilities
from metarl.agents.networks.distributions import MAX_LOG_STD, MIN_LOG_STD
from metarl.envs.family import Family
from metarl.errors import ConfigError, MetaRLWarning
from metarl.meta.adaptation.batched import FunctionalLoop, Learnt, Streams
from metarl.meta.adaptation.learners import Loop
from metarl.meta.adaptive import AdaptiveAlgorithm
from metarl.meta.environments import AnyEnv
from metarl.meta.outer.gradients import KnownGradient, query_gradient
from metarl.meta.outer.objective import LocalObjective, MetaGradient, MetaObjective
from metarl.meta.progress import Timer
from metarl.meta.sb3_words import MaybeCallback

PATIENCE = 5
"""Line searches that fail one after another before a warning says so."""


class MAML(AdaptiveAlgorithm):
    """Model-agnostic meta-learning of a policy's initialisation, second order.

    Each inner step collects its own batch at the parameters reached and takes one plain gradient step on it; the query
    batch is collected at the end. Around ``"vpg"`` the default inner surrogate is the log-likelihood, as in the
    reference implementation: differentiated twice it drops the credit of the pre-update samples (Rothfuss et al.,
    2019). Around ``"a2c"`` and ``"ppo"`` the steps go down their whole loss, values and entropy included, without their
    optimiser, epochs and clipping of gradients, and the meta-objective is that loss on the query batch.

    :param policy: ``"MlpPolicy"``.
    :param env: a registered family's name or a family.
    :param fisher_fraction: share of each task's episodes that the trust region's curvature is estimated on; 1.0, all of
        them, as in the reference, takes twice as long and learns alike.
    :param kl_direction: ``"old_new"`` (the reference) or ``"new_old"``.

    The other parameters are those of :class:`~metarl.meta.adaptive.AdaptiveAlgorithm` and
    :class:`~metarl.meta.base.MetaAlgorithm`; ``outer`` is ``"trpo"`` around ``"vpg"`` and ``"adam"`` around others.
    """

    name: ClassVar[str] = "maml"
    first_order: ClassVar[bool] = False
    """Whether the derivative of adaptation is taken to be the identity."""
    adapts: ClassVar[bool] = True
    """Whether training takes inner steps; where it does not, ``n_inner_steps`` is for evaluation only."""

    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: str | Family | AnyEnv = "PointMass-v0",
        *,
        fisher_fraction: float = 0.25,
        kl_direction: str = "old_new",
        **kwargs: Any,
    ) -> None:
        self.fisher_fraction, self.kl_direction = LocalObjective.check_arguments(fisher_fraction, kl_direction)
        self._n_failed_searches = 0
        super().__init__(policy, env, **kwargs)

    def _default_outer(self) -> tuple[str, Mapping[str, Any]]:
        return ("trpo", {"max_kl": 0.02}) if self.abilities.trust_region else ("adam", {})

    @classmethod
    def refusal(cls, learner: type[Abilities]) -> str | None:
        if learner.differentiable or (cls.first_order and cls.adapts):
            return None
        if not cls.first_order:
            return "a stock algorithm's steps cannot be differentiated: use fomaml, reptile or leap"
        return "joint training needs no wrapper: let the algorithm learn() on a metarl.envs.views.vec_env.FamilyVecEnv"

    def _check_learner(self) -> None:
        reason = self.refusal(self.abilities)
        if reason is not None:
            raise ConfigError(f"{self.name} around {self.learner!r}: {reason}")
        if self.outer == "trpo" and not self.abilities.trust_region:
            fitting = ", ".join(repr(name) for name, cls in LEARNERS.items() if cls.trust_region)
            raise ConfigError(
                f"outer='trpo' with learner={self.learner!r}: the trust region is written for the likelihood ratio of "
                f"{fitting}: use outer='adam' or 'sgd'"
            )
        if not self.first_order and not self.abilities.plain_steps:
            for name in self.abilities.update_options:
                if name in self.learner_kwargs:
                    raise ConfigError(f"learner_kwargs has {name}: {self.name} differentiates plain gradient steps")

    def _make_loop(self, options: Mapping[str, Any]) -> Loop:
        loop = super()._make_loop(options)
        if not self.first_order:
            assert isinstance(loop, FunctionalLoop)
            loop.learner = loop.learner.gradient_steps(self.parallel)
        return loop

    @property
    def steps_per_iteration(self) -> int:
        """Env steps of one meta-iteration where no episode ends early."""
        batches = (self.n_inner_steps if self.adapts else 0) + 1
        return self.meta_batch_size * self.batch_steps * batches

    # -------------------------------------------------------------------------------------------------------- training
    def train(self) -> dict[str, float]:
        timer = Timer()
        rates = self.rates[: self.n_inner_steps] if self.adapts else []
        streams = Streams(self.seed, "train", self.n_iterations)
        keep = self.abilities.trust_region or not self.first_order
        amount = self._amount(None, None)
        learnt = self.loop.learn(self.theta, self._sample_tasks(), rates, streams, amount, timer, query=True, keep=keep)
        state = self.outer_optimizer.state()
        try:
            with timer("outer"):
                objective = self._objective(learnt, rates)
                result = self.outer_optimizer.step(objective, self.policy_params, self._current_progress_remaining)
            self._move({**result.params, **learnt.statistics})
        except BaseException:
            # A meta-iteration is done as a whole or not at all.
            self.outer_optimizer.load_state(state, self.policy_params)
            raise
        self._tell_of_failed_searches(result.stats)
        self.num_timesteps += learnt.n_steps
        return {**self._statistics([learnt], timer), **result.stats}

    def _tell_of_failed_searches(self, stats: Mapping[str, float]) -> None:
        """Warn where the trust region finds no step again and again: training goes on, and nothing changes."""
        succeeded = stats.get("train/is_line_search_success", 1.0)
        self._n_failed_searches = 0 if succeeded else self._n_failed_searches + 1
        if self._n_failed_searches != PATIENCE:
            return
        log_std = self.policy_params.get("log_std")
        reason = "a smaller inner_lr or max_kl may help"
        if log_std is not None and (log_std.min() <= MIN_LOG_STD or log_std.max() > MAX_LOG_STD):
            reason = (
                f"log_std is {log_std.min():.4g} to {log_std.max():.4g}, outside ({MIN_LOG_STD:.4g}, {MAX_LOG_STD:g}]"
            )
        warnings.warn(
            f"meta-iteration {self.n_iterations + 1}: the line search has found no step {PATIENCE} times in a row, and "
            f"the parameters stay as they are: {reason}",
            MetaRLWarning,
            stacklevel=2,
        )

    def _objective(self, learnt: Learnt, rates: Sequence[float]) -> MetaObjective:
        if learnt.gradient is not None:
            return KnownGradient(MetaGradient(math.nan, learnt.gradient, None, []))
        assert isinstance(self.loop, FunctionalLoop)
        assert learnt.query is not None
        if not self.abilities.trust_region:
            result = query_gradient(
                self.loop.learner,
                self.policy_params,
                learnt,
                [] if self.first_order else rates,
                chunk_size=self.chunk_size,
                parallel=self.parallel,
            )
            return KnownGradient(result)
        return LocalObjective(
            self.loop.learner,
            self.policy_params,
            learnt.support,
            learnt.query,
            rates,
            first_order=self.first_order,
            fisher_fraction=self.fisher_fraction,
            kl_direction=self.kl_direction,
            chunk_size=self.chunk_size,
            parallel=self.parallel,
        )


class FOMAML(MAML):
    """First-order MAML: the gradient at the adapted parameters is applied to the initialisation as it is.

    That is the raw gradient of the learner's loss on the query batch, whatever its optimiser would have made of it. So
    the learner adapts as it does by itself. In a trust region's line search adaptation is applied again; only its
    derivative is taken to be the identity. The arguments are those of :class:`MAML`.
    """

    name: ClassVar[str] = "fomaml"
    first_order: ClassVar[bool] = True


class Pretrain(MAML):
    """Joint training on all tasks without adaptation ("pretrain"): MAML with no inner steps in training.

    The arguments are those of :class:`MAML`; ``inner_lr`` and ``n_inner_steps`` are what evaluation adapts with.
    """

    name: ClassVar[str] = "pretrain"
    first_order: ClassVar[bool] = True
    adapts: ClassVar[bool] = False


class Oracle(Pretrain):
    """Joint training of a policy that observes the task: the reference that needs no adaptation.

    The arguments are those of :class:`MAML`; the family's oracle view is taken by itself.
    """

    name: ClassVar[str] = "oracle"
    is_told_the_task: ClassVar[bool] = True

    def _make_family(self, env: str | Family, env_kwargs: Mapping[str, Any]) -> tuple[Family, Mapping[str, Any], bool]:
        from metarl.envs.views.oracle import Oracle as OracleView

        if isinstance(env, str):
            env_kwargs = {**env_kwargs, "oracle": True}
        elif not isinstance(env, OracleView):
            raise ConfigError(f"{type(env).__name__} hides the task: pass metarl.envs.Oracle(family)")
        return super()._make_family(env, env_kwargs)


class RandomInit(MAML):
    """The untrained initialisation: what adaptation reaches without meta-learning.

    The arguments are those of :class:`MAML`.
    """

    name: ClassVar[str] = "random"
    first_order: ClassVar[bool] = True
    learns: ClassVar[bool] = False

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int | None = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> RandomInit:
        """Return at once: there is nothing to learn, and no env step is taken."""
        return self
