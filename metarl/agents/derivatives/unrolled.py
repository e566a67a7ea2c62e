"""Paths of gradient steps that are differentiated as a whole, any number of times.

Hessian-vector products along a path cost less and need no memory that grows with its length; they are what the inner
loops of reinforcement learning use. An unrolled path is for what they cannot do: learning rates, contexts and losses
that are themselves learnt, losses of every step at once, and three levels of learning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from metarl.agents.derivatives.base import LossFunction
from metarl.params import Params

UnrolledRate = float | torch.Tensor | Mapping[str, float | torch.Tensor]
"""One rate for all tensors, or one for each (of its shape, or one number); those that are not named stay."""


class UnrolledPath:
    """``θ_{k+1} = θ_k − α_k ∘ ∂L_k/∂θ(θ_k)``, with an end that is a differentiable function of its start.

    So it is of the rates, and of whatever else the losses depend on. The end of a path may be the loss of another
    level::

        inner = UnrolledPath([support_loss] * 3, [0.1] * 3)
        outer = UnrolledPath([inner.then(query_loss)], [0.01])    # a step of MAML
        losses = outer.then(test_loss)(params)                     # [task]
        torch.autograd.grad(losses.sum(), list(params.values()))   # third derivatives of support_loss

    :param losses: one function for each step, from a stack of parameters ``[task, …]`` to the losses ``[task]``; task
        ``i``'s depends on parameters ``i`` only. :meth:`FunctionalPolicy.loss_function` makes them.
    :param rates: one learning rate for each step; a tensor that requires a gradient is differentiated like the start.
    :param longest: a task's step that is longer than this is shortened to it, over all its tensors; None: no step is.
    """

    def __init__(
        self, losses: Sequence[LossFunction], rates: Sequence[UnrolledRate], longest: float | None = None
    ) -> None:
        self._steps = list(zip(losses, rates, strict=True))
        self._longest = longest

    def points(self, params: Params) -> list[Params]:
        """Return ``θ₀ … θ_K``.

        :param params: ``θ₀``, stacked ``[task, …]``.
        """
        points = [params]
        for loss, rate in self._steps:
            points.append(_step(loss, points[-1], rate, self._longest))
        return points

    def end(self, params: Params) -> Params:
        """Return ``θ_K`` of the path from ``params``."""
        return self.points(params)[-1]

    def then(self, loss: LossFunction) -> LossFunction:
        """Return a loss at the end of the path as a function of its start."""
        return lambda params: loss(self.end(params))


def _step(loss: Callable[[Params], torch.Tensor], params: Params, rate: UnrolledRate, longest: float | None) -> Params:
    rates = rate if isinstance(rate, Mapping) else dict.fromkeys(params, rate)
    with torch.enable_grad():
        # A start that nobody differentiates in is a leaf of its own here.
        start = {
            name: tensor.detach().requires_grad_() if name in rates and not tensor.requires_grad else tensor
            for name, tensor in params.items()
        }
        moving = {name: tensor for name, tensor in start.items() if name in rates}
        gradient = torch.autograd.grad(
            loss(start).sum(), list(moving.values()), create_graph=True, materialize_grads=True
        )
        steps = {name: rates[name] * slope for name, slope in zip(moving, gradient, strict=True)}
        if longest is not None:
            steps = _shortened(steps, longest)
        moved = {name: tensor - steps[name] for name, tensor in moving.items()}
    return {**params, **moved}


def _shortened(steps: Params, longest: float) -> Params:
    """Return the steps of tasks, those that are longer than ``longest`` shortened to it."""
    length = torch.linalg.vector_norm(torch.cat([step.flatten(1) for step in steps.values()], 1), dim=1)
    share = longest / length.clamp(min=longest)
    return {name: share.view(-1, *[1] * (step.dim() - 1)) * step for name, step in steps.items()}
