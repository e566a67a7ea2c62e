"""The context encoder: the gradient of a variable that is concatenated with the input (S0, eq. 4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from metarl.meta.transfer.encoder import Encoder, Seen, Sizes, register_encoder, sensitivities
from metarl.meta.transfer.layers import Mlp, row
from metarl.params import Params


@register_encoder("context")
class ContextEncoder(Encoder):
    """``z = E[∇_z L(f_θ(x, z), y)]`` at a learnt z and θ: one gradient, without a step size.

    :param net_arch: hidden units of f, an MLP of three layers.
    :param activation_fn: of f.
    """

    is_gradient = True

    def __init__(self, sizes: Sizes, *, net_arch: Sequence[int] = (40, 40), activation_fn: str = "relu") -> None:
        super().__init__(sizes)
        self.learner = Mlp("learner", sizes.inputs + sizes.latent, net_arch, sizes.outputs, activation_fn)

    def init(self, generator: torch.Generator) -> Params:
        # z begins at 0, where the context says nothing yet.
        return {"z": torch.zeros(self.sizes.latent), **self.learner.init(generator)}

    def encode(self, params: Params, seen: Seen, second_order: bool = True) -> torch.Tensor:
        (_, errors), *_ = sensitivities(self.learner, self.learnt(params), seen, self.sizes, second_order)
        of_z = params["learner.0.weight"][..., self.sizes.inputs :].mT
        return row(of_z if second_order else of_z.detach(), errors.sum(1))

    def learnt(self, params: Params) -> Params:
        # A constant input is a part of the first layer's bias.
        learnt = {name: params[name] for name in self.learner.shapes}
        weight, n = learnt["learner.0.weight"], self.sizes.inputs
        bias = learnt["learner.0.bias"] + row(weight[..., n:], params["z"])
        return {**learnt, "learner.0.weight": weight[..., :n], "learner.0.bias": bias}
