"""The meta-objective of one meta-iteration, evaluated chunk by chunk.

This is the only seam between meta-wrappers and outer optimisers: a distributed objective would add up what this one
computes for its tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from metarl.agents.derivatives.base import Linearized
from metarl.agents.learners.base import Learner
from metarl.agents.networks.distributions import Distribution, from_heads
from metarl.agents.parallel import Parallel
from metarl.agents.sampling.samples import Samples
from metarl.checks import choice, number
from metarl.meta.adaptation.gradient import InnerStep, inner_path
from metarl.params import Params, Rate, expand, norm

CHUNK_BYTES = 2_000_000
"""Size of one layer's activations in a chunk of tasks: past this they leave the cache and larger chunks are slower."""
KL_DIRECTIONS = ("old_new", "new_old")


@dataclass(frozen=True)
class MetaGradient:
    """What one evaluation of the meta-gradient says.

    :param loss: the meta-objective, a mean over tasks; NaN where it is not visible.
    :param gradient: its gradient with respect to the meta-parameters.
    :param second_order_share: ‖g_MAML − g_FOMAML‖ / ‖g_MAML‖, None for a first-order gradient.
    :param support_losses: mean inner loss before each inner step.
    """

    loss: float
    gradient: Params
    second_order_share: float | None
    support_losses: list[float]


class MetaObjective(Protocol):
    """What outer optimisers ask for."""

    def gradient(self) -> MetaGradient:
        """Return the meta-gradient at the parameters that collected the batches."""
        ...

    def curvature_product(self, vector: Params) -> Params:
        """Return the Hessian of the mean KL divergence times ``vector``, at the same parameters."""
        ...

    def evaluate(self, params: Params) -> tuple[float, float]:
        """Adapt ``params`` again and return the meta-objective and the mean KL divergence."""
        ...


