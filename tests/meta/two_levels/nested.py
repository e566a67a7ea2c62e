"""MALTML's objective as anybody would write it down first: a loop over families, tasks and steps, on raw tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import linear

from metarl.params import Params

Examples = tuple[torch.Tensor, torch.Tensor]
"""Inputs and targets, ``[n, 1]``."""


def error(params: Params, examples: Examples, activation: Any = torch.tanh) -> torch.Tensor:
    """Return the mean squared error of one task."""
    x, y = examples
    for layer in ("mlp_extractor.policy_net.0", "mlp_extractor.policy_net.2"):
        x = activation(linear(x, params[f"{layer}.weight"], params[f"{layer}.bias"]))
    return (linear(x, params["action_net.weight"], params["action_net.bias"]) - y).square().sum(-1).mean()


def stepped(params: Params, loss: torch.Tensor, rate: float) -> Params:
    """Return where a gradient step leads, as a function of the parameters."""
    slopes = torch.autograd.grad(loss, list(params.values()), create_graph=True, materialize_grads=True)
    return {name: tensor - rate * slope for (name, tensor), slope in zip(params.items(), slopes, strict=True)}


def adapted(params: Params, support: Examples, rate: float, n_steps: int, activation: Any) -> Params:
    """Return where inner steps on one support lead."""
    for _ in range(n_steps):
        params = stepped(params, error(params, support, activation), rate)
    return params


def objective(
    theta: Params,
    few: Sequence[Sequence[tuple[Examples, Examples]]],
    goals: Sequence[Sequence[tuple[Examples, Examples]]],
    rates: tuple[float, float, float],
    n_inner_steps: int = 1,
    n_meta_steps: int = 1,
    activation: Any = torch.tanh,
) -> torch.Tensor:
    """Return Σ_j Σ_c L_c(U_c(V_j(θ))).

    :param few: of each family the supports and queries of its tasks.
    :param goals: likewise, of its goal tasks.
    :param rates: α, β, γ.
    """
    alpha, beta, gamma = rates
    total = torch.zeros((), dtype=next(iter(theta.values())).dtype)
    for tasks, goal_tasks in zip(few, goals, strict=True):
        params = theta
        for _ in range(n_meta_steps):
            ends = [(adapted(params, support, alpha, n_inner_steps, activation), query) for support, query in tasks]
            params = stepped(params, sum(error(end, query, activation) for end, query in ends), beta)
        for support, query in goal_tasks:
            total = total + error(adapted(params, support, gamma, n_inner_steps, activation), query, activation)
    return total
