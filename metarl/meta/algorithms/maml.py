"""MAML (Finn et al., 2017), and its first-order form."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy

from metarl.agents.learners.registry import LEARNERS, Abilities
from metarl.agents.networks.distributions import MAX_LOG_STD, MIN_LOG_STD
from metarl.envs.family import Family
from metarl.errors import ConfigError, MetaRLWarning
from metarl.meta.adaptation.base import Adaptation, Outcome
from metarl.meta.adaptation.batched import BatchedAdaptation
from metarl.meta.adaptive import AdaptiveAlgorithm
from metarl.meta.blocks.cut import Block
from metarl.meta.blocks.derivatives import BlockDerivatives, Bound, cache_budget
from metarl.meta.environments import AnyEnv
from metarl.meta.outer.objective import BlockObjective, KnownGradient, MetaGradient, MetaObjective
from metarl.meta.progress import Timer
from metarl.params import RATES, STATISTICS, expand, inner_name, mean

PATIENCE = 5
"""Line searches that fail one after another before a warning says so."""


class MAML(AdaptiveAlgorithm):
    """Model-agnostic meta-learning of a policy's initialisation, second order.

    One meta-iteration, and a task to which the initialisation is adapted::

        model = MAML("MlpPolicy", "PointMass-v0", meta_batch_size=2, n_episodes=3, policy_kwargs={"net_arch": [16]})
        model.learn(total_timesteps=1)
        adapted = model.adapt("PointMass-v0", n_inner_steps=2)
        action, _ = adapted.predict(np.zeros(2, dtype=np.float32))

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
    no_trust_region: ClassVar[str] = ""
    """Why no trust region can be the outer optimiser, as a sentence; empty where one can."""

    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: str | Family | AnyEnv = "PointMass-v0",
        *,
        fisher_fraction: float = 0.25,
        kl_direction: str = "old_new",
        **kwargs: Any,
    ) -> None:
        self._bound = Bound(fisher_fraction, kl_direction)
        self.fisher_fraction, self.kl_direction = self._bound.fisher_fraction, self._bound.kl_direction
        self._n_failed_searches = 0
        super().__init__(policy, env, **kwargs)

    def _default_outer(self) -> tuple[str, Mapping[str, Any]]:
        return ("trpo", {"max_kl": 0.02}) if self.abilities.trust_region else ("adam", {})

    @classmethod
    def refusal(cls, learner: type[Abilities]) -> str | None:
        if learner.differentiable or cls.first_order:
            return None
        return "a stock algorithm's steps cannot be differentiated: use fomaml, reptile or leap"

    def _check_learner(self) -> None:
        reason = self.refusal(self.abilities)
        if reason is not None:
            raise ConfigError(f"{self.name} around {self.learner!r}: {reason}")
        if self.outer == "trpo" and self.no_trust_region:
            raise ConfigError(f"{self.name} with outer='trpo': {self.no_trust_region}: use 'adam' or 'sgd'")
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

    def _make_adaptation(
        self, observation_space: spaces.Box, action_space: spaces.Space[Any], options: Mapping[str, Any]
    ) -> Adaptation:
        adaptation = super()._make_adaptation(observation_space, action_space, options)
        if not self.first_order:
            assert isinstance(adaptation, BatchedAdaptation)
            adaptation.learner = adaptation.learner.gradient_steps(self.parallel)
        return adaptation

    @property
    def steps_per_iteration(self) -> int:
        """Env steps of one meta-iteration where no episode ends early."""
        n_query = self.adaptation.option("n_query")
        query = self.batch_steps if n_query is None else n_query * self.family.horizon
        return self.meta_batch_size * (self.support_steps(self.n_inner_steps if self.adapts else 0) + query)

    # -------------------------------------------------------------------------------------------------------- training
    @property
    def rates_in_training(self) -> list[float]:
        return self.rates[: self.n_inner_steps] if self.adapts else []

    def train(self) -> dict[str, float]:
        timer, rates = Timer(), self.rates_in_training
        blocks = self._training_blocks(range(self.meta_batch_size))
        keep, second_order = self._keeps_support, not self._is_first_order
        with self._whole():
            outcomes = self._learn_blocks(blocks, timer, query=True, keep=keep, second_order=second_order)
            with timer("outer"):
                objective = self._objective(blocks, outcomes, rates)
                result = self.outer_optimizer.step(objective, self.meta_params, self._current_progress_remaining)
                self._move(result.params, outcomes)
        self._tell_of_failed_searches(result.stats)
        self.num_timesteps += sum(outcome.n_steps for outcome in outcomes)
        return {**self._statistics(outcomes, timer), **result.stats}

    @property
    def _is_first_order(self) -> bool:
        """Whether this meta-iteration takes the derivative of adaptation to be the identity."""
        return self.first_order

    @property
    def _keeps_support(self) -> bool:
        """Whether batches are kept for what goes along the path again: its derivative, that in rates, a line search."""
        has_rates = any(name.startswith(RATES) for name in self.params)
        return not self._is_first_order or has_rates or self.outer_optimizer.evaluates

    def _objective(self, blocks: Sequence[Block], outcomes: Sequence[Outcome], rates: Sequence[float]) -> MetaObjective:
        """Return the mean over tasks of the learner's query loss at the adapted parameters."""
        known = [outcome.gradient for outcome in outcomes if outcome.gradient is not None]
        if known:
            # Heads that are each task's own have gradients too, of as many shapes as there are spaces.
            shared = [{name: gradient[inner_name(name)] for name in self.meta_params} for gradient in known]
            return KnownGradient(MetaGradient(math.nan, mean(shared, sum(outcome.n_tasks for outcome in outcomes))))
        # Asked for by the first curvature product, of which many optimisers need none.
        room = functools.cache(functools.partial(cache_budget, len(blocks)))
        return BlockObjective(
            [self._derivatives(block, outcome, rates, room) for block, outcome in zip(blocks, outcomes, strict=True)]
        )

    def _derivatives(
        self, block: Block, outcome: Outcome, rates: Sequence[float], room: Callable[[], int]
    ) -> BlockDerivatives:
        assert isinstance(block.adaptation, BatchedAdaptation)
        assert outcome.query is not None
        statistics = {name: tensor for name, tensor in self.theta.items() if name.startswith(STATISTICS)}
        return self._derivatives_type()(
            block.adaptation.learner,
            self.meta_params,
            outcome.support,
            outcome.query,
            self._rule(rates),
            local={**block.request.local, **expand(statistics, outcome.n_tasks)},
            reached=outcome.params,
            path=outcome.path,
            first_order=self._is_first_order,
            bound=self._bound,
            chunk_size=self.chunk_size,
            cache_bytes=room,
            parallel=self.parallel,
        )

    def _derivatives_type(self) -> Callable[..., BlockDerivatives]:
        """Return what makes a block's answers."""
        return BlockDerivatives

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


class FOMAML(MAML):
    """First-order MAML: the gradient at the adapted parameters is applied to the initialisation as it is.

    Any learner will do, for instance PPO with two inner steps of two epochs each::

        options = {"learner": "ppo", "learner_kwargs": {"n_epochs": 2}, "n_inner_steps": 2}
        model = FOMAML("MlpPolicy", "PointMass-v0", meta_batch_size=2, n_episodes=2, **options)
        model.learn(total_timesteps=1)

    That is the raw gradient of the learner's loss on the query batch, whatever its optimiser would have made of it. So
    the learner adapts as it does by itself. In a trust region's line search adaptation is applied again; only its
    derivative is taken to be the identity. The arguments are those of :class:`MAML`.
    """

    name: ClassVar[str] = "fomaml"
    first_order: ClassVar[bool] = True
