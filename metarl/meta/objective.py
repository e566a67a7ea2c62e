"""The meta-objective of one meta-iteration, evaluated chunk by chunk.

This is the only seam between meta-wrappers and outer optimisers: a distributed objective would add up what this one
computes for its tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from metarl.agents.parallel import Parallel
from metarl.agents.policy import Linearization, Params
from metarl.agents.sampling import Samples
from metarl.errors import ConfigError
from metarl.meta.inner import InnerStep, Learner, Rate, expand, inner_path

CHUNK_BYTES = 2_000_000
"""Size of one layer's activations in a chunk of tasks: past this they leave the cache and larger chunks are slower."""
KL_DIRECTIONS = ("old_new", "new_old")


@dataclass(frozen=True)
class MetaGradient:
    """What one evaluation of the meta-gradient says.

    :param loss: the meta-objective, a mean over tasks.
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
        cache_bytes: int = 400_000_000,
        parallel: Parallel | None = None,
    ) -> None:
        self.check_arguments(fisher_fraction, kl_direction)
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
        self._cacheable = int(cache_bytes // max(1, self._chunk_bytes()))
        self._paths: dict[int, list[Params]] = {}
        self._curvature: dict[int, tuple[list[InnerStep], Linearization]] = {}

    @staticmethod
    def check_arguments(fisher_fraction: float, kl_direction: str) -> None:
        """Raise :class:`ConfigError` for values that the constructor does not take."""
        if not isinstance(fisher_fraction, (int, float)) or not 0.0 < fisher_fraction <= 1.0:
            raise ConfigError(f"fisher_fraction={fisher_fraction!r} is outside (0, 1]")
        if kl_direction not in KL_DIRECTIONS:
            raise ConfigError(f"kl_direction={kl_direction!r} is unknown: use {' or '.join(KL_DIRECTIONS)}")

    # ------------------------------------------------------------------------------------------------- MetaObjective
    def gradient(self) -> MetaGradient:
        parts = self._parallel.map(self._chunk_gradient, range(len(self._chunks)))
        loss = sum(part[0] for part in parts) / self._n_tasks
        gradient = self._mean([part[1] for part in parts])
        share = None
        if self._second_order:
            first = self._mean([part[2] for part in parts])
            difference = norm({name: gradient[name] - first[name] for name in gradient})
            share = difference / max(norm(gradient), 1e-30)
        support_losses = [sum(part[3][k] for part in parts) / self._n_tasks for k in range(len(self._support))]
        return MetaGradient(loss, gradient, share, support_losses)

    def curvature_product(self, vector: Params) -> Params:
        return self._mean(self._parallel.map(lambda i: self._chunk_curvature(i, vector), range(len(self._chunks))))

    def evaluate(self, params: Params) -> tuple[float, float]:
        parts = self._parallel.map(lambda i: self._chunk_evaluate(i, params), range(len(self._chunks)))
        return sum(part[0] for part in parts) / self._n_tasks, sum(part[1] for part in parts) / self._n_tasks

    # -------------------------------------------------------------------------------------------------------- chunks
    def _start(self, params: Params, index: int) -> tuple[Params, list[Samples]]:
        chunk = self._chunks[index]
        return expand(params, chunk.stop - chunk.start), [batch.tasks(chunk) for batch in self._support]

    def _chunk_gradient(self, index: int) -> tuple[float, Params, Params, list[float]]:
        theta, batches = self._start(self._params, index)
        steps, phi = inner_path(self._learner, theta, batches, self._rates, self._second_order)
        self._paths[index] = [theta, *(step.end for step in steps)]
        query = self._query.tasks(self._chunks[index])
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in phi.items()}
        log_prob = self._learner.policy.distribution(leaves, query.obs).log_prob(query.actions)
        # At the parameters that collected the batch the ratio is 1 and its gradient that of the log-probability.
        loss = -(query.weights * torch.exp(log_prob - log_prob.detach()) * query.advantages).sum()
        gradient = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        first = {name: tensor.sum(0) for name, tensor in gradient.items()}
        if self._second_order:
            for step in reversed(steps):
                gradient = step.backward(gradient)
            total = {name: tensor.sum(0) for name, tensor in gradient.items()}
        else:
            total = first
        return float(loss.detach()), total, first, [float(step.losses.sum()) for step in steps]

    def _path(self, index: int) -> list[Params]:
        """Return θ₀ … θ_K of a chunk, for the parameters that collected the batches."""
        if index not in self._paths:
            theta, batches = self._start(self._params, index)
            steps, _ = inner_path(self._learner, theta, batches, self._rates)
            self._paths[index] = [theta, *(step.end for step in steps)]
        return self._paths[index]

    def _chunk_linearized(self, index: int) -> tuple[list[InnerStep], Linearization]:
        if index in self._curvature:
            return self._curvature[index]
        chunk, path = self._chunks[index], self._path(index)
        steps = []
        if self._second_order:
            for start, batch, rate in zip(path, self._support_part, self._rates, strict=False):
                steps.append(InnerStep(self._learner, start, batch.tasks(chunk), rate, second_order=True))
        entry = steps, self._learner.policy.linearize(path[-1], self._query_part.tasks(chunk).obs)
        if index < self._cacheable:
            self._curvature[index] = entry
        return entry

    def _chunk_curvature(self, index: int, vector: Params) -> Params:
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
        return {name: tensor.sum(0) for name, tensor in cotangent.items()}

    def _chunk_evaluate(self, index: int, params: Params) -> tuple[float, float]:
        before = self._path(index)[-1]
        theta, batches = self._start(params, index)
        phi = inner_path(self._learner, theta, batches, self._rates)[1]
        query = self._query.tasks(self._chunks[index])
        with torch.no_grad():
            old = self._learner.policy.distribution(before, query.obs)
            new = self._learner.policy.distribution(phi, query.obs)
            ratio = torch.exp(new.log_prob(query.actions) - old.log_prob(query.actions))
            loss = -(query.weights * ratio * query.advantages).sum()
            kl = old.kl(new) if self._old_new else new.kl(old)
            return float(loss), float((query.weights * kl).sum())

    def _mean(self, parts: Sequence[Params]) -> Params:
        total = {name: tensor.clone() for name, tensor in parts[0].items()}
        for part in parts[1:]:
            for name, tensor in part.items():
                total[name] += tensor
        return {name: tensor / self._n_tasks for name, tensor in total.items()}

    def _chunk_bytes(self) -> int:
        """Estimate what is kept of one chunk between products."""
        size = max(chunk.stop - chunk.start for chunk in self._chunks)
        # For each layer of activations: values and slopes of the query batch, of a support batch errors and curls too.
        rows = 2 * self._query_part.obs.shape[1]
        if self._second_order:
            rows += 4 * sum(batch.obs.shape[1] for batch in self._support_part)
        policy = self._learner.policy
        return int(rows * size * len(policy.activations) * policy.width * self._query.obs.element_size())


def chunks(n_tasks: int, batches: Sequence[Samples], width: int, chunk_size: int | None) -> list[slice]:
    """Cut tasks into chunks that depend on the sizes of the data only, never on threads or workers."""
    if chunk_size is None:
        longest = max(batch.obs.shape[1] for batch in batches)
        chunk_size = max(1, CHUNK_BYTES // (longest * width * batches[0].obs.element_size()))
    chunk_size = max(1, min(chunk_size, n_tasks))
    return [slice(start, min(start + chunk_size, n_tasks)) for start in range(0, n_tasks, chunk_size)]


def norm(params: Params) -> float:
    """Return the Euclidean norm over all tensors."""
    return float(sum(float(tensor.double().square().sum()) for tensor in params.values()) ** 0.5)


def dot(a: Params, b: Params) -> float:
    """Return the inner product over all tensors, in float64."""
    return float(sum(float((tensor.double() * b[name].double()).sum()) for name, tensor in a.items()))
