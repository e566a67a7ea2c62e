"""Convolution networks with a features extractor that actor and critic share, through the autograd backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from math import prod
from sys import maxsize
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, NatureCNN
from torch import nn
from torch.nn import functional

from metarl.agents.derivatives.autograd import VMAP_BYTES, AutogradDerivatives, AutogradLinearized, batched
from metarl.agents.derivatives.base import HeadLoss, Outputs
from metarl.agents.derivatives.recalled import Recalled, RecalledDerivatives
from metarl.agents.networks.arguments import require_network_size
from metarl.agents.networks.base import Network, register_network, with_own_heads
from metarl.agents.networks.tower import Tower
from metarl.checks import COUNT, SWITCH, check_arguments, choice
from metarl.errors import ConfigError, shorten
from metarl.params import STATISTICS, Params, group, stack

LEARNT = (nn.Conv2d, nn.Linear)
"""Layers whose ReLU's output may be kept. A network of nothing else, but for flattening, needs no more for its
derivatives."""
BATCH_STATISTICS = ("batch", "running")


class ConvNetwork(Network):
    """Layers that actor and critic share, then a tower of each; images are channels first.

    A task's part of a stack does not depend on the other tasks' beyond rounding. Which parts are computed side by side
    depends on the sizes of the data only.
    """

    extractor_class: type[BaseFeaturesExtractor]
    smallest: int
    """Height and width of an image, at least."""

    @classmethod
    def check(cls, observation_space: spaces.Space[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        kwargs = dict(kwargs)
        extractor = kwargs.pop("features_extractor_class", cls.extractor_class)
        if extractor is not cls.extractor_class:
            raise ConfigError(
                f"features_extractor_class={shorten(extractor)} is not supported: {cls.module_class.__name__} has "
                f"{cls.extractor_class.__name__}"
            )
        if kwargs.get("share_features_extractor", True) is not True:
            raise ConfigError("share_features_extractor=False is not supported: actor and critic share one")
        raw = kwargs.get("normalize_images", True) is False
        if not is_image_space(observation_space, normalized_image=raw or cls.takes_any_box()):
            raise ConfigError(
                f"observation space {shorten(observation_space, quote=False)} is not supported: {cls.name} takes "
                "images, uint8 Boxes of three axes from 0 to 255 (any numbers with normalize_images=False), MlpPolicy "
                "vectors"
            )
        assert isinstance(observation_space, spaces.Box)
        shape = observation_space.shape
        if not is_image_space_channels_first(observation_space) or min(shape[1:]) < cls.smallest:
            raise ConfigError(
                f"observation space of shape {list(shape)} is not supported: images are [channel, height, width] of at "
                f"least {cls.smallest} by {cls.smallest}"
            )
        given = kwargs.get("features_extractor_kwargs") or {}
        if not isinstance(given, Mapping):
            raise ConfigError(f"features_extractor_kwargs={shorten(given)} is not a mapping")
        check_arguments(cls.extractor_class.__init__, given, "features extractor keyword", own=("observation_space",))
        given = kwargs["features_extractor_kwargs"] = cls.check_extractor(dict(given))
        n_features, n_weights = cls.extractor_size(shape, given)
        require_network_size(kwargs.get("net_arch") or [], observation_space, n_features, n_weights)
        return kwargs

    @classmethod
    def takes_any_box(cls) -> bool:
        """Whether images may hold any numbers."""
        return False

    @classmethod
    def check_extractor(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Return the keywords of the extractor as plain values; those that it has are checked before."""
        return given

    @classmethod
    def extractor_size(cls, shape: tuple[int, ...], given: Mapping[str, Any]) -> tuple[int, int]:
        """Return how many features the extractor has for images of a shape, and how many weights; 0 where that does not
        matter, because none of its sizes can be given.
        """
        return 0, 0

    def __init__(self, module: ActorCriticPolicy, critic: bool) -> None:
        space = module.observation_space
        self._image_rank = 4
        # One channel is first and last, and PyTorch takes it for first.
        self._layout = torch.channels_last if (space.shape or ())[0] > 1 else torch.contiguous_format
        self._scale = 255.0 if module.normalize_images and is_image_space(space) else None
        self._layers = [
            (f"features_extractor.{outer}.{name}", layer)
            for outer, layers in module.features_extractor.named_children()
            for name, layer in layers.named_children()
        ]
        extractor = module.mlp_extractor
        self._actor = Tower.of(extractor.policy_net, "mlp_extractor.policy_net", "action_net")
        self._critic = Tower.of(extractor.value_net, "mlp_extractor.value_net", "value_net")
        self._has_critic = critic
        towers = [self._actor, self._critic] if critic else [self._actor]
        own = {"log_std", *(name for tower in towers for name in tower.names)}
        shared = "features_extractor."
        tensors = {n: t.detach() for n, t in module.named_parameters() if n in own or n.startswith(shared)}
        self.names = list(tensors)
        self.buffers = {
            name: tensor.detach().clone()
            for name, tensor in module.named_buffers()
            if name.startswith(shared) and tensor.is_floating_point()
        }
        self.transductive = any(isinstance(layer, nn.BatchNorm2d) for _, layer in self._layers) and not self.buffers
        self.inputs = [self._layers[0][0]]
        self.n_outputs = len(tensors["action_net.bias"])
        self.depth = sum(isinstance(layer, nn.ReLU) for _, layer in self._layers) + len(self._actor.activations)
        # Copies of an environment that ended are evaluated with the others: batch statistics are of all of them, and
        # how many images a convolution is computed for may change its rounding.
        self.min_rows = maxsize
        # Of one image a batch norm behind strides may see but one number, which has no variance.
        x, shapes = torch.zeros(2, *(space.shape or ())), {}
        with torch.no_grad():
            for name, layer in self._layers:
                x = _layer(layer, name, tensors, self.buffers, x)
                shapes[name] = tuple(x.shape[1:])
        self._chain = [
            (name, layer, after)
            for (name, layer), (after, following) in pairwise(self._layers)
            if isinstance(layer, LEARNT) and isinstance(following, nn.ReLU)
        ]
        rest = [layer for _, layer in self._layers if not isinstance(layer, nn.Flatten)]
        if critic and self._chain and len(rest) == 2 * len(self._chain):
            self.kept = {after: shapes[after] for *_, after in self._chain}
        sizes = map(prod, shapes.values())
        self.width = max(*sizes, *(len(tensors[f"{name}.bias"]) for tower in towers for name in tower.linear_names))

    def _one(self, params: Params, buffers: Params, obs: torch.Tensor, critic: bool) -> Outputs:
        """Return what the network says for one task's tensors, buffers and images ``[n, channel, height, width]``."""
        x = self._images(params, obs)
        for name, layer in self._layers:
            x = _layer(layer, name, params, buffers, x)
        heads = with_own_heads(self._actor(params, x), params)
        return heads, (self._critic(params, x).squeeze(-1),) if critic else ()

    def outputs(self, params: Params, obs: torch.Tensor, critic: bool) -> Outputs:
        buffers = {name: tensor.detach() for name, tensor in group(params, STATISTICS).items()}
        own = {name: params[name] for name in self.names}
        if obs.ndim == self._image_rank:
            return self._one(own, buffers, obs, critic)
        side_by_side = obs.shape[1] * self.width * own["action_net.bias"].element_size() <= VMAP_BYTES
        return batched(lambda p, b, x: self._one(p, b, x, critic), own, buffers, obs, side_by_side)

    def keeper(self, params: Params) -> Callable[[torch.Tensor, Params], Outputs]:
        # In the images' layout a kernel is not turned at every look.
        own = {
            name: each.contiguous(memory_format=self._layout) if each.ndim == self._image_rank else each
            for name, each in params.items()
        }
        actor, critic = self._actor.at(own), self._critic.at(own)

        def look(obs: torch.Tensor, kept: Params) -> Outputs:
            x = self._fast_images(own, obs)
            for name, layer, after in self._chain:
                x = torch.relu_(_layer(layer, name, own, {}, x.flatten(1) if isinstance(layer, nn.Linear) else x))
                kept[after].copy_(x)
            x = x.flatten(1)
            return with_own_heads(actor(x), own), (critic(x).squeeze(-1),)

        return look

    def differentiate_kept(
        self,
        params: Params,
        obs: torch.Tensor,
        loss: HeadLoss,
        kept: Mapping[str, torch.Tensor],
        into: Params | None = None,
    ) -> RecalledDerivatives:
        def outputs(params: Params, _: Params, features: torch.Tensor) -> Outputs:
            values = self._critic(params, features).squeeze(-1)
            return with_own_heads(self._actor(params, features), params), (values,)

        chain = [Recalled(name, layer, kept[after]) for name, layer, after in self._chain]
        place = {name: torch.empty_like(tensor) for name, tensor in params.items()} if into is None else into
        return RecalledDerivatives(
            chain, lambda task: self._fast_images(params, obs[task]), outputs, params, loss, place
        )

    def values(self, params: Params, obs: torch.Tensor) -> torch.Tensor:
        return self.outputs(params, obs, critic=True)[1][0]

    def differentiate(
        self, params: Params, obs: torch.Tensor, loss: HeadLoss, second_order: bool
    ) -> AutogradDerivatives:
        return AutogradDerivatives(lambda p: self.outputs(p, obs, self._has_critic), params, loss, second_order)

    def linearize(self, params: Params, obs: torch.Tensor) -> AutogradLinearized:
        return AutogradLinearized(lambda p: self.outputs(p, obs, critic=False), params)

    def moved_statistics(self, params: Params, obs: torch.Tensor, counts: np.ndarray | None, momentum: float) -> Params:
        if obs.ndim > self._image_rank:
            columns = {name: tensor.unbind() for name, tensor in params.items()}
            tasks = [{name: each[i] for name, each in columns.items()} for i in range(len(obs))]
            seen = obs if counts is None else [each[: int(n)] for each, n in zip(obs, counts, strict=True)]
            return stack([self.moved_statistics(*pair, None, momentum) for pair in zip(tasks, seen, strict=True)])
        x, moved = self._images(params, obs), {}
        with torch.no_grad():
            for name, layer in self._layers:
                if isinstance(layer, nn.BatchNorm2d):
                    var, mean = torch.var_mean(x, (0, 2, 3))
                    for kind, new in (("running_mean", mean), ("running_var", var)):
                        moved[f"{name}.{kind}"] = params[f"{STATISTICS}{name}.{kind}"].lerp(new, momentum)
                x = _layer(layer, name, params, {}, x)
        return moved

    def _images(self, params: Params, obs: torch.Tensor) -> torch.Tensor:
        """Return images as SB3 preprocesses them."""
        x = obs.to(params["action_net.bias"].dtype)
        return x if self._scale is None else x / self._scale

    def _fast_images(self, params: Params, obs: torch.Tensor) -> torch.Tensor:
        """Return the same in the layout that convolutions are fast in.

        Bytes are turned in less time than floats, and channel by channel in two thirds of the time of PyTorch's own
        ``contiguous``.
        """
        if self._layout is torch.channels_last:
            obs = torch.stack(obs.unbind(1), dim=-1).movedim(-1, 1)
        return self._images(params, obs)


