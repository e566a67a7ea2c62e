"""Derivatives of a policy with context variables, from those of the plain policy that it is at folded tensors."""

from __future__ import annotations

import torch

from metarl.agents.derivatives.base import Derivatives, Linearized
from metarl.agents.networks.context import Context
from metarl.params import Params


class ContextDerivatives:
    """``H v = Jᵀ H' J v + (∂J/∂θ v)ᵀ g'``, with ``H'`` and ``g'`` at the folded tensors.

    It is a :class:`~.base.Derivatives`.

    :param plain: the derivatives there.
    :param context: folds.
    :param params: the tensors, stacked ``[task, …]``.
    """

    def __init__(self, plain: Derivatives, context: Context, params: Params) -> None:
        self._plain = plain
        self._context = context
        # A copy, because callers may step parameters in place.
        self._params = {name: t.detach().clone() if name in context.names else t for name, t in params.items()}
        self.losses = plain.losses
        self.distribution = plain.distribution
        self.gradient: Params = context.pull(self._params, plain.gradient)

    @torch.no_grad()
    def product(self, vector: Params) -> Params:
        """Return ``H v`` of each task's loss; ``v`` is stacked like the parameters."""
        curved = self._plain.product(self._context.push(self._params, vector))
        result = self._context.pull(self._params, curved)
        for name, tensor in self._context.bend(vector, self._plain.gradient).items():
            result[name] = result[name] + tensor
        return result


class ContextLinearized:
    """Jacobian products of the heads; see :class:`~.base.Linearized`. The parameters are as above, stacked or not."""

    def __init__(self, plain: Linearized, context: Context, params: Params) -> None:
        self._plain = plain
        self._context = context
        self._params = {name: tensor.detach() for name, tensor in params.items()}
        self.distribution = plain.distribution

    @torch.no_grad()
    def jvp(self, tangents: Params) -> tuple[torch.Tensor, ...]:
        """Return the change of the heads along ``tangents``."""
        return self._plain.jvp(self._context.push(self._params, tangents))

    @torch.no_grad()
    def vjp(self, cotangents: tuple[torch.Tensor, ...]) -> Params:
        """Return the gradient of ``Σ cotangent · head`` with respect to the tensors."""
        return self._context.pull(self._params, self._plain.vjp(cotangents))
