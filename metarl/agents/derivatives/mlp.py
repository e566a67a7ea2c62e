"""Derivatives of multi-layer perceptrons by hand, for a stack of tasks.

A Hessian-vector product is Pearlmutter's (1994): one pass forward that carries the change of every activation along the
vector, and one back that carries the change of every error. What does not depend on the vector is kept, so a product
costs its matrix products and little else; differentiating a gradient's graph takes about twice as long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from metarl.agents.derivatives.base import HeadLoss, complete, one_each
from metarl.agents.networks.distributions import from_heads
from metarl.agents.networks.products import add_outer_, add_product_, linear, outer, product
from metarl.agents.networks.tower import Tower
from metarl.params import Params


class MlpDerivatives:
    """The gradient of each task's loss, and products with its Hessian; see :class:`~.base.Derivatives`.

    :param towers: the actor, and the critic where there is one.
    :param params: where to differentiate, stacked ``[task, …]``.
    :param x: ``[task, n, observation]``, flat.
    :param loss: the losses at ``x``, twice differentiable in the distribution's heads and in the values.
    :param second_order: keep what :meth:`product` needs.
    """

    def __init__(
        self, towers: Sequence[Tower], params: Params, x: torch.Tensor, loss: HeadLoss, second_order: bool = False
    ) -> None:
        self._params = {name: tensor.detach() for name, tensor in params.items()}
        self._towers = [_TowerPass(tower, self._params, x, second_order) for tower in towers]
        # The towers' heads first, then the tensor that is a head itself.
        outputs = [tower.output for tower in self._towers]
        # A copy, because callers step parameters in place while other blocks of the same matrix are differentiated.
        shared = [self._params["log_std"].clone()] if "log_std" in self._params else []
        self._heads = tuple(head.detach().requires_grad_() for head in (*outputs, *shared))
        tops, rest = self._split(self._heads)
        with torch.enable_grad():
            values = tops[1].squeeze(-1) if len(tops) > 1 else None
            self.distribution = from_heads((tops[0], *rest))
            losses = one_each(loss(self.distribution, values), len(x))
            head_gradient = torch.autograd.grad(
                losses.sum(), self._heads, create_graph=second_order, materialize_grads=True
            )
        self._head_gradient = head_gradient if second_order else None
        self.losses = losses.detach()
        errors, rest = self._split(tuple(part.detach() for part in head_gradient))
        gradient: Params = dict(zip(("log_std",), rest, strict=False))
        for tower, error in zip(self._towers, errors, strict=True):
            gradient.update(tower.backward(error, keep=second_order))
        self.gradient = complete(gradient, self._params)
        if not second_order:
            self._towers = []

    def _split(self, heads: tuple[torch.Tensor, ...]) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
        return heads[: len(self._towers)], heads[len(self._towers) :]

    @torch.no_grad()
    def product(self, vector: Params) -> Params:
        """Return ``H v`` of each task's loss; ``v`` is stacked like the parameters."""
        assert self._head_gradient is not None, "needs second_order=True"
        changes = [tower.forward_change(vector) for tower in self._towers]
        moved = [change.outputs[-1] for change in changes]
        if "log_std" in self._params:
            moved.append(vector["log_std"])
        # A loss's Hessian in the heads is symmetric, and its tensors are small: torch differentiates it once more.
        curved = [index for index, part in enumerate(self._head_gradient) if part.requires_grad]
        bent = torch.autograd.grad(
            [self._head_gradient[index] for index in curved],
            self._heads,
            [moved[index] for index in curved],
            retain_graph=True,
            materialize_grads=True,
        )
        errors, rest = self._split(bent)
        result: Params = dict(zip(("log_std",), rest, strict=False))
        for tower, change, error in zip(self._towers, changes, errors, strict=True):
            result.update(tower.backward_change(change, error, vector))
        return complete(result, self._params)


class MlpLinearized:
    """Jacobian products of the actor's heads; see :class:`~.base.Linearized`. What is kept are its activations.

    :param actor: whose output is the distribution's first head.
    :param params: where to differentiate, each ``[…]`` or stacked ``[task, …]``.
    :param x: ``[n, observation]`` or ``[task, n, observation]``, flat.
    """

    def __init__(self, actor: Tower, params: Params, x: torch.Tensor) -> None:
        self._params = {name: tensor.detach() for name, tensor in params.items()}
        self._pass = _TowerPass(actor, self._params, x, second_order=False)
        self._own = [self._params["log_std"]] if "log_std" in self._params else []
        self.distribution = from_heads((self._pass.output, *self._own))

    @torch.no_grad()
    def jvp(self, tangents: Params) -> tuple[torch.Tensor, ...]:
        """Return the change of the heads along ``tangents``."""
        change = self._pass.forward_change(tangents).outputs[-1]
        return (change, tangents["log_std"]) if self._own else (change,)

    @torch.no_grad()
    def vjp(self, cotangents: tuple[torch.Tensor, ...]) -> Params:
        """Return the gradient of ``Σ cotangent · head`` with respect to the tensors; a critic's is 0."""
        gradient: Params = dict(zip(("log_std",), cotangents[1:], strict=False))
        gradient.update(self._pass.backward(cotangents[0]))
        return complete(gradient, self._params)


