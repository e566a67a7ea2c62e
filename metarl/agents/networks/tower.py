"""Multi-layer perceptrons as pure functions of named tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from metarl.agents.networks.products import Activation, chain
from metarl.params import Params

_IN_PLACE: dict[type[nn.Module], Activation] = {nn.ReLU: torch.relu_, nn.Tanh: torch.tanh_}


@dataclass(frozen=True)
class Tower:
    """A multi-layer perceptron by the names of its tensors: linear layers with an activation between each two.

    :param linear_names: from the observation to the head.
    :param activations: one fewer.
    """

    linear_names: tuple[str, ...]
    activations: tuple[nn.Module, ...]

    @classmethod
    def of(cls, hidden: nn.Sequential, prefix: str, head: str) -> Tower:
        """Return the tower of SB3's ``hidden`` layers, called ``prefix.0``, …, and the linear layer ``head``."""
        names = [f"{prefix}.{name}" for name, layer in hidden.named_children() if isinstance(layer, nn.Linear)]
        return cls((*names, head), tuple(layer for layer in hidden if not isinstance(layer, nn.Linear)))

    def __call__(self, params: Params, x: torch.Tensor) -> torch.Tensor:
        """Return the head's output for flat observations."""
        return self.at(params)(x)

    def at(self, params: Params) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the head's output as a function of flat observations alone, for many evaluations."""
        layers = [(params[f"{name}.weight"], params[f"{name}.bias"]) for name in self.linear_names]
        # What a forward calls in the end, in place, as nobody else sees a product: they are part of every env step.
        return chain(layers, [_IN_PLACE.get(type(each), each.forward) for each in self.activations])

    @property
    def names(self) -> list[str]:
        """The tensors."""
        return [f"{name}.{kind}" for name in self.linear_names for kind in ("weight", "bias")]
