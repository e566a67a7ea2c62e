"""Plain gradient steps: a path θ₀ → θ₁ → … → θ_K for a stack of tasks, and the derivative of its end.

Each step uses its own batch, collected at the parameters that the step starts from: θ_{k+1} = θ_k − α_k ∘ g_k(θ_k). The
derivative of the path's end with respect to its start is a product of (I − diag(α_k) H_k), and that with respect to the
rates adds −g_k ∘ c_k for the cotangent c_k that reaches step k. So products with it are chains of Hessian-vector
products, and nothing is ever differentiated through the whole loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from metarl.agents.learners.base import Learner
from metarl.agents.networks.distributions import Distribution
from metarl.agents.sampling.samples import Samples
from metarl.params import RATES, Params, Rate, group, inner_name, scale, subtract


@dataclass(frozen=True)
class InnerRule:
    """How the meta-parameters say where a task starts and how far its gradient steps go.

    A tensor that stays has a rate of 0: its gradient moves nothing, forwards and backwards alike. Where the
    meta-parameters hold a group ``rates/``, those are the rates, elementwise, of every step; ``rates`` then only say
    how far a step goes in proportion, so that evaluations may take shorter ones.

    :param rates: the learning rate of each step.
    :param stays: names of the tensors that no inner step moves.
    :param base: the learning rate that meta-learnt ones began with.
    :param local: names of the tensors of each task's own, and of statistics, whose rates are never meta-learnt.
    :param factors: of each step, by which the rates of tensors are multiplied; empty: all go on as they are.
    """

    rates: Sequence[float] = ()
    stays: frozenset[str] = frozenset()
    base: float = 1.0
    local: tuple[str, ...] = ()
    factors: Sequence[Mapping[str, float]] = ()

    @property
    def kind(self) -> type[InnerStep]:
        """The kind of the steps."""
        return InnerStep

    def start(self, meta: Params) -> Params:
        """Return the tensors of the inner loop, by their names in it."""
        return {inner_name(name): tensor for name, tensor in meta.items() if not name.startswith(RATES)}

    def steps(self, meta: Params) -> list[Rate]:
        """Return the learning rate of each step."""
        learnt = group(dict(meta), RATES)
        if not learnt and not self.stays and not self.factors:
            return list(self.rates)
        shared, numbers = self.start(meta), [torch.tensor(rate, dtype=torch.float64) for rate in self.rates]
        stays = self.stays.union(name for name in shared if learnt and name not in learnt)
        found: list[Params] = [
            {name: own.get(name, _ZERO if name in stays else number) for name in (*shared, *self.local)}
            for own, number in zip(self.tangents(meta), numbers, strict=True)
        ]
        if not self.factors:
            return list(found)
        return [
            {name: rate * factor.get(name, 1.0) for name, rate in step.items()}
            for step, factor in zip(found, self.factors, strict=True)
        ]

    def tangents(self, vector: Params) -> list[Params]:
        """Return how each step's rates change along a change of the meta-parameters; they are linear in them."""
        learnt = group(vector, RATES)
        return [{name: tensor * (rate / self.base) for name, tensor in learnt.items()} for rate in self.rates]

    def gradient(self, meta: Mapping[str, torch.Tensor], start: Params, rates: Sequence[Params]) -> Params:
        """Return the gradient of the meta-parameters, for each task of a stack.

        :param meta: the meta-parameters, whose names it has.
        :param start: with respect to where tasks start.
        :param rates: with respect to the rates of each step.
        """
        n_tasks, result = len(next(iter(start.values()))), {}
        for name, tensor in meta.items():
            own = name.removeprefix(RATES)
            if own == name:
                result[name] = start[inner_name(name)]
            elif rates:
                result[name] = self.of_rates(tensor, [part[own] for part in rates])
            else:
                result[name] = tensor.new_zeros((n_tasks, *tensor.shape))
        return result

    def of_rates(self, learnt: torch.Tensor, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the gradient of one meta-learnt tensor of rates, ``[task, …]``, given that of each step's rates."""
        del learnt
        scaled = [part * (rate / self.base) for part, rate in zip(parts, self.rates, strict=True)]
        return sum(scaled[1:], scaled[0])


_ZERO = torch.tensor(0.0, dtype=torch.float64)  # a number: tensors keep their own dtype


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
        self._second_order = second_order

        def loss(distribution: Distribution, values: torch.Tensor | None) -> torch.Tensor:
            return learner.head_loss(distribution, samples, values)

        self._derivatives = learner.policy.differentiate(params, samples.obs, loss, second_order)
        self.losses = self._derivatives.losses
        self.gradient: Params = self._derivatives.gradient
        start = {name: tensor.detach() for name, tensor in params.items()}
        moved = learner.policy.moved_statistics(start, samples.obs, samples.counts)
        self.end: Params = subtract(moved, self._scaled(self.gradient))
        """The parameters reached; running statistics, which have no gradient, move towards those of the batch."""

    def _scaled(self, vector: Params) -> Params:
        """Return ``diag(α) v``: what the step makes of a gradient."""
        return scale(self._rate, vector)

    def _scaled_back(self, vector: Params) -> Params:
        """Return the transpose of that times ``v``; a diagonal is its own."""
        return self._scaled(vector)

    def hessian_product(self, vector: Params) -> Params:
        """Return ``H v`` of each task's loss at the start of the step."""
        return self._derivatives.product(vector)

    def forward(self, tangent: Params, rate: Params | None = None) -> Params:
        """Return ``(I − diag(α) H) t − r ∘ g``: the end's move when the start moves along ``t`` and α along ``r``.

        A step of first order takes ``H`` to be 0, here and in :meth:`backward`.
        """
        moved = dict(tangent)
        if self._second_order:
            moved = subtract(tangent, self._scaled(self.hessian_product(tangent)))
        if not rate:
            return moved
        by_rate = self._moved_by(rate)
        return {name: tensor - by_rate[name] if name in by_rate else tensor for name, tensor in moved.items()}

    def _moved_by(self, rate: Params) -> Params:
        """Return ``r ∘ g``: how far a change of the rates alone takes the step."""
        return {name: tensor * self.gradient[name] for name, tensor in rate.items()}

    def backward(self, cotangent: Params) -> Params:
        """Return ``(I − H diag(α)) c``: the gradient at the start, given the gradient at the end."""
        if not self._second_order:
            return cotangent
        return subtract(cotangent, self.hessian_product(self._scaled_back(cotangent)))

    def rate_gradient(self, cotangent: Params) -> Params:
        """Return ``−g ∘ c``: the gradient of the rates, given the gradient at the end."""
        return {name: -(tensor * cotangent[name]) for name, tensor in self.gradient.items()}


class GradientPath:
    """A path of gradient steps on batches that are given, for a stack of tasks.

    :param params: where it starts, stacked.
    :param batches: one for each step.
    :param rates: one for each step.
    :param second_order: keep what products with the derivative of its end need.
    :param kind: of its steps.
    """

    def __init__(
        self,
        learner: Learner,
        params: Params,
        batches: Sequence[Samples],
        rates: Sequence[Rate],
        second_order: bool = False,
        kind: type[InnerStep] = InnerStep,
    ) -> None:
        self._learner = learner
        self._second_order = second_order
        self._kind = kind
        self.steps: list[InnerStep] = []
        self.end = params
        """The parameters reached."""
        for batch, rate in zip(batches, rates, strict=True):
            self.go_on(batch, rate)

    def go_on(self, batch: Samples, rate: Rate) -> Params:
        """Take one more step, on a batch that was collected at the parameters reached; return where it leads."""
        self.steps.append(self._kind(self._learner, self.end, batch, rate, self._second_order))
        self.end = self.steps[-1].end
        return self.end

    @classmethod
    def through(
        cls,
        learner: Learner,
        points: Sequence[Params],
        batches: Sequence[Samples],
        rates: Sequence[Rate],
        second_order: bool = True,
        kind: type[InnerStep] = InnerStep,
    ) -> GradientPath:
        """Return a path whose steps start at points that are known, for products with the derivative of its end.

        :param points: where each step starts.
        """
        path = cls(learner, points[0], [], [])
        for start, batch, rate in zip(points, batches, rates, strict=True):
            path.steps.append(kind(learner, start, batch, rate, second_order))
        path.end = path.steps[-1].end
        return path

    def forward(self, tangent: Params, rates: Sequence[Params] = ()) -> Params:
        """Return how the end moves when the start moves along ``tangent`` and the steps' rates along ``rates``."""
        for k, step in enumerate(self.steps):
            tangent = step.forward(tangent, rates[k] if rates else None)
        return tangent

    def backward(self, cotangent: Params, rates: bool = False) -> tuple[Params, list[Params]]:
        """Return the gradients at the start and, if ``rates``, of the rates of each step, given that at the end."""
        of_rates: list[Params] = []
        for step in reversed(self.steps):
            if rates:
                of_rates.insert(0, step.rate_gradient(cotangent))
            cotangent = step.backward(cotangent)
        return cotangent, of_rates

    def rate_gradients(self, cotangent: Params) -> list[Params]:
        """Return the gradients of the rates, to first order: with later steps' derivatives taken to be the identity."""
        return [step.rate_gradient(cotangent) for step in self.steps]
