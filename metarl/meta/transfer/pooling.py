"""Pooling encoders: a network of each example, and a mean (Deep Sets) or a maximum (PointNet) over examples."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from metarl.meta.transfer.encoder import Encoder, Seen, Sizes, register_encoder
from metarl.meta.transfer.layers import Mlp
from metarl.params import Params


class PoolingEncoder(Encoder):
    """Base of encoders that look at each example by itself first.

    :param net_arch: hidden units of h, which leads from an example to k numbers.
    :param activation_fn: of h.
    """

    def __init__(self, sizes: Sizes, *, net_arch: Sequence[int] = (128, 128, 128), activation_fn: str = "relu") -> None:
        super().__init__(sizes)
        self._each = Mlp("each", sizes.inputs + sizes.outputs, net_arch, sizes.latent, activation_fn)

    def init(self, generator: torch.Generator) -> Params:
        return self._each.init(generator)


@register_encoder("mean")
class MeanEncoder(PoolingEncoder):
    """``z = mean h(x, y)`` (Zaheer et al., 2017)."""

    def encode(self, params: Params, seen: Seen, second_order: bool = True) -> torch.Tensor:
        return (seen.weights.unsqueeze(-1) * self._each(params, seen.pairs)).sum(1)


@register_encoder("max")
class MaxEncoder(PoolingEncoder):
    """``z = max h(x, y)``, entry by entry (Qi et al., 2017)."""

    def encode(self, params: Params, seen: Seen, second_order: bool = True) -> torch.Tensor:
        return self._each(params, seen.pairs).amax(1)
