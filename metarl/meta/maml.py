"""MAML (Finn et al., 2017), its first-order form, and the baselines that are configurations of the same code."""

from __future__ import annotations

from typing import Any, ClassVar

from metarl.envs.family import Family
from metarl.errors import ConfigError
from metarl.meta.adaptive import AdaptiveAlgorithm
from metarl.meta.base import MaybeCallback
from metarl.meta.objective import LocalObjective
from metarl.meta.progress import Timer
from metarl.streams import stream


class MAML(AdaptiveAlgorithm):
    """Model-agnostic meta-learning of a policy's initialisation, second order.

    Each inner step collects its own batch at the parameters reached and takes one plain gradient step on it; the query
    batch is collected at the end. The default inner surrogate is the log-likelihood, as in the reference
    implementation: differentiated twice it drops the credit of the pre-update samples (Rothfuss et al., 2019).

    :param policy: ``"MlpPolicy"``.
    :param env: a registered family's name or a family.
    :param fisher_fraction: share of each task's episodes that the trust region's curvature is estimated on.
    :param kl_direction: ``"old_new"`` (the reference) or ``"new_old"``.

    The other parameters are those of :class:`~metarl.meta.adaptive.AdaptiveAlgorithm` and
    :class:`~metarl.meta.base.MetaAlgorithm`.
    """

    name: ClassVar[str] = "maml"
    first_order: ClassVar[bool] = False
    """Whether the derivative of adaptation is taken to be the identity."""
    adapts: ClassVar[bool] = True
    """Whether training takes inner steps; where it does not, ``n_inner_steps`` is for evaluation only."""

    def __init__(
        self,
        policy: str = "MlpPolicy",
        env: str | Family = "PointMass-v0",
        *,
        fisher_fraction: float = 1.0,
        kl_direction: str = "old_new",
        **kwargs: Any,
    ) -> None:
        super().__init__(policy, env, **kwargs)
        self.fisher_fraction = fisher_fraction
        self.kl_direction = kl_direction
        LocalObjective.check_arguments(fisher_fraction, kl_direction)

    @property
    def steps_per_iteration(self) -> int:
        """Env steps of one meta-iteration where no episode ends early."""
        batches = (self.n_inner_steps if self.adapts else 0) + 1
        return self.meta_batch_size * (self.n_transitions or self.n_episodes * self.family.horizon) * batches

    # -------------------------------------------------------------------------------------------------------- training
    def train(self) -> dict[str, float]:
        timer = Timer()
        iteration = self.n_iterations
        tasks = self.family.sample_tasks(stream(self.seed, "tasks", iteration), self.meta_batch_size)
        theta = self.policy_params
        rates = self.rates[: self.n_inner_steps] if self.adapts else []
        amount = self._amount(None, None)
        episodes, support, adapted = self._adapt_tasks(
            tasks, theta, rates, self.seed, "train", iteration, timer, amount
        )
        with timer("outer"):
            query = self.vpg.process(episodes[-1], adapted)
            objective = LocalObjective(
                self.vpg,
                theta,
                support,
                query,
                rates,
                first_order=self.first_order,
                fisher_fraction=self.fisher_fraction,
                kl_direction=self.kl_direction,
                chunk_size=self.chunk_size,
                parallel=self.parallel,
            )
            result = self.outer_optimizer.step(objective, theta, self._current_progress_remaining)
        steps = sum(batch.n_steps for batch in episodes)
        self.params = {**self.params, **{f"policy/{name}": tensor for name, tensor in result.params.items()}}
        self.num_timesteps += steps
        return {**self._statistics(episodes, steps, timer), **result.stats}


class FOMAML(MAML):
    """First-order MAML: the gradient at the adapted parameters is applied to the initialisation as it is.

    The arguments are those of :class:`MAML`. Adaptation is applied again in the trust region's line search; only its
    derivative is taken to be the identity.
    """

    name: ClassVar[str] = "fomaml"
    first_order: ClassVar[bool] = True


class Pretrain(MAML):
    """Joint training on all tasks without adaptation ("pretrain"): MAML with no inner steps in training.

    The arguments are those of :class:`MAML`; ``inner_lr`` and ``n_inner_steps`` are what evaluation adapts with.
    """

    name: ClassVar[str] = "pretrain"
    adapts: ClassVar[bool] = False


class Oracle(Pretrain):
    """Joint training of a policy that observes the task: the reference that needs no adaptation.

    The arguments are those of :class:`MAML`; the family's oracle view is taken by itself.
    """

    name: ClassVar[str] = "oracle"

    def _make_family(self, env: str | Family, n_threads: int | None) -> Family:
        from metarl.envs.oracle import Oracle as OracleView

        if not isinstance(env, Family):
            self.env_kwargs = {**self.env_kwargs, "oracle": True}
        elif not isinstance(env, OracleView):
            raise ConfigError(f"{type(env).__name__} hides the task: pass metarl.envs.Oracle(family)")
        return super()._make_family(env, n_threads)


class RandomInit(MAML):
    """The untrained initialisation: what adaptation reaches without meta-learning.

    The arguments are those of :class:`MAML`.
    """

    name: ClassVar[str] = "random"

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> RandomInit:
        """Return at once: there is nothing to learn, and no env step is taken."""
        return self
