"""What only many steps show: where randomness comes from, what tells a task, and when an action counts."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from gymnasium import spaces

from metarl.envs.checker.common import FamilyCheckError, alike, family_name, number, unlike, where
from metarl.envs.checker.probe import Moment, Probe, Rngs, clones, outcome, rowwise, unmoved
from metarl.envs.family import Family, State, Step
from metarl.envs.groups import group_tasks
from metarl.envs.supervised.one_step import OneStep
from metarl.envs.tasks import Tasks, n_tasks, one_task, take_tasks
from metarl.errors import shorten

STREAMS, COPIES = 8, 4
"""How many streams, and copies of each, are compared: enough for chance to make no two events look like one."""
HINT = "(set observes_task if it should)"
TRIALS, LAGS = 9, 3
"""How many times another action is tried, and for how many env steps it is followed."""


LISTED = 32
"""Tasks of a list that are compared where those that were drawn are alike."""


# ------------------------------------------------------------------------------------------------------------- streams
def check_streams(probe: Probe) -> None:
    """Require that what is random comes from the generators, and for each copy by itself."""
    tasks = take_tasks(probe.tasks, np.zeros(STREAMS, dtype=int))
    rngs = probe.streams("streams", range(STREAMS))
    state, obs = probe.reset(tasks, rngs, COPIES)
    seen = Randomness(probe, "reset starts")
    seen.add(tasks, 0, {"obs": obs, **{f"state {shorten(name)}": value for name, value in state.items()}})
    seen.conclude()
    seen = Randomness(probe, "step moves")
    favour = np.zeros((0, COPIES))
    # The middle one of three is not pushed to the end of its space.
    for time, action in enumerate(probe.actions(min(probe.n_steps, 30), 3)[:, 1:2], start=1):
        # Another one each time: what is random shows where there is room to move.
        row, env = time % STREAMS, time % COPIES
        equal = {
            name: np.broadcast_to(value[row : row + 1, env : env + 1], value.shape).copy()
            for name, value in state.items()
        }
        actions = np.broadcast_to(action[None], (STREAMS, COPIES, *action.shape[1:])).copy()
        step = probe.step(tasks, equal, actions, rngs, None, time)
        seen.add(tasks, time, outcome(step))
        favour = np.concatenate([favour, step.reward - step.reward.mean(1, keepdims=True)])
        if time >= probe.family.horizon:
            break
        # Another state of those that go on, if any does.
        going = np.argwhere(~step.ended)
        if not len(going):
            break
        state = {
            name: np.repeat(value[going[:, 0], going[:, 1]][None], STREAMS, 0) for name, value in step.state.items()
        }
        state = {name: np.take(value, np.arange(COPIES) * 7 % len(going), axis=1) for name, value in state.items()}
    seen.conclude()
    # By chance, eight standard errors do not happen.
    error = np.sqrt(np.mean(favour**2) / max(1, len(favour)))
    for env in np.flatnonzero(np.abs(favour.mean(0)) > 8 * error)[:1] if len(favour) >= 80 else ():
        what = f"by {number(favour.mean(0)[env])} on average, from the same states with the same actions"
        probe.refuse(f"copy {env} of task 0 is paid otherwise than the others, {what} {where(1, tasks, 0)}")


class Randomness:
    """Compares streams and copies that have all else in common."""

    def __init__(self, probe: Probe, does: str) -> None:
        self.probe, self.does = probe, does
        self.by_stream = self.by_copy = ""

    def add(self, tasks: Tasks, time: int, arrays: dict[str, np.ndarray]) -> None:
        for name, value in arrays.items():
            streams, copies = unlike(value, value[:1]), unlike(value, value[:, :1])
            if streams.any() and not self.by_stream:
                self.by_stream = self._words(tasks, time, name, value, streams)
            if copies.any() and not self.by_copy:
                self.by_copy = self._words(tasks, time, name, value, copies)

    @staticmethod
    def _words(tasks: Tasks, time: int, name: str, value: np.ndarray, differ: np.ndarray) -> str:
        row, env = np.argwhere(differ)[0, :2].tolist()
        one = value[0, env] if differ[:, 0].any() or row else value[row, 0]
        return f"{where(time, tasks, 0)}: {name} {number(one)} and {number(value[row, env])}"

    def conclude(self) -> None:
        self.probe.require(
            bool(self.by_stream) or not self.by_copy,
            f"{self.does} copies differently though the generators make no difference, {self.by_copy}",
        )
        self.probe.require(
            bool(self.by_copy) or not self.by_stream,
            f"{self.does} all copies of a task alike though another stream makes a difference: each copy draws for "
            f"itself, {self.by_stream}",
        )


# ---------------------------------------------------------------------------------------------------------------- leaks
def check_hidden(probe: Probe) -> None:
    """Require that observations do not tell tasks apart whose states are equal: all, then one parameter at a time.

    Every task is put into the same state again and again, one stream for all. What only stays in the state and differs
    from the start is a note of the task, so it may differ; what is observed may not.
    """
    for batch in apart_by_task(probe):
        _check_hidden(probe, batch)


def apart_by_task(probe: Probe) -> Iterator[Tasks]:
    """Return the batches whose tasks must not be told apart: all tasks, then one parameter at a time."""
    if probe.family.observes_task or probe.n == 1:
        return
    yield probe.tasks
    if len(probe.tasks) > 1 and probe.family.finite_tasks() is None:
        for batch in one_at_a_time(probe.tasks).values():
            spaces_ = [probe.family.spaces(one_task(batch, index)) for index in range(probe.n)]
            if all(pair == (probe.observation_space, probe.action_space) for pair in spaces_):
                yield batch


def one_at_a_time(tasks: Tasks) -> dict[str, Tasks]:
    """Return batches in which one parameter differs, and the others are the first task's; by the parameter's name."""
    base = take_tasks(tasks, np.zeros(n_tasks(tasks), dtype=int))
    return {name: {**base, name: tasks[name]} for name in tasks}


def _check_hidden(probe: Probe, tasks: Tasks) -> None:
    n = probe.n
    rngs = probe.streams(rows=[0] * n)
    state, obs = probe.reset(tasks, rngs)
    require_one(probe, tasks, 0, obs, unlike(obs, obs[:1]), f"the first observation tells tasks apart {HINT}")
    notes = {name for name, value in state.items() if unlike(value, value[:1]).any()}
    lows, highs = np.full((n, *obs.shape[2:]), np.inf), np.full((n, *obs.shape[2:]), -np.inf)
    samples = 0
    going = np.ones(obs.shape[1], dtype=bool)
    for time, action in enumerate(probe.actions(min(probe.n_steps, 40)), start=1):
        if not going.any() or time > probe.family.horizon:
            break
        same = {name: value if name in notes else np.repeat(value[:1], n, axis=0) for name, value in state.items()}
        rngs = [clones(rngs[:1])[0] for _ in range(n)]
        step = probe.step(tasks, same, np.repeat(action[None], n, axis=0), rngs, None, time)
        equal = np.repeat(going[None], n, axis=0) & unmoved(rngs, [rngs[0]] * n)[:, None]
        for name, value in step.state.items():
            apart = unlike(value, same[name] if name in notes else value[:1])
            equal &= ~rowwise(apart)
        told = unlike(step.obs, step.obs[:1]) & _wide(equal, step.obs)
        for outcome_of in (step.reward, *(value for value in step.info.values() if value.ndim == 2)):
            # Who observes the last reward learns from it what everybody does.
            told &= unlike(step.obs, _wide(outcome_of.astype(np.float32), step.obs))
        require_one(probe, tasks, time, step.obs, told, f"an observation tells tasks apart in equal states {HINT}")
        seen = step.obs[:, going]
        lows, highs = np.minimum(lows, seen.min(1)), np.maximum(highs, seen.max(1))
        samples += int(going.sum())
        going &= ~step.ended[0]
        state = {name: value if name in notes else step.state[name] for name, value in same.items()}
    # Where dynamics differ, states do too; what stands still through all of it is the task.
    if samples >= 16:
        require_moving(probe, tasks, lows, highs)


def require_moving(probe: Probe, tasks: Tasks, lows: np.ndarray, highs: np.ndarray) -> None:
    """Require that no entry of observations stands still and tells the task; given the ends of each, ``[task, …]``."""
    still = (lows == highs).all(0) & unlike(lows, lows[:1]).any(0)
    for place in np.argwhere(still)[:1].tolist():
        row = int(np.argmax(unlike(lows[(slice(None), *place)], lows[(0, *place)])))
        pair = f"{number(lows[(0, *place)])} for task 0, {number(lows[(row, *place)])} {where(1, tasks, row)}"
        probe.refuse(f"entry {place} of observations tells tasks apart whatever happens {HINT}: {pair}")


def require_one(probe: Probe, tasks: Tasks, time: int, obs: np.ndarray, told: np.ndarray, promise: str) -> None:
    """Require that what is observed tells no task, given where it does ``[task, env, …]``."""
    for row, env, *place in np.argwhere(told)[:1].tolist():
        pair = f"{number(obs[(row, env, *place)])}, for task 0 it is {number(obs[(0, env, *place)])}"
        probe.refuse(f"{promise}: entry {place} is {pair}, {where(time, tasks, row, env)}")


def check_task_matters(family: Family, tasks: Tasks, lengths: tuple[int, ...], seed: int) -> None:
    """Vary one parameter at a time (of a finite family: the whole task) and look for any difference.

    :param lengths: env steps to try, one after another: a task may show only far from the start.
    """
    n, finite = n_tasks(tasks), family.finite_tasks()
    varied: dict[str, Tasks] = {"the task": tasks}
    if finite is None:
        varied = {f"task parameter {shorten(name)}": batch for name, batch in one_at_a_time(tasks).items()}
    for what, batch in varied.items():
        # Some of a list may be twins, as mazes that the same moves solve, and all of the few that were drawn: the list
        # is looked at then.
        found = any(_matters(family, batch, length, seed) for length in lengths)
        if not (found or (finite is not None and _matters(family, _spread(family, finite), lengths[-1], seed))):
            pair = " and ".join(shorten({name: batch[name][index].tolist() for name in batch}) for index in (0, n - 1))
            message = f"{what} changes neither dynamics nor reward within {lengths[-1]} env steps: {pair}"
            raise FamilyCheckError(f"{family_name(family)}: {message}")


def _spread(family: Family, finite: Tasks) -> Tasks:
    """Return tasks of a list, from its first to its last, of the spaces that the first has."""
    places = np.unique(np.linspace(0, n_tasks(finite) - 1, LISTED).astype(int))
    return group_tasks(family, take_tasks(finite, places))[0].tasks


def _matters(family: Family, tasks: Tasks, n_steps: int, seed: int) -> bool:
    probe = Probe(family, tasks, family.observation_space, family.action_space, 2 * COPIES, n_steps, seed)
    rngs = probe.streams(rows=[0] * probe.n)
    state, obs = probe.reset(tasks, rngs)
    # Of supervised tasks what is asked is part of what is learnt.
    counts = not family.observes_task or isinstance(family, OneStep)
    if counts and unlike(obs, obs[:1]).any():
        return True
    going = np.ones(obs.shape[:2], dtype=bool)
    plan = probe.actions(n_steps, purpose="matters")
    # A copy goes far in one direction first.
    plan[: n_steps // 2] = plan[n_steps // 2]
    if isinstance(probe.action_space, spaces.Box):
        ends = np.arange(COPIES)[:, None] >> np.arange(probe.action_space.shape[0]) % 2 & 1
        plan[: n_steps // 2, :COPIES] = np.where(ends, probe.action_space.high, probe.action_space.low)
    for time, action in enumerate(plan, start=1):
        step = probe.step(tasks, state, np.repeat(action[None], probe.n, axis=0), rngs, going, time)
        for name in ("reward", "terminated") if family.observes_task else ("reward", "terminated", "obs"):
            value = getattr(step, name)
            if (unlike(value, value[:1]) & _wide(going, value)).any():
                return True
        going = going & ~step.ended
        if not going.any():
            return False
        state = step.state
    return False


# -------------------------------------------------------------------------------------------------------------- timing
def check_timing(probe: Probe) -> None:
    """Require that observation and reward belong to the state after the step.

    Two ways that differ in one action only are compared: what is computed from the state before the step answers an
    action one env step later than the state does.
    """
    n_envs, horizon = max(probe.n_envs, COPIES), probe.family.horizon
    if horizon < 2:
        return
    lags = min(LAGS, horizon)
    wide = Probe(
        probe.family, probe.tasks, probe.observation_space, probe.action_space, n_envs, probe.n_steps, probe.seed
    )
    answers = {name: _Answers() for name in ("state", "reward", "obs")}
    others = wide.actions(TRIALS, purpose="other")
    moments = wide.walk(wide.tasks, wide.streams("timing"), TRIALS * LAGS, "timing")
    walked = []
    # At odd times, so that rewards which are paid every other step are met at each.
    tried = np.random.default_rng(probe.seed).random(TRIALS * LAGS) < 1 / LAGS
    for moment, is_tried in zip((m for m in moments if isinstance(m, Moment)), tried, strict=True):
        walked.append(moment)
        if is_tried and moment.time + lags - 1 <= horizon:
            _follow(wide, moment, np.repeat(others[len(walked) % TRIALS][None], wide.n, axis=0), lags, answers)
    _check_copied(probe, walked)
    slowest = answers["state"].slowest
    for name, what in (("reward", "the reward"), ("obs", "the observation")):
        first = answers[name].quickest
        # Sparse rewards answer to few actions, and prove nothing.
        if first > slowest and answers[name].asked >= 24 and answers[name].share(first) >= 0.3:
            late = f"it answers an action {first} env steps later, the state within {slowest}"
            probe.refuse(f"{what} is of the state before the step: {late}, {answers[name].example}")


def _check_copied(probe: Probe, moments: list[Moment]) -> None:
    """Require that no entry of the observation is always one of the state before and none of the state after."""
    before, after, seen = [], [], []
    for moment in moments:
        nothing = np.zeros((int(moment.active.sum()), 0))
        before.append(np.concatenate([nothing, *(_flat(value)[moment.active] for value in moment.state.values())], 1))
        after.append(
            np.concatenate([nothing, *(_flat(value)[moment.active] for value in moment.step.state.values())], 1)
        )
        seen.append(_flat(moment.step.obs)[moment.active])
    old, new, observed = (np.concatenate(part).astype(np.float32) for part in (before, after, seen))
    stale = {column.tobytes() for column in old.T} - {column.tobytes() for column in new.T}
    for entry, column in enumerate(observed.T):
        if column.tobytes() in stale and len(np.unique(column)) > 1:
            at = where(moments[0].time, moments[0].tasks, *np.argwhere(moments[0].active)[0].tolist())
            what = f"entry {entry} is always a number that the state had before, {number(column[0])} {at}"
            probe.refuse(f"the observation is of the state before the step: {what}")


class _Answers:
    """How often each entry of something answered to an action, by the number of env steps after it."""

    def __init__(self) -> None:
        self.asked = 0
        self._seen = np.zeros((LAGS, 0), dtype=int)
        self.example = ""

    def add(self, lag: int, apart: np.ndarray) -> None:
        """Count the entries ``[way, entry]`` that differ."""
        if not self._seen.size:
            self._seen = np.zeros((LAGS, apart.shape[1]), dtype=int)
        self.asked += len(apart) if lag == 0 else 0
        self._seen[lag] += apart.sum(0)

    @property
    def _firsts(self) -> np.ndarray:
        """The first lag at which each entry that ever answers does."""
        answered = self._seen[:, self._seen.any(0)]
        return np.asarray(np.argmax(answered > 0, axis=0))

    @property
    def quickest(self) -> int:
        """The first lag at which any entry answers; 0 if none ever does."""
        return int(min(self._firsts, default=0))

    @property
    def slowest(self) -> int:
        """The lag after which every entry that ever answers has; all of them if none does."""
        return int(max(self._firsts, default=LAGS))

    def share(self, lag: int) -> float:
        """Return which part of the actions was answered at ``lag``, by the entry that answers most."""
        return float(self._seen[lag].max() / self.asked)


def _follow(probe: Probe, moment: Moment, other: np.ndarray, lags: int, answers: dict[str, _Answers]) -> None:
    """Step with another action, then both ways with the same ones; count what differs."""
    # What only keeps the last value of something else answers late by itself.
    before = moment.state
    kept = {
        name
        for name, value in moment.step.state.items()
        if any(other != name and _is(value, last) for other, last in before.items()) and not _is(value, before[name])
    }
    ways: list[tuple[Step, Rngs]] = [(moment.step, clones(moment.after)), probe.again(moment, actions=other)]
    going = moment.active & rowwise(moment.actions != other)
    for lag in range(lags):
        (a, rngs_a), (b, rngs_b) = ways
        going = going & unmoved(rngs_a, rngs_b)[:, None]
        if not going.any():
            return
        differ = {
            name: _flat(unlike(value, getattr(b, name))) for name, value in (("reward", a.reward), ("obs", a.obs))
        }
        moving = [_flat(unlike(value, b.state[name])) for name, value in a.state.items() if name not in kept]
        differ["state"] = np.concatenate([np.zeros((*going.shape, 0), dtype=bool), *moving], axis=-1)
        for name, part in differ.items():
            answers[name].add(lag, part[going])
            found = part.any(-1) & going
            if name != "state" and found.any() and not answers[name].example:
                row, env = np.argwhere(found)[0].tolist()
                pair = f"{number(getattr(a, name)[row, env])} or {number(getattr(b, name)[row, env])}"
                answers[name].example = f"{where(moment.time + lag, moment.tasks, row, env)}: {pair}"
        going = going & ~(a.ended | b.ended)
        if lag + 1 < lags:
            ways = [_next(probe, moment, step, rngs, going, lag) for step, rngs in ways]


def _is(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and alike(a, b)


def _next(probe: Probe, moment: Moment, step: Step, rngs: Rngs, going: np.ndarray, lag: int) -> tuple[Step, Rngs]:
    rngs = clones(rngs)
    state: State = {name: value.copy() for name, value in step.state.items()}
    actions = np.roll(moment.actions, lag + 1, axis=1)
    return probe.step(moment.tasks, state, actions, rngs, going, moment.time + lag + 1), rngs


def _flat(value: np.ndarray) -> np.ndarray:
    """Return an array as ``[task, env, entry]``."""
    return value.reshape(*value.shape[:2], -1)


def _wide(mask: np.ndarray, value: np.ndarray) -> np.ndarray:
    return mask.reshape(mask.shape + (1,) * (value.ndim - 2))
