"""Losses, parameters and observations in float64 for exact tests of derivatives."""

from __future__ import annotations

from collections.abc import Callable

import torch

from metarl.agents.derivatives.base import HeadLoss
from metarl.agents.networks.distributions import Distribution, Gaussian
from metarl.params import Params

TASKS = 3
COUNTS = (6, 2, 4)
"""Samples of each task; the rest of its rows are padding."""


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_like(params: Params, seed: int) -> Params:
    return {name: normal(*tensor.shape, seed=seed + i) for i, (name, tensor) in enumerate(params.items())}


def weights(counts: tuple[int, ...] = COUNTS) -> torch.Tensor:
    """``[task, n]``: 1/count on samples, 0 on padding."""
    rows = torch.arange(max(counts)).expand(len(counts), -1)
    count = torch.tensor(counts)[:, None]
    return (rows < count).double() / count


def head_loss(kind: str, n: int = 2, counts: tuple[int, ...] = COUNTS) -> HeadLoss:
    """Return a loss of ``n`` outputs that bends everywhere, and of the critic's values where there are some.

    :param kind: ``"gaussian"`` or ``"categorical"`` (likelihood ratios), ``"squared error"``, ``"cross-entropy"``.
    """
    w, shape = weights(counts), (len(counts), max(counts))
    targets, labels = normal(*shape, n, seed=5), torch.arange(shape[0] * shape[1]).reshape(shape) % n
    advantages = normal(*shape, seed=6)

    def loss(distribution: Distribution, values: torch.Tensor | None) -> torch.Tensor:
        if kind == "squared error":
            assert isinstance(distribution, Gaussian)
            each = (distribution.mean - targets).square().sum(-1)
        elif kind == "cross-entropy":
            each = -distribution.log_prob(labels)
        else:
            actions = targets if kind == "gaussian" else labels
            each = -torch.exp(0.3 * distribution.log_prob(actions)) * advantages - 0.1 * distribution.entropy()
        if values is not None:
            each = each + torch.cosh(values - advantages)
        return (w * each).sum(-1)

    return loss


def close(found: Params, expected: Params, tolerance: float = 1e-10, floor: float = 1e-14) -> None:
    """Require equal names in equal order, and tensors that agree relative to the largest entry.

    :param floor: what they may differ by in any case; the bias before a batch norm has a derivative of 0.
    """
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        scale = float(tensor.abs().max())
        error = float((found[name] - tensor).abs().max())
        assert error <= tolerance * scale + floor, (name, error, scale)


def numeric_gradient(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, eps: float) -> torch.Tensor:
    """Return the gradient of a number by central differences of fourth order, one entry after the other."""
    flat = x.detach().flatten()
    gradient = torch.empty_like(flat)
    for i in range(len(flat)):

        def at(step: float, i: int = i) -> float:
            moved = flat.clone()
            moved[i] += step
            return float(function(moved.reshape(x.shape)))

        near, far = at(eps) - at(-eps), at(2 * eps) - at(-2 * eps)
        gradient[i] = (8.0 * near - far) / (12.0 * eps)
    return gradient.reshape(x.shape)
