"""A hypernetwork: from a latent to the named tensors of any module, for a batch of tasks (Ha et al., 2016)."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch

from metarl.checks import choice
from metarl.meta.transfer.layers import Mlp, Shapes, flatten, unflatten
from metarl.params import Params

INITS = ("bias", "naive")
"""``"bias"``: Bias-HyperInit (Beck et al., 2023): the head's weights are 0 and its bias is the module's own
initialisation, so that all latents begin with one module. ``"naive"``: the head is initialised as any layer is."""


class Hypernetwork:
    """``ψ = W a(z) + b``, cut into the tensors of a module; ``a`` are the hidden layers.

    The tensors of a policy from a latent of two numbers, for three tasks at once::

        from metarl.agents.networks.policy import FunctionalPolicy
        from metarl.meta.transfer.hypernetwork import Hypernetwork

        policy = FunctionalPolicy("MlpPolicy", Box(-1, 1, (3,), np.float32), Box(-1, 1, (2,), np.float32))
        base = policy.init(seed=0)
        decoder = Hypernetwork("decoder", {name: tensor.shape for name, tensor in base.items()}, n_latent=2)
        params = decoder.init(torch.Generator().manual_seed(0), base)
        decoded = decoder(params, torch.randn(3, 2))
        assert decoded["action_net.weight"].shape == (3, *base["action_net.weight"].shape)
        assert torch.equal(decoded["action_net.bias"][1], base["action_net.bias"])  # init="bias"

    :param name: begins the names of its tensors.
    :param shapes: names and shapes of the module's tensors.
    :param n_latent: numbers of the latent.
    :param net_arch: units of the hidden layers.
    :param activation_fn: between layers.
    :param init: see :data:`INITS`.
    """

    def __init__(
        self,
        name: str,
        shapes: Shapes,
        n_latent: int,
        net_arch: Sequence[int] = (128,),
        activation_fn: str = "relu",
        init: str = "bias",
    ) -> None:
        self._module = {each: tuple(shape) for each, shape in shapes.items()}
        size = sum(prod(shape) for shape in self._module.values())
        self._network = Mlp(name, n_latent, net_arch, size, activation_fn)
        self._init = choice(*INITS)("init", init)
        self.shapes = self._network.shapes
        """Names and shapes of its own tensors."""

    def init(self, generator: torch.Generator, module: Params) -> Params:
        """Return fresh tensors.

        :param module: the module's own initialisation.
        """
        params = self._network.init(generator)
        if self._init == "bias":
            *_, weight, bias = params
            params[weight] = torch.zeros_like(params[weight])
            params[bias] = flatten({name: module[name] for name in self._module}, 0)
        return params

    def __call__(self, params: Params, z: torch.Tensor) -> Params:
        """Return the module's tensors ``[task, …]`` for latents ``[task, k]``."""
        return unflatten(self._network(params, z.unsqueeze(1)).squeeze(1), self._module)

    def pulled_back(self, params: Params, z: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
        """Return the gradient in the latent ``[task, k]`` from that in the module's tensors, flat, ``[task, d]``.

        :param z: ``[task, k]``, or ``[1, k]``, the latent of all tasks.
        """
        return self._network.pulled_back(params, z.unsqueeze(1), gradients.unsqueeze(1)).squeeze(1)
