"""Watchers of learning paths: what a wrapper takes from them, summed up while they are walked."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch

from metarl.agents.learner import FlatParams
from metarl.agents.policy import Params
from metarl.errors import ConfigError, unknown_name

METRICS = ("length", "energy")


@dataclass(frozen=True)
class LeapMetric:
    """How Leap measures a path (Flennerhag et al., 2019, section 2).

    :param metric: ``"length"``, the sum over segments of ‖γ_{i+1} − γ_i‖ (p = 1), or ``"energy"``, of its square
        (p = 2).
    :param loss: a point γ is (θ, f(θ)), on the loss surface; False: it is θ.
    :param stabilizer: take −abs(Δf) for Δf in the meta-gradient, so that a loss that rose does not pull uphill.
    :param drop_last: leave out the last segment, as the reference code does, whose K steps give K − 1 increments.
    """

    metric: str = "length"
    loss: bool = True
    stabilizer: bool = True
    drop_last: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        if self.metric not in METRICS:
            raise unknown_name("metric", self.metric, METRICS)
        for name in ("loss", "stabilizer", "drop_last"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name}={getattr(self, name)!r} is not true or false")


class _Segments:
    """The last segment of each task, which waits for the loss at its end.

    :param like: ``[task, n]``, a stack's parameters.
    """

    def __init__(self, like: torch.Tensor) -> None:
        self.move, self.slope = torch.zeros_like(like), torch.zeros_like(like)
        """``[task, n]``, Δθ and ∇f(θ_i)."""
        self.losses = [math.nan] * len(like)
        """f(θ_i); NaN where it is not visible."""
        self.waits = [False] * len(like)
        """Whether there is one."""

    def put(
        self, start: torch.Tensor, end: torch.Tensor, slope: torch.Tensor | None, losses: list[float], moved: list[bool]
    ) -> None:
        """Take the next segment of the tasks that moved."""
        if all(moved):
            torch.sub(end, start, out=self.move)
            self.slope.copy_(slope) if slope is not None else self.slope.zero_()
            self.losses, self.waits = losses, moved
            return
        for task in np.flatnonzero(moved).tolist():
            torch.sub(end[task], start[task], out=self.move[task])
            self.slope[task] = 0.0 if slope is None else slope[task]
            self.losses[task], self.waits[task] = losses[task], True


class LeapWatcher:
    """Adds up Leap's meta-gradient (eq. 8 with J = I) and the length of paths, one stack of tasks after another.

    A segment adds −(Δf ∇f(θ_i) + Δθ) ‖γ_{i+1} − γ_i‖^{p−2}; the factor p is left to the step size, as in the reference
    code. Δf is the loss that the next segment reports minus its own, each on its own minibatch, as there. Where the
    learner does not show its loss, and for the last segment, after which no loss is reported, Δf is taken to first
    order: ⟨∇f(θ_i), Δθ⟩. A segment without a gradient has a length in the space of parameters only, and one that did
    not move has none and adds nothing. Memory is two copies of the stack, however long the paths are.

    :param metric: how paths are measured.
    :param excluded: names of tensors that are not meta-learnt: their movement has no length and pulls nothing.
    """

    def __init__(self, metric: LeapMetric, excluded: Collection[str] = ()) -> None:
        self._metric = metric
        self._excluded = frozenset(excluded)
        self._shapes: dict[str, torch.Size] = {}
        self._counted: torch.Tensor | None = None
        self._last: _Segments | None = None
        self._moves: torch.Tensor | None = None
        self._pull = torch.empty(0)
        self.distance = 0.0
        """The distance of the paths so far, summed over tasks."""

    def segment(
        self,
        start: Params,
        end: Params,
        gradient: Params | None,
        losses: torch.Tensor | None,
        active: torch.Tensor | None = None,
    ) -> None:
        """Look at one segment; see :class:`metarl.agents.learner.Watcher`."""
        if not self._shapes:
            self._begin(start)
        before = self._flat(start)
        n_tasks = len(before)
        slope, seen = None, [math.nan] * n_tasks
        if gradient is not None and self._metric.loss:
            slope = self._flat(gradient)
            seen = seen if losses is None else losses.tolist()
        moved = [True] * n_tasks if active is None else active.tolist()
        if self._last is None:
            self._last = _Segments(before)
        else:
            self._end(self._last, seen, moved)
        self._last.put(before, self._flat(end), slope, seen, moved)

    def steps(self, start: FlatParams, end: FlatParams, gradient: FlatParams) -> None:
        """Look at several segments of one task; see :class:`metarl.agents.learner.StepsWatcher`."""
        n_steps = len(end.flat)
        if self._metric.drop_last or not self._metric.loss:
            for i in range(n_steps):
                first, last, slope = ({n: t[i : i + 1] for n, t in part.items()} for part in (start, end, gradient))
                self.segment(first, last, slope, None)
            return
        if not self._shapes:
            self._begin(start)
        # Nothing waits for a loss.
        if self._moves is None or len(self._moves) < n_steps:
            self._moves = torch.empty_like(end.flat)
        moves = torch.sub(end.flat, start.flat, out=self._moves[:n_steps])
        self._add(moves, gradient.flat, [math.nan] * n_steps, [True] * n_steps)

    def close(self) -> None:
        """End the paths of a stack of tasks; the next segment begins those of another."""
        if self._last is not None and not self._metric.drop_last:
            n_tasks = len(self._last.waits)
            self._end(self._last, [math.nan] * n_tasks, [True] * n_tasks)
        self._last = None

    def gradient(self) -> Params:
        """Return the meta-gradient of all paths that were closed, summed over tasks, without a task axis."""
        parts = torch.split(self._pull, [shape.numel() for shape in self._shapes.values()])
        pull = zip(self._shapes.items(), parts, strict=True)
        return {n: p.new_zeros(s) if n in self._excluded else p.view(s).clone() for (n, s), p in pull}

    def _begin(self, start: Params) -> None:
        self._shapes = {name: tensor.shape[1:] for name, tensor in start.items()}
        self._pull = torch.zeros_like(self._flat(start)[0])
        if self._excluded:
            counted = {n: torch.full_like(tensor[:1], n not in self._excluded) for n, tensor in start.items()}
            self._counted = self._flat(counted)

    def _flat(self, params: Params) -> torch.Tensor:
        """Return the tensors as one, ``[task, n]``."""
        if isinstance(params, FlatParams):
            return params.flat
        return torch.cat([params[name].detach().flatten(1) for name in self._shapes], dim=1)

    def _end(self, segments: _Segments, losses: list[float], moved: list[bool]) -> None:
        """Add the segments of the tasks that moved on.

        :param losses: at the segments' ends; NaN where it is not visible.
        """
        rises = [after - before for after, before in zip(losses, segments.losses, strict=True)]
        who = [waits and on for waits, on in zip(segments.waits, moved, strict=True)]
        self._add(segments.move, segments.slope, rises, who)

    def _add(self, moves: torch.Tensor, slopes: torch.Tensor, rises: list[float], who: list[bool]) -> None:
        """Add some of several segments.

        :param moves: ``[segment, n]``, Δθ.
        :param slopes: ``[segment, n]``, ∇f(θ_i).
        :param rises: Δf; NaN where it is not known.
        :param who: which are added.
        """
        lengths = torch.linalg.vector_norm(moves, dim=1).tolist()
        counted = lengths
        if self._counted is not None:
            counted = torch.linalg.vector_norm(moves * self._counted, dim=1).tolist()
        if any(map(math.isnan, rises)):
            linear = torch.linalg.vecdot(slopes, moves).tolist()
            rises = [first if math.isnan(rise) else rise for rise, first in zip(rises, linear, strict=True)]
        of_moves, of_slopes = [0.0] * len(rises), [0.0] * len(rises)
        for i, rise in enumerate(rises):
            if not who[i] or lengths[i] == 0.0:
                continue
            length = math.hypot(counted[i], rise)
            weight = 1.0
            if self._metric.metric == "length":
                weight = 1.0 / length if length > 0.0 else 0.0
            of_moves[i] = weight
            of_slopes[i] = weight * (-abs(rise) if self._metric.stabilizer else rise)
            self.distance += length if self._metric.metric == "length" else length**2
        self._pull.addmv_(moves.mT, self._pull.new_tensor(of_moves), alpha=-1.0)
        self._pull.addmv_(slopes.mT, self._pull.new_tensor(of_slopes), alpha=-1.0)
