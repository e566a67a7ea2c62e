"""Gradients of networks that kept what their layers said: only derivatives are computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, NoReturn

import torch
from torch import nn

from metarl.agents.derivatives.autograd import batched
from metarl.agents.derivatives.base import HeadLoss, Outputs, one_each
from metarl.agents.networks.distributions import from_heads
from metarl.params import Params


class Recalled(NamedTuple):
    """A layer with a ReLU behind it, y = ReLU(W x + b), whose y is known.

    :param name: of its tensors.
    :param layer: a convolution or a linear layer, which says its stride and padding.
    :param output: y at the very parameters that are differentiated at, ``[task, n, …]``.
    """

    name: str
    layer: nn.Module
    output: torch.Tensor


class RecalledDerivatives:
    """The gradient of each task's loss in a chain of layers and in what follows; see :class:`~.base.Derivatives`.

    With g = ∂L/∂y ∘ [y > 0]: ∂L/∂W = g xᵀ, ∂L/∂b = Σ g and ∂L/∂x = Wᵀ g. What comes after is differentiated by
    autograd. The largest gradients are written where they are wanted, since to copy them takes longer than to compute
    some of them.

    :param chain: the layers, from the observation on.
    :param seen: what the first one sees of a task, ``[n, …]``.
    :param outputs: of one task's tensors, no buffers, and the last layer's output, ``[n, feature]``.
    :param params: where to differentiate, stacked ``[task, …]``.
    :param loss: the losses ``[task]``.
    :param into: takes the gradient; tensors such as the parameters.
    """

    def __init__(
        self,
        chain: Sequence[Recalled],
        seen: Callable[[int], torch.Tensor],
        outputs: Callable[[Params, Params, torch.Tensor], Outputs],
        params: Params,
        loss: HeadLoss,
        into: Params,
    ) -> None:
        recalled = {f"{each.name}.{kind}" for each in chain for kind in ("weight", "bias")}
        # Other tasks' rows of the same memory may be stepped meanwhile: .data does not count their steps as this one's.
        leaves = {name: each.data.requires_grad_() for name, each in params.items() if name not in recalled}
        features = chain[-1].output.flatten(2).detach().requires_grad_()
        with torch.enable_grad():
            heads, values = batched(outputs, leaves, {}, features, side_by_side=False)
            losses = one_each(loss(from_heads(heads), values[0]), len(heads[0]))
            slopes, *others = torch.autograd.grad(losses.sum(), [features, *leaves.values()], materialize_grads=True)
        self.distribution = from_heads(tuple(head.detach() for head in heads))
        self.losses = losses.detach()
        self.gradient = into
        with torch.no_grad():
            for name, found in zip(leaves, others, strict=True):
                into[name].copy_(found)
            for task, slope in enumerate(slopes):
                own = {name: params[name][task] for name in recalled}
                self._pull_back(chain, task, seen(task), slope, own, {name: into[name][task] for name in recalled})

    @staticmethod
    def _pull_back(
        chain: Sequence[Recalled], task: int, seen: torch.Tensor, slope: torch.Tensor, params: Params, into: Params
    ) -> None:
        """Write one task's gradient in the chain, given that in its output."""
        for place in reversed(range(len(chain))):
            name, layer, known = chain[place]
            y, x, further = known[task], chain[place - 1].output[task] if place else seen, place > 0
            weight, d_weight, d_bias = params[f"{name}.weight"], into[f"{name}.weight"], into[f"{name}.bias"]
            slope = slope.view(y.shape)
            if y.ndim == 4:  # images, whose layout is another than flat features'
                slope = slope.contiguous(memory_format=torch.channels_last)
            slope = torch.ops.aten.threshold_backward(slope, y, 0)
            if isinstance(layer, nn.Linear):
                torch.mm(slope.T, x.flatten(1), out=d_weight)
                torch.sum(slope, 0, out=d_bias)
                slope = slope @ weight if further else slope
                continue
            assert isinstance(layer, nn.Conv2d)
            found = torch.ops.aten.convolution_backward(
                slope,
                x,
                weight,
                [len(weight)],
                layer.stride,
                layer.padding,
                layer.dilation,
                False,
                [0, 0],
                1,
                [further, True, True],
            )
            slope = found[0]
            d_weight.copy_(found[1])
            d_bias.copy_(found[2])

    def product(self, vector: Params) -> NoReturn:
        """There is no second order of what is only recalled."""
        raise TypeError("layers that are recalled have no second order: differentiate without keeping them")
