"""iMAML: meta-learning with implicit gradients (Rajeswaran, Finn, Kakade and Levine, 2019)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy

from metarl.agents.learners.base import GradientSteps, Learner
from metarl.agents.learners.optimizers import Layout
from metarl.agents.learners.registry import Abilities, learners_with
from metarl.agents.learners.watching import LearnerState, Watcher
from metarl.agents.networks.distributions import Distribution
from metarl.agents.parallel import Parallel
from metarl.agents.sampling.samples import Samples
from metarl.checks import NOT_NEGATIVE, POSITIVE, integer
from metarl.envs.family import Family
from metarl.errors import ConfigError
from metarl.meta.adaptation.base import Adaptation
from metarl.meta.adaptation.batched import BatchedAdaptation
from metarl.meta.algorithms.maml import MAML
from metarl.meta.blocks.derivatives import BlockDerivatives, sum_tasks
from metarl.meta.environments import AnyEnv
from metarl.params import Params, Rate, group, grouped, scale, subtract


class IMAML(MAML):
    """MAML whose gradient needs no path: that of a proximal problem's solution, by the implicit function theorem.

    A task is learnt by descending L(φ) + λ/2 ‖φ − θ‖² from θ on its support (eq. 3). At the minimum
    ∂φ/∂θ = (I + ∇²L(φ)/λ)⁻¹, so that the meta-gradient g solves (I + ∇²L(φ)/λ) g = ∇L'(φ) (eq. 6), which a few steps of
    conjugate gradients do, with a Hessian-vector product each. How φ was reached does not matter: memory is that of one
    step, however many there are::

        options = {"n_inner_steps": 16, "proximal": 2.0, "cg_steps": 5, "meta_batch_size": 4}
        model = IMAML("MlpPolicy", "Sinusoid-v0", learner="supervised", **options)
        model.learn(total_timesteps=1)
        report = model.evaluate("test", n_inner_steps=16, n_tasks=2)

    The gradient is exact where the inner steps converge, which takes some 1/(inner_lr · λ) of them. The steps of
    evaluations descend the same proximal loss; the reference's have λ = 0 there.

    :param policy: ``"MlpPolicy"``.
    :param env: a registered family's name or a family of supervised tasks or of imitation.
    :param learner: one whose inner steps all learn from one batch: the theorem is about one loss.
    :param proximal: λ.
    :param cg_steps: conjugate gradient steps; with one, g is a multiple of FOMAML's gradient.
    :param cg_damping: δ of ((1 + δ) I + ∇²L(φ)/λ) g = ∇L'(φ); 0 is the theorem's, the reference's code has 1 (and adds
        10 to λ there, which is not repeated here).
    :param n_inner_steps: in training: more than others take, since the minimum is meant.
    :param n_episodes: shots.
    :param meta_batch_size: tasks in a meta-iteration.

    The other parameters are those of :class:`~metarl.meta.algorithms.maml.MAML`.
    """

    name: ClassVar[str] = "imaml"
    no_trust_region: ClassVar[str] = "a trust region bends along the path of adaptation, of which nothing is kept"

    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: str | Family | AnyEnv = "Sinusoid-v0",
        *,
        learner: str = "supervised",
        proximal: float = 2.0,
        cg_steps: int = 5,
        cg_damping: float = 0.0,
        n_inner_steps: int = 16,
        n_episodes: int = 10,
        meta_batch_size: int = 25,
        **kwargs: Any,
    ) -> None:
        self.proximal = POSITIVE("proximal", proximal)
        self.cg_steps = integer(1, 1_000)("cg_steps", cg_steps)
        self.cg_damping = NOT_NEGATIVE("cg_damping", cg_damping)
        sizes: dict[str, Any] = {
            "n_inner_steps": n_inner_steps,
            "n_episodes": n_episodes,
            "meta_batch_size": meta_batch_size,
        }
        super().__init__(policy, env, learner=learner, **sizes, **kwargs)

    def _default_outer(self) -> tuple[str, Mapping[str, Any]]:
        return "adam", {"learning_rate": 1e-3}

    @classmethod
    def refusal(cls, learner: type[Abilities]) -> str | None:
        reason = super().refusal(learner)
        if reason is None and not learner.reuses_support:
            fitting = learners_with("reuses_support")
            return f"its gradient is at the minimum of one loss, and each step here has another's batch: use {fitting}"
        return reason

    def _make_adaptation(
        self, observation_space: spaces.Box, action_space: spaces.Space[Any], options: Mapping[str, Any]
    ) -> Adaptation:
        adaptation = super()._make_adaptation(observation_space, action_space, options)
        assert isinstance(adaptation, BatchedAdaptation)
        if not adaptation.learner.reuses_support:
            raise ConfigError(f"reuses_support=False: the gradient of {self.name} is that of one batch")
        adaptation.learner = ProximalSteps(adaptation.learner, self.proximal, self.parallel)
        return adaptation

    @property
    def _is_first_order(self) -> bool:
        return True  # of the path: none of its derivatives is kept

    @property
    def _keeps_support(self) -> bool:
        return True

    def _derivatives_type(self) -> Callable[..., BlockDerivatives]:
        return functools.partial(
            ImplicitDerivatives, proximal=self.proximal, cg_steps=self.cg_steps, cg_damping=self.cg_damping
        )


class ProximalSteps(GradientSteps):
    """A learner with another one's loss and batches that descends L(φ) + λ/2 ‖φ − θ‖² by plain gradient steps.

    θ, where learning starts, is part of its state.

    :param learner: gives loss and batches.
    :param proximal: λ.
    :param parallel: the threads that blocks of tasks run on.
    """

    plain_steps = False

    def __init__(self, learner: Learner, proximal: float, parallel: Parallel | None = None) -> None:
        super().__init__(learner, parallel)
        self.proximal = proximal

    def start(self, params: Params) -> LearnerState:
        """Return the state at θ, which it remembers."""
        return LearnerState(params, grouped(params, _START))

    def update(
        self,
        state: LearnerState,
        samples: Samples,
        rate: Rate,
        seeds: Sequence[np.random.SeedSequence],
        watcher: Watcher | None = None,
    ) -> LearnerState:
        """Return the state after a step down the proximal loss: φ − α (∇L(φ) + λ (φ − θ))."""
        after = super().update(LearnerState(state.params, {}), samples, rate, seeds, watcher).params
        away = subtract(state.params, group(state.optimizer, _START))
        end = {name: after[name] - self.proximal * tensor for name, tensor in scale(rate, away).items()}
        layout = Layout(end)
        return LearnerState(layout.views(layout.flatten(end)), state.optimizer)


_START = "start/"
"""Begins the names of θ in a learner's state."""


