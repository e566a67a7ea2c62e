"""Live families: whole episodes, each repeated with something changed that must not matter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from gymnasium import spaces

from metarl.envs.checker.common import unlike
from metarl.envs.checker.laws import COPIES, HINT, STREAMS, Randomness, apart_by_task, require_moving, require_one
from metarl.envs.checker.probe import Moment, Probe, Rngs, outcome
from metarl.envs.tasks import Tasks, take_tasks

SHORT = 60
"""Most env steps of an episode that is repeated with something changed."""

Seen = dict[str, np.ndarray]
"""What is seen of each copy at reset or after an env step, by name."""


def check_episodes(probe: Probe) -> None:
    """Require sound numbers, and of every episode that tasks, streams and actions alone decide it."""
    _check_walks(probe)
    tasks, rows = probe.tasks, np.arange(probe.n)
    plan = np.repeat(probe.actions(min(probe.n_steps, SHORT))[:, None], probe.n, axis=1)
    way = list(_play(probe, tasks, probe.streams(), plan))

    def require_same(promise: str, other: Iterator[tuple[Seen, np.ndarray]], index: Any = slice(None)) -> None:
        """Require that the other way is the same as some tasks' part of this one, where both are looked at."""
        first = int(rows[index][0])
        for time, ((a, _), (b, active)) in enumerate(zip(way, other, strict=False)):
            here = {name: value[index][:, : active.shape[1]] for name, value in a.items()}
            probe.require_equal(promise, time, here, b, active, first)

    for index in rows:
        one = slice(index, index + 1)
        promise = f"the episodes of task {index} depend on the other tasks in the batch,"
        require_same(promise, _play(probe, take_tasks(tasks, one), probe.streams(rows=[index]), plan[:, one]), one)
    order = rows[::-1]
    turned = _play(probe, take_tasks(tasks, order), probe.streams(rows=order), plan[:, order])
    back = (({name: value[order] for name, value in seen.items()}, active[order]) for seen, active in turned)
    require_same("episodes depend on the order of the tasks in the batch,", back)
    require_same("episodes depend on what runs beside them,", _beside_others(probe, plan))
    if probe.n_envs > 1:
        for env in range(probe.n_envs):
            mine = np.zeros((probe.n, probe.n_envs), dtype=bool)
            mine[:, env] = True
            alone = _play(probe, tasks, probe.streams(), plan, mine)
            require_same("a copy depends on the other copies of its task, or on which of them are active,", alone)
    _check_clipped(probe, plan)


def _check_walks(probe: Probe) -> None:
    """Walk to the horizon, episode after episode, twice."""
    walks = [probe.walk(probe.tasks, probe.streams(), probe.n_steps) for _ in range(2)]
    everyone = np.ones((probe.n, probe.n_envs), dtype=bool)
    for a, b in zip(*walks, strict=True):
        promise = "the same tasks, streams and actions give two different episodes"
        if isinstance(a, Moment) and isinstance(b, Moment):
            probe.require_equal(promise, a.time, outcome(a.step), outcome(b.step), a.active)
            probe.require_numbers(probe.tasks, a.time, a.step.obs, a.step, a.active)
        elif not isinstance(a, Moment) and not isinstance(b, Moment):
            probe.require_equal(promise, 0, {"obs": a}, {"obs": b})
            probe.require_numbers(probe.tasks, 0, a, None, everyone)


def _play(
    probe: Probe, tasks: Tasks, rngs: Rngs, plan: np.ndarray, mask: np.ndarray | None = None
) -> Iterator[tuple[Seen, np.ndarray]]:
    """Play an episode of each copy.

    :param plan: actions ``[time, task, env, …]``.
    :param mask: ``[task, env]``, the copies that are stepped; None: all.
    :return: what is seen at reset and after each env step, with the copies ``[task, env]`` that it is of.
    """
    state, obs = probe.reset(tasks, rngs, plan.shape[2])
    active = np.ones(plan.shape[1:3], dtype=bool) if mask is None else mask.copy()
    yield {"obs": obs.copy()}, active
    for time, actions in enumerate(plan[: probe.family.horizon], start=1):
        step = probe.step(tasks, state, actions, rngs, active, time)
        yield outcome(step), active
        state, active = step.state, active & ~step.ended
        if not active.any():
            return


def _beside_others(probe: Probe, plan: np.ndarray) -> Iterator[tuple[Seen, np.ndarray]]:
    """Play episodes while others begin, run and are left in the middle."""
    order = np.arange(probe.n)[::-1]
    other = take_tasks(probe.tasks, order)
    others: list[Iterator[tuple[Seen, np.ndarray]]] = []
    for time, moment in enumerate(_play(probe, probe.tasks, probe.streams(), plan)):
        yield moment
        if time % 7 == 0:
            others = [_play(probe, other, probe.streams("beside", order), plan[::-1])]
        for each in others:
            next(each, None)


def _check_clipped(probe: Probe, plan: np.ndarray) -> None:
    """Require that actions outside a Box count as its ends."""
    space = probe.action_space
    if not isinstance(space, spaces.Box):
        return
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    side = np.random.default_rng(probe.seed).integers(3, size=plan.shape)
    outside = np.choose(side, [plan, low - 3.0 * (high - low), high + 3.0 * (high - low)]).astype(plan.dtype)
    ways = [_play(probe, probe.tasks, probe.streams(), actions) for actions in (outside, np.clip(outside, low, high))]
    for time, ((a, active), (b, _)) in enumerate(zip(*ways, strict=False)):
        names = [name for name in ("terminated", "reward", "obs") if name in a]
        promise = "actions outside the action space are not clipped to it: two ways differ"
        probe.require_equal(promise, time, {name: a[name] for name in names}, {name: b[name] for name in names}, active)


def check_live_streams(probe: Probe) -> None:
    """Require that what is random comes from the generators, and for each copy by itself."""
    tasks = take_tasks(probe.tasks, np.zeros(STREAMS, dtype=int))
    plan = probe.actions(min(probe.n_steps, 30), 3)[:, 1]
    plan = np.broadcast_to(plan[:, None, None], (len(plan), STREAMS, COPIES, *plan.shape[1:])).copy()
    found = Randomness(probe, "an episode goes in")
    for time, (seen, active) in enumerate(_play(probe, tasks, probe.streams("streams", range(STREAMS)), plan)):
        if active.all():
            found.add(tasks, time, seen)
    found.conclude()


def check_live_hidden(probe: Probe) -> None:
    """Require that neither first observations nor entries that never move tell tasks apart, with one stream for all."""
    for tasks in apart_by_task(probe):
        plan = np.repeat(probe.actions(min(probe.n_steps, 40))[:, None], probe.n, axis=1)
        lows, highs = (np.full((probe.n, *probe.observation_space.shape), end) for end in (np.inf, -np.inf))
        samples = 0
        for time, (seen, active) in enumerate(_play(probe, tasks, probe.streams(rows=[0] * probe.n), plan)):
            obs = seen["obs"]
            if time == 0:
                told = unlike(obs, obs[:1])
                require_one(probe, tasks, 0, obs, told, f"the first observation tells tasks apart {HINT}")
                continue
            going = active.all(0)
            if not going.any():
                break
            lows, highs = np.minimum(lows, obs[:, going].min(1)), np.maximum(highs, obs[:, going].max(1))
            samples += int(going.sum())
        if samples >= 16:
            require_moving(probe, tasks, lows, highs)
