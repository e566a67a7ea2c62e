"""What a block answers once its tasks are learnt: gradient, curvature products, re-adapted losses; chunk by chunk."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from metarl.agents.derivatives.base import Linearized
from metarl.agents.learners.base import Learner
from metarl.agents.memory import available_memory
from metarl.agents.networks.distributions import Distribution, from_heads
from metarl.agents.parallel import Parallel
from metarl.agents.sampling.samples import Samples
from metarl.checks import choice, number
from metarl.meta.adaptation.gradient import GradientPath, InnerRule
from metarl.params import RATES, Params, expand, take, zeros_like

CHUNK_BYTES = 2_000_000
"""Size of one layer's activations in a chunk of tasks: past this they leave the cache and larger chunks are slower."""
CACHE_BYTES = 200_000_000
"""How much may be kept between curvature products whatever else there is."""
CACHE_SHARE = 0.25
"""The share of the free memory that may be."""
KL_DIRECTIONS = ("old_new", "new_old")


def cache_budget(n_blocks: int = 1) -> int:
    """Return how many bytes each of ``n_blocks`` may keep between curvature products, as much memory as is free now.

    What is not kept is computed again, to the same bits.
    """
    return int(max(CACHE_BYTES, CACHE_SHARE * available_memory())) // max(1, n_blocks)


@dataclass(frozen=True)
class Bound:
    """How a trust region measures how far a step went.

    :param fisher_fraction: the share of each task's episodes (whole ones, the first of them) that the curvature is
        estimated on: query episodes for the Fisher information, support episodes for the derivative of adaptation
        inside it. Adaptation, the meta-gradient and the line search always use all.
    :param kl_direction: ``"old_new"``, KL(old ‖ new) as in the reference, or ``"new_old"``. Both have the same Hessian
        here and differ in what the line search accepts.
    """

    fisher_fraction: float = 1.0
    kl_direction: str = "old_new"

    def __post_init__(self) -> None:
        """Check the values.

        :raises ConfigError: one is not allowed.
        """
        set_here = object.__setattr__
        set_here(self, "kl_direction", choice(*KL_DIRECTIONS)("kl_direction", self.kl_direction))
        set_here(self, "fisher_fraction", number("(0, 1]")("fisher_fraction", self.fisher_fraction))


@dataclass(frozen=True)
class GradientSums:
    """The meta-gradient of a block of tasks, summed over them.

    :param loss: of the query batches.
    :param gradient: with respect to the meta-parameters.
    :param first_order: the same with the derivative of adaptation taken to be the identity; None where that is it.
    :param n_tasks: how many were added.
    """

    loss: float
    gradient: Params
    first_order: Params | None
    n_tasks: int


