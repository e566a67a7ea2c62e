"""The non-linear encoder: the gradient of the latent of a hypernetwork (S0, eq. 5; after LEO, Rusu et al., 2018)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from metarl.meta.transfer.encoder import Encoder, Seen, Sizes, parameter_gradient, register_encoder, sensitivities
from metarl.meta.transfer.hypernetwork import Hypernetwork
from metarl.meta.transfer.layers import Mlp, of_each
from metarl.params import Params


@register_encoder("nonlinear")
class NonlinearEncoder(Encoder):
    """``z = E[∇_z L(f_{h(z)}(x), y)]`` at a learnt z and hypernetwork h, an MLP of two layers.

    :param net_arch: hidden units of f, an MLP of three layers.
    :param activation_fn: of f and h.
    :param hyper_arch: hidden units of h.
    """

    is_gradient = True

    def __init__(
        self,
        sizes: Sizes,
        *,
        net_arch: Sequence[int] = (40, 40),
        activation_fn: str = "relu",
        hyper_arch: Sequence[int] = (128,),
    ) -> None:
        super().__init__(sizes)
        self.learner = Mlp("learner", sizes.inputs, net_arch, sizes.outputs, activation_fn)
        # With a head of zeros no gradient would reach z, and all z would be 0: so it is initialised as any layer is.
        self._hyper = Hypernetwork("hyper", self.learner.shapes, sizes.latent, hyper_arch, activation_fn, "naive")

    def init(self, generator: torch.Generator) -> Params:
        return {"z": torch.zeros(self.sizes.latent), **self._hyper.init(generator, {})}

    def encode(self, params: Params, seen: Seen, second_order: bool = True) -> torch.Tensor:
        found = sensitivities(self.learner, self.learnt(params), seen, self.sizes, second_order)
        z = self._hyper.pulled_back(params, of_each(params["z"], 1, 1), parameter_gradient(found))
        return z if second_order else z.detach()

    def learnt(self, params: Params) -> Params:
        theta = self._hyper(params, of_each(params["z"], 1, 1))
        return theta if params["z"].ndim > 1 else {name: tensor[0] for name, tensor in theta.items()}
