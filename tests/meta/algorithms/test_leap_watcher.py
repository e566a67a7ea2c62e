"""Leap's watcher on quadratics, in float64, against eq. 8 of the paper differentiated by torch."""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import pytest
import torch

from metarl.agents.learners.watching import FlatParams
from metarl.errors import ConfigError, UnknownNameError
from metarl.meta.algorithms import leap_watcher as watchers
from metarl.meta.algorithms.leap_watcher import METRICS, LeapMetric, LeapWatcher
from metarl.params import Params

TASKS, STEPS = 4, 5
SHAPES = {"body.weight": (2, 3), "body.bias": (2,), "head.weight": (1, 2)}
SIZE = 10
FLAGS = list(product((True, False), repeat=3))
ALL = [LeapMetric(metric, *flags) for metric in ("length", "energy") for flags in FLAGS]


def split(flat: torch.Tensor) -> Params:
    """Return ``[task, n]`` as named tensors."""
    parts = torch.split(flat, [int(torch.tensor(shape).prod()) for shape in SHAPES.values()], dim=1)
    return {name: part.reshape(len(flat), *shape) for (name, shape), part in zip(SHAPES.items(), parts, strict=True)}


def join(params: Params) -> torch.Tensor:
    """Return named tensors without a task axis as one, in the order of :data:`SHAPES`."""
    return torch.cat([params[name].flatten() for name in SHAPES])


