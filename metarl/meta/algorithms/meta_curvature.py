"""Meta-Curvature: inner gradients are multiplied by matrices that are meta-learnt (Park and Oliva, 2019)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces

from metarl.agents.learners.base import GradientSteps
from metarl.agents.learners.descent import task_blocks
from metarl.agents.learners.optimizers import Layout
from metarl.agents.learners.watching import LearnerState, Watcher
from metarl.agents.sampling.samples import Samples
from metarl.meta.adaptation.base import Adaptation
from metarl.meta.adaptation.batched import BatchedAdaptation
from metarl.meta.adaptation.gradient import InnerRule, InnerStep
from metarl.meta.algorithms.maml import MAML
from metarl.params import RATES, STATISTICS, Params, Rate, group, grouped, join, scale, take

MODES = ("out", "in", "filter")
"""The axes of a tensor that have a matrix each: outputs, inputs, and the places of a convolution's filter as one."""


class MetaCurvature(MAML):
    """MAML whose inner gradients are multiplied, along each axis, by a matrix that is meta-learnt with θ.

    An inner step is φ = θ − α M(∇L(θ)). Of a convolution's gradient G, ``[out, in, filter]``,
    M(G) = G ×₁ M_o ×₂ M_i ×₃ M_f (eq. 7): every axis has a square matrix; a linear layer has the first two,
    M_o G M_iᵀ, a bias the first. All matrices begin as the identity, which is MAML, and all inner steps share them.
    With c = ∇_φ L' the meta-gradient is (I − α H Mᵀ) c for θ, and that of −α ⟨c, M(∇L(θ))⟩ for each matrix::

        model = MetaCurvature("MlpPolicy", "PointMass-v0", inner_lr=0.1)
        model.learn(100_000)
        model.params["rates/action_net.weight/in"]

    An export goes on without the matrices. Tensors of each task's own have none.

    The arguments are those of :class:`~metarl.meta.algorithms.maml.MAML`.
    """

    name: ClassVar[str] = "meta_curvature"

    def _further_params(self, theta: Params) -> Params:
        sizes = {
            f"{name}/{mode}": size
            for name, tensor in theta.items()
            if not name.startswith(STATISTICS)
            for mode, size in zip(MODES, _in_modes(tensor.unsqueeze(0)).shape[1:], strict=False)
        }
        dtype = next(iter(theta.values())).dtype
        return grouped({name: torch.eye(size, dtype=dtype) for name, size in sizes.items()}, RATES)

    def _rule(self, rates: Sequence[float]) -> InnerRule:
        rule = super()._rule(rates)
        return CurvedRule(rule.rates, rule.stays, local=rule.local)

    def _make_adaptation(
        self, observation_space: spaces.Box, action_space: spaces.Space[Any], options: Mapping[str, Any]
    ) -> Adaptation:
        adaptation = super()._make_adaptation(observation_space, action_space, options)
        assert isinstance(adaptation, BatchedAdaptation)
        adaptation.learner = CurvedSteps(adaptation.learner, self.parallel)
        return adaptation


class CurvedRule(InnerRule):
    """Steps with one rate for all tensors, and the matrices of the meta-parameters ``rates/NAME/MODE``."""

    @property
    def kind(self) -> type[InnerStep]:
        return CurvedStep

    def steps(self, meta: Params) -> list[Rate]:
        matrices = group(dict(meta), RATES)
        names, factors = (*self.start(meta), *self.local), self.factors or [{}] * len(self.rates)
        return [
            {name: torch.tensor(rate * factor.get(name, 1.0), dtype=torch.float64) for name in names} | matrices
            for rate, factor in zip(self.rates, factors, strict=True)
        ]


class CurvedStep(InnerStep):
    """One step θ − α M(g) of a stack of tasks, and products with its derivative."""

    _rate: Params

    def _scaled(self, vector: Params) -> Params:
        return scale(self._rate, self._multiplied(vector, self._rate))

    def _scaled_back(self, vector: Params) -> Params:
        return scale(self._rate, self._multiplied(vector, {n: m.T for n, m in self._rate.items() if m.ndim == 2}))

    def _moved_by(self, rate: Params) -> Params:
        """Return how far the step goes when the matrices, times α, change by ``rate``: the product rule."""
        moved: Params = {}
        for name, own in self._modes():
            parts = [self._multiplied({name: self.gradient[name]}, self._rate | {n: rate[n]})[name] for n in own]
            moved[name] = sum(parts[1:], parts[0])
        return moved

    def rate_gradient(self, cotangent: Params) -> Params:
        """Return −∂⟨c, M(g)⟩/∂M of every matrix, ``[task, …]``."""
        found: Params = {}
        for name, own in self._modes():
            c, g = _in_modes(cotangent[name]), _in_modes(self.gradient[name])
            for axis, matrix in enumerate(own, start=1):
                u = g
                for other, further in enumerate(own, start=1):
                    u = u if other == axis else mode_product(u, self._rate[further], other)
                found[matrix] = -(_unfolded(c, axis) @ _unfolded(u, axis).mT)
        return found

    def _modes(self) -> list[tuple[str, list[str]]]:
        """Return the tensors that have matrices, with the names of these."""
        own = {name: [f"{name}/{mode}" for mode in MODES if f"{name}/{mode}" in self._rate] for name in self.gradient}
        return [(name, found) for name, found in own.items() if found]

    @staticmethod
    def _multiplied(vector: Params, matrices: Params) -> Params:
        """Return M(v); tensors without matrices stay as they are."""
        found: Params = {}
        for name, tensor in vector.items():
            x = _in_modes(tensor)
            for axis, mode in enumerate(MODES[: x.ndim - 1], start=1):
                matrix = matrices.get(f"{name}/{mode}")
                x = x if matrix is None else mode_product(x, matrix, axis)
            found[name] = x.reshape(tensor.shape)
        return found


class CurvedSteps(GradientSteps):
    """A learner with another one's loss and batches whose gradients are multiplied by matrices that come with rates."""

    plain_steps = False

    def update(
        self,
        state: LearnerState,
        samples: Samples,
        rate: Rate,
        seeds: Sequence[np.random.SeedSequence],
        watcher: Watcher | None = None,
    ) -> LearnerState:
        """Return the state after the step θ − α M(∇L(θ))."""
        blocks = task_blocks(len(samples), samples.obs.shape[1], self.policy.width)
        end = join(
            self._parallel.map(
                lambda block: CurvedStep(self, take(state.params, block), samples.tasks(block), rate).end, blocks
            )
        )
        layout = Layout(end)
        return LearnerState(layout.views(layout.flatten(end)), state.optimizer)


def mode_product(tensor: torch.Tensor, matrix: torch.Tensor, axis: int) -> torch.Tensor:
    """Return the product of a matrix with a tensor along an axis, ``Σ_b M[a, b] T[…, b, …]``."""
    product: torch.Tensor = torch.tensordot(tensor, matrix, dims=([axis], [1])).movedim(-1, axis)
    return product


def _unfolded(tensor: torch.Tensor, axis: int) -> torch.Tensor:
    """Return a stacked tensor as matrices ``[task, axis, everything else]``."""
    return tensor.movedim(axis, 1).reshape(len(tensor), tensor.shape[axis], -1)


def _in_modes(tensor: torch.Tensor) -> torch.Tensor:
    """Return a stacked tensor with the places of a convolution's filter as one axis, ``[task, out, in, filter]``."""
    return tensor.flatten(3) if tensor.ndim > len(MODES) + 1 else tensor
