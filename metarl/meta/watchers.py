"""Watchers of learning paths: what a wrapper takes from them, summed up while they are walked."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch

from metarl.agents.learner import FlatParams
from metarl.agents.policy import Params
from metarl.errors import ConfigError, unknown_name

METRICS = ("length", "energy")
SLOTS = 16
SLOTS_BYTES = 2_000_000
"""Segments of a single task that are added together, at most: past this size they leave the processor's caches."""


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
    """Room for segments that wait to be added: for the loss at their end, or for others to be added with.

    A stack of several tasks has one slot, which holds the last segment of each. A single task of few parameters has
    more, because the time of an operator is then in calling it. Row ``slot * tasks + task`` belongs to a segment.

    :param like: ``[task, n]``, a stack's parameters.
    """

    def __init__(self, like: torch.Tensor) -> None:
        n_tasks, size = like.shape
        n_slots = 1 if n_tasks > 1 else max(1, min(SLOTS, SLOTS_BYTES // (2 * size * like.element_size())))
        rows = like.new_zeros(n_slots * n_tasks, 2, size)
        self.columns = rows.view(-1, size).mT
        """``[n, 2 row]``, Δθ and ∇f(θ_i) of one row after the other."""
        self.move, self.slope = rows.unbind(1)
        self.weights = like.new_zeros(2 * len(rows))
        """``[2 row]``, of the columns in the meta-gradient."""
        self.losses = [math.nan] * len(rows)
        """``[row]``, f(θ_i); NaN where it is not visible."""
        self.changes = [math.nan] * len(rows)
        """``[row]``, Δf; NaN where it is not known."""
        self.waits = [False] * len(rows)
        """``[row]``, whether there is a segment."""
        self.full = False
        """Whether the next segment takes the place of another."""
        slots = [slice(slot * n_tasks, (slot + 1) * n_tasks) for slot in range(n_slots)]
        self._places = [(slot, self.move[slot], self.slope[slot]) for slot in slots]
        self._slot = -1
        self._unknown, self._all = [math.nan] * n_tasks, [True] * n_tasks

    @property
    def last(self) -> slice:
        """Rows of the slot that was filled last."""
        return self._places[self._slot][0]

    def end(self, losses: torch.Tensor, active: torch.Tensor | None) -> None:
        """Take the losses at the ends of the last segments of the tasks that are active."""
        moves = self._all if active is None else active.tolist()
        for row, loss, moved in zip(range(len(self.losses))[self.last], losses.tolist(), moves, strict=True):
            if moved:
                self.changes[row] = loss - self.losses[row]

    def put(
        self,
        start: torch.Tensor,
        end: torch.Tensor,
        slope: torch.Tensor | None,
        losses: torch.Tensor | None,
        active: torch.Tensor | None,
    ) -> None:
        """Take the next segment of the tasks that are active."""
        self._slot = (self._slot + 1) % len(self._places)
        self.full = self._slot == len(self._places) - 1
        rows, move, place = self._places[self._slot]
        values = self._unknown if losses is None else losses.tolist()
        if active is None:
            torch.sub(end, start, out=move)
            place.copy_(slope) if slope is not None else place.zero_()
            self.losses[rows], self.changes[rows], self.waits[rows] = values, self._unknown, self._all
            return
        for task in active.nonzero()[:, 0].tolist():
            torch.sub(end[task], start[task], out=move[task])
            place[task] = 0.0 if slope is None else slope[task]
            row = rows.start + task
            self.losses[row], self.changes[row], self.waits[row] = values[task], math.nan, True

    def products(self, linear: bool) -> tuple[list[float], list[float]]:
        """Return ‖Δθ‖² and ⟨∇f(θ_i), Δθ⟩ of each row.

        :param linear: False: the latter are not needed, and may be NaN.
        """
        if len(self.move) == 1:
            square, product = torch.mv(self.columns.mT, self.move[0]).tolist()
            return [square], [product]
        squares: list[float] = torch.linalg.vector_norm(self.move, dim=1).square().tolist()
        return squares, (self.slope * self.move).sum(1).tolist() if linear else [math.nan] * len(squares)


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
        self._segments: _Segments | None = None
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
        if active is not None and not active.any():
            return
        before, after = self._flat(start), self._flat(end)
        slope = self._flat(gradient) if gradient is not None and self._metric.loss else None
        if slope is None:
            losses = None
        if self._segments is None:
            self._segments = _Segments(before)
        segments = self._segments
        if losses is not None:
            segments.end(losses, active)
        if segments.full:
            self._add(segments, active)
        segments.put(before, after, slope, losses, active)
        if segments.full and losses is None and not self._metric.drop_last:
            # No loss will come, and what was just written is still in the processor's caches.
            self._add(segments, active)

    def close(self) -> None:
        """End the paths of a stack of tasks; the next segment begins those of another."""
        if self._segments is not None:
            if self._metric.drop_last:
                rows = self._segments.last
                self._segments.waits[rows] = [False] * (rows.stop - rows.start)
            self._add(self._segments, None)
        self._segments = None

    def gradient(self) -> Params:
        """Return the meta-gradient of all paths that were closed, summed over tasks, without a task axis."""
        parts = torch.split(self._pull, [shape.numel() for shape in self._shapes.values()])
        pull = zip(self._shapes.items(), parts, strict=True)
        return {n: torch.zeros_like(p).view(s) if n in self._excluded else p.clone().view(s) for (n, s), p in pull}

    def _begin(self, start: Params) -> None:
        self._shapes = {name: tensor.shape[1:] for name, tensor in start.items()}
        self._pull = torch.zeros_like(self._flat(start)[0])
        if self._excluded:
            ones = {n: torch.full_like(tensor[:1], float(n not in self._excluded)) for n, tensor in start.items()}
            self._counted = self._flat(ones)

    def _flat(self, params: Params) -> torch.Tensor:
        """Return the tensors as one, ``[task, n]``."""
        if isinstance(params, FlatParams):
            return params.flat
        return torch.cat([params[name].detach().flatten(1) for name in self._shapes], dim=1)

    def _add(self, segments: _Segments, active: torch.Tensor | None) -> None:
        """Add what waits, of the tasks that are active."""
        segments.full = False
        who = [True] if active is None else active.tolist()
        whole, linear = segments.products(linear=any(map(math.isnan, segments.changes)))
        squares = whole if self._counted is None else (segments.move * self._counted).square().sum(1).tolist()
        by_length = self._metric.metric == "length"
        weights = [0.0] * len(segments.weights)
        for row, (waits, change) in enumerate(zip(segments.waits, segments.changes, strict=True)):
            if not (waits and who[row % len(who)]):
                continue
            segments.waits[row] = False
            if whole[row] == 0.0:
                continue
            rise = linear[row] if math.isnan(change) else change
            square = squares[row] + rise * rise
            length = math.sqrt(square)
            weight = 1.0
            if by_length:
                weight = 1.0 / length if length > 0.0 else 0.0
            weights[2 * row] = weight
            weights[2 * row + 1] = weight * (-abs(rise) if self._metric.stabilizer else rise)
            self.distance += length if by_length else square
        segments.weights.numpy()[:] = weights
        self._pull.addmv_(segments.columns, segments.weights, alpha=-1.0)
