"""The deep kernel: points of the query are compared with those of the support (after MetaFun, Xu et al., 2020).

There is no z, and nothing is decoded: ``f(x) = w(Σ_i k(u(x), v(x_i)) r(x_i, y_i))`` with learnt networks u, v, r and w
and k(a, b) = exp(−‖a − b‖² / 2τ). The tensors of such a policy are what was seen of its task, v(x_i) and r(x_i, y_i),
beside those of u and w, which all tasks share.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, NoReturn

import torch
from gymnasium import spaces

from metarl.agents.networks.distributions import Distribution, chooser
from metarl.agents.networks.policy import FunctionalPolicy
from metarl.checks import POSITIVE
from metarl.errors import ConfigError
from metarl.meta.transfer.encoder import Encoder, Seen, Sizes, register_encoder
from metarl.meta.transfer.layers import SIZE, Mlp
from metarl.params import Params, group, grouped

POINTS, VALUES, LOOK = "points", "values", "look/"
"""Names of what a policy has beside the tensors of w."""


@register_encoder("deep_kernel")
class DeepKernel(Encoder):
    """``Σ_i k(u(x), v(x_i)) r(x_i, y_i)``: what was seen, as points and values; see the module.

    :param width: units of all networks, which have two layers, and numbers of a point and of a value.
    :param temperature: τ.
    :param activation_fn: of the networks.
    """

    decodes = False

    def __init__(
        self, sizes: Sizes, *, width: int = 128, temperature: float = 1.0, activation_fn: str = "relu"
    ) -> None:
        super().__init__(sizes)
        self.width, self.temperature = SIZE("width", width), POSITIVE("temperature", temperature)
        self.activation_fn = activation_fn
        self._point = Mlp("point", sizes.inputs, (width,), width, activation_fn)
        self._value = Mlp("value", sizes.inputs + sizes.outputs, (width,), width, activation_fn)

    def init(self, generator: torch.Generator) -> Params:
        return {**self._point.init(generator), **self._value.init(generator)}

    def encode(self, params: Params, seen: Seen, second_order: bool = True) -> NoReturn:
        raise ConfigError("encoder 'deep_kernel' has no z")

    def read(self, params: Params, seen: Seen) -> Params:
        """Return the points and values ``[task, n, width]`` of what was seen."""
        return {POINTS: self._point(params, seen.x), VALUES: self._value(params, seen.pairs)}


class KernelPolicy(FunctionalPolicy):
    """A policy that compares what it observes with what was seen; w is the network of a policy on features.

    :param observation_space: of the policy.
    :param action_space: likewise.
    :param kernel: says sizes and τ.
    """

    def __init__(self, observation_space: spaces.Box, action_space: spaces.Space[Any], kernel: DeepKernel) -> None:
        features = spaces.Box(-float("inf"), float("inf"), (kernel.width,))
        w = {"net_arch": [kernel.width], "activation_fn": kernel.activation_fn}
        super().__init__("MlpPolicy", features, action_space, w)
        self._w = FunctionalPolicy("MlpPolicy", features, action_space, w)
        self.observation_space = observation_space
        self.network.stock = False  # type: ignore[misc]  # a stock policy observes no features
        self._rank = len(observation_space.shape)
        self._temperature = kernel.temperature
        self._look = Mlp("look", prod(observation_space.shape), (kernel.width,), kernel.width, kernel.activation_fn)

    def shared(self, seed: int) -> Params:
        """Return fresh tensors of u and w."""
        look = self._look.init(torch.Generator().manual_seed(seed))
        return {**self._w.init(seed), **grouped(look, LOOK)}

    def distribution(self, params: Params, obs: torch.Tensor) -> Distribution:
        return super().distribution(self._head(params), self._features(params, obs))

    def actor(self, params: Params) -> Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]:
        last_layer, choose = self.network.actor(self._head(params)), chooser(params.get("log_std"))
        return lambda obs, noise: choose(last_layer(self._features(params, obs)), noise)

    def _head(self, params: Params) -> Params:
        return {name: params[name] for name in self.network.names}

    def _features(self, params: Params, obs: torch.Tensor) -> torch.Tensor:
        """Return ``Σ_i k(u(x), v(x_i)) r(x_i, y_i)`` for ``[n, *observation]`` or ``[task, n, *observation]``."""
        points, values = params[POINTS], params[VALUES]
        x = self._look(group(params, LOOK), obs.to(points.dtype).flatten(start_dim=obs.ndim - self._rank))
        squares = x.square().sum(-1).unsqueeze(-1) + points.square().sum(-1).unsqueeze(-2) - 2.0 * x @ points.mT
        return torch.exp(-squares.clamp(min=0.0) / (2.0 * self._temperature)) @ values
