"""Multi-layer perceptrons as pure functions of named tensors, which tasks share or have each their own.

Tensors are ``[out, in]`` and ``[out]``, or stacked, ``[task, out, in]`` and ``[task, out]``; inputs have a task axis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod, sqrt
from typing import Any

import torch

from metarl.agents.networks.arguments import ACTIVATIONS
from metarl.agents.networks.products import linear, product
from metarl.checks import choice, integer
from metarl.errors import ConfigError, shorten
from metarl.params import Params

Shapes = Mapping[str, Sequence[int]]
"""Names and shapes of tensors, without a task axis."""
SIZE = integer(1, 10**5)


def sizes_of(name: str, given: Any) -> list[int]:
    """Return an argument that lists the units of hidden layers."""
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise ConfigError(f"{name}={shorten(given)} is not a list of layer sizes")
    return [SIZE(name, size) for size in given]


class Mlp:
    """Linear layers with an activation between each two, called ``name.0``, ``name.1``, … among the tensors.

    :param name: of the network.
    :param n_in: inputs.
    :param hidden: units of the hidden layers.
    :param n_out: outputs.
    :param activation_fn: such as ``"relu"``.
    """

    def __init__(self, name: str, n_in: int, hidden: Sequence[int], n_out: int, activation_fn: str = "relu") -> None:
        self.hidden, self.activation_fn = sizes_of("net_arch", hidden), activation_fn
        self._activation = ACTIVATIONS[choice(*ACTIVATIONS)("activation_fn", activation_fn)]()
        sizes = [n_in, *self.hidden, n_out]
        self._layers = [f"{name}.{i}" for i in range(len(sizes) - 1)]
        self.shapes: dict[str, tuple[int, ...]] = {}
        """Names and shapes of the tensors."""
        for layer, before, after in zip(self._layers, sizes, sizes[1:], strict=False):
            self.shapes |= {f"{layer}.weight": (after, before), f"{layer}.bias": (after,)}

    def init(self, generator: torch.Generator) -> Params:
        """Return fresh tensors, as PyTorch's linear layers have them."""
        return uniform(self.shapes, generator)

    def __call__(self, params: Params, x: torch.Tensor) -> torch.Tensor:
        """Return the outputs for ``[task, n, in]``."""
        return self.passes(params, x)[-1][1]

    def passes(self, params: Params, x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return what goes into each layer, ``[task, n, in]``, and what it makes of that, before the activation."""
        found = []
        for i, layer in enumerate(self._layers):
            x = self._activation(x) if i else x
            after = linear(x, params[f"{layer}.weight"], params[f"{layer}.bias"])
            found.append((x, after))
            x = after
        return found

    def pulled_back(self, params: Params, x: torch.Tensor, errors: torch.Tensor) -> torch.Tensor:
        """Return the gradient at the inputs of a loss whose gradient at the outputs is known, ``[task, n, in]``.

        :param x: the inputs, ``[task, n, in]``; of one task and sample where they are all alike.
        :param errors: the gradient at the outputs, ``[task, n, out]``.
        """
        with torch.enable_grad():
            # Where all else is constant, activations need something to be functions of.
            passes = self.passes(params, x + torch.zeros_like(x, requires_grad=True))
            for i in reversed(range(len(passes))):
                errors = product(errors, params[f"{self._layers[i]}.weight"])
                if i:
                    (slope,) = torch.autograd.grad(passes[i][0].sum(), passes[i - 1][1], create_graph=True)
                    errors = errors * slope
        return errors


def uniform(shapes: Shapes, generator: torch.Generator) -> Params:
    """Return tensors of linear layers, uniform in ±1/√inputs: biases follow the weight before them."""
    found: Params = {}
    bound = 1.0
    for name, shape in shapes.items():
        if len(shape) > 1:
            bound = 1.0 / sqrt(max(1, prod(shape[1:])))
        found[name] = torch.empty(*shape).uniform_(-bound, bound, generator=generator)
    return found


def unflatten(vectors: torch.Tensor, shapes: Shapes) -> Params:
    """Return vectors ``[task, d]`` as named tensors ``[task, …]``."""
    parts = torch.split(vectors, [prod(shape) for shape in shapes.values()], dim=-1)
    return {
        name: part.reshape(*part.shape[:-1], *shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }


def flatten(params: Params, batch_axes: int = 1) -> torch.Tensor:
    """Return named tensors ``[task, …]`` as vectors ``[task, d]``; the inverse of :func:`unflatten`."""
    return torch.cat([tensor.flatten(start_dim=batch_axes) for tensor in params.values()], dim=-1)


def row(layer: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Return ``M z`` for every task: ``M`` is ``[out, k]`` or ``[task, out, k]``, and ``z`` ``[task, k]``."""
    return (layer @ z.unsqueeze(-1)).squeeze(-1)


def of_each(tensor: torch.Tensor, n_tasks: int, rank: int) -> torch.Tensor:
    """Return a tensor with a task axis: one that tasks share has ``rank`` axes, one of their own has one more."""
    return tensor.expand(n_tasks, *tensor.shape) if tensor.ndim == rank else tensor
