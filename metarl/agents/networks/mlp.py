"""SB3's ``MlpPolicy``: an actor and a critic, each a multi-layer perceptron of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import FlattenExtractor

from metarl.agents.derivatives.base import HeadLoss, Outputs
from metarl.agents.derivatives.mlp import MlpDerivatives, MlpLinearized
from metarl.agents.networks.arguments import require_network_size
from metarl.agents.networks.base import Network, register_network, with_own_heads
from metarl.agents.networks.products import fewest_rows
from metarl.agents.networks.tower import Tower
from metarl.errors import ConfigError, shorten
from metarl.params import Params


@register_network("MlpPolicy")
class MlpNetwork(Network):
    """Two towers on flat observations, differentiated by hand."""

    module_class = ActorCriticPolicy
    stock = True

    @classmethod
    def check(cls, observation_space: spaces.Space[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        if not isinstance(observation_space, spaces.Box) or is_image_space(observation_space):
            raise ConfigError(
                f"observation space {observation_space} is not supported: MlpPolicy takes a Box, "
                "no image: CnnPolicy does"
            )
        kwargs = dict(kwargs)
        if kwargs.get("features_extractor_class", FlattenExtractor) is not FlattenExtractor:
            raise ConfigError("only policies without a features extractor (MlpPolicy) are supported")
        value = kwargs.pop("features_extractor_kwargs", None)
        if value not in (None, {}):
            reason = "MlpPolicy has no features extractor"
            raise ConfigError(f"features_extractor_kwargs={shorten(value)} is not supported: {reason}")
        require_network_size(kwargs.get("net_arch"), observation_space)
        return kwargs

    def __init__(self, module: ActorCriticPolicy, critic: bool) -> None:
        extractor = module.mlp_extractor
        self._rank = len(module.observation_space.shape or ())
        self._actor = Tower.of(extractor.policy_net, "mlp_extractor.policy_net", "action_net")
        self._critic = Tower.of(extractor.value_net, "mlp_extractor.value_net", "value_net")
        self._towers = [self._actor, self._critic] if critic else [self._actor]
        own = {"log_std", *(name for tower in self._towers for name in tower.names)}
        shapes = {name: tensor.shape for name, tensor in module.named_parameters() if name in own}
        self.names = list(shapes)
        self.buffers = {}
        self.inputs = [tower.linear_names[0] for tower in self._towers]
        self.width = max(shape[0] for name, shape in shapes.items() if name.endswith(".weight"))
        self.depth = len(self._actor.activations)
        self.n_outputs = shapes["action_net.bias"][0]
        hidden = [shapes[f"{name}.bias"][0] for name in self._actor.linear_names[:-1]]
        self.rowwise = all(size >= 12 and size % 4 == 0 for size in hidden)
        self.min_rows = fewest_rows([shapes[f"{name}.weight"].numel() for name in self._actor.linear_names])

    def outputs(self, params: Params, obs: torch.Tensor, critic: bool) -> Outputs:
        x = self._flat(obs)
        heads = with_own_heads(self._actor(params, x), params)
        return heads, (self._critic(params, x).squeeze(-1),) if critic else ()

    def actor(self, params: Params) -> Callable[[torch.Tensor], torch.Tensor]:
        output = self._actor.at(params)
        return output if self._rank == 1 else lambda obs: output(self._flat(obs))

    def values(self, params: Params, obs: torch.Tensor) -> torch.Tensor:
        return self._critic(params, self._flat(obs)).squeeze(-1)

    def differentiate(self, params: Params, obs: torch.Tensor, loss: HeadLoss, second_order: bool) -> MlpDerivatives:
        return MlpDerivatives(self._towers, params, self._flat(obs), loss, second_order)

    def linearize(self, params: Params, obs: torch.Tensor) -> MlpLinearized:
        return MlpLinearized(self._actor, params, self._flat(obs))

    def _flat(self, obs: torch.Tensor) -> torch.Tensor:
        return obs if self._rank == 1 else obs.flatten(start_dim=obs.ndim - self._rank)
