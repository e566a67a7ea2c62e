"""The context encoder: the gradient of a variable that is concatenated with the input (S0, eq. 4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from metarl.meta.transfer.encoder import Encoder, Seen, Sizes, gradient, register_encoder, support_losses
from metarl.meta.transfer.layers import Mlp, of_each
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

    def _losses(self, params: Params, seen: Seen, moved: torch.Tensor) -> torch.Tensor:
        z = (of_each(params["z"], len(moved), 1) + moved).unsqueeze(1)
        x = torch.cat([seen.x, z.expand(-1, seen.x.shape[1], -1)], dim=-1)
        return support_losses(self.learner(params, x), seen, self.sizes)

    def encode(self, params: Params, seen: Seen, second_order: bool = True) -> torch.Tensor:
        with torch.enable_grad():
            moved = seen.x.new_zeros(len(seen.x), self.sizes.latent, requires_grad=True)
            return gradient(self._losses(params, seen, moved), moved, second_order)

    def support_loss(self, params: Params, seen: Seen) -> torch.Tensor:
        return self._losses(params, seen, seen.x.new_zeros(len(seen.x), self.sizes.latent))

    def learnt(self, params: Params) -> Params:
        # A constant input is a part of the first layer's bias.
        learnt = {name: params[name] for name in self.learner.shapes}
        weight, n = learnt["learner.0.weight"], self.sizes.inputs
        bias = learnt["learner.0.bias"] + weight[:, n:] @ params["z"]
        return {**learnt, "learner.0.weight": weight[:, :n], "learner.0.bias": bias}
