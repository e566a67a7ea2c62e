"""Derivatives of any network and any loss, by PyTorch's automatic differentiation, for a stack of tasks.

A Hessian-vector product differentiates the gradient's graph once more: H v = ∂(gᵀ v)/∂θ with g = ∂L/∂θ. Any pure
function will do::

    def outputs(params):                                     # of a stack [task, …]
        return (torch.einsum("tni,toi->tno", x, params["w"]),), ()

    found = AutogradDerivatives(outputs, {"w": w}, lambda d, values: d.log_prob(labels).mean(-1), second_order=True)
    found.losses, found.gradient["w"], found.product({"w": v})["w"]
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from metarl.agents.derivatives.base import HeadLoss, Outputs, one_each
from metarl.agents.networks.distributions import from_heads
from metarl.params import Params

VMAP_BYTES = 200_000
"""One layer's activations of one task, at most, for which tasks are computed side by side rather than in a loop. Below
it side by side was 1.2 to 1.5 times as fast for 8 tasks on a core; at 25 times as much it took 2 to 3 times as long."""


def batched(
    outputs: Callable[[Params, Params, torch.Tensor], Outputs],
    params: Params,
    buffers: Params,
    obs: torch.Tensor,
    side_by_side: bool,
) -> Outputs:
    """Return what a network says for a stack of tasks, differentiable any number of times.

    :param outputs: of one task's tensors, buffers and observations.
    :param params: ``[task, …]``.
    :param buffers: ``[task, …]``: what is not learnt by gradients, such as running statistics.
    :param obs: ``[task, n, *observation]``.
    :param side_by_side: compute all tasks in one operation (``torch.func.vmap``), which is several times faster where a
        task has little to do; where it has much, a loop over tasks is, because the working set stays in the cache.
    """
    if side_by_side:
        result: Outputs = torch.func.vmap(outputs)(params, buffers, obs)
        return result
    columns, fixed = ({name: _each_task(each) for name, each in tensors.items()} for tensors in (params, buffers))
    parts = [
        outputs({name: each[i] for name, each in columns.items()}, {name: each[i] for name, each in fixed.items()}, own)
        for i, own in enumerate(obs)
    ]
    heads, values = zip(*parts, strict=True)
    return tuple(map(torch.stack, zip(*heads, strict=True))), tuple(map(torch.stack, zip(*values, strict=True)))


def _each_task(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return each task's part of a tensor, unbound as a whole: the derivative of one task's slice would be a stack full
    of zeros, for each task. That of a single task is not copied.
    """
    return (tensor.squeeze(0),) if len(tensor) == 1 else tensor.unbind()


class AutogradDerivatives:
    """The gradient of each task's loss, and products with its Hessian; see :class:`~.base.Derivatives`.

    :param outputs: of a stack of parameters; task ``i``'s depend on parameters ``i`` only.
    :param params: where to differentiate, stacked ``[task, …]``.
    :param loss: the losses ``[task]``, twice differentiable in the distribution's heads and in the values.
    :param second_order: keep what :meth:`product` needs.
    """

    def __init__(
        self,
        outputs: Callable[[Params], Outputs],
        params: Params,
        loss: HeadLoss,
        second_order: bool = False,
    ) -> None:
        self._leaves = leaves(params)
        with torch.enable_grad():
            heads, values = outputs(self._leaves)
            losses = one_each(loss(from_heads(heads), values[0] if values else None), len(heads[0]))
            gradient = torch.autograd.grad(
                losses.sum(), list(self._leaves.values()), create_graph=second_order, materialize_grads=True
            )
        self.distribution = from_heads(tuple(head.detach() for head in heads))
        self.losses = losses.detach()
        self.gradient: Params = dict(zip(params, (part.detach() for part in gradient), strict=True))
        self._gradient = dict(zip(params, gradient, strict=True)) if second_order else None

    def product(self, vector: Params) -> Params:
        """Return ``H v`` of each task's loss; ``v`` is stacked like the parameters."""
        assert self._gradient is not None, "needs second_order=True"
        curved = {name: part for name, part in self._gradient.items() if part.requires_grad}
        return _pulled_back(curved, self._leaves, vector)


class AutogradLinearized:
    """Jacobian products of a network's heads; see :class:`~.base.Linearized`.

    ``Jᵀ c`` is linear in ``c``, and the derivative of ``tᵀ Jᵀ c`` in ``c`` is ``J t``: what is kept are the graphs of
    the heads and of ``Jᵀ c``.

    :param outputs: of the parameters.
    :param params: where to differentiate, each ``[…]`` or stacked ``[task, …]``.
    """

    def __init__(self, outputs: Callable[[Params], Outputs], params: Params) -> None:
        self._leaves = leaves(params)
        with torch.enable_grad():
            self._heads = outputs(self._leaves)[0]
            self._cotangents = tuple(torch.zeros_like(head).requires_grad_() for head in self._heads)
            pulled = torch.autograd.grad(
                self._heads, list(self._leaves.values()), self._cotangents, create_graph=True, materialize_grads=True
            )
        self._pulled = {name: part for name, part in zip(params, pulled, strict=True) if part.requires_grad}
        self.distribution = from_heads(tuple(head.detach() for head in self._heads))

    def jvp(self, tangents: Params) -> tuple[torch.Tensor, ...]:
        """Return the change of the heads along ``tangents``."""
        return torch.autograd.grad(
            list(self._pulled.values()),
            self._cotangents,
            [tangents[name] for name in self._pulled],
            retain_graph=True,
            materialize_grads=True,
        )

    def vjp(self, cotangents: tuple[torch.Tensor, ...]) -> Params:
        """Return the gradient of ``Σ cotangent · head`` with respect to the tensors."""
        heads = {str(index): head for index, head in enumerate(self._heads)}
        return _pulled_back(heads, self._leaves, {str(index): each for index, each in enumerate(cotangents)})


def leaves(params: Params) -> Params:
    """Return copies of tensors to differentiate in: callers may step theirs in place meanwhile."""
    return {name: tensor.detach().clone().requires_grad_() for name, tensor in params.items()}


def _pulled_back(outputs: Params, inputs: Params, cotangents: Params) -> Params:
    """Return the gradient of ``Σ cotangent · output`` in ``inputs``; nothing that it needs is used up."""
    if not outputs:
        return {name: torch.zeros_like(tensor) for name, tensor in inputs.items()}
    gradient = torch.autograd.grad(
        list(outputs.values()),
        list(inputs.values()),
        [cotangents[name] for name in outputs],
        retain_graph=True,
        materialize_grads=True,
    )
    return dict(zip(inputs, gradient, strict=True))