class Quadratics:
    """f(θ) = ½ (θ − c)ᵀ A (θ − c) for each task, walked down by gradient steps that overshoot in some directions."""

    def __init__(self, n_tasks: int = TASKS, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        draw = torch.randn(n_tasks, SIZE, SIZE, generator=generator, dtype=torch.float64)
        self.curvature = draw @ draw.mT / SIZE
        self.center = torch.randn(n_tasks, SIZE, generator=generator, dtype=torch.float64)
        self.start = torch.randn(SIZE, generator=generator, dtype=torch.float64).expand(n_tasks, SIZE)

    def losses(self, theta: torch.Tensor) -> torch.Tensor:
        away = theta - self.center
        return 0.5 * torch.einsum("ti,tij,tj->t", away, self.curvature, away)

    def gradient(self, theta: torch.Tensor) -> torch.Tensor:
        return torch.einsum("tij,tj->ti", self.curvature, theta - self.center)

    def path(self, rate: float = 0.6, steps: int = STEPS) -> list[torch.Tensor]:
        points = [self.start]
        for _ in range(steps):
            points.append(points[-1] - rate * self.gradient(points[-1]))
        return points


def watch(problem: Quadratics, points: list[torch.Tensor], metric: LeapMetric, **kwargs: Any) -> LeapWatcher:
    watcher = LeapWatcher(metric, **kwargs)
    for start, end in pairwise(points):
        watcher.segment(split(start), split(end), split(problem.gradient(start)), problem.losses(start))
    return watcher


def total(watcher: LeapWatcher) -> Params:
    """Return what a watcher has summed up at the end of the paths."""
    watcher.close()
    return watcher.gradient()


def pull_forward(problem: Quadratics, points: list[torch.Tensor], metric: LeapMetric) -> tuple[torch.Tensor, float]:
    """Return the gradient of eq. 5 with its forward points frozen and J = I, and the distance of eq. 3."""
    p = 1 if metric.metric == "length" else 2
    total, distance = torch.zeros(SIZE, dtype=torch.float64), 0.0
    segments = list(pairwise(points))
    for i, (start, end) in enumerate(segments):
        last = i == len(segments) - 1
        if last and metric.drop_last:
            continue
        theta = start.clone().requires_grad_()
        f, f_end = problem.losses(theta), problem.losses(end)
        if last:  # no loss is seen at the end of the path: to first order
            f_end = problem.losses(start) + (problem.gradient(start) * (end - start)).sum(1)
        rise = f_end - f if metric.loss else torch.zeros_like(f)
        norm = ((end - theta).square().sum(1) + rise.square()).sqrt()
        objective = (norm**p).sum()
        if metric.stabilizer:  # the paper's μ, rescaled for the length
            mu = torch.where(rise > 0.0, -2.0 * rise.square(), 0.0)
            objective = objective + (mu if p == 2 else mu / (2.0 * norm.detach())).sum()
        total += torch.autograd.grad(objective, theta)[0].sum(0)
        distance += float((norm**p).detach().sum())
    return total / p, distance


@pytest.mark.parametrize("metric", ALL)
def test_the_meta_gradient_is_equation_eight(metric: LeapMetric) -> None:
    problem = Quadratics()
    points = problem.path(rate=0.9)
    rises = torch.stack([problem.losses(b) - problem.losses(a) for a, b in pairwise(points)])
    assert (rises[:-1] > 0.0).any()
    assert (rises[:-1] < 0.0).any()
    watcher = watch(problem, points, metric)
    expected, distance = pull_forward(problem, points, metric)
    torch.testing.assert_close(join(total(watcher)), expected, rtol=1e-10, atol=1e-12)
    assert watcher.distance == pytest.approx(distance, rel=1e-12)


def test_without_loss_norm_and_stabilizer_leap_is_reptile_up_to_the_last_segment() -> None:
    problem = Quadratics()
    points = problem.path()
    for drop_last, end in ((False, points[-1]), (True, points[-2])):
        metric = LeapMetric("energy", loss=False, stabilizer=False, drop_last=drop_last)
        reptile = (points[0] - end).sum(0)
        torch.testing.assert_close(join(total(watch(problem, points, metric))), reptile, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("metric", ALL)
def test_segments_that_did_not_move_add_nothing(metric: LeapMetric) -> None:
    problem = Quadratics()
    points = problem.path()
    watcher = LeapWatcher(metric)
    for i, (start, end) in enumerate(pairwise(points)):
        gradient, losses = split(problem.gradient(start)), problem.losses(start)
        if i in (0, 2):
            # The first one's loss comes from another minibatch, so it seems to rise or fall.
            noise = 0.1 if i == 0 else 0.0
            watcher.segment(split(start), split(start), gradient, losses + noise)
        watcher.segment(split(start), split(end), gradient, losses)
    expected = watch(problem, points, metric)
    torch.testing.assert_close(join(total(watcher)), join(total(expected)), rtol=1e-12, atol=1e-12)
    assert watcher.distance == pytest.approx(expected.distance, rel=1e-12)


@pytest.mark.parametrize("metric", ALL)
def test_a_path_that_never_moved_gives_zero_and_no_nan(metric: LeapMetric) -> None:
    problem = Quadratics()
    watcher = watch(problem, [problem.start] * 4, metric)
    assert not join(total(watcher)).any()
    assert watcher.distance == 0.0


@pytest.mark.parametrize("metric", ALL)
def test_tasks_that_stop_and_go_on_are_as_if_alone(metric: LeapMetric) -> None:
    problem = Quadratics()
    stacked, alone = LeapWatcher(metric), [LeapWatcher(metric) for _ in range(TASKS)]
    theta = problem.start
    moves = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 1], [0, 0, 0, 1], [1, 1, 0, 1], [1, 0, 1, 1]], dtype=torch.bool)
    for active in moves:
        gradient, losses = problem.gradient(theta), problem.losses(theta)
        end = torch.where(active[:, None], theta - 0.6 * gradient, theta)
        # What a stopped task reports is nobody's business.
        losses = torch.where(active, losses, torch.nan)
        stacked.segment(split(theta), split(end), split(gradient), losses, None if active.all() else active)
        for i in active.nonzero().flatten().tolist():
            row = slice(i, i + 1)
            alone[i].segment(split(theta[row]), split(end[row]), split(gradient[row]), losses[row])
        theta = end
    expected = sum((join(total(watcher)) for watcher in alone), torch.zeros(SIZE, dtype=torch.float64))
    torch.testing.assert_close(join(total(stacked)), expected, rtol=1e-12, atol=1e-12)
    assert stacked.distance == pytest.approx(sum(watcher.distance for watcher in alone), rel=1e-12)


@pytest.mark.parametrize("metric", ALL)
def test_stacks_one_after_another_add_up(metric: LeapMetric) -> None:
    problem = Quadratics()
    points = problem.path()
    watcher = LeapWatcher(metric)
    for rows in (slice(0, 3), slice(3, 4)):
        for start, end in pairwise(points):
            tensors = (split(start[rows]), split(end[rows]), split(problem.gradient(start)[rows]))
            watcher.segment(*tensors, problem.losses(start)[rows])
        watcher.close()
    together = watch(problem, points, metric)
    torch.testing.assert_close(join(watcher.gradient()), join(total(together)), rtol=1e-12, atol=1e-12)
    assert watcher.distance == pytest.approx(together.distance, rel=1e-12)


