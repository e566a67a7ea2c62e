"""Outer optimisers: plain gradient steps and the trust region, on any meta-objective (``objective.py``)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from metarl.checks import NONE, NOT_NEGATIVE, POSITIVE, ROUNDS, check_arguments, number
from metarl.errors import CheckpointError, NonFiniteError, unknown_name
from metarl.files.schema import LARGEST
from metarl.frozen import SetOnce
from metarl.meta.outer.objective import MetaObjective
from metarl.params import Params, dot, norm

SMALLEST_KL = 1e-6
"""The smallest trust region: float32 computes a mean KL divergence to 3e-8, and a smaller one would not be kept to."""
STEP_SIZE = number("(0, ∞)", "final_learning_rate is where it falls to, linearly over training")


@dataclass(frozen=True)
class OuterStep:
    """What an outer step did.

    :param params: the new meta-parameters; the old ones where a line search failed.
    :param stats: scalars for the log, under SB3's keys where SB3 has the thing.
    """

    params: Params
    stats: dict[str, float]


class Outer(Protocol):
    """An outer optimiser; its state is a flat dict of tensors so that checkpoints can hold it."""

    def step(self, objective: MetaObjective, params: Params, remaining: float = 1.0) -> OuterStep:
        """Return the next meta-parameters.

        :param remaining: the share of training that is left, which annealed step sizes go with.
        """
        ...

    def state(self) -> dict[str, torch.Tensor]:
        """Return the optimiser's tensors, by name."""
        ...

    def load_state(self, state: Mapping[str, torch.Tensor], params: Params) -> None:
        """Restore what :meth:`state` returned.

        :param params: the meta-parameters that the state belongs to.
        :raises CheckpointError: it does not fit them.
        """
        ...


def _check_finite(gradient: Params) -> None:
    for name, tensor in gradient.items():
        if not bool(torch.isfinite(tensor).all()):
            raise NonFiniteError(f"non-finite meta-gradient in {name}")


class SGD(SetOnce):
    """Plain gradient descent on the meta-parameters.

    :param learning_rate: step size.
    :param final_learning_rate: where the step size falls to, linearly over training; None leaves it as it is.
    :param max_grad_norm: scale longer gradients down to this norm; None leaves them.
    """

    def __init__(
        self,
        *,
        learning_rate: float = 0.01,
        final_learning_rate: float | None = None,
        max_grad_norm: float | None = None,
    ) -> None:
        self.learning_rate = STEP_SIZE("learning_rate", learning_rate)
        self.final_learning_rate = (NOT_NEGATIVE | NONE)("final_learning_rate", final_learning_rate)
        self.max_grad_norm = (POSITIVE | NONE)("max_grad_norm", max_grad_norm)

    def _rate(self, remaining: float) -> float:
        """Return the step size where ``remaining`` of training is left."""
        final = self.learning_rate if self.final_learning_rate is None else self.final_learning_rate
        return final + (self.learning_rate - final) * remaining

    def _gradient(self, objective: MetaObjective) -> tuple[Params, dict[str, float]]:
        result = objective.gradient()
        _check_finite(result.gradient)
        length = norm(result.gradient)
        stats = {"meta/meta_grad_norm": length}
        if not math.isnan(result.loss):
            stats["meta/meta_loss"] = result.loss
        if result.second_order_share is not None:
            stats["meta/second_order_share"] = result.second_order_share
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


class Adam(SGD):
    """Adam (Kingma & Ba, 2015) on the meta-parameters.

    :param learning_rate: step size.
    :param beta1: decay of the first moment.
    :param beta2: decay of the second moment.
    :param eps: added to the denominator.
    :param final_learning_rate: as in :class:`SGD`.
    :param max_grad_norm: as in :class:`SGD`.
    """

    def __init__(
        self,
        *,
        learning_rate: float = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        final_learning_rate: float | None = None,
        max_grad_norm: float | None = None,
    ) -> None:
        super().__init__(
            learning_rate=learning_rate, final_learning_rate=final_learning_rate, max_grad_norm=max_grad_norm
        )
        self.beta1 = number("[0, 1)")("beta1", beta1)
        self.beta2 = number("[0, 1)")("beta2", beta2)
        self.eps = POSITIVE("eps", eps)
        self._count = 0
        self._moments: dict[str, torch.Tensor] = {}

    def step(self, objective: MetaObjective, params: Params, remaining: float = 1.0) -> OuterStep:
        gradient, stats = self._gradient(objective)
        rate = stats["train/learning_rate"] = self._rate(remaining)
        self._count += 1
        new: Params = {}
        for name, tensor in params.items():
            g = gradient[name]
            first = self._moments.get(f"first/{name}", torch.zeros_like(g)).lerp(g, 1.0 - self.beta1)
            second = self._moments.get(f"second/{name}", torch.zeros_like(g)).lerp(g.square(), 1.0 - self.beta2)
            self._moments[f"first/{name}"], self._moments[f"second/{name}"] = first, second
            unbiased = first / (1.0 - self.beta1**self._count)
            spread = (second / (1.0 - self.beta2**self._count)).sqrt()
            new[name] = tensor - rate * unbiased / (spread + self.eps)
        return OuterStep(new, stats)

    def state(self) -> dict[str, torch.Tensor]:
        return {"count": torch.tensor(self._count), **self._moments}

    def load_state(self, state: Mapping[str, torch.Tensor], params: Params) -> None:
        if not state:
            # The checkpoint is another optimiser's: this one starts afresh.
            self._count, self._moments = 0, {}
            return
        moments = {name: tensor for name, tensor in state.items() if name != "count"}
        number = state.get("count", torch.tensor(-1))
        whole = number.numel() == 1 and number.dtype == torch.int64
        count = int(number) if whole and 0 <= int(number) <= LARGEST else -1
        expected = {f"{kind}/{name}": tensor for name, tensor in params.items() for kind in ("first", "second")}
        names = set(expected) if count > 0 else set()
        fits = set(moments) == names and all(
            (t.dtype, t.shape) == (expected[n].dtype, expected[n].shape) for n, t in moments.items()
        )
        if count < 0 or not fits:
            raise CheckpointError("the state of Adam does not fit the parameters")
        if any(bool((t < 0.0).any()) for n, t in moments.items() if n.startswith("second/")):
            raise CheckpointError("the state of Adam has negative squares")
        self._count, self._moments = count, moments


