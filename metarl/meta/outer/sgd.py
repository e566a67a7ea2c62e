"""Plain gradient descent on any meta-objective."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from metarl.checks import NONE, NOT_NEGATIVE, POSITIVE, choice, number
from metarl.frozen import SetOnce
from metarl.meta.outer.base import OuterStep, register_outer, require_finite
from metarl.meta.outer.objective import MetaObjective
from metarl.params import Params

STEP_SIZE = number("(0, ∞)", "final_learning_rate is where it falls to over training")
SCHEDULES = ("linear", "cosine")


@register_outer("sgd")
class SGD(SetOnce):
    """Plain gradient descent on the meta-parameters.

    :param learning_rate: step size.
    :param final_learning_rate: where the step size falls to over training; None leaves it as it is.
    :param max_grad_norm: scale longer gradients down to this norm; None leaves them.
    :param schedule: how it falls there from α to α_T while the share p of training goes from 0 to 1: ``"linear"``, or
        ``"cosine"``, α_T + ½ (α − α_T)(1 + cos πp) (Loshchilov and Hutter, 2017).
    """

    evaluates = False

    def __init__(
        self,
        *,
        learning_rate: float = 0.01,
        final_learning_rate: float | None = None,
        max_grad_norm: float | None = None,
        schedule: str = "linear",
    ) -> None:
        self.learning_rate = STEP_SIZE("learning_rate", learning_rate)
        self.final_learning_rate = (NOT_NEGATIVE | NONE)("final_learning_rate", final_learning_rate)
        self.max_grad_norm = (POSITIVE | NONE)("max_grad_norm", max_grad_norm)
        self.schedule: str = choice(*SCHEDULES)("schedule", schedule)

    def _rate(self, remaining: float) -> float:
        """Return the step size where ``remaining`` of training is left."""
        final = self.learning_rate if self.final_learning_rate is None else self.final_learning_rate
        left = remaining if self.schedule == "linear" else 0.5 * (1.0 - math.cos(math.pi * remaining))
        return final + (self.learning_rate - final) * left

    def _gradient(self, objective: MetaObjective) -> tuple[Params, dict[str, float]]:
        result = objective.gradient()
        length = result.norm
        if not math.isfinite(length):
            require_finite(result.gradient)
        stats = {"meta/meta_grad_norm": length}
        if not math.isnan(result.loss):
            stats["meta/meta_loss"] = result.loss
        share = result.second_order_share
        if share is not None:
            stats["meta/second_order_share"] = share
        gradient = result.gradient
        if self.max_grad_norm is not None and length > self.max_grad_norm:
            gradient = {name: tensor * (self.max_grad_norm / length) for name, tensor in gradient.items()}
        return gradient, stats

    def step(self, objective: MetaObjective, params: Params, remaining: float = 1.0) -> OuterStep:
        gradient, stats = self._gradient(objective)
        rate = stats["train/learning_rate"] = self._rate(remaining)
        return OuterStep({name: tensor - rate * gradient[name] for name, tensor in params.items()}, stats)

    def state(self) -> dict[str, torch.Tensor]:
        return {}

    def load_state(self, state: Mapping[str, torch.Tensor], params: Params) -> None:
        del state, params
