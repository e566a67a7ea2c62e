"""The inner loop: a path θ₀ → θ₁ → … → θ_K of plain gradient steps, for a stack of tasks.

Each step uses its own batch, collected at the parameters that the step starts from. The derivative of the path's end
with respect to its start is a product of (I − H_k diag(α_k)), so products with it are chains of Hessian-vector products
and nothing is ever differentiated through the whole loop.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from metarl.agents.learners.base import Learner
from metarl.agents.networks.distributions import Distribution
from metarl.agents.sampling.samples import Samples
from metarl.params import Params, Rate, scale, subtract


class InnerStep:
    """One gradient step of a stack of tasks, and products with its derivative.

    :param learner: whose loss is descended.
    :param params: where the step starts, stacked.
    :param samples: the batch collected there.
    :param rate: the inner learning rate.
    :param second_order: keep the graph that Hessian-vector products need.
    """

    def __init__(
        self, learner: Learner, params: Params, samples: Samples, rate: Rate, second_order: bool = False
    ) -> None:
        self._rate = rate

        def loss(distribution: Distribution, values: torch.Tensor | None) -> torch.Tensor:
            return learner.head_loss(distribution, samples, values)

        self._derivatives = learner.policy.differentiate(params, samples.obs, loss, second_order)
        self.losses = self._derivatives.losses
        self.gradient: Params = self._derivatives.gradient
        start = {name: tensor.detach() for name, tensor in params.items()}
        self.end: Params = subtract(start, scale(rate, self.gradient))
        """The parameters reached."""

    def hessian_product(self, vector: Params) -> Params:
        """Return ``H v`` of each task's loss at the start of the step."""
        return self._derivatives.product(vector)

    def forward(self, tangent: Params) -> Params:
        """Return ``(I − diag(α) H) t``: how the end moves when the start moves along ``t``."""
        return subtract(tangent, scale(self._rate, self.hessian_product(tangent)))

    def backward(self, cotangent: Params) -> Params:
        """Return ``(I − H diag(α)) c``: the gradient at the start, given the gradient at the end."""
        return subtract(cotangent, self.hessian_product(scale(self._rate, cotangent)))


def inner_path(
    learner: Learner, params: Params, batches: Sequence[Samples], rates: Sequence[Rate], second_order: bool = False
) -> tuple[list[InnerStep], Params]:
    """Return the steps of a path and the parameters where it ends, on batches that are given.

    :param params: where it starts, stacked.
    :param batches: one for each step.
    :param rates: one for each step.
    """
    steps: list[InnerStep] = []
    for batch, rate in zip(batches, rates, strict=True):
        steps.append(InnerStep(learner, params, batch, rate, second_order))
        params = steps[-1].end
    return steps, params
