"""Meta-gradients of learners whose loss is more than a policy's, and of paths: computed once, for Adam and SGD."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from metarl.agents.learners.base import Learner
from metarl.agents.parallel import Parallel
from metarl.errors import ConfigError
from metarl.meta.adaptation.batched import Learnt
from metarl.meta.adaptation.gradient import inner_path
from metarl.meta.outer.objective import MetaGradient, chunks
from metarl.params import Params, expand, norm, subtract


class KnownGradient:
    """A meta-objective of which the gradient is all that is known.

    :param result: the gradient.
    """

    def __init__(self, result: MetaGradient) -> None:
        self._result = result

    def gradient(self) -> MetaGradient:
        """Return the meta-gradient."""
        return self._result

    def curvature_product(self, vector: Params) -> NoReturn:
        """Raise :class:`ConfigError`: a trust region has nothing to go by."""
        raise ConfigError("this meta-objective has no policy to bound: use outer='adam' or 'sgd'")

    def evaluate(self, params: Params) -> NoReturn:
        """Raise :class:`ConfigError`: a trust region has nothing to go by."""
        self.curvature_product(params)


def query_gradient(
    learner: Learner,
    theta: Params,
    learnt: Learnt,
    rates: Sequence[float],
    *,
    chunk_size: int | None = None,
    parallel: Parallel | None = None,
) -> MetaGradient:
    """Return the gradient of the learner's loss on the query batches at the parameters reached, a mean over tasks.

    :param theta: the initialisation.
    :param learnt: what came of learning from it, with its query batch.
    :param rates: of the plain gradient steps that led there, whose batches ``learnt`` has: MAML's gradient with respect
        to ``theta``. None of them: FOMAML's, at the parameters reached.
    :param chunk_size: tasks that are differentiated together; None chooses by the working set.
    """
    query = learnt.query
    assert query is not None
    batches = [query, *(learnt.support if rates else [])]

    def differentiate(chunk: slice) -> tuple[float, Params, Params]:
        phi = {name: tensor[chunk] for name, tensor in learnt.params.items()}
        own = query.tasks(chunk)
        end = learner.policy.differentiate(phi, own.obs, lambda d, values: learner.head_loss(d, own, values))
        gradient = end.gradient
        if rates:
            support = [batch.tasks(chunk) for batch in learnt.support]
            steps, _ = inner_path(learner, expand(theta, len(own)), support, rates, second_order=True)
            for step in reversed(steps):
                gradient = step.backward(gradient)
        return float(end.losses.sum()), _sum(end.gradient), _sum(gradient)

    parts = chunks(len(query), batches, learner.policy.width, chunk_size)
    losses, first, total = zip(*(parallel or Parallel(1)).map(differentiate, parts), strict=True)
    gradient = _mean(total, len(query))
    share = None
    if rates:
        share = norm(subtract(gradient, _mean(first, len(query)))) / max(norm(gradient), 1e-30)
    return MetaGradient(sum(losses) / len(query), gradient, share, [])


def _sum(stacked: Params) -> Params:
    return {name: tensor.sum(0) for name, tensor in stacked.items()}


def _mean(sums: Sequence[Params], n_tasks: int) -> Params:
    """Add chunks' sums up in the order of tasks, and divide."""
    total = {name: tensor.clone() for name, tensor in sums[0].items()}
    for part in sums[1:]:
        for name, tensor in part.items():
            total[name] += tensor
    return {name: tensor / n_tasks for name, tensor in total.items()}
