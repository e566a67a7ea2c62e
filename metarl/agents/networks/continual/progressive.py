"""Progressive networks (Rusu et al., 2016): a column for each task, which sees what those before it have computed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from metarl.agents.networks.base import register_network
from metarl.agents.networks.continual.extractor import (
    EXTRACTOR,
    WIDTHS,
    ExtractorNetwork,
    ExtractorPolicy,
    ImagesOf,
    new_layer,
    sizes_of,
)


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
        is_image = len(observation_space.shape) == 3
        sizes, out = sizes_of(observation_space, n_filters, widths)
        super().__init__(observation_space, n_columns * out)

        def after(size: int) -> nn.Module:
            if not is_image:
                return activation_fn()
            return nn.Sequential(nn.BatchNorm2d(size, track_running_stats=False), nn.ReLU(), nn.MaxPool2d(2))

        pairs, columns = list(pairwise(sizes)), range(n_columns)
        self.layers = nn.ModuleList(nn.ModuleList(new_layer(is_image, *pair) for pair in pairs) for _ in columns)
        self.afters = nn.ModuleList(nn.ModuleList(after(size) for size in sizes[1:]) for _ in columns)
        self.laterals = nn.ModuleList(
            nn.ModuleList(new_layer(is_image, k * a, b, bias=False) for a, b in pairs[1:]) if k else nn.ModuleList()
            for k in columns
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


class ProgressivePolicy(ExtractorPolicy):
    """SB3's policy with :class:`Columns`, and linear heads; ``net_arch`` are the widths of a column."""

    extractor_class = Columns


class ProgressiveNetwork(ExtractorNetwork):
    """Columns as pure functions of named tensors."""

    module_class = ProgressivePolicy
    extractor_class = Columns
    options: ClassVar[tuple[str, ...]] = ("n_columns",)
    layers = "columns"
    first = "layers.0.0"
    pair = ("MlpProgressivePolicy", "CnnProgressivePolicy")


@register_network("MlpProgressivePolicy")
class MlpProgressive(ProgressiveNetwork):
    """Columns of linear layers, on vectors::

    policy = FunctionalPolicy("MlpProgressivePolicy", Box(-1, 1, (3,)), Discrete(2), {"net_arch": [8]})
    """


@register_network("CnnProgressivePolicy")
class CnnProgressive(ImagesOf, ProgressiveNetwork):
    """Columns of four convolutions with batch norm by the batch's statistics, as in the few-shot papers::

    policy = FunctionalPolicy("CnnProgressivePolicy", Box(0, 255, (1, 28, 28), np.uint8), Discrete(5))
    """

    options = ("n_columns", "n_filters")
