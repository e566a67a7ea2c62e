"""Matrix products of stacks of tasks, in which a row's numbers do not depend on what else is in the batch.

BLAS chooses its path by the sizes of a product, and on some of them it rounds by where in memory a task lies. Those are
avoided here: a product has :data:`MIN_ROWS` rows at least (zeros are added and cut off again), a chain of layers
:data:`FEWEST_ROWS`, and what is a row or a column for a single task is computed twice over, as in a stack. What a stack
of usual size computes is the same bits as without this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

Activation = Callable[[torch.Tensor], torch.Tensor]
MIN_ROWS = 4
"""Fewest rows of a product: with fewer, BLAS rounds by the alignment of a task's tensors."""
FEWEST_ROWS = 16
"""Fewest rows of a chain of layers, whose rows may come and go: with fewer, kernels of MKL for AVX-512 round otherwise.
Tasks of a product have equally many rows, so a product does with fewer."""
SMALL_PRODUCT = 400
"""Fewer multiplications than these in one task's product, and torch does not leave a stack to BLAS: then it rounds
otherwise, and a row's numbers depend on how many others there are."""


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Return ``x Wᵀ + b`` for ``[n, in]`` with one ``W``, or ``[task, n, in]`` with a stack of them."""
    return layer(weight, bias)(x)


def layer(weight: torch.Tensor, bias: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return :func:`linear` as a function of ``x`` alone, for a layer that is evaluated many times."""
    if weight.ndim == 2:
        return partial(nn.functional.linear, weight=weight, bias=bias)
    right, added = weight.mT, bias.unsqueeze(1)
    if _is_thin(weight):
        return partial(product, right=right, added=added)

    def applied(x: torch.Tensor) -> torch.Tensor:
        return torch.baddbmm(added, x, right) if x.size(1) >= MIN_ROWS else product(x, right, added)

    return applied


def chain(
    layers: Sequence[tuple[torch.Tensor, torch.Tensor]], activations: Sequence[Activation]
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return layers with an activation between each two as a function of ``x`` alone. In a stack, the bits of a row do
    not depend on how many others there are.

    :param layers: weight and bias of each.
    """
    *hidden, (weight, bias) = layers
    if weight.ndim == 2:
        each = [layer(weight, bias) for weight, bias in layers]

        def one_by_one(x: torch.Tensor) -> torch.Tensor:
            for linear, activation in zip(each[:-1], activations, strict=True):
                x = activation(linear(x))
            return each[-1](x)

        return one_by_one
    if any(_is_thin(weight) for weight, _ in hidden):
        twice = chain([(_twice(weight), _twice(bias)) for weight, bias in layers], activations)
        return lambda x: twice(_twice(x))[:1]
    single = weight.shape[1] == 1
    if single:
        weight, bias = torch.cat([weight, weight], 1), torch.cat([bias, bias], 1)
    fewest = fewest_rows([weight[0].numel() for weight, _ in layers])
    *products, (added, right) = [(bias.unsqueeze(1), weight.mT) for weight, bias in [*hidden, (weight, bias)]]
    steps = [(*pair, activation) for pair, activation in zip(products, activations, strict=True)]

    def at_once(x: torch.Tensor) -> torch.Tensor:
        n = x.size(1)
        if n < fewest:
            x = _padded(x, fewest)
        for first, matrix, activation in steps:
            x = activation(torch.baddbmm(first, x, matrix))
        result = torch.baddbmm(added, x, right)
        if single:
            result = result[..., :1]
        return result[:, :n] if n < fewest else result

    return at_once


def product(x: torch.Tensor, right: torch.Tensor, added: torch.Tensor | None = None) -> torch.Tensor:
    """Return ``x R``, or ``added + x R``.

    :param x: ``[task, n, in]``, or without the task axis.
    :param right: ``[task, in, out]``, or without the task axis.
    :param added: ``[task, n, out]`` or ``[task, 1, out]``, only for stacks.
    """
    if right.ndim == 2:
        return x @ right
    if _is_usual(x, right):
        return x @ right if added is None else torch.baddbmm(added, x, right)
    n_tasks, n = x.shape[:2]
    if n < MIN_ROWS:
        x = _padded(x, MIN_ROWS)
        added = added if added is None or added.shape[1] == 1 else _padded(added, MIN_ROWS)
    if _is_thin(right):
        x, right, added = _twice(x), _twice(right), None if added is None else _twice(added)
    result = x @ right if added is None else torch.baddbmm(added, x, right)
    return result[:n_tasks, :n]


def add_product_(out: torch.Tensor, x: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Add ``x R`` to ``out``, in place; the shapes are those of :func:`product`."""
    if right.ndim == 2:
        return out.add_(x @ right)
    return out.baddbmm_(x, right) if _is_usual(x, right) else out.copy_(product(x, right, out))


def outer(error: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return ``Σ_n error xᵀ``, ``[…, out, in]``: the gradient of a linear layer's weight.

    BLAS is several times faster when the smaller of the two sides comes first. Where that is 1, a single task is
    computed twice over, as in a stack.
    """
    if error.ndim == 3 and error.shape[0] == 1 == min(error.shape[-1], x.shape[-1]):
        return outer(_twice(error), _twice(x))[:1]
    return (x.mT @ error).mT if x.shape[-1] < error.shape[-1] else error.mT @ x


def add_outer_(out: torch.Tensor, error: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Add ``Σ_n error xᵀ`` of a stack of tasks to ``out``, ``[task, out, in]``, in place."""
    if _is_thin(out):
        return out.copy_(_twice(out).baddbmm(_twice(error).mT, _twice(x))[:1])
    return out.baddbmm_(error.mT, x)


def fewest_rows(sizes: list[int]) -> int:
    """Return how many rows there have to be for one to have the same bits as among more.

    :param sizes: entries of one task's matrices that rows are multiplied with, one after the other.
    """
    return max(FEWEST_ROWS, *(-(-SMALL_PRODUCT // size) for size in sizes))


def _is_usual(x: torch.Tensor, right: torch.Tensor) -> bool:
    return x.shape[1] >= MIN_ROWS and not _is_thin(right)


def _is_thin(matrix: torch.Tensor) -> bool:
    """Whether it is a stack of one matrix that is a row or a column."""
    return matrix.ndim == 3 and matrix.shape[0] == 1 == min(matrix.shape[1:])


def _padded(x: torch.Tensor, n_rows: int) -> torch.Tensor:
    return nn.functional.pad(x, (0, 0, 0, n_rows - x.shape[1]))


def _twice(x: torch.Tensor) -> torch.Tensor:
    return x.expand(2, *x.shape[1:])