class ImplicitDerivatives(BlockDerivatives):
    """The implicit gradient of the query losses of a block's tasks at the solutions φ of their proximal problems.

    :param proximal: λ.
    :param cg_steps: of conjugate gradients.
    :param cg_damping: δ.

    The other parameters are those of :class:`~metarl.meta.blocks.derivatives.BlockDerivatives`.
    """

    def __init__(self, *args: Any, proximal: float, cg_steps: int, cg_damping: float = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._proximal, self._cg_steps, self._cg_damping = proximal, cg_steps, cg_damping

    def _chunk_gradient(self, index: int, first: Params, whole: Params | None) -> float:
        assert whole is None
        chunk, phi, learner = self._chunks[index], self._end(index), self._learner
        query = self._query.tasks(chunk)

        def query_loss(distribution: Distribution, values: torch.Tensor | None) -> torch.Tensor:
            return learner.query_loss(distribution, query, values)

        end = learner.policy.differentiate(phi, query.obs, query_loss)
        gradient = end.gradient
        if self._support:
            support = self._support[-1].tasks(chunk)

            def loss(distribution: Distribution, values: torch.Tensor | None) -> torch.Tensor:
                return learner.head_loss(distribution, support, values)

            inner = learner.policy.differentiate(phi, support.obs, loss, second_order=True)
            layout = Layout(gradient)

            def product(vectors: torch.Tensor) -> torch.Tensor:
                curved = layout.flatten(inner.product(layout.views(vectors)))
                return (1.0 + self._cg_damping) * vectors + curved / self._proximal

            gradient = layout.views(conjugate_gradients(product, layout.flatten(gradient), self._cg_steps))
        sum_tasks(self._pulled(gradient), first, index)
        return float(end.losses.sum())


def conjugate_gradients(
    product: Callable[[torch.Tensor], torch.Tensor], targets: torch.Tensor, n_steps: int
) -> torch.Tensor:
    """Solve A_i x_i = b_i for every task i of a stack, from x = 0; A_i is symmetric and positive definite.

    A task is done where its residual is no more than rounding, or where its matrix turns out not to be positive
    definite; if that is so at once, or if b_i is not finite, b_i itself is returned, the first-order gradient.

    :param product: returns A_i v_i, ``[task, n]``.
    :param targets: b, ``[task, n]``.
    :param n_steps: products, at most.
    """
    x, residual, direction = torch.zeros_like(targets), targets.clone(), targets.clone()
    square = targets.square().sum(1, keepdim=True)
    smallest, active = torch.finfo(targets.dtype).eps ** 2 * square, square > 0.0
    for k in range(n_steps):
        curved = product(direction)
        bend = (direction * curved).sum(1, keepdim=True)
        if k == 0:
            x = torch.where(active & (bend <= 0.0), targets, x)
        active = active & (bend > 0.0) & (square > smallest)
        if not bool(active.any()):
            break
        length = torch.where(active, square / bend, 0.0)
        x, residual = x + length * direction, residual - length * curved
        following = residual.square().sum(1, keepdim=True)
        direction = residual + torch.where(active, following / square, 0.0) * direction
        square = following
    return torch.where(targets.isfinite().all(1, keepdim=True), x, targets)
