"""Progressive networks (Rusu et al., 2016): a column for each task, which sees what those before it have computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
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
from metarl.agents.networks.base import register_network, with_own_heads
from metarl.agents.networks.cnn import ConvNetwork
from metarl.agents.networks.tower import Tower
from metarl.checks import COUNT
from metarl.errors import ConfigError, shorten, unknown_name
from metarl.params import Params

EXTRACTOR = "features_extractor."
N_BLOCKS = 4
"""Convolutions of a column: those of :class:`~metarl.agents.networks.cnn.FewShotCNN`."""
WIDTHS = (64, 64)
"""Hidden units of a column of linear layers."""


class Columns(BaseFeaturesExtractor):
    """Columns of layers side by side: h_l^k = f(W_l^k h_{l−1}^k + Σ_{j<k} U_l^{kj} h_{l−1}^j), for each column k.

    No gradient goes to the columns before the last one. The features are the last layers of all columns, so that what
    is linear in them sees the other columns as well.

    :param observation_space: images, or vectors.
    :param n_columns: columns.
    :param n_filters: of each convolution, where observations are images.
    :param widths: of the linear layers, where they are vectors.
    :param activation_fn: between these.
    """

    def __init__(
        self,
        observation_space: spaces.Box,
        n_columns: int = 1,
        n_filters: int = 64,
        widths: Sequence[int] = WIDTHS,
        activation_fn: type[nn.Module] = nn.ReLU,
    ) -> None:
        shape = observation_space.shape
        is_image = len(shape) == 3
        sizes = [shape[0], *([n_filters] * N_BLOCKS if is_image else widths)]
        out = n_filters * prod(side // 2**N_BLOCKS for side in shape[1:]) if is_image else sizes[-1]
        super().__init__(observation_space, n_columns * out)

        def layer(inputs: int, outputs: int, bias: bool = True) -> nn.Module:
            if is_image:
                return nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)
            return nn.Linear(inputs, outputs, bias=bias)

        def after(size: int) -> nn.Module:
            if not is_image:
                return activation_fn()
            return nn.Sequential(nn.BatchNorm2d(size, track_running_stats=False), nn.ReLU(), nn.MaxPool2d(2))

        pairs, columns = list(pairwise(sizes)), range(n_columns)
        self.layers = nn.ModuleList(nn.ModuleList(layer(*pair) for pair in pairs) for _ in columns)
        self.afters = nn.ModuleList(nn.ModuleList(after(size) for size in sizes[1:]) for _ in columns)
        self.laterals = nn.ModuleList(
            nn.ModuleList(layer(k * a, b, bias=False) for a, b in pairs[1:]) if k else nn.ModuleList() for k in columns
        )

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        """Return the features."""
        done: list[list[torch.Tensor]] = []
        for layers, afters, laterals in zip(self.layers, self.afters, self.laterals, strict=True):
            done = [[each.detach() for each in column] for column in done]
            x, outs = observations, []
            for place, (layer, after) in enumerate(zip(_parts(layers), _parts(afters), strict=True)):
                z = layer(x)
                if done and place:
                    seen = torch.cat([column[place - 1] for column in done], dim=1)
                    z = z + _parts(laterals)[place - 1](seen)
                x = after(z)
                outs.append(x)
            done.append(outs)
        features: torch.Tensor = torch.cat([column[-1].flatten(1) for column in done], dim=1)
        return features

    @staticmethod
    def modules_of(column: int) -> list[str]:
        """Return the names, in a policy, of the modules that belong to a column; not all of them have tensors."""
        return [f"{EXTRACTOR}{kind}.{column}" for kind in ("layers", "afters", "laterals")]


def _parts(modules: nn.Module) -> nn.ModuleList:
    """Return a list of modules as what it is."""
    assert isinstance(modules, nn.ModuleList)
    return modules


class ProgressivePolicy(ActorCriticPolicy):
    """SB3's policy with :class:`Columns`, and linear heads; ``net_arch`` are the widths of a column."""

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
            features_extractor_class=Columns,
            features_extractor_kwargs=own,
            **kwargs,
        )


class ProgressiveNetwork(ConvNetwork):
    """Columns as pure functions of named tensors."""

    module_class = ProgressivePolicy
    stock = False
    extractor_class = Columns
    smallest = 2**N_BLOCKS
    options: ClassVar[tuple[str, ...]] = ("n_columns",)
    """Keywords of the extractor that a policy may be given."""

    @classmethod
    def check(cls, observation_space: spaces.Space[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        kwargs = dict(kwargs)
        if not isinstance(observation_space, spaces.Box) or not cls.takes(observation_space):
            raise ConfigError(
                f"observation space {shorten(observation_space, quote=False)} is not supported: {cls.name} takes "
                "other observations: MlpProgressivePolicy vectors, CnnProgressivePolicy images, channels first"
            )
        if kwargs.pop("features_extractor_class", Columns) is not Columns:
            raise ConfigError(f"features_extractor_class: {cls.name} has columns of its own")
        given = kwargs.get("features_extractor_kwargs") or {}
        if not isinstance(given, Mapping):
            raise ConfigError(f"features_extractor_kwargs={shorten(given)} is not a mapping")
        for name in given:
            if name not in cls.options:
                raise unknown_name("features extractor keyword", name, cls.options)
        if isinstance(kwargs.get("net_arch"), Mapping):
            raise ConfigError(f"net_arch={shorten(kwargs['net_arch'])}: actor and critic share columns: give a list")
        kwargs["features_extractor_kwargs"] = {name: COUNT(name, value) for name, value in given.items()}
        require_network_size(kwargs.get("net_arch") or [], observation_space)
        return kwargs

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
        self.names, self.buffers = list(tensors), {}
        self.transductive = any(isinstance(each, nn.BatchNorm2d) for each in self._extractor.modules())
        self.inputs = [f"{EXTRACTOR}layers.0.0"]
        self.n_outputs = len(tensors["action_net.bias"])
        self.depth = sum(isinstance(each, (nn.Conv2d, nn.Linear)) for each in self._extractor.modules())
        self.min_rows = maxsize
        pixels = prod((space.shape or (1,))[1:])
        self.width = pixels * max(len(tensors[f"{EXTRACTOR}layers.0.0.bias"]), self.n_outputs)

    def _one(self, params: Params, buffers: Params, obs: torch.Tensor, critic: bool) -> Outputs:
        own = {name.removeprefix(EXTRACTOR): t for name, t in params.items() if name.startswith(EXTRACTOR)}
        x = torch.func.functional_call(self._extractor, own, (self._images(params, obs),))
        heads = with_own_heads(self._actor(params, x), params)
        return heads, (self._critic(params, x).squeeze(-1),) if critic else ()


@register_network("MlpProgressivePolicy")
class MlpProgressive(ProgressiveNetwork):
    """Columns of linear layers, on vectors::

    policy = FunctionalPolicy("MlpProgressivePolicy", Box(-1, 1, (3,)), Discrete(2), {"net_arch": [8]})
    """


@register_network("CnnProgressivePolicy")
class CnnProgressive(ProgressiveNetwork):
    """Columns of four convolutions with batch norm by the batch's statistics, as in the few-shot papers::

    policy = FunctionalPolicy("CnnProgressivePolicy", Box(0, 255, (1, 28, 28), np.uint8), Discrete(5))
    """

    options = ("n_columns", "n_filters")

    @classmethod
    def takes(cls, observation_space: spaces.Box) -> bool:
        shape = observation_space.shape
        return len(shape) == 3 and min(shape[1:]) >= cls.smallest
