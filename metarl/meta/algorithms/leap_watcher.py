"""Watchers of learning paths: what a wrapper takes from them, summed up while they are walked."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch

from metarl.agents.learners.watching import FlatParams
from metarl.checks import SWITCH
from metarl.errors import unknown_name
from metarl.params import Params, group

METRICS = ("length", "energy")
_BLOCK_BYTES = 1 << 19
"""Segments that are added together: those of small networks take few operations and still lie in the cache."""


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
            SWITCH(name, getattr(self, name))


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
        self,
        start: torch.Tensor,
        end: torch.Tensor,
        slope: torch.Tensor | None,
        tasks: Sequence[int],
        losses: list[float],
    ) -> None:
        """Take the next segment of some tasks.

        :param losses: of all tasks.
        """
        if len(tasks) == len(start):
            torch.sub(end, start, out=self.move)
            self.slope.copy_(slope) if slope is not None else self.slope.zero_()
        for task in tasks:
            if len(tasks) < len(start):
                torch.sub(end[task], start[task], out=self.move[task])
                self.slope[task] = 0.0 if slope is None else slope[task]
            self.losses[task], self.waits[task] = losses[task], True


class LeapWatcher:
    """Adds up Leap's meta-gradient (eq. 8 with J = I) and the length of paths, one stack of tasks after another.

    A segment adds −(Δf ∇f(θ_i) + Δθ) ‖γ_{i+1} − γ_i‖^{p−2}; the factor p is left to the step size, as in the reference
    code. Δf is the loss that the next segment reports minus its own, each on its own minibatch, as there. Where the
    learner does not show its loss, and for the last segment, after which no loss is reported, Δf is taken to first
    order: ⟨∇f(θ_i), Δθ⟩. A segment without a gradient has a length in the space of parameters only, and one that did
    not move has none and adds nothing. Memory is two copies of the stack, however long the paths are; one where the
    learner does not show its loss, because nothing waits for it. Steps of a stock algorithm come several at a time
    (:meth:`steps`), in a megabyte or one copy. That takes less time than one by one, as with ``drop_last``, and gives
    the same up to rounding.

    :param metric: how paths are measured.
    :param excluded: names of tensors that are not meta-learnt: their movement has no length and pulls nothing.
    """

    def __init__(self, metric: LeapMetric, excluded: Collection[str] = ()) -> None:
        self._metric = metric
        self._excluded = frozenset(excluded)
        self._places: dict[str, tuple[slice, torch.Size]] = {}
        self._counted: torch.Tensor | None = None
        self._last: _Segments | None = None
        self._moves = torch.empty(0)
        self._pull = torch.empty(0)
        self.distance = 0.0
        """The distance of the paths so far, summed over tasks."""
        self.n_segments = 0
        """Segments that were counted so far, over all tasks."""
        self.losses = 0.0
        """The losses f(θ_i) that were shown so far, summed over segments and tasks."""
        self.n_losses = 0

    def segment(
        self,
        start: Params,
        end: Params,
        gradient: Params | None,
        losses: torch.Tensor | None,
        active: torch.Tensor | None = None,
    ) -> None:
        """Look at one segment; see :class:`metarl.agents.learners.watching.Watcher`."""
        if not self._places:
            self._begin(start)
        before, after = self._flat(start), self._flat(end)
        slope = None if gradient is None or not self._metric.loss else self._flat(gradient)
        tasks = range(len(before)) if active is None else active.nonzero().flatten().tolist()
        if losses is not None:
            shown = losses.tolist()
            self.losses += sum(shown[task] for task in tasks)
            self.n_losses += len(tasks)
        if self._last is None and losses is None and not self._metric.drop_last:
            moves = torch.sub(after, before, out=self._moves_like(before))
            if active is not None:
                moves, slope = moves[tasks], None if slope is None else slope[tasks]
            self._add(moves, slope, [math.nan] * len(moves))
            return
        seen = [math.nan] * len(before) if slope is None or losses is None else losses.tolist()
        if self._last is None:
            self._last = _Segments(before)
        self._end(self._last, tasks, seen)
        self._last.put(before, after, slope, tasks, seen)

    def steps(self, starts: FlatParams, end: FlatParams, gradients: FlatParams, n: int) -> None:
        """Look at several segments of one task; see :class:`metarl.agents.learners.watching.StepsWatcher`."""
        if not self._places:
            self._begin(starts)
        before, slopes = starts.flat[:n], gradients.flat[:n]
        if self._last is not None or self._metric.drop_last:
            after = torch.cat([before[1:], end.flat])
            for i in range(n):
                start, reached, slope = (FlatParams({}, matrix[i : i + 1]) for matrix in (before, after, slopes))
                self.segment(start, reached, slope, None)
            return
        moves = self._moves_like(starts.flat)[:n]
        torch.sub(before[1:], before[:-1], out=moves[:-1])
        torch.sub(end.flat, before[-1:], out=moves[-1:])
        self._add(moves, slopes if self._metric.loss else None, [math.nan] * n)

    def close(self) -> None:
        """End the paths of a stack of tasks; the next segment begins those of another."""
        if self._last is not None and not self._metric.drop_last:
            n_tasks = len(self._last.waits)
            self._end(self._last, range(n_tasks), [math.nan] * n_tasks)
        self._last = None

    def gradient(self) -> Params:
        """Return the meta-gradient of all paths that were closed, summed over tasks, without a task axis."""
        pull = {name: self._pull[place].view(shape).clone() for name, (place, shape) in self._places.items()}
        return {name: tensor.zero_() if name in self._excluded else tensor for name, tensor in pull.items()}

    def state(self) -> Params:
        """Return what was added up so far, and the segments that wait for their losses, as named tensors."""
        found: Params = {
            "distance": torch.tensor(self.distance, dtype=torch.float64),
            "n_segments": torch.tensor(self.n_segments),
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "n_losses": torch.tensor(self.n_losses),
        }
        if self._places:
            found["pull"] = self._pull.clone()
            for name, (place, shape) in self._places.items():
                found[f"place/{name}"] = torch.tensor([place.start, place.stop, *shape])
        if self._last is not None:
            found["last/move"], found["last/slope"] = self._last.move.clone(), self._last.slope.clone()
            found["last/losses"] = torch.tensor(self._last.losses, dtype=torch.float64)
            found["last/waits"] = torch.tensor(self._last.waits)
        return found

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from what :meth:`state` returned."""
        self.distance, self.n_segments = float(state["distance"]), int(state["n_segments"])
        # A walk that stopped under an earlier version has not counted them.
        nothing = torch.zeros(())
        self.losses, self.n_losses = float(state.get("losses", nothing)), int(state.get("n_losses", nothing))
        for name, place in group(dict(state), "place/").items():
            start, stop, *shape = place.tolist()
            self._places[name] = slice(start, stop), torch.Size(shape)
        if self._places:
            self._pull = state["pull"].clone()
            self._exclude()
        self._last = None
        if "last/move" in state:
            self._last = _Segments(state["last/move"])
            self._last.move, self._last.slope = state["last/move"].clone(), state["last/slope"].clone()
            self._last.losses, self._last.waits = state["last/losses"].tolist(), state["last/waits"].tolist()

    def _begin(self, start: Params) -> None:
        at = 0
        for name, tensor in start.items():
            if isinstance(start, FlatParams):
                at = int(tensor.storage_offset() - start.flat.storage_offset())
            place = slice(at, at := at + tensor[0].numel())
            self._places[name] = place, tensor.shape[1:]
        self._pull = torch.zeros_like(self._flat(start)[0])
        self._exclude()

    def _exclude(self) -> None:
        """Prepare what leaves out the movement of excluded tensors."""
        if self._excluded:
            self._counted = torch.ones_like(self._pull)
            for name in self._excluded.intersection(self._places):
                self._counted[self._places[name][0]] = 0.0

    def _flat(self, params: Params) -> torch.Tensor:
        """Return the tensors as one, ``[task, n]``."""
        if isinstance(params, FlatParams):
            return params.flat
        return torch.cat([params[name].detach().flatten(1) for name in self._places], dim=1)

    def _moves_like(self, matrix: torch.Tensor) -> torch.Tensor:
        """Return room for the moves of a stack or of several steps."""
        if self._moves.shape != matrix.shape:
            self._moves = torch.empty_like(matrix)
        return self._moves

    def _end(self, segments: _Segments, tasks: Sequence[int], losses: list[float]) -> None:
        """Add the segments of some tasks that wait.

        :param losses: of all tasks, at the segments' ends; NaN where it is not visible.
        """
        rows = [task for task in tasks if segments.waits[task]]
        rises = [losses[task] - segments.losses[task] for task in rows]
        moves, slopes = segments.move, segments.slope
        if len(rows) < len(moves):
            moves, slopes = moves[rows], slopes[rows]
        self._add(moves, slopes, rises)

    def _add(self, moves: torch.Tensor, slopes: torch.Tensor | None, rises: list[float]) -> None:
        """Add segments, as many at a time as stay in the cache.

        :param moves: ``[segment, n]``, Δθ.
        :param slopes: ``[segment, n]``, ∇f(θ_i); None where it is not known.
        :param rises: Δf of each; NaN where it is not known.
        """
        size = max(1, _BLOCK_BYTES // (moves.shape[1] * moves.element_size()))
        for at in range(0, len(moves), size):
            block = slice(at, at + size)
            self._add_block(moves[block], None if slopes is None else slopes[block], rises[block])

    def _add_block(self, moves: torch.Tensor, slopes: torch.Tensor | None, rises: list[float]) -> None:
        self.n_segments += len(moves)
        counted = moves if self._counted is None else moves * self._counted
        squares = _dots(counted, counted)
        if slopes is None:
            rises = [0.0] * len(moves)
        elif any(map(math.isnan, rises)):
            first_order = _dots(slopes, moves)
            rises = [known if known == known else f for known, f in zip(rises, first_order, strict=True)]
        lengths = [math.hypot(math.sqrt(s), r) if s else 0.0 for s, r in zip(squares, rises, strict=True)]
        length = self._metric.metric == "length"
        weights = [float(d > 0.0) / (d if length and d else 1.0) for d in lengths]
        _add_rows(self._pull, counted, [-w for w in weights])
        if slopes is not None:
            falls = [w * (abs(r) if self._metric.stabilizer else -r) for w, r in zip(weights, rises, strict=True)]
            _add_rows(self._pull, slopes, falls)
        self.distance += sum(lengths) if length else sum(d * d for d in lengths)


def _dots(a: torch.Tensor, b: torch.Tensor) -> list[float]:
    """Return the inner products of the rows of two matrices."""
    if len(a) == 1:
        return [float(a[0].dot(b[0]))]
    products: list[float] = torch.linalg.vecdot(a, b).tolist()
    return products


def _add_rows(total: torch.Tensor, rows: torch.Tensor, weights: list[float]) -> None:
    """Add the weighted sum of the rows of a matrix to ``total``."""
    if len(rows) == 1:
        total.add_(rows[0], alpha=weights[0])
    else:
        total.addmv_(rows.mT, torch.tensor(weights, dtype=rows.dtype))
