"""The linear encoder: a learnt projection of the gradient of all parameters (S0, eq. 6)."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import torch

from metarl.meta.transfer.encoder import Encoder, Seen, Sizes, parameter_gradient, register_encoder, sensitivities
from metarl.meta.transfer.layers import Mlp, row
from metarl.params import Params


@register_encoder("linear")
class LinearEncoder(Encoder):
    """``z = E[V ∇_θ L(f_θ(x), y)]`` with a learnt θ and ``V``, ``[k, d]``: k directional derivatives.

    The rows of V begin as independent normal deviates of length about 1.

    :param net_arch: hidden units of f, an MLP of three layers.
    :param activation_fn: of f.
    """

    is_gradient = True

    def __init__(self, sizes: Sizes, *, net_arch: Sequence[int] = (40, 40), activation_fn: str = "relu") -> None:
        super().__init__(sizes)
        self.learner = Mlp("learner", sizes.inputs, net_arch, sizes.outputs, activation_fn)

    def init(self, generator: torch.Generator) -> Params:
        theta = self.learner.init(generator)
        size = sum(tensor.numel() for tensor in theta.values())
        return {"V": torch.randn(self.sizes.latent, size, generator=generator) / sqrt(size), **theta}

    def encode(self, params: Params, seen: Seen, second_order: bool = True) -> torch.Tensor:
        found = sensitivities(self.learner, self.learnt(params), seen, self.sizes, second_order)
        return row(params["V"], parameter_gradient(found))

    def learnt(self, params: Params) -> Params:
        return {name: params[name] for name in self.learner.shapes}
