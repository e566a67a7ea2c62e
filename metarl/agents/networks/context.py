"""Context variables (CAVIA; Zintgraf et al., 2019): inputs of the first layers that are learnt like parameters.

A first layer computes ``W x + b + C z``, with a context ``z`` that all of them share: it is the plain layer with the
bias ``b' = b + C z``. So a policy with a context is the plain policy at *folded* tensors, and its derivatives follow
from the plain ones by the chain rule, to second order::

    fold:     (b, C, z) → b' = b + C z
    push:     db' = db + dC z + C dz                      (J v)
    pull:     db = g, dC = g zᵀ, dz = Σ Cᵀ g              (Jᵀ g, with g of b'; the sum is over layers)
    bend:     dC += g dzᵀ, dz += Σ dCᵀ g                  (the change of Jᵀ along v, times g)
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from metarl.params import Params

CONTEXT = "context/z"
"""The context among the tensors, ``[n]``; it starts at 0."""


class Context:
    """A context of ``size`` numbers and what leads it into the first layers.

    :param size: of ``z``.
    :param layers: the names of the first layers; each has a tensor ``<layer>.context``, ``[units, size]``.
    """

    def __init__(self, size: int, layers: Sequence[str]) -> None:
        self.size = size
        self._pairs = [(f"{layer}.bias", f"{layer}.context") for layer in layers]
        self.names = [*(matrix for _, matrix in self._pairs), CONTEXT]
        """Its tensors."""

    def init(self, module: ActorCriticPolicy) -> Params:
        """Return fresh tensors; matrices are initialised as SB3 does it for the layer they belong to."""
        biases = dict(module.named_parameters())
        tensors: Params = {}
        for bias, matrix in self._pairs:
            layer = nn.Linear(self.size, len(biases[bias]), bias=False)
            if module.ortho_init:
                gains = {"action_net.bias": 0.01, "value_net.bias": 1.0}
                module.init_weights(layer, gain=gains.get(bias, sqrt(2.0)))
            tensors[matrix] = layer.weight.detach()
        return {**tensors, CONTEXT: torch.zeros(self.size)}

    def fold(self, params: Params) -> Params:
        """Return the plain tensors, in which the context has become part of the biases."""
        plain = {name: tensor for name, tensor in params.items() if name not in self.names}
        for bias, matrix in self._pairs:
            plain[bias] = params[bias] + _times(params[matrix], params[CONTEXT])
        return plain

    def push(self, params: Params, tangents: Params) -> Params:
        """Return how the plain tensors at ``params`` change along ``tangents``."""
        plain = {name: tensor for name, tensor in tangents.items() if name not in self.names}
        for bias, matrix in self._pairs:
            along = _times(tangents[matrix], params[CONTEXT]) + _times(params[matrix], tangents[CONTEXT])
            plain[bias] = tangents[bias] + along
        return plain

    def pull(self, params: Params, plain: Params) -> Params:
        """Return a gradient in the tensors, given that in the plain ones."""
        return {name: plain.get(name, tensor) for name, tensor in self._bilinear(params, plain).items()}

    def bend(self, tangents: Params, plain: Params) -> Params:
        """Return how :meth:`pull` of the gradient ``plain`` changes along ``tangents``: it is linear in the tensors."""
        own = self._bilinear(tangents, plain)
        return {name: own[name] for name in self.names}

    def _bilinear(self, params: Params, plain: Params) -> Params:
        result = dict(params)
        z = torch.zeros_like(params[CONTEXT])
        for bias, matrix in self._pairs:
            error = plain[bias].unsqueeze(-1)
            result[matrix] = error * params[CONTEXT].unsqueeze(-2)
            z = z + (params[matrix] * error).sum(-2)
        result[CONTEXT] = z
        return result


def _times(matrix: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Return ``C z``, ``[…, units]``; a sum, whose bits do not depend on how many tasks there are."""
    return (matrix * z.unsqueeze(-2)).sum(-1)