class TrustRegion(SetOnce):
    """Trust region policy optimisation (Schulman et al., 2015) on a meta-objective.

    The step is the natural gradient scaled to the trust region, then backtracked until the loss, computed with
    adaptation applied again, has fallen and the mean KL divergence is within bounds. Where no length is accepted the
    parameters stay exactly as they were.

    :param max_kl: bound on the mean KL divergence of the adapted policies, in nats; at least :data:`SMALLEST_KL`.
    :param cg_steps: conjugate gradient iterations.
    :param cg_damping: added to the diagonal of the curvature.
    :param line_search_steps: lengths tried.
    :param line_search_shrink: factor from one length to the next.
    """

    def __init__(
        self,
        *,
        max_kl: float = 0.01,
        cg_steps: int = 10,
        cg_damping: float = 1e-5,
        line_search_steps: int = 15,
        line_search_shrink: float = 0.8,
    ) -> None:
        self.max_kl = number(f"[{SMALLEST_KL:g}, ∞)")("max_kl", max_kl)
        self.cg_steps = ROUNDS("cg_steps", cg_steps)
        self.cg_damping = NOT_NEGATIVE("cg_damping", cg_damping)
        self.line_search_steps = ROUNDS("line_search_steps", line_search_steps)
        self.line_search_shrink = number("(0, 1)")("line_search_shrink", line_search_shrink)

    def step(self, objective: MetaObjective, params: Params, remaining: float = 1.0) -> OuterStep:
        del remaining
        result = objective.gradient()
        _check_finite(result.gradient)
        stats = {"meta/meta_loss": result.loss, "meta/meta_grad_norm": norm(result.gradient)}
        if result.second_order_share is not None:
            stats["meta/second_order_share"] = result.second_order_share

        def curvature(vector: Params) -> Params:
            product = objective.curvature_product(vector)
            return {name: tensor + self.cg_damping * vector[name] for name, tensor in product.items()}

        direction, curved = conjugate_gradient(curvature, result.gradient, self.cg_steps)
        quadratic = 0.5 * dot(direction, curved)
        failed = OuterStep(
            params,
            {
                **stats,
                "train/kl_divergence_loss": 0.0,
                "train/is_line_search_success": 0.0,
                "train/line_search_steps": float(self.line_search_steps),
                "train/policy_objective": -result.loss,
            },
        )
        if not (math.isfinite(quadratic) and quadratic > 0.0):
            return failed
        length = math.sqrt(self.max_kl / quadratic)
        for attempt in range(self.line_search_steps):
            factor = length * self.line_search_shrink**attempt
            trial = {name: tensor - factor * direction[name] for name, tensor in params.items()}
            loss, kl = objective.evaluate(trial)
            if loss < result.loss and kl <= self.max_kl:
                stats["train/kl_divergence_loss"] = kl
                stats["train/is_line_search_success"] = 1.0
                stats["train/line_search_steps"] = float(attempt + 1)
                stats["train/policy_objective"] = -loss
                return OuterStep(trial, stats)
        return failed

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


OUTER: dict[str, type[Any]] = {"trpo": TrustRegion, "adam": Adam, "sgd": SGD}


def make_outer(name: str, kwargs: Mapping[str, Any] | None = None) -> Outer:
    """Build an outer optimiser by name.

    :raises UnknownNameError: no such optimiser, or a keyword that it does not take.
    :raises ConfigError: a value outside its range.
    """
    if name not in OUTER:
        raise unknown_name("outer optimiser", name, OUTER)
    check_arguments(OUTER[name].__init__, kwargs or {}, f"argument of outer optimiser {name!r}:")
    outer: Outer = OUTER[name](**(kwargs or {}))
    return outer
