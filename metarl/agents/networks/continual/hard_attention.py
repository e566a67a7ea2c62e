"""Hard attention to the task (HAT; Serrà, Surís, Miron and Karatzoglou, 2018): gates on the units of each layer.

With e_l^t the embedding of task t in layer l, its units are multiplied by the gates a_l^t = σ(s e_l^t). What the tasks
before t attend to is a_l^{<t}, the maximum over them of a_l. The gradient of a weight that leads from unit j of layer
l − 1 to unit i of layer l is multiplied by 1 − min(a_{l,i}^{<t}, a_{l−1,j}^{<t}), and that of a bias by
1 − a_{l,i}^{<t}. While a task is learnt, s rises from 1/s_max to s_max again and again, and is s_max elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn
from torch.nn import functional

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
from metarl.checks import COUNT, POSITIVE
from metarl.params import STATISTICS, Params, group

S_MAX = 400.0
"""The paper's, chosen from 25 to 800."""
MAX_EMBEDDING = 6.0
"""Embeddings are kept within this distance of 0, where a gate could still be turned round."""
MAX_COSH = 50.0
"""Largest argument of the hyperbolic cosine, as in the authors' code: float32 holds no cosh above 89."""
EMBEDDING = "gate.weight"
"""Ends the names of embeddings."""


# ------------------------------------------------------------------------------------------------------- pure functions
def scale_at(place: int, n: int, s_max: float) -> float:
    """Return s in the ``place``-th of ``n`` updates of an epoch, counted from 0.

    It is 1/s_max + (s_max − 1/s_max) · place/(n − 1).
    """
    return s_max if n == 1 else 1.0 / s_max + (s_max - 1.0 / s_max) * place / (n - 1)


def compensated(gradient: torch.Tensor, embedding: torch.Tensor, s: float) -> torch.Tensor:
    """Return the gradient that an embedding e goes down: (s_max/s) · (cosh(s e) + 1) / (cosh(e) + 1) · ∂L/∂e.

    So embeddings move s_max times as far as they would with s = 1, whatever s is.

    :param gradient: of the embedding with which a network at s_max has the gates of s, e · s/s_max; that is
        (s_max/s) · ∂L/∂e.
    """
    return gradient * (torch.cosh((s * embedding).clamp(-MAX_COSH, MAX_COSH)) + 1.0) / (torch.cosh(embedding) + 1.0)


def sparsity(embeddings: Sequence[torch.Tensor], taken: Sequence[torch.Tensor], s: float) -> list[torch.Tensor]:
    """Return the gradient of Σ a (1 − a^{<t}) / Σ (1 − a^{<t}) in s · e, layer by layer.

    It is the share of what is free that the task attends to; 0 where nothing is free.
    """
    free = sum(float((1.0 - own).sum()) for own in taken)
    gates = [torch.sigmoid(s * own) for own in embeddings]
    return [a * (1.0 - a) * (1.0 - own) / (free or 1.0) for a, own in zip(gates, taken, strict=True)]


def free_weights(taken: torch.Tensor, before: torch.Tensor | None, n_axes: int) -> torch.Tensor:
    """Return the share of each weight's gradient that is left: 1 − min(a_{l,i}, a_{l−1,j}), of as many axes.

    :param taken: a_l of the tasks before, ``[outputs]``.
    :param before: a_{l−1}, ``[inputs]``; None in the first layer, whose inputs all tasks see.
    """
    share = 1.0 - (taken[:, None] if before is None else torch.minimum(taken[:, None], before[None, :]))
    return share.reshape(*share.shape, *[1] * (n_axes - 2))


def free_shares(params: Params, taken: Sequence[torch.Tensor]) -> Params:
    """Return the share of each tensor's gradient that is left, of those that tasks share; broadcast to its shape.

    :param params: of a policy.
    :param taken: what the tasks before attend to, layer by layer.
    """
    shares: Params = {}
    for index, own in enumerate(taken):
        before, block = taken[index - 1] if index else None, f"{EXTRACTOR}blocks.{index}."
        for name in params:
            if name == f"{block}layer.weight":
                shares[name] = free_weights(own, before, params[name].ndim)
            elif name.startswith(block) and not name.endswith(EMBEDDING):
                shares[name] = 1.0 - own
    return shares


def embeddings_of(names: Collection[str]) -> list[str]:
    """Return the names of the embeddings among those of a policy's tensors, layer by layer."""
    return [name for name in names if name.endswith(EMBEDDING) and name.startswith(EXTRACTOR)]


def taken_of(params: Params) -> list[torch.Tensor]:
    """Return what the tasks before attend to, layer by layer, as a policy's tensors hold it."""
    return [params[taken_name(name)] for name in embeddings_of(params)]


def taken_name(embedding: str) -> str:
    """Return the name among a policy's tensors of what the tasks before attend to, beside an embedding's."""
    return f"{STATISTICS}{embedding.removesuffix('weight')}taken"


# --------------------------------------------------------------------------------------------------------- the network
class Gate(nn.Module):
    """The gates of a layer.

    :param n_units: of the layer.
    :param s_max: s.
    """

    taken: torch.Tensor

    def __init__(self, n_units: int, s_max: float) -> None:
        super().__init__()
        self.s_max = s_max
        self.weight = nn.Parameter(torch.randn(n_units))
        self.register_buffer("taken", torch.zeros(n_units))

    def forward(self) -> torch.Tensor:
        """Return a gate for each unit."""
        return torch.sigmoid(self.s_max * self.weight)


