"""The recurrent encoder: a black box that reads the support (Santoro et al., 2016)."""

from __future__ import annotations

import torch

from metarl.meta.transfer.encoder import Encoder, Seen, Sizes, register_encoder
from metarl.meta.transfer.layers import SIZE, Mlp
from metarl.params import Params


@register_encoder("recurrent")
class RecurrentEncoder(Encoder):
    """A GRU over the examples in the order in which they come; z is linear in its last state.

    With support and query of the same task this is adaptation by memory. It is not invariant to the order.

    :param hidden_size: units of the GRU.
    """

    def __init__(self, sizes: Sizes, *, hidden_size: int = 128) -> None:
        super().__init__(sizes)
        self._hidden = SIZE("hidden_size", hidden_size)
        self._reads = Mlp("reads", sizes.inputs + sizes.outputs, (), 3 * self._hidden)
        self._keeps = Mlp("keeps", self._hidden, (), 3 * self._hidden)
        self._says = Mlp("says", self._hidden, (), sizes.latent)

    def init(self, generator: torch.Generator) -> Params:
        return {**self._reads.init(generator), **self._keeps.init(generator), **self._says.init(generator)}

    def encode(self, params: Params, seen: Seen, second_order: bool = True) -> torch.Tensor:
        read = self._reads(params, seen.pairs).chunk(3, dim=-1)
        state = seen.x.new_zeros(len(seen.x), 1, self._hidden)
        for i in range(seen.x.shape[1]):
            reset, update, new = (part[:, i : i + 1] for part in read)
            kept = self._keeps(params, state).chunk(3, dim=-1)
            gate = torch.sigmoid(update + kept[1])
            new = torch.tanh(new + torch.sigmoid(reset + kept[0]) * kept[2])
            state = (1.0 - gate) * new + gate * state
        return self._says(params, state).squeeze(1)
