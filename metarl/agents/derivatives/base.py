"""What can be asked of a loss, or of a network's outputs, at given parameters, whichever backend computes it.

A network chooses the backend: :meth:`FunctionalPolicy.differentiate <metarl.agents.networks.policy.FunctionalPolicy>`
returns a :class:`Derivatives`, ``linearize`` a :class:`Linearized`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from metarl.agents.networks.distributions import Distribution
from metarl.errors import ConfigError, shorten
from metarl.params import Params

HeadLoss = Callable[[Distribution, torch.Tensor | None], torch.Tensor]
"""The losses ``[task]``, given the distribution and the critic's values ``[task, n]`` (None without a critic)."""
Outputs = tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]
"""The heads of an action distribution, and the critic's values ``[…, n]`` (none without a critic)."""
LossFunction = Callable[[Params], torch.Tensor]
"""The losses ``[task]`` of a stack of parameters ``[task, …]``, differentiable any number of times."""


class Derivatives(Protocol):
    """The losses ``L`` of a stack of tasks at a stack of parameters ``θ``, with their derivatives::

    found = policy.differentiate(params, obs, loss, second_order=True)
    end = subtract(params, scale(rate, found.gradient))                          # an inner step …
    at_start = subtract(at_end, found.product(scale(rate, at_end)))              # … and (I − H diag(α)) c
    """

    losses: torch.Tensor
    """``L``, ``[task]``."""
    gradient: Params
    """``∂L/∂θ`` of each task's loss, stacked like the parameters."""
    distribution: Distribution
    """At the parameters and the observations."""

    def product(self, vector: Params) -> Params:
        """Return ``H v`` with ``H = ∂²L/∂θ²`` of each task's loss.

        :param vector: ``v``, stacked like the parameters.
        """
        ...


class Linearized(Protocol):
    """The heads of an action distribution near given parameters: products with their Jacobian ``J = ∂heads/∂θ``."""

    distribution: Distribution
    """At the parameters and the observations."""

    def jvp(self, tangents: Params) -> tuple[torch.Tensor, ...]:
        """Return ``J t``, the change of the heads along ``tangents``."""
        ...

    def vjp(self, cotangents: tuple[torch.Tensor, ...]) -> Params:
        """Return ``Jᵀ c``, the gradient of ``Σ c · heads``; 0 for tensors that the heads do not depend on."""
        ...


def one_each(losses: Any, n_tasks: int) -> torch.Tensor:
    """Return what a loss gave, where that is one number for each task.

    :raises ConfigError: it is something else, such as the mean over all tasks. That could be differentiated too, and
        every task would learn from a gradient that is smaller by their number.
    """
    if isinstance(losses, torch.Tensor) and losses.shape == (n_tasks,):
        return losses
    found = f"a tensor of shape {list(losses.shape)}" if isinstance(losses, torch.Tensor) else shorten(losses)
    raise ConfigError(f"a learner's loss is one number for each task, a tensor of shape [{n_tasks}], not {found}")


def complete(found: Params, params: Params) -> Params:
    """Return ``found`` in the order of ``params``, with zeros where nothing depends on a tensor."""
    return {name: found[name] if name in found else torch.zeros_like(tensor) for name, tensor in params.items()}
