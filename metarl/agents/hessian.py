"""Exact first and second derivatives of a loss that sees a policy through its heads, for a stack of tasks.

A Hessian-vector product is Pearlmutter's (1994): one pass forward that carries the change of every activation along the
vector, and one back that carries the change of every error. What does not depend on the vector is kept, so a product
costs its matrix products and little else; differentiating a gradient's graph takes about twice as long.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from metarl.agents.distributions import Distribution
from metarl.agents.policy import FunctionalPolicy, Params, linear, outer, tanh_slope


class LossDerivatives:
    """The gradient of each task's loss, and products with its Hessian.

    :param policy: the policy.
    :param params: where to differentiate, stacked ``[task, …]``.
    :param obs: ``[task, n, *observation]``.
    :param loss: returns the losses ``[task]`` of a distribution at ``obs``, twice differentiable in its heads.
    :param second_order: keep what :meth:`product` needs.
    """

    def __init__(
        self,
        policy: FunctionalPolicy,
        params: Params,
        obs: torch.Tensor,
        loss: Callable[[Distribution], torch.Tensor],
        second_order: bool = False,
    ) -> None:
        self._params = {name: tensor.detach() for name, tensor in params.items()}
        self._names = policy.linear_names
        self._inputs = [policy.flatten(obs)]
        self._slopes: list[torch.Tensor] = []
        bends: list[torch.Tensor | None] = []
        with torch.no_grad():
            x = self._linear(0, self._inputs[0])
            for index, layer in enumerate(policy.activations, start=1):
                x, slope, bend = activation_derivatives(layer, x, second_order)
                self._inputs.append(x)
                self._slopes.append(slope)
                bends.append(bend)
                x = self._linear(index, x)
        self._heads = tuple(head.detach().requires_grad_() for head in policy.heads(x, self._params))
        with torch.enable_grad():
            losses = loss(policy.from_heads(self._heads))
            head_gradient = torch.autograd.grad(
                losses.sum(), self._heads, create_graph=second_order, materialize_grads=True
            )
        self._head_gradient = head_gradient if second_order else None
        self.losses = losses.detach()
        """``[task]``."""
        with torch.no_grad():
            self._errors, self._curls = self._backward(head_gradient[0].detach(), bends)
            gradient: Params = {}
            for index, name in enumerate(self._names):
                gradient[f"{name}.weight"] = outer(self._errors[index], self._inputs[index])
                gradient[f"{name}.bias"] = self._errors[index].sum(-2)
        if len(head_gradient) > 1:
            gradient["log_std"] = head_gradient[1].detach()
        self.gradient: Params = {name: gradient[name] for name in self._params}
        """Of each task's loss, stacked."""
        if not second_order:
            self._inputs, self._slopes, self._errors, self._curls = [], [], [], []

    def _linear(self, index: int, x: torch.Tensor) -> torch.Tensor:
        name = self._names[index]
        return linear(x, self._params[f"{name}.weight"], self._params[f"{name}.bias"])

    def _backward(
        self, error: torch.Tensor, bends: list[torch.Tensor | None]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor | None]]:
        """Return the gradient at every linear layer's output, and how the slopes' change enters it."""
        errors: list[torch.Tensor] = [error]
        curls: list[torch.Tensor | None] = []
        for index in range(len(self._slopes) - 1, -1, -1):
            back = errors[0] @ self._params[f"{self._names[index + 1]}.weight"]
            bend = bends[index]
            curls.insert(0, None if bend is None else back * bend)
            errors.insert(0, back.mul_(self._slopes[index]))
        return errors, curls

    @torch.no_grad()
    def product(self, vector: Params) -> Params:
        """Return ``H v`` of each task's loss.

        :param vector: stacked like the parameters.
        """
        assert self._head_gradient is not None, "needs second_order=True"
        last = len(self._names) - 1
        # Forward: the change of every linear layer's output, and of every layer's input.
        outputs: list[torch.Tensor] = []
        changes: list[torch.Tensor | None] = [None]
        for index, name in enumerate(self._names):
            out = linear(self._inputs[index], vector[f"{name}.weight"], vector[f"{name}.bias"])
            change = changes[index]
            if change is not None:
                out.baddbmm_(change, self._params[f"{name}.weight"].mT)
            outputs.append(out)
            if index < last:
                # Without curvature the output's change is not needed again.
                changes.append(
                    out.mul_(self._slopes[index]) if self._curls[index] is None else out * self._slopes[index]
                )
        moved = (outputs[last], vector["log_std"]) if len(self._heads) > 1 else (outputs[last],)
        # A loss's Hessian in the heads is symmetric, and its tensors are small: torch differentiates it once more.
        bent = torch.autograd.grad(self._head_gradient, self._heads, moved, retain_graph=True, materialize_grads=True)
        # Back: the change of every linear layer's error.
        error = bent[0]
        result: Params = {}
        for index in range(last, -1, -1):
            name = self._names[index]
            weight = outer(error, self._inputs[index])
            change = changes[index]
            if change is not None:
                weight.baddbmm_(self._errors[index].mT, change)
            result[f"{name}.weight"] = weight
            result[f"{name}.bias"] = error.sum(-2)
            if index:
                error = error @ self._params[f"{name}.weight"]
                error.baddbmm_(self._errors[index], vector[f"{name}.weight"])
                error.mul_(self._slopes[index - 1])
                curl = self._curls[index - 1]
                if curl is not None:
                    error.addcmul_(curl, outputs[index - 1])
        if len(bent) > 1:
            result["log_std"] = bent[1]
        return {name: result[name] for name in self._params}


def activation_derivatives(
    layer: nn.Module, x: torch.Tensor, second_order: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return an elementwise activation, its slope and its second derivative at ``x``.

    :param second_order: without it, or where it is 0 everywhere, the second derivative is None.
    """
    if isinstance(layer, nn.Tanh):
        y = torch.tanh(x)
        slope = tanh_slope(y)
        return y, slope, (slope * y).mul_(-2.0) if second_order else None
    if isinstance(layer, nn.ReLU):
        y = torch.relu(x)
        return y, (y > 0).to(x.dtype), None
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        value: torch.Tensor = layer(leaf)
        (slope,) = torch.autograd.grad(value.sum(), leaf, create_graph=second_order)
        bend = None
        if slope.requires_grad:
            (bend,) = torch.autograd.grad(slope.sum(), leaf, materialize_grads=True)
    return value.detach(), slope.detach(), bend