class GatedLayer(nn.Module):
    """A layer, what follows it, and its gates.

    :param is_image: a convolution with batch norm and pooling, or a linear layer.
    :param inputs: channels or units before it.
    :param outputs: of its own.
    :param s_max: of its gates.
    :param activation_fn: after a linear layer.
    """

    def __init__(self, is_image: bool, inputs: int, outputs: int, s_max: float, activation_fn: type[nn.Module]) -> None:
        super().__init__()
        self.layer = new_layer(is_image, inputs, outputs)
        if is_image:
            self.norm = nn.BatchNorm2d(outputs, track_running_stats=False)
        self.activation = nn.ReLU() if is_image else activation_fn()
        self.gate = Gate(outputs, s_max)

    def forward(self, x: torch.Tensor, before: torch.Tensor | None) -> torch.Tensor:
        """Return what the layer says, gated.

        :param before: what earlier tasks attend to in the layer before.
        """
        layer, taken = self.layer, self.gate.taken
        assert isinstance(layer, (nn.Conv2d, nn.Linear))
        assert layer.bias is not None
        weight = _held(layer.weight, free_weights(taken, before, layer.weight.ndim))
        bias = _held(layer.bias, 1.0 - taken)
        if isinstance(layer, nn.Linear):
            out: torch.Tensor = self.activation(functional.linear(x, weight, bias)) * self.gate()
            return out
        x = functional.conv2d(x, weight, bias, padding=1)
        weight, bias = _held(self.norm.weight, 1.0 - taken), _held(self.norm.bias, 1.0 - taken)
        x = functional.batch_norm(x, None, None, weight, bias, training=True, eps=self.norm.eps)
        out = functional.max_pool2d(self.activation(x), 2) * self.gate()[:, None, None]
        return out


def _held(tensor: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Return a tensor as it is, of whose gradient a share arrives."""
    fixed = tensor.detach()
    return fixed + (tensor - fixed) * share


class HardAttention(BaseFeaturesExtractor):
    """Layers with gates.

    :param observation_space: images, or vectors.
    :param s_max: s of the gates.
    :param n_filters: of each of four convolutions, where observations are images.
    :param widths: of the linear layers, where they are vectors.
    :param activation_fn: between these.
    """

    def __init__(
        self,
        observation_space: spaces.Box,
        s_max: float = S_MAX,
        n_filters: int = 64,
        widths: Sequence[int] = WIDTHS,
        activation_fn: type[nn.Module] = nn.ReLU,
    ) -> None:
        sizes, out = sizes_of(observation_space, n_filters, widths)
        super().__init__(observation_space, out)
        is_image = len(observation_space.shape) == 3
        self.blocks = nn.ModuleList(GatedLayer(is_image, *pair, s_max, activation_fn) for pair in pairwise(sizes))

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        """Return the features."""
        x, before = observations, None
        for block in self.blocks:
            assert isinstance(block, GatedLayer)
            x, before = block(x, before), block.gate.taken
        return x.flatten(1)


class HardAttentionPolicy(ExtractorPolicy):
    """SB3's policy with :class:`HardAttention`, and linear heads; ``net_arch`` are the widths of its layers."""

    extractor_class = HardAttention


class HardAttentionNetwork(ExtractorNetwork):
    """Layers with gates as pure functions of named tensors.

    What earlier tasks attend to stands among the parameters as ``statistics/…gate.taken``.
    """

    module_class = HardAttentionPolicy
    extractor_class = HardAttention
    options: ClassVar[tuple[str, ...]] = ("s_max",)
    layers = "gated layers"
    first = "blocks.0.layer"
    pair = ("MlpHardAttentionPolicy", "CnnHardAttentionPolicy")

    @classmethod
    def option(cls, name: str, value: Any) -> Any:
        return POSITIVE(name, value) if name == "s_max" else COUNT(name, value)

    def moved_statistics(self, params: Params, obs: torch.Tensor, counts: Any, momentum: float) -> Params:
        return group(params, STATISTICS)


@register_network("MlpHardAttentionPolicy")
class MlpHardAttention(HardAttentionNetwork):
    """Linear layers with gates, on vectors::

    policy = FunctionalPolicy("MlpHardAttentionPolicy", Box(-1, 1, (3,)), Discrete(2), {"net_arch": [8]})
    """


@register_network("CnnHardAttentionPolicy")
class CnnHardAttention(ImagesOf, HardAttentionNetwork):
    """Four convolutions with gates and batch norm by the batch's statistics, as in the few-shot papers::

    policy = FunctionalPolicy("CnnHardAttentionPolicy", Box(0, 255, (1, 28, 28), np.uint8), Discrete(5))
    """

    options = ("s_max", "n_filters")


def is_hard(gates: Sequence[torch.Tensor]) -> bool:
    """Whether all gates are exactly 0 or 1, so that what they shut off leaves no bit."""
    return all(bool(((each == 0.0) | (each == 1.0)).all()) for each in gates)


def hardened(embedding: torch.Tensor) -> torch.Tensor:
    """Return the embedding whose gates are those of s → ∞: on where e > 0, else off."""
    return torch.where(embedding > 0.0, MAX_EMBEDDING, -MAX_EMBEDDING).to(embedding.dtype)


def least_s_max() -> float:
    """Return the smallest s_max with which gates at the largest embedding are exactly 0 and 1 in float64 too."""
    return math.ceil(746.0 / MAX_EMBEDDING)