@pytest.mark.parametrize("metric", [metric for metric in ALL if not metric.drop_last])
def test_tasks_that_stop_under_a_hidden_loss_add_nothing_more(metric: LeapMetric) -> None:
    problem, alone = Quadratics(), [LeapWatcher(metric) for _ in range(TASKS)]
    together, theta = LeapWatcher(metric), problem.start
    for step in range(3):
        active = torch.arange(TASKS) > step
        gradient = problem.gradient(theta)
        end = theta - 0.3 * gradient
        together.segment(split(theta), split(end), split(gradient), None, active)
        for i in active.nonzero().flatten().tolist():
            alone[i].segment(*(split(part[i : i + 1]) for part in (theta, end, gradient)), None)
        theta = torch.where(active[:, None], end, theta)
    expected = sum(join(total(watcher)) for watcher in alone[1:])
    torch.testing.assert_close(join(total(together)), expected, rtol=1e-12, atol=1e-14)
    assert together.distance == pytest.approx(sum(watcher.distance for watcher in alone))
    assert together.n_segments == sum(watcher.n_segments for watcher in alone) == 3 + 2 + 1


def test_a_hidden_loss_is_taken_to_first_order() -> None:
    problem = Quadratics()
    points = problem.path(rate=0.05)
    metric = LeapMetric("energy", stabilizer=False)
    watcher, expected = LeapWatcher(metric), torch.zeros(SIZE, dtype=torch.float64)
    for start, end in pairwise(points):
        gradient, move = problem.gradient(start), end - start
        watcher.segment(split(start), split(end), split(gradient), None)
        expected -= ((gradient * move).sum(1, keepdim=True) * gradient + move).sum(0)
    torch.testing.assert_close(join(total(watcher)), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("metric", ALL)
def test_tensors_of_one_matrix_may_have_gaps_between_them(metric: LeapMetric) -> None:
    def spread(flat: torch.Tensor) -> FlatParams:
        params, matrix = split(flat), torch.zeros(len(flat), 30, dtype=torch.float64)
        for at, tensor in zip((0, 8, 16), params.values(), strict=True):
            matrix[:, at : at + tensor[0].numel()] = tensor.flatten(1)
        parts = {
            name: matrix[:, at : at + tensor[0].numel()].view(tensor.shape)
            for at, (name, tensor) in zip((0, 8, 16), params.items(), strict=True)
        }
        return FlatParams(parts, matrix)

    problem = Quadratics()
    points = problem.path()
    kwargs = {"excluded": ["body.bias"]}
    spaced, dense = LeapWatcher(metric, **kwargs), LeapWatcher(metric, **kwargs)
    for start, end in pairwise(points):
        flats = (start, end, problem.gradient(start))
        spaced.segment(*map(spread, flats), None)
        dense.segment(*map(split, flats), None)
    torch.testing.assert_close(total(spaced), total(dense), rtol=1e-12, atol=1e-12)
    assert spaced.distance == pytest.approx(dense.distance, rel=1e-12)


@pytest.mark.parametrize("metric", ALL)
def test_a_loss_that_is_shown_at_times_only(metric: LeapMetric) -> None:
    problem = Quadratics()
    points = problem.path()
    seen = LeapWatcher(metric)
    for i, (start, end) in enumerate(pairwise(points)):
        losses = problem.losses(start) if i in (1, 2) else None
        seen.segment(split(start), split(end), split(problem.gradient(start)), losses)
    rises = [None, problem.losses(points[2]) - problem.losses(points[1]), None, None, None]
    pull, distance = torch.zeros(SIZE, dtype=torch.float64), 0.0
    for rise, (start, end) in list(zip(rises, pairwise(points), strict=True))[: len(rises) - metric.drop_last]:
        slope, move = problem.gradient(start), end - start
        rise = (slope * move).sum(1) if rise is None else rise
        rise = rise * float(metric.loss)
        square = (move**2).sum(1) + rise**2
        weight = 1.0 / square.sqrt() if metric.metric == "length" else torch.ones(TASKS, dtype=torch.float64)
        fall = rise.abs().neg() if metric.stabilizer else rise
        pull -= (weight[:, None] * (move + fall[:, None] * slope)).sum(0)
        distance += float((square.sqrt() if metric.metric == "length" else square).sum())
    torch.testing.assert_close(join(total(seen)), pull, rtol=1e-10, atol=1e-12)
    assert seen.distance == pytest.approx(distance, rel=1e-12)


def test_a_segment_without_a_gradient_has_no_loss() -> None:
    problem = Quadratics()
    points = problem.path()
    blind = LeapWatcher(LeapMetric())
    for start, end in pairwise(points):
        blind.segment(split(start), split(end), None, problem.losses(start))
    flat = watch(problem, points, LeapMetric(loss=False))
    torch.testing.assert_close(join(total(blind)), join(total(flat)), rtol=1e-12, atol=1e-12)


def test_excluded_tensors_pull_nothing_and_have_no_length() -> None:
    problem = Quadratics()
    points = problem.path()
    watcher = watch(problem, points, LeapMetric(loss=False), excluded=["body.bias"])
    result = total(watcher)
    assert not result["body.bias"].any()
    keep = torch.ones(SIZE, dtype=torch.bool)
    keep[6:8] = False
    moves = torch.stack([b - a for a, b in pairwise(points)])[..., keep]
    expected = -(moves / moves.norm(dim=-1, keepdim=True)).sum((0, 1))
    torch.testing.assert_close(join(result)[keep], expected, rtol=1e-12, atol=1e-12)
    assert watcher.distance == pytest.approx(float(moves.norm(dim=-1).sum()), rel=1e-12)
    # The loss changes by what every tensor does.
    full = LeapWatcher(LeapMetric("energy", stabilizer=False), excluded=["body.bias"])
    start, end = points[:2]
    gradient = problem.gradient(start)
    full.segment(split(start), split(end), split(gradient), None)
    rise = (gradient * (end - start)).sum(1, keepdim=True)
    expected = -(rise * gradient + end - start).sum(0)[keep]
    torch.testing.assert_close(join(total(full))[keep], expected, rtol=1e-12, atol=1e-12)


def test_what_a_watcher_saw_may_be_overwritten() -> None:
    problem = Quadratics()
    points = problem.path()
    watcher = LeapWatcher(LeapMetric())
    room = {name: torch.empty(TASKS, *shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    others = [{name: tensor.clone() for name, tensor in room.items()} for _ in range(2)]
    losses = torch.empty(TASKS, dtype=torch.float64)
    for start, end in pairwise(points):
        tensors = (split(start), split(end), split(problem.gradient(start)))
        for place, value in zip((room, *others), tensors, strict=True):
            for name, tensor in place.items():
                tensor.copy_(value[name])
        losses.copy_(problem.losses(start))
        watcher.segment(room, others[0], others[1], losses)
    torch.testing.assert_close(
        join(total(watcher)), join(total(watch(problem, points, LeapMetric()))), rtol=0.0, atol=0.0
    )


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"metric": "lenght"}, "did you mean 'length'"), ({"loss": 1}, "loss=1"), ({"drop_last": "no"}, "drop_last='no'")],
)
def test_bad_values(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, UnknownNameError), match=message):
        LeapMetric(**kwargs)


