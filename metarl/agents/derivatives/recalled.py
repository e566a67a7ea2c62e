"""Layers whose outputs are known already: only their derivatives are computed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def recalled(
    layer: nn.Module, weight: torch.Tensor, bias: torch.Tensor, x: torch.Tensor, output: torch.Tensor
) -> torch.Tensor:
    """Return ``output = ReLU(layer(x))``, differentiable once in ``weight``, ``bias`` and ``x``.

    :param layer: a convolution or a linear layer, which says its stride and padding.
    :param output: what it said at these very tensors.
    """
    result: torch.Tensor = _Recalled.apply(layer, weight, bias, x, output)  # type: ignore[no-untyped-call]
    return result


class _Recalled(torch.autograd.Function):
    """``y = ReLU(W x + b)`` where y is known: with g = ∂L/∂y ∘ [y > 0], ∂L/∂W = g xᵀ, ∂L/∂b = Σ g and ∂L/∂x = Wᵀ g."""

    @staticmethod
    def forward(
        ctx: Any, layer: nn.Module, weight: torch.Tensor, bias: torch.Tensor, x: torch.Tensor, output: torch.Tensor
    ) -> torch.Tensor:
        ctx.layer = layer
        ctx.save_for_backward(weight, x, output)
        return output.detach()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        layer, (weight, x, output) = ctx.layer, ctx.saved_tensors
        slope = torch.ops.aten.threshold_backward(gradient, output, 0)
        if isinstance(layer, nn.Linear):
            return None, slope.T @ x, slope.sum(0), slope @ weight, None
        assert isinstance(layer, nn.Conv2d)
        wanted = [bool(ctx.needs_input_grad[3]), True, True]
        d_x, d_weight, d_bias = torch.ops.aten.convolution_backward(
            slope, x, weight, [len(weight)], layer.stride, layer.padding, layer.dilation, False, [0, 0], 1, wanted
        )
        return None, d_weight, d_bias, d_x, None
