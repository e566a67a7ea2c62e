"""Watchers of learning paths: what a wrapper takes from them, summed up while they are walked."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch

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


@dataclass(frozen=True)
class _Segments:
    """The last segment of each task, which waits for the loss at its end.

    :param move: ``[task, n]``, Δθ, the tensors that are meta-learnt first.
    :param slope: ``[task, n]``, ∇f(θ_i).
    :param losses: ``[task]``, f(θ_i); NaN where it is not visible.
    :param linear: ``[task]``, ⟨∇f(θ_i), Δθ⟩.
    :param waits: ``[task]``, whether there is one.
    """

    move: torch.Tensor
    slope: torch.Tensor
    losses: torch.Tensor
    linear: torch.Tensor
    waits: torch.Tensor

    def replace(self, new: _Segments, rows: torch.Tensor | None) -> _Segments:
        """Return ``new`` in some rows."""
        if rows is None:
            return new
        wide = rows[:, None]
        return _Segments(
            torch.where(wide, new.move, self.move),
            torch.where(wide, new.slope, self.slope),
            torch.where(rows, new.losses, self.losses),
            torch.where(rows, new.linear, self.linear),
            self.waits | rows,
        )


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
        self._width = 0
        self._last: _Segments | None = None
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
        move = self._flat(end) - self._flat(start)
        unknown = move.new_full((len(move),), torch.nan)
        if gradient is None or not self._metric.loss:
            slope, linear, losses = torch.zeros_like(move), torch.zeros_like(unknown), unknown
        else:
            slope = self._flat(gradient)
            linear = (slope * move).sum(1)
            losses = unknown if losses is None else losses.detach().clone()
        waits = torch.ones_like(unknown, dtype=torch.bool) if active is None else active.clone()
        new = _Segments(move, slope, losses, linear, waits)
        if self._last is None:
            self._last = new
        else:
            self._add(self._last, losses, active)
            self._last = self._last.replace(new, active)

    def close(self) -> None:
        """End the paths of a stack of tasks; the next segment begins those of another."""
        if self._last is not None and not self._metric.drop_last:
            self._add(self._last, torch.full_like(self._last.losses, torch.nan), None)
        self._last = None

    def gradient(self) -> Params:
        """Return the meta-gradient of all paths that were closed, summed over tasks, without a task axis."""
        names = [name for name in self._shapes if name not in self._excluded]
        parts = torch.split(self._pull, [self._shapes[name].numel() for name in names])
        pull = {name: part.reshape(self._shapes[name]) for name, part in zip(names, parts, strict=True)}
        return {n: pull[n] if n in pull else self._pull.new_zeros(shape) for n, shape in self._shapes.items()}

    def _begin(self, start: Params) -> None:
        # Sorting is stable: what is meta-learnt comes first, each part in the order it was given.
        names = sorted(start, key=lambda name: name in self._excluded)
        self._shapes = {name: start[name].shape[1:] for name in names}
        self._width = sum(shape.numel() for name, shape in self._shapes.items() if name not in self._excluded)
        self._pull = start[names[0]].new_zeros(self._width)

    def _flat(self, params: Params) -> torch.Tensor:
        """Return the tensors as one, ``[task, n]``."""
        return torch.cat([params[name].detach().flatten(1) for name in self._shapes], dim=1)

    def _add(self, segments: _Segments, losses_after: torch.Tensor, rows: torch.Tensor | None) -> None:
        """Add the segments that wait.

        :param losses_after: ``[task]``, the loss at their end; NaN where it is not visible.
        :param rows: ``[task]``, which of them; None: all.
        """
        change = losses_after - segments.losses
        change = torch.where(change.isnan(), segments.linear, change)
        move, slope = segments.move[:, : self._width], segments.slope[:, : self._width]
        moved = segments.waits & segments.move.any(1)
        if rows is not None:
            moved = moved & rows
        square = torch.where(moved, move.square().sum(1) + change.square(), 0.0)
        length = square.sqrt()
        weight = moved.to(move.dtype)
        if self._metric.metric == "length":
            weight = torch.where(length > 0.0, 1.0 / length, 0.0)
        if self._metric.stabilizer:
            change = -change.abs()
        self._pull -= weight @ move + (weight * change) @ slope
        self.distance += float((length if self._metric.metric == "length" else square).sum())