@pytest.mark.parametrize("visible", [True, False])
def test_a_segment_of_excluded_tensors_only_adds_nothing(visible: bool) -> None:
    problem = Quadratics()
    start, end = problem.path()[:2]
    parts = split(end)
    moved = {name: parts[name] if name == "body.bias" else tensor for name, tensor in split(start).items()}
    watcher = LeapWatcher(LeapMetric(), excluded=["body.bias"])
    watcher.segment(split(start), moved, split(problem.gradient(start)), problem.losses(start) if visible else None)
    watcher.close()
    assert watcher.distance == 0.0
    assert not join(watcher.gradient()).any()


@pytest.mark.parametrize("metric", ALL)
@pytest.mark.parametrize("visible", [True, False])
def test_segments_that_are_added_in_blocks(monkeypatch: pytest.MonkeyPatch, metric: LeapMetric, visible: bool) -> None:
    problem = Quadratics()
    points = problem.path()
    results = []
    for size in (1, 2 * SIZE * 8, 1 << 20):  # one, two and all of four tasks at a time
        monkeypatch.setattr(watchers, "_BLOCK_BYTES", size)
        watcher = LeapWatcher(metric)
        for start, end in pairwise(points):
            losses = problem.losses(start) if visible else None
            watcher.segment(split(start), split(end), split(problem.gradient(start)), losses)
        results.append((join(total(watcher)), watcher.distance, watcher.n_segments))
    assert results[0][2] == TASKS * (STEPS - metric.drop_last)
    for pull, distance, n_segments in results[1:]:
        torch.testing.assert_close(pull, results[0][0], rtol=1e-12, atol=1e-12)
        assert distance == pytest.approx(results[0][1], rel=1e-12)
        assert n_segments == results[0][2]


@pytest.mark.parametrize("metric", METRICS)
def test_a_loss_that_explodes_is_infinitely_long_and_no_error(metric: str) -> None:
    problem = Quadratics()
    points = problem.path()
    watcher = LeapWatcher(LeapMetric(metric))
    for i, (start, end) in enumerate(pairwise(points)):
        losses = problem.losses(start) + (1e200 if i == 2 else 0.0)
        watcher.segment(split(start), split(end), split(problem.gradient(start)), losses)
    watcher.close()
    assert watcher.distance > 1e199
