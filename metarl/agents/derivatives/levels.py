"""Losses of groups of tasks that share parameters, as the levels of an unrolled path: a family is a group of its tasks.

With n tasks in each group, a stack of parameters ``[group, …]`` is spread to one of ``[group · n, …]``, on which the
losses of tasks are known, and these are added up by group. Both are differentiable any number of times, so that the
loss of a level may be the end of a path below it::

    inner = UnrolledPath([support_loss], [alpha]).then(query_loss)    # of tasks
    outer = UnrolledPath([summed(inner, n)], [beta])                  # of groups: θ − β ∂/∂θ Σ_i L_i(θ − α ∂L_i/∂θ)
"""

from __future__ import annotations

from metarl.agents.derivatives.base import LossFunction
from metarl.params import Params


def spread(params: Params, n: int) -> Params:
    """Return parameters ``[group, …]`` as those of ``n`` tasks each, ``[group · n, …]``, one group after the other."""
    return {name: tensor.unsqueeze(1).expand(-1, n, *tensor.shape[1:]).flatten(0, 1) for name, tensor in params.items()}


def gathered(params: Params, n: int) -> Params:
    """Return sums over the ``n`` tasks of each group, ``[group, …]``, of tensors ``[group · n, …]``."""
    return {name: tensor.reshape(-1, n, *tensor.shape[1:]).sum(1) for name, tensor in params.items()}


def summed(loss: LossFunction, n: int) -> LossFunction:
    """Return the losses ``[group]``, sums over ``n`` tasks each, as a function of parameters ``[group, …]``.

    :param loss: the losses of tasks, ``[group · n]``, at parameters of each task's own.
    """
    return lambda params: loss(spread(params, n)).reshape(-1, n).sum(1)
