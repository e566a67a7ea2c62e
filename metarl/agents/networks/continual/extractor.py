"""What networks share whose layers are a module that reads its own tensors: it is called with those that are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from sys import maxsize
from typing import Any, ClassVar

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from metarl.agents.derivatives.base import Outputs
from metarl.agents.networks.arguments import require_network_size
from metarl.agents.networks.base import with_own_heads
from metarl.agents.networks.cnn import ConvNetwork
from metarl.agents.networks.tower import Tower
from metarl.checks import COUNT
from metarl.errors import ConfigError, shorten, unknown_name
from metarl.params import Params

EXTRACTOR = "features_extractor."
N_BLOCKS = 4
"""Convolutions of images: those of :class:`~metarl.agents.networks.cnn.FewShotCNN`."""
WIDTHS = (64, 64)
"""Hidden units where observations are vectors."""


class ExtractorPolicy(ActorCriticPolicy):
    """SB3's policy with an extractor that holds all layers but linear heads; ``net_arch`` are its widths."""

    extractor_class: ClassVar[type[BaseFeaturesExtractor]]

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Any,
        net_arch: Any = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        features_extractor_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        own = {"widths": net_arch or WIDTHS, "activation_fn": activation_fn, **(features_extractor_kwargs or {})}
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch=[],
            activation_fn=activation_fn,
            features_extractor_class=self.extractor_class,
            features_extractor_kwargs=own,
            **kwargs,
        )


class ExtractorNetwork(ConvNetwork):
    """An extractor and linear heads as pure functions of named tensors."""

    module_class: ClassVar[type[ExtractorPolicy]]
    stock = False
    smallest = 2**N_BLOCKS
    options: ClassVar[tuple[str, ...]]
    """Keywords of the extractor that a policy may be given."""
    layers: ClassVar[str]
    """What layers are, for error messages."""
    first: ClassVar[str]
    """The first layer of the extractor."""
    pair: ClassVar[tuple[str, str]]
    """The policies for vectors and for images."""

    @classmethod
    def check(cls, observation_space: spaces.Space[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        kwargs = dict(kwargs)
        if not isinstance(observation_space, spaces.Box) or not cls.takes(observation_space):
            vectors, images = cls.pair
            raise ConfigError(
                f"observation space {shorten(observation_space, quote=False)} is not supported: {cls.name} takes "
                f"other observations: {vectors} vectors, {images} images, channels first"
            )
        if kwargs.pop("features_extractor_class", cls.extractor_class) is not cls.extractor_class:
            raise ConfigError(f"features_extractor_class: {cls.name} has {cls.layers} of its own")
        given = kwargs.get("features_extractor_kwargs") or {}
        if not isinstance(given, Mapping):
            raise ConfigError(f"features_extractor_kwargs={shorten(given)} is not a mapping")
        for name in given:
            if name not in cls.options:
                raise unknown_name("features extractor keyword", name, cls.options)
        if isinstance(kwargs.get("net_arch"), Mapping):
            raise ConfigError(
                f"net_arch={shorten(kwargs['net_arch'])}: actor and critic share {cls.layers}: give a list"
            )
        kwargs["features_extractor_kwargs"] = {name: cls.option(name, value) for name, value in given.items()}
        require_network_size(kwargs.get("net_arch") or [], observation_space)
        return kwargs

    @classmethod
    def option(cls, name: str, value: Any) -> Any:
        """Return the value of a keyword of the extractor as the extractor takes it."""
        return COUNT(name, value)

    @classmethod
    def takes(cls, observation_space: spaces.Box) -> bool:
        """Whether it takes such observations."""
        return len(observation_space.shape) == 1

    def __init__(self, module: ActorCriticPolicy, critic: bool) -> None:
        space = module.observation_space
        self._image_rank = len(space.shape or ()) + 1
        self._scale = 255.0 if module.normalize_images and is_image_space(space) else None
        self._extractor = module.features_extractor
        self._actor = Tower.of(module.mlp_extractor.policy_net, "mlp_extractor.policy_net", "action_net")
        self._critic = Tower.of(module.mlp_extractor.value_net, "mlp_extractor.value_net", "value_net")
        self._has_critic = critic
        towers = [self._actor, self._critic] if critic else [self._actor]
        own = {"log_std", *(name for tower in towers for name in tower.names)}
        tensors = {n: t.detach() for n, t in module.named_parameters() if n in own or n.startswith(EXTRACTOR)}
        self.names = list(tensors)
        self.buffers = {n: t.detach().clone() for n, t in module.named_buffers() if n.startswith(EXTRACTOR)}
        self.transductive = any(isinstance(each, nn.BatchNorm2d) for each in self._extractor.modules())
        self.inputs = [f"{EXTRACTOR}{self.first}"]
        self.n_outputs = len(tensors["action_net.bias"])
        self.depth = sum(isinstance(each, (nn.Conv2d, nn.Linear)) for each in self._extractor.modules())
        self.min_rows = maxsize
        pixels = prod((space.shape or (1,))[1:])
        self.width = pixels * max(len(tensors[f"{EXTRACTOR}{self.first}.bias"]), self.n_outputs)

    def _one(self, params: Params, buffers: Params, obs: torch.Tensor, critic: bool) -> Outputs:
        own = {n.removeprefix(EXTRACTOR): t for n, t in {**params, **buffers}.items() if n.startswith(EXTRACTOR)}
        x = torch.func.functional_call(self._extractor, own, (self._images(params, obs),))
        heads = with_own_heads(self._actor(params, x), params)
        return heads, (self._critic(params, x).squeeze(-1),) if critic else ()


class ImagesOf(ExtractorNetwork):
    """The same for images: convolutions with batch norm by the batch's statistics, as in the few-shot papers."""

    @classmethod
    def takes(cls, observation_space: spaces.Box) -> bool:
        shape = observation_space.shape
        return len(shape) == 3 and min(shape[1:]) >= cls.smallest


def sizes_of(observation_space: spaces.Box, n_filters: int, widths: Sequence[int]) -> tuple[list[int], int]:
    """Return the channels, or units, between layers, inputs first, and how many features the last ones are."""
    shape = observation_space.shape
    if len(shape) == 3:
        return [shape[0], *[n_filters] * N_BLOCKS], n_filters * prod(side // 2**N_BLOCKS for side in shape[1:])
    return [shape[0], *widths], widths[-1]


def new_layer(is_image: bool, inputs: int, outputs: int, bias: bool = True) -> nn.Module:
    """Return a convolution, or a linear layer."""
    if is_image:
        return nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)
    return nn.Linear(inputs, outputs, bias=bias)