class BlockDerivatives:
    """The derivatives of a block's tasks: of the learner's query loss at the end φ of each task's path from θ.

    :param learner: gives the losses and the policy.
    :param params: the meta-parameters that collected the batches, shared by all tasks.
    :param support: one batch for each inner step (none: no adaptation), collected along the path from θ.
    :param query: the batch collected at the adapted parameters.
    :param rule: says where tasks start and how far inner steps go.
    :param local: tensors of each task's own, ``[task, …]``: tasks start with them, and nothing is meta-learnt.
    :param reached: φ, ``[task, …]``, where the learner's own steps led; None: gradient steps lead there.
    :param path: the steps that led there, with their derivatives, where the walk kept them.
    :param first_order: treat the derivative of adaptation as the identity (FOMAML). Adaptation itself is never skipped:
        :meth:`evaluate` adapts again in either case.
    :param bound: how :meth:`curvature_product` and :meth:`evaluate` measure the policies.
    :param chunk_size: tasks differentiated together; None chooses by the working set.
    :param cache_bytes: how much may be kept between curvature products, once there is one; the rest is computed again
        each time, so that memory is bounded whatever the number of tasks.
    :param parallel: the threads that chunks run on.
    """

    def __init__(
        self,
        learner: Learner,
        params: Params,
        support: Sequence[Samples],
        query: Samples,
        rule: InnerRule,
        *,
        local: Params | None = None,
        reached: Params | None = None,
        path: GradientPath | None = None,
        first_order: bool = False,
        bound: Bound | None = None,
        chunk_size: int | None = None,
        cache_bytes: Callable[[], int] = lambda: CACHE_BYTES,
        parallel: Parallel | None = None,
    ) -> None:
        self._bound = bound or Bound()
        self._learner = learner
        self._params = params
        self._rule = rule
        self._local = local or {}
        self._support = list(support)
        self._query = query
        self._cache_bytes = cache_bytes
        self._second_order = not first_order and bool(support)
        self._has_rates = any(name.startswith(RATES) for name in params)
        self._parallel = parallel or Parallel(1)
        self.n_tasks = len(query)
        self._chunks = chunks(self.n_tasks, [*support, query], learner.policy.width, chunk_size)
        # Made as a whole: pieces that are kept among a chunk's large arrays would leave holes in the heap.
        self._reached = None if self._second_order or self._has_rates else reached
        shapes = {**rule.start(params), **take(self._local, 0)}
        self._known: set[int] = set()
        self._walked = path if self._second_order and len(self._chunks) == 1 else None
        if self._walked is None:
            self._points = [
                {name: tensor.new_empty((self.n_tasks, *tensor.shape)) for name, tensor in shapes.items()}
                for _ in (support if self._reached is None else ())
            ]
        else:
            self._points = [step.end for step in self._walked.steps]
            self._known.add(0)
        self._old_head = query.weights.new_empty((*query.obs.shape[:2], learner.policy.network.n_outputs))
        self._old_log_prob = query.weights.new_empty(query.weights.shape)
        self._old_known: set[int] = set()
        self._curvature: dict[int, tuple[GradientPath | None, Linearized]] = {}

    # ------------------------------------------------------------------------------------------------------ the answers
    def gradient(self) -> GradientSums:
        """Return the meta-gradient at the parameters that collected the batches."""
        first, whole = self._sums(), self._sums() if self._second_order else None
        losses = self._parallel.map(lambda i: self._chunk_gradient(i, first, whole), range(len(self._chunks)))
        if whole is None:
            return GradientSums(sum(losses), _added(first), None, self.n_tasks)
        return GradientSums(sum(losses), _added(whole), _added(first), self.n_tasks)

    def curvature_product(self, vector: Params) -> Params:
        """Return the Hessian of the KL divergence of the adapted policies times ``vector``, summed over tasks."""
        # First of all: among the temporary tensors of products, what is kept would leave holes in the heap.
        self._parallel.map(self._chunk_linearized, [index for index in self._kept if index not in self._curvature])
        sums = self._sums()
        self._parallel.map(lambda i: self._chunk_curvature(i, vector, sums), range(len(self._chunks)))
        return _added(sums)

    def evaluate(self, params: Params) -> tuple[float, float]:
        """Adapt ``params`` again; return the query loss and the KL divergence, summed over tasks."""
        parts = self._parallel.map(lambda i: self._chunk_evaluate(i, params), range(len(self._chunks)))
        return sum(part[0] for part in parts), sum(part[1] for part in parts)

    # -------------------------------------------------------------------------------- what curvature is estimated on
    @functools.cached_property
    def _support_part(self) -> list[Samples]:
        return [self._part(batch) for batch in self._support]

    @functools.cached_property
    def _query_part(self) -> Samples:
        return self._part(self._query)

    def _part(self, batch: Samples) -> Samples:
        fraction = self._bound.fisher_fraction
        return batch if fraction == 1.0 else batch.episodes(fraction)

    @functools.cached_property
    def _kept(self) -> range:
        """The chunks of which something is kept between curvature products."""
        return range(min(len(self._chunks), int(self._cache_bytes() // max(1, self._chunk_bytes()))))

    # ----------------------------------------------------------------------------------------------------------- chunks
    def _start(self, params: Params, index: int) -> Params:
        """Return where the tasks of a chunk start, stacked."""
        chunk = self._chunks[index]
        start = expand(self._rule.start(params), chunk.stop - chunk.start)
        # In the order of the tensors of one task's own, which sums over all of them go by.
        return {**start, **take(self._local, chunk)}

    def _path(self, params: Params, index: int, second_order: bool = False) -> GradientPath:
        """Return the path of a chunk from ``params``."""
        batches = [batch.tasks(self._chunks[index]) for batch in self._support]
        start, rates = self._start(params, index), self._rule.steps(params)
        return GradientPath(self._learner, start, batches, rates, second_order, self._rule.kind)

    def _sums(self) -> Params:
        """Return room for one sum over tasks for each chunk, ``[chunk, …]``."""
        return {name: tensor.new_empty((len(self._chunks), *tensor.shape)) for name, tensor in self._params.items()}

    def _pulled(self, start: Params, rates: Sequence[Params] = ()) -> Params:
        return self._rule.gradient(self._params, start, rates)

    def _chunk_gradient(self, index: int, first: Params, whole: Params | None) -> float:
        path, self._walked = self._walked, None
        if path is None and (self._second_order or self._has_rates):
            path = self._path(self._params, index, self._second_order)
            self._remember(index, path)
        phi = self._end(index) if path is None else path.end
        query = self._query.tasks(self._chunks[index])

        def loss(distribution: Distribution, values: torch.Tensor | None) -> torch.Tensor:
            # At the parameters that collected the batch the ratio is 1 and its gradient that of the log-probability.
            return self._learner.query_loss(distribution, query, values)

        end = self._learner.policy.differentiate(phi, query.obs, loss)
        of_rates = path.rate_gradients(end.gradient) if path is not None and self._has_rates else []
        sum_tasks(self._pulled(end.gradient, of_rates), first, index)
        if path is not None and whole is not None:
            sum_tasks(self._pulled(*path.backward(end.gradient, self._has_rates)), whole, index)
        return float(end.losses.sum())

    def _remember(self, index: int, path: GradientPath) -> None:
        """Keep where the inner steps of a chunk lead."""
        chunk = self._chunks[index]
        for points, step in zip(self._points, path.steps, strict=True):
            for name, tensor in step.end.items():
                points[name][chunk] = tensor
        self._known.add(index)

    def _end(self, index: int) -> Params:
        """Return φ of a chunk, for the parameters that collected the batches."""
        if self._reached is not None:
            return take(self._reached, self._chunks[index])
        if not self._support:
            return self._start(self._params, index)
        if index not in self._known:
            self._remember(index, self._path(self._params, index))
        return take(self._points[-1], self._chunks[index])

    def _chunk_linearized(self, index: int) -> tuple[GradientPath | None, Linearized]:
        if index in self._curvature:
            return self._curvature[index]
        chunk, phi, path = self._chunks[index], self._end(index), None
        if self._support and (self._second_order or self._has_rates):
            start = self._start(self._params, index)
            points = [start, *(take(point, chunk) for point in self._points[:-1])]
            batches = [batch.tasks(chunk) for batch in self._support_part]
            rates = self._rule.steps(self._params)
            path = GradientPath.through(self._learner, points, batches, rates, self._second_order, self._rule.kind)
        entry = path, self._learner.policy.linearize(phi, self._query_part.tasks(chunk).obs)
        if index in self._kept:
            self._curvature[index] = entry
        return entry

    def _chunk_curvature(self, index: int, vector: Params, sums: Params) -> None:
        path, linearization = self._chunk_linearized(index)
        chunk = self._chunks[index]
        tangent = expand(self._rule.start(vector), chunk.stop - chunk.start)
        tangent.update(zeros_like(take(self._local, chunk)))
        if path is not None:
            tangent = path.forward(tangent, self._rule.tangents(vector))
        weights = self._query_part.tasks(chunk).weights
        heads = linearization.distribution.fisher(linearization.jvp(tangent), weights)
        cotangent = linearization.vjp(heads)
        of_rates: list[Params] = []
        if path is not None:
            cotangent, of_rates = path.backward(cotangent, self._has_rates)
        sum_tasks(self._pulled(cotangent, of_rates), sums, index)

    def _chunk_evaluate(self, index: int, params: Params) -> tuple[float, float]:
        query, policy = self._query.tasks(self._chunks[index]), self._learner.policy
        phi = self._path(params, index).end
        with torch.no_grad():
            old, old_log_prob = self._old(index, query)
            new = policy.distribution(phi, query.obs)
            values = None if not policy.has_critic else policy.values(phi, query.obs)
            losses = self._learner.query_loss(new, replace(query, log_prob=old_log_prob), values)
            kl = old.kl(new) if self._bound.kl_direction == "old_new" else new.kl(old)
            return float(losses.sum()), float((query.weights * kl).sum())

    def _old(self, index: int, query: Samples) -> tuple[Distribution, torch.Tensor]:
        """Return the distribution that collected a chunk's query batch, and its log-probability of the actions."""
        policy, phi = self._learner.policy, self._end(index)
        rows = self._chunks[index], slice(query.obs.shape[1])
        if index not in self._old_known:
            collected = policy.distribution(phi, query.obs)
            self._old_head[rows] = collected.heads[0]
            self._old_log_prob[rows] = collected.log_prob(query.actions)
            self._old_known.add(index)
        return from_heads(policy.heads(self._old_head[rows], phi)), self._old_log_prob[rows]

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


def sum_tasks(params: Params, sums: Params, index: int) -> None:
    """Write the sums over tasks of what a chunk found into its row of ``sums``."""
    for name, tensor in sums.items():
        torch.sum(params[name], 0, out=tensor[index])


def _added(sums: Params) -> Params:
    """Add the chunks' sums up in the order of tasks, into the first chunk's."""
    for parts in sums.values():
        for part in parts[1:]:
            parts[0] += part
    return {name: parts[0] for name, parts in sums.items()}
