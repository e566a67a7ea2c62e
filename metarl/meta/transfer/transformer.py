"""The transformer encoder: an average of examples, weighted by products of each two (Vaswani et al., 2017)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from metarl.meta.transfer.encoder import Seen, Sizes, register_encoder
from metarl.meta.transfer.layers import Mlp
from metarl.meta.transfer.pooling import PoolingEncoder
from metarl.params import Params


@register_encoder("transformer")
class TransformerEncoder(PoolingEncoder):
    """``z = mean softmax(Q Kᵀ) V`` of e = h(x, y), with Q, K, V linear in e, and no scale, as the paper has it.

    The paper has a row for each example, and does not say how they become one: it is their mean here.

    :param net_arch: hidden units of h.
    :param activation_fn: of h.
    """

    def __init__(self, sizes: Sizes, *, net_arch: Sequence[int] = (128, 128, 128), activation_fn: str = "relu") -> None:
        super().__init__(sizes, net_arch=net_arch, activation_fn=activation_fn)
        self._heads = [Mlp(name, sizes.latent, (), sizes.latent) for name in ("query", "key", "value")]

    def init(self, generator: torch.Generator) -> Params:
        params = super().init(generator)
        for head in self._heads:
            params |= head.init(generator)
        return params

    def encode(self, params: Params, seen: Seen, second_order: bool = True) -> torch.Tensor:
        each = self._each(params, seen.pairs)
        query, key, value = (head(params, each) for head in self._heads)
        rows = torch.softmax(query @ key.mT, dim=-1) @ value
        return (seen.weights.unsqueeze(-1) * rows).sum(1)