@dataclass(frozen=True)
class _Change:
    """How a tower's layers change along a vector.

    :param inputs: of every linear layer; the observations do not change.
    :param outputs: of every linear layer.
    """

    inputs: list[torch.Tensor | None]
    outputs: list[torch.Tensor]


class _TowerPass:
    """One tower on one batch: its output, and what the passes along vectors need."""

    @torch.no_grad()
    def __init__(self, tower: Tower, params: Params, x: torch.Tensor, second_order: bool) -> None:
        self._params = params
        self._names = tower.linear_names
        self._inputs = [x]
        self._slopes: list[torch.Tensor] = []
        self._bends: list[torch.Tensor | None] = []
        self._errors: list[torch.Tensor] = []
        self._curls: list[torch.Tensor | None] = [None] * len(tower.activations)
        x = self._linear(0, x)
        for index, layer in enumerate(tower.activations, start=1):
            x, slope, bend = activation_derivatives(layer, x, second_order)
            self._inputs.append(x)
            self._slopes.append(slope)
            self._bends.append(bend)
            x = self._linear(index, x)
        self.output = x

    def _linear(self, index: int, x: torch.Tensor) -> torch.Tensor:
        name = self._names[index]
        return linear(x, self._params[f"{name}.weight"], self._params[f"{name}.bias"])

    @torch.no_grad()
    def backward(self, error: torch.Tensor, keep: bool = False) -> Params:
        """Return the gradient of the tower's tensors, given that of its output.

        :param keep: keep the gradient at every linear layer's output, and how the slopes' change enters it.
        """
        errors: list[torch.Tensor] = [error]
        curls: list[torch.Tensor | None] = []
        for index in range(len(self._slopes) - 1, -1, -1):
            back = product(errors[0], self._params[f"{self._names[index + 1]}.weight"])
            bend = self._bends[index]
            curls.insert(0, None if bend is None else back * bend)
            errors.insert(0, back.mul_(self._slopes[index]))
        if keep:
            self._errors, self._curls, self._bends = errors, curls, []
        gradient: Params = {}
        for name, own, x in zip(self._names, errors, self._inputs, strict=True):
            gradient[f"{name}.weight"] = outer(own, x)
            gradient[f"{name}.bias"] = own.sum(-2)
        return gradient

    def forward_change(self, vector: Params) -> _Change:
        """Return how the layers change along ``vector``."""
        inputs: list[torch.Tensor | None] = [None]
        outputs: list[torch.Tensor] = []
        for index, name in enumerate(self._names):
            out = linear(self._inputs[index], vector[f"{name}.weight"], vector[f"{name}.bias"])
            moved = inputs[index]
            if moved is not None:
                add_product_(out, moved, self._params[f"{name}.weight"].mT)
            outputs.append(out)
            if index < len(self._slopes):
                # Without curvature the output's change is not needed again.
                inputs.append(
                    out.mul_(self._slopes[index]) if self._curls[index] is None else out * self._slopes[index]
                )
        return _Change(inputs, outputs)

    def backward_change(self, change: _Change, error: torch.Tensor, vector: Params) -> Params:
        """Return how the gradient changes along ``vector``.

        :param change: of the layers along it.
        :param error: the change of the gradient at the tower's output.
        """
        result: Params = {}
        for index in range(len(self._names) - 1, -1, -1):
            name = self._names[index]
            weight = outer(error, self._inputs[index])
            moved = change.inputs[index]
            if moved is not None:
                add_outer_(weight, self._errors[index], moved)
            result[f"{name}.weight"] = weight
            result[f"{name}.bias"] = error.sum(-2)
            if index:
                error = product(error, self._params[f"{name}.weight"])
                add_product_(error, self._errors[index], vector[f"{name}.weight"])
                error.mul_(self._slopes[index - 1])
                curl = self._curls[index - 1]
                if curl is not None:
                    error.addcmul_(curl, change.outputs[index - 1])
        return result


def activation_derivatives(
    layer: nn.Module, x: torch.Tensor, second_order: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return an elementwise activation, its slope and its second derivative at ``x``, which may be overwritten.

    All are kept for long: temporary tensors between them would leave holes in the heap that nothing else fits into.

    :param second_order: without it, or where it is 0 everywhere, the second derivative is None.
    """
    if isinstance(layer, nn.Tanh):
        y = x.tanh_()
        slope = torch.addcmul(y.new_ones(()), y, y, value=-1.0)  # 1 − y², in one pass
        return y, slope, (slope * y).mul_(-2.0) if second_order else None
    if isinstance(layer, nn.ReLU):
        y = x.relu_()
        return y, y.sign(), None
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        value: torch.Tensor = layer(leaf)
        (slope,) = torch.autograd.grad(value.sum(), leaf, create_graph=second_order)
        bend = None
        if slope.requires_grad:
            (bend,) = torch.autograd.grad(slope.sum(), leaf, materialize_grads=True)
    return value.detach(), slope.detach(), bend