def _layer(layer: nn.Module, name: str, params: Params, buffers: Params, x: torch.Tensor) -> torch.Tensor:
    """Return a layer's output; its tensors are those of ``params``, the module's are left alone."""
    if isinstance(layer, nn.Conv2d):
        assert not isinstance(layer.padding, str)
        return functional.conv2d(x, params[f"{name}.weight"], params[f"{name}.bias"], layer.stride, layer.padding)
    if isinstance(layer, nn.Linear):
        return functional.linear(x, params[f"{name}.weight"], params[f"{name}.bias"])
    if isinstance(layer, nn.BatchNorm2d):
        mean, var = buffers.get(f"{name}.running_mean"), buffers.get(f"{name}.running_var")
        weight, bias = params[f"{name}.weight"], params[f"{name}.bias"]
        return functional.batch_norm(x, mean, var, weight, bias, training=mean is None, eps=layer.eps)
    result: torch.Tensor = layer(x)
    return result


@register_network("CnnPolicy")
class NatureNetwork(ConvNetwork):
    """SB3's ``CnnPolicy``: the network of Mnih et al. (2015), 3 convolutions and a layer of ``features_dim`` units::

    policy = FunctionalPolicy("CnnPolicy", Box(0, 255, (4, 84, 84), np.uint8), Discrete(6), critic=True)
    model = MAML("CnnPolicy", family, outer="trpo", outer_kwargs={"cg_damping": 1e-2})
    """

    module_class = ActorCriticCnnPolicy
    stock = True
    extractor_class = NatureCNN
    smallest = 36

    @classmethod
    def check_extractor(cls, given: dict[str, Any]) -> dict[str, Any]:
        if "normalized_image" in given:
            raise ConfigError("normalized_image is not to be given: normalize_images=False says it")
        if "features_dim" in given:
            given["features_dim"] = COUNT("features_dim", given["features_dim"])
        return given

    @classmethod
    def extractor_size(cls, shape: tuple[int, ...], given: Mapping[str, Any]) -> tuple[int, int]:
        n_features = given.get("features_dim", 512)
        size = [(((side - 8) // 4 + 1 - 4) // 2 + 1) - 2 for side in shape[1:]]
        return n_features, 32 * (64 * shape[0] + 1024) + 64 * 64 * 9 + 64 * prod(size) * n_features


class FewShotCNN(BaseFeaturesExtractor):
    """The four blocks of the few-shot papers (Vinyals et al., 2016): 3 × 3 convolution, batch norm, ReLU, max-pooling.

    :param observation_space: images, channels first, of at least 16 by 16.
    :param n_filters: of each convolution.
    :param batch_statistics: ``"batch"``: transductive, as the papers evaluate: each batch of a task's observations is
        normalised by its own mean and variance, at test time too, so that what is said of an image depends on the
        images beside it, and scores are better than those of images one by one, which is all that ``adapt`` and
        ``predict`` may see. Tasks need equally many observations then, and others are refused. ``"running"``: by
        statistics of each task, so that every image is judged alone. An inner step of any learner moves them once, as
        PyTorch does in training with its momentum of 0.1, towards those of the batch that it learnt from; no gradient
        goes through them, and the initialisation goes on with the mean over tasks of those reached.
    :param strided: whether convolutions take every other place in place of max-pooling, and the last ones' outputs are
        averaged, as MAML has it for Omniglot: a quarter of the work.
    """

    def __init__(
        self,
        observation_space: spaces.Box,
        n_filters: int = 64,
        batch_statistics: str = "batch",
        strided: bool = False,
    ) -> None:
        channels, *sides = observation_space.shape
        super().__init__(observation_space, n_filters * (1 if strided else prod(side // 16 for side in sides)))
        blocks: list[nn.Module] = []
        for _ in range(4):
            blocks += [
                nn.Conv2d(channels, n_filters, 3, stride=2 if strided else 1, padding=1),
                nn.BatchNorm2d(n_filters, track_running_stats=batch_statistics == "running"),
                nn.ReLU(),
                *([] if strided else [nn.MaxPool2d(2)]),
            ]
            channels = n_filters
        self.cnn = nn.Sequential(*blocks, *([nn.AdaptiveAvgPool2d(1)] if strided else []), nn.Flatten())

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        """Return the features of images."""
        features: torch.Tensor = self.cnn(observations)
        return features


class FewShotCnnPolicy(ActorCriticPolicy):
    """SB3's policy with :class:`FewShotCNN`, linear heads and PyTorch's own initialisation."""

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Any,
        net_arch: Any = None,
        ortho_init: bool = False,
        features_extractor_class: type[BaseFeaturesExtractor] = FewShotCNN,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch=net_arch or [],
            ortho_init=ortho_init,
            features_extractor_class=features_extractor_class,
            **kwargs,
        )


@register_network("FewShotCnnPolicy")
class FewShotNetwork(ConvNetwork):
    """The convolution network of the few-shot papers; its batch norm's statistics are each task's own.

    What the parameters hold decides: with tensors ``statistics/…`` (:meth:`FunctionalPolicy.init` makes them for
    ``batch_statistics="running"``) it normalises by them, without by the batch. ``moved_statistics`` makes new ones.
    """

    module_class = FewShotCnnPolicy
    stock = False
    extractor_class = FewShotCNN
    smallest = 16

    @classmethod
    def check(cls, observation_space: spaces.Space[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        kwargs = super().check(observation_space, kwargs)
        shape = observation_space.shape or ()
        if kwargs["features_extractor_kwargs"].get("strided") and max(shape[1:]) <= cls.smallest:
            raise ConfigError(
                f"strided=True with images of {shape[1]} by {shape[2]}: four strides leave one place, which has no "
                f"variance in a single image; it takes sides above {cls.smallest}"
            )
        return kwargs

    @classmethod
    def takes_any_box(cls) -> bool:
        return True

    @classmethod
    def check_extractor(cls, given: dict[str, Any]) -> dict[str, Any]:
        if "n_filters" in given:
            given["n_filters"] = COUNT("n_filters", given["n_filters"])
        if "batch_statistics" in given:
            given["batch_statistics"] = choice(*BATCH_STATISTICS)("batch_statistics", given["batch_statistics"])
        if "strided" in given:
            given["strided"] = SWITCH("strided", given["strided"])
        return given

    @classmethod
    def extractor_size(cls, shape: tuple[int, ...], given: Mapping[str, Any]) -> tuple[int, int]:
        n = given.get("n_filters", 64)
        places = 1 if given.get("strided") else prod(side // 16 for side in shape[1:])
        return n * places, 9 * n * (shape[0] + 3 * n)
