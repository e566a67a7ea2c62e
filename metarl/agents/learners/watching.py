"""The state of a stack of tasks that is being learnt, and how meta-wrappers watch it being learnt.

Inner learning is a path θ₀ → θ₁ → … → θ_K on one task. A wrapper that only looks at the path (Reptile, Leap,
first-order MAML) hands the learner a :class:`Watcher` for each stack of tasks; the learner reports every segment, that
is every step of an optimiser, and nothing it computes depends on whether somebody watches.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch

from metarl.params import Params


class FlatParams(dict[str, torch.Tensor]):
    """Named tensors of a stack of tasks that are views of one matrix, so that a watcher can take them as a whole.

    :param params: ``[task, …]``.
    :param flat: ``[task, n]``, the matrix: their values in the order of the names.
    """

    def __init__(self, params: Params, flat: torch.Tensor) -> None:
        super().__init__(params)
        self.flat = flat


@dataclass(frozen=True)
class LearnerState:
    """A learner in the middle of a stack of tasks.

    :param params: ``[task, …]``.
    :param optimizer: the optimiser's tensors by name, each with a task axis; empty for plain gradient steps.
    :param spent: nobody needs this state after the next update, which may write over it.
    :param room: memory that the next update may use, by name: fresh memory takes longer than what is done in it.
    """

    params: Params
    optimizer: Params
    spent: bool = False
    room: Params = field(default_factory=dict, repr=False)


class Watcher(Protocol):
    """Looks at the paths of a stack of tasks, one segment at a time, in constant memory."""

    def segment(
        self,
        start: Params,
        end: Params,
        gradient: Params | None,
        losses: torch.Tensor | None,
        active: torch.Tensor | None = None,
    ) -> None:
        """Look at one segment; the tensors may be reused afterwards, and must not be changed.

        :param start: parameters before the optimiser's step, ``[task, …]``.
        :param end: parameters after it.
        :param gradient: the loss's gradient at ``start``, before any clipping; around a stock algorithm, which clips
            before its optimiser steps, after it. None where the learner does not show it.
        :param losses: the loss at ``start``, ``[task]``; None where it is not visible.
        :param active: ``[task]``, False for tasks that had stopped already; None: all moved.
        """
        ...


@runtime_checkable
class StepsWatcher(Watcher, Protocol):
    """A watcher that takes several steps of one task at once: starting a few operations for each would cost more."""

    def steps(self, starts: FlatParams, end: FlatParams, gradients: FlatParams, n: int) -> None:
        """Look at ``n`` segments, one after another, of a stock algorithm, whose losses are not visible.

        :param starts: parameters before each step, ``[≥ n, …]``; each is where the segment before ended.
        :param end: parameters after the last, ``[1, …]``.
        :param gradients: as :meth:`segment` gets it, ``[≥ n, …]``.
        """
        ...