class LocalObjective:
    """Mean over tasks of −mean(π_φ/π_φ,old · A) on the query batch, with φ the adapted parameters.

    :param learner: gives the inner loss and the policy.
    :param params: the meta-parameters θ that collected the batches.
    :param support: one batch for each inner step (none: no adaptation), collected along the path from θ.
    :param query: the batch collected at the adapted parameters.
    :param rates: one inner learning rate for each step.
    :param first_order: treat the derivative of adaptation as the identity (FOMAML). Adaptation itself is never skipped:
        the line search re-adapts in either case.
    :param fisher_fraction: the share of each task's episodes (whole ones, the first of them) that the curvature is
        estimated on: query episodes for the Fisher information, support episodes for the derivative of adaptation
        inside it. Adaptation, the meta-gradient and the line search always use all.
    :param kl_direction: ``"old_new"``, KL(old ‖ new) as in the reference, or ``"new_old"``. Both have the same Hessian
        here and differ in what the line search accepts.
    :param chunk_size: tasks differentiated together; None chooses by the working set.
    :param cache_bytes: how much may be kept between curvature products; the rest is computed again each time, so that
        memory does not grow with the number of tasks.
    """

    def __init__(
        self,
        learner: Learner,
        params: Params,
        support: Sequence[Samples],
        query: Samples,
        rates: Sequence[Rate],
        *,
        first_order: bool = False,
        fisher_fraction: float = 1.0,
        kl_direction: str = "old_new",
        chunk_size: int | None = None,
        cache_bytes: int = 200_000_000,
        parallel: Parallel | None = None,
    ) -> None:
        fisher_fraction, kl_direction = self.check_arguments(fisher_fraction, kl_direction)
        self._learner = learner
        self._params = params
        self._support = list(support)
        self._query = query
        part = [batch if fisher_fraction == 1.0 else batch.episodes(fisher_fraction) for batch in (*support, query)]
        self._support_part, self._query_part = part[:-1], part[-1]
        self._rates = list(rates)
        self._second_order = not first_order and bool(support)
        self._old_new = kl_direction == "old_new"
        self._parallel = parallel or Parallel(1)
        self._n_tasks = len(query)
        self._chunks = chunks(self._n_tasks, [*support, query], learner.policy.width, chunk_size)
        self._kept = range(min(len(self._chunks), int(cache_bytes // max(1, self._chunk_bytes()))))
        # Made as a whole: pieces that are kept among a chunk's large arrays would leave holes in the heap.
        self._ends = [
            {name: tensor.new_empty((self._n_tasks, *tensor.shape)) for name, tensor in params.items()} for _ in support
        ]
        self._known: set[int] = set()
        self._old_head = query.weights.new_empty((*query.obs.shape[:2], learner.policy.network.n_outputs))
        self._old_log_prob = query.weights.new_empty(query.obs.shape[:2])
        self._old_known: set[int] = set()
        self._curvature: dict[int, tuple[list[InnerStep], Linearized]] = {}

    @staticmethod
    def check_arguments(fisher_fraction: float, kl_direction: str) -> tuple[float, str]:
        """Return both as plain values.

        :raises ConfigError: values that the constructor does not take.
        """
        direction: str = choice(*KL_DIRECTIONS)("kl_direction", kl_direction)
        return number("(0, 1]")("fisher_fraction", fisher_fraction), direction

    # ------------------------------------------------------------------------------------------------- MetaObjective
    def gradient(self) -> MetaGradient:
        first, total = self._sums(), self._sums()
        parts = self._parallel.map(lambda i: self._chunk_gradient(i, first, total), range(len(self._chunks)))
        loss = sum(part[0] for part in parts) / self._n_tasks
        gradient = self._mean(total if self._second_order else first)
        share = None
        if self._second_order:
            first_order = self._mean(first)
            difference = norm({name: gradient[name] - first_order[name] for name in gradient})
            share = difference / max(norm(gradient), 1e-30)
        support_losses = [sum(part[1][k] for part in parts) / self._n_tasks for k in range(len(self._support))]
        return MetaGradient(loss, gradient, share, support_losses)

    def curvature_product(self, vector: Params) -> Params:
        # First of all: among the temporary tensors of products, what is kept would leave holes in the heap.
        self._parallel.map(self._chunk_linearized, [index for index in self._kept if index not in self._curvature])
        total = self._sums()
        self._parallel.map(lambda i: self._chunk_curvature(i, vector, total), range(len(self._chunks)))
        return self._mean(total)

    def evaluate(self, params: Params) -> tuple[float, float]:
        parts = self._parallel.map(lambda i: self._chunk_evaluate(i, params), range(len(self._chunks)))
        return sum(part[0] for part in parts) / self._n_tasks, sum(part[1] for part in parts) / self._n_tasks

    # -------------------------------------------------------------------------------------------------------- chunks
    def _start(self, params: Params, index: int) -> tuple[Params, list[Samples]]:
        chunk = self._chunks[index]
        return expand(params, chunk.stop - chunk.start), [batch.tasks(chunk) for batch in self._support]

    def _sums(self) -> Params:
        """Return room for one sum over tasks for each chunk, ``[chunk, …]``."""
        return {name: tensor.new_empty((len(self._chunks), *tensor.shape)) for name, tensor in self._params.items()}

    def _chunk_gradient(self, index: int, first: Params, total: Params) -> tuple[float, list[float]]:
        theta, batches = self._start(self._params, index)
        steps, phi = inner_path(self._learner, theta, batches, self._rates, self._second_order)
        self._remember(index, steps)
        query = self._query.tasks(self._chunks[index])
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in phi.items()}
        log_prob = self._learner.policy.distribution(leaves, query.obs).log_prob(query.actions)
        # At the parameters that collected the batch the ratio is 1 and its gradient that of the log-probability.
        loss = -(query.weights * torch.exp(log_prob - log_prob.detach()) * query.advantages).sum()
        gradient = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        _sum_tasks(gradient, first, index)
        if self._second_order:
            for step in reversed(steps):
                gradient = step.backward(gradient)
            _sum_tasks(gradient, total, index)
        return float(loss.detach()), [float(step.losses.sum()) for step in steps]

    def _remember(self, index: int, steps: Sequence[InnerStep]) -> None:
        """Keep where the inner steps of a chunk lead."""
        chunk = self._chunks[index]
        for ends, step in zip(self._ends, steps, strict=True):
            for name, tensor in step.end.items():
                ends[name][chunk] = tensor
        self._known.add(index)

    def _path(self, index: int) -> list[Params]:
        """Return θ₀ … θ_K of a chunk, for the parameters that collected the batches."""
        theta, batches = self._start(self._params, index)
        if index not in self._known:
            self._remember(index, inner_path(self._learner, theta, batches, self._rates)[0])
        chunk = self._chunks[index]
        return [theta, *({name: tensor[chunk] for name, tensor in ends.items()} for ends in self._ends)]

    def _chunk_linearized(self, index: int) -> tuple[list[InnerStep], Linearized]:
        if index in self._curvature:
            return self._curvature[index]
        chunk, path = self._chunks[index], self._path(index)
        steps = []
        if self._second_order:
            for start, batch, rate in zip(path, self._support_part, self._rates, strict=False):
                steps.append(InnerStep(self._learner, start, batch.tasks(chunk), rate, second_order=True))
        entry = steps, self._learner.policy.linearize(path[-1], self._query_part.tasks(chunk).obs)
        if index in self._kept:
            self._curvature[index] = entry
        return entry

    def _chunk_curvature(self, index: int, vector: Params, total: Params) -> None:
        steps, linearization = self._chunk_linearized(index)
        chunk = self._chunks[index]
        tangent = expand(vector, chunk.stop - chunk.start)
        for step in steps:
            tangent = step.forward(tangent)
        weights = self._query_part.tasks(chunk).weights
        heads = linearization.distribution.fisher(linearization.jvp(tangent), weights)
        cotangent = linearization.vjp(heads)
        for step in reversed(steps):
            cotangent = step.backward(cotangent)
        _sum_tasks(cotangent, total, index)

    def _chunk_evaluate(self, index: int, params: Params) -> tuple[float, float]:
        theta, batches = self._start(params, index)
        phi = inner_path(self._learner, theta, batches, self._rates)[1]
        query = self._query.tasks(self._chunks[index])
        with torch.no_grad():
            old, old_log_prob = self._old(index, query)
            new = self._learner.policy.distribution(phi, query.obs)
            loss = -(query.weights * torch.exp(new.log_prob(query.actions) - old_log_prob) * query.advantages).sum()
            kl = old.kl(new) if self._old_new else new.kl(old)
            return float(loss), float((query.weights * kl).sum())

    def _old(self, index: int, query: Samples) -> tuple[Distribution, torch.Tensor]:
        """Return the distribution that collected a chunk's query batch, and its log-probability of the actions."""
        policy, phi = self._learner.policy, self._path(index)[-1]
        rows = self._chunks[index], slice(query.obs.shape[1])
        if index not in self._old_known:
            collected = policy.distribution(phi, query.obs)
            self._old_head[rows] = collected.heads[0]
            self._old_log_prob[rows] = collected.log_prob(query.actions)
            self._old_known.add(index)
        return from_heads(policy.heads(self._old_head[rows], phi)), self._old_log_prob[rows]

    def _mean(self, sums: Params) -> Params:
        """Add the chunks' sums up in the order of tasks."""
        result: Params = {}
        for name, parts in sums.items():
            total = parts[0].clone()
            for part in parts[1:]:
                total += part
            result[name] = total / self._n_tasks
        return result

    def _chunk_bytes(self) -> int:
        """Estimate what is kept of one chunk between products."""
        size = max(chunk.stop - chunk.start for chunk in self._chunks)
        # For each layer of activations: values and slopes of the query batch, of a support batch errors and curls too.
        rows = 2 * self._query_part.obs.shape[1]
        if self._second_order:
            rows += 4 * sum(batch.obs.shape[1] for batch in self._support_part)
        policy = self._learner.policy
        return int(rows * size * policy.network.depth * policy.width * self._query.obs.element_size())


def chunks(n_tasks: int, batches: Sequence[Samples], width: int, chunk_size: int | None) -> list[slice]:
    """Cut tasks into chunks that depend on the sizes of the data only, never on threads or workers."""
    if chunk_size is None:
        longest = max(batch.obs.shape[1] for batch in batches)
        chunk_size = max(1, CHUNK_BYTES // (longest * width * batches[0].obs.element_size()))
    chunk_size = max(1, min(chunk_size, n_tasks))
    return [slice(start, min(start + chunk_size, n_tasks)) for start in range(0, n_tasks, chunk_size)]


def _sum_tasks(params: Params, sums: Params, index: int) -> None:
    for name, tensor in params.items():
        torch.sum(tensor, 0, out=sums[name][index])
