"""The trust region: natural gradient steps of bounded divergence, on any meta-objective that has policies."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch

from metarl.checks import NOT_NEGATIVE, ROUNDS, number
from metarl.frozen import SetOnce
from metarl.meta.outer.base import OuterStep, register_outer, require_finite
from metarl.meta.outer.objective import MetaObjective
from metarl.params import Params, dot

SMALLEST_KL = 1e-6
"""The smallest trust region: float32 computes a mean KL divergence to 3e-8, and a smaller one would not be kept to."""


@register_outer("trpo")
class TrustRegion(SetOnce):
    """Trust region policy optimisation (Schulman et al., 2015) on a meta-objective.

    The step is the natural gradient scaled to the trust region, then backtracked until the loss, computed with
    adaptation applied again, has fallen and the mean KL divergence is within bounds. Where no length is accepted the
    parameters stay exactly as they were. A direction along which the loss does not fall, FOMAML's at times, is given up
    before the divergence is too small to matter: all lengths together take several times as long as the step.

    :param max_kl: bound on the mean KL divergence of the adapted policies, in nats; at least :data:`SMALLEST_KL`.
    :param cg_steps: conjugate gradient iterations.
    :param cg_damping: added to the diagonal of the curvature.
    :param line_search_steps: lengths tried.
    :param line_search_shrink: factor from one length to the next.
    :param min_kl_share: the search is given up where the divergence is below this share of ``max_kl`` and the loss has
        not fallen; 0, as in the reference: every length is tried.
    """

    evaluates = True

    def __init__(
        self,
        *,
        max_kl: float = 0.01,
        cg_steps: int = 10,
        cg_damping: float = 1e-5,
        line_search_steps: int = 15,
        line_search_shrink: float = 0.8,
        min_kl_share: float = 0.25,
    ) -> None:
        self.max_kl = number(f"[{SMALLEST_KL:g}, ∞)")("max_kl", max_kl)
        self.cg_steps = ROUNDS("cg_steps", cg_steps)
        self.cg_damping = NOT_NEGATIVE("cg_damping", cg_damping)
        self.line_search_steps = ROUNDS("line_search_steps", line_search_steps)
        self.line_search_shrink = number("(0, 1)")("line_search_shrink", line_search_shrink)
        self.min_kl_share = number("[0, 1)")("min_kl_share", min_kl_share)

    def step(self, objective: MetaObjective, params: Params, remaining: float = 1.0) -> OuterStep:
        del remaining
        result = objective.gradient()
        require_finite(result.gradient)
        stats = {"meta/meta_loss": result.loss, "meta/meta_grad_norm": result.norm}
        share = result.second_order_share
        if share is not None:
            stats["meta/second_order_share"] = share

        def curvature(vector: Params) -> Params:
            product = objective.curvature_product(vector)
            return {name: tensor + self.cg_damping * vector[name] for name, tensor in product.items()}

        direction, curved = conjugate_gradient(curvature, result.gradient, self.cg_steps)
        quadratic = 0.5 * dot(direction, curved)
        descends = math.isfinite(quadratic) and quadratic > 0.0
        length = math.sqrt(self.max_kl / quadratic) if descends else 0.0
        attempts = 0
        while descends and attempts < self.line_search_steps:
            factor = length * self.line_search_shrink**attempts
            attempts += 1
            trial = {name: tensor - factor * direction[name] for name, tensor in params.items()}
            loss, kl = objective.evaluate(trial)
            if loss < result.loss and kl <= self.max_kl:
                stats["train/kl_divergence_loss"] = kl
                stats["train/is_line_search_success"] = 1.0
                stats["train/line_search_steps"] = float(attempts)
                stats["train/policy_objective"] = -loss
                return OuterStep(trial, stats)
            if kl < self.min_kl_share * self.max_kl:
                break
        stats["train/kl_divergence_loss"] = 0.0
        stats["train/is_line_search_success"] = 0.0
        stats["train/line_search_steps"] = float(attempts)
        stats["train/policy_objective"] = -result.loss
        return OuterStep(params, stats)

    def state(self) -> dict[str, torch.Tensor]:
        return {}

    def load_state(self, state: Mapping[str, torch.Tensor], params: Params) -> None:
        del state, params


def conjugate_gradient(
    product: Callable[[Params], Params], target: Params, n_steps: int, tolerance: float = 1e-10
) -> tuple[Params, Params]:
    """Solve ``A x = target`` for a symmetric positive definite ``A``, from ``x = 0``.

    :param product: returns ``A v``.
    :param n_steps: at most that many products.
    :param tolerance: stop when the squared residual falls below it.
    :return: ``x`` and ``A x``, the latter kept up to date at no further product.
    """
    x = {name: torch.zeros_like(tensor) for name, tensor in target.items()}
    residual = {name: tensor.clone() for name, tensor in target.items()}
    direction = {name: tensor.clone() for name, tensor in target.items()}
    square = dot(residual, residual)
    for _ in range(n_steps):
        if square < tolerance:
            break
        curved = product(direction)
        bend = dot(direction, curved)
        if not bend > 0.0:
            break
        alpha = square / bend
        for name in x:
            x[name] += alpha * direction[name]
            residual[name] -= alpha * curved[name]
        following = dot(residual, residual)
        direction = {name: residual[name] + (following / square) * tensor for name, tensor in direction.items()}
        square = following
    return x, {name: tensor - residual[name] for name, tensor in target.items()}
