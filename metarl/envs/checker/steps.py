"""Single steps, each repeated with something changed that must not matter."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import numpy as np
from gymnasium import spaces

from metarl.envs.checker.common import both, number, unlike, where
from metarl.envs.checker.probe import Moment, Probe, comparable, outcome, picked, rowwise, unmoved
from metarl.envs.family import State, Step
from metarl.envs.stepping import has_stepper, stepper_of
from metarl.envs.tasks import n_tasks, take_tasks

THOROUGH = 6
"""First env steps that all repetitions are tried at; after them, one kind every other step."""
BEYOND = (0.5, 5.0, 300.0)
"""How far outside its bounds actions are tried, in halves of a Box's width."""


def check_starts(probe: Probe) -> None:
    """Require that generators and the task alone decide how episodes start."""
    tasks, n = probe.tasks, probe.n
    state, obs = probe.reset(tasks, probe.streams())
    everyone = np.ones(obs.shape[:2], dtype=bool)
    probe.require_numbers(tasks, 0, obs, None, everyone)
    first = _start(state, obs)
    del state  # so that the instances of a live family are used again
    again = _start(*probe.reset(tasks, probe.streams()))
    probe.require_equal("the same tasks and streams start differently", 0, first, again)
    for index in range(n):
        one = slice(index, index + 1)
        alone = _start(*probe.reset(take_tasks(tasks, one), probe.streams(rows=[index])))
        whole = {name: value[one] for name, value in first.items()}
        promise = f"the start of task {index} depends on the other tasks in the batch,"
        probe.require_equal(promise, 0, whole, alone, first=index)
    order = np.arange(n)[::-1]
    turned = _start(*probe.reset(take_tasks(tasks, order), probe.streams(rows=order)))
    promise = "starts depend on the order of the tasks in the batch,"
    probe.require_equal(promise, 0, first, {name: value[order] for name, value in turned.items()})


def _start(state: State, obs: np.ndarray) -> dict[str, np.ndarray]:
    return {"obs": obs, **comparable(state)}


def check_steps(probe: Probe) -> None:
    """Walk to the horizon; require sound numbers, and of every step that nothing else decides it."""
    repetitions: list[Callable[[Probe, Moment, State], None]] = [_kept_between, _alone, _clipped, _other_copies]
    repetitions += [_some_active, _turned, _fewer_copies]
    started: State = {}
    steps = count()
    for moment in probe.walk(probe.tasks, probe.streams(), probe.n_steps):
        if not isinstance(moment, Moment):
            probe.require_numbers(probe.tasks, 0, moment, None, np.ones(moment.shape[:2], dtype=bool))
            started = {}
            continue
        started = started or moment.state
        same, _ = probe.again(moment)
        promise = "the same state, actions and streams give two different steps"
        probe.require_equal(promise, moment.time, outcome(moment.step), outcome(same), moment.active)
        probe.require_numbers(probe.tasks, moment.time, moment.step.obs, moment.step, moment.active)
        now = next(steps)
        due = [] if now % 2 else [repetitions[now // 2 % len(repetitions)]]
        for repeat in repetitions if now < THOROUGH else due:
            repeat(probe, moment, started)


def check_edges(probe: Probe) -> None:
    """Require sound numbers at the edges of the task space."""
    for moment in probe.walk(probe.tasks, probe.streams(), min(probe.n_steps, 100)):
        if isinstance(moment, Moment):
            probe.require_numbers(probe.tasks, moment.time, moment.step.obs, moment.step, moment.active)
        else:
            probe.require_numbers(probe.tasks, 0, moment, None, np.ones(moment.shape[:2], dtype=bool))


# --------------------------------------------------------------------------------------------------------- repetitions
def _alone(probe: Probe, moment: Moment, started: State) -> None:
    index = moment.time % probe.n
    one = slice(index, index + 1)
    tasks, active = take_tasks(moment.tasks, one), moment.active[one]
    step, _ = probe.again(
        moment,
        tasks=tasks,
        state=take_tasks(moment.state, one),
        actions=moment.actions[one],
        rngs=moment.rngs[one],
        active=active,
    )
    promise = f"the trajectory of task {index} depends on the other tasks in the batch,"
    probe.require_equal(promise, moment.time, outcome(picked(moment.step, one)), outcome(step), active, index)


def _turned(probe: Probe, moment: Moment, started: State) -> None:
    order = np.arange(probe.n)[::-1]
    step, _ = probe.again(
        moment,
        tasks=take_tasks(moment.tasks, order),
        state=take_tasks(moment.state, order),
        actions=moment.actions[order],
        rngs=[moment.rngs[index] for index in order],
        active=moment.active[order],
    )
    promise = "trajectories depend on the order of the tasks in the batch,"
    back = outcome(picked(step, order))
    probe.require_equal(promise, moment.time, outcome(moment.step), back, moment.active)


def _some_active(probe: Probe, moment: Moment, started: State) -> None:
    # Some copies of each task end at different times, as collecting does it.
    kept = np.ones_like(moment.active)
    kept[:: 1 if probe.n_envs > 1 else 2, moment.time % probe.n_envs] = False
    active = moment.active & kept
    if not active.any():
        return
    step, after = probe.again(moment, active=active)
    # A family that draws for active copies only gives the others' numbers to them, and may.
    mask = active & unmoved(after, moment.after)[:, None]
    promise = "a copy that is active depends on which others are,"
    probe.require_equal(promise, moment.time, outcome(moment.step), outcome(step), mask)


def _other_copies(probe: Probe, moment: Moment, started: State) -> None:
    if probe.n_envs == 1:
        return
    mine = np.zeros_like(moment.active)
    mine[:, moment.time % probe.n_envs] = True
    others = probe.actions(1, purpose="others")
    actions = np.where(_wide(mine, moment.actions), moment.actions, others).astype(moment.actions.dtype)
    # The others have just begun, as in the vector view, where each copy starts again by itself.
    state = {name: np.where(_wide(mine, value), value, started[name]) for name, value in moment.state.items()}
    step, after = probe.again(moment, actions=actions, state=state)
    mask = moment.active & mine & unmoved(after, moment.after)[:, None]
    promise = "a copy depends on the other copies of its task,"
    probe.require_equal(promise, moment.time, outcome(moment.step), outcome(step), mask)


def _fewer_copies(probe: Probe, moment: Moment, started: State) -> None:
    if probe.n_envs == 1:
        return
    # Where numbers are drawn, each number of copies has its own.
    undrawn = unmoved(moment.rngs, moment.after)[:, None]
    state = {name: value[:, :1] for name, value in moment.state.items()}
    step, _ = probe.again(moment, state=state, actions=moment.actions[:, :1], active=moment.active[:, :1])
    for name in ("reward", "obs"):
        a, b = np.asarray(getattr(moment.step, name)[:, :1], np.float64), np.asarray(getattr(step, name), np.float64)
        # Products of matrices round differently.
        apart = rowwise(unlike(a, b) & ~(np.abs(a - b) <= 1e-6 * (1 + np.abs(a)))) & undrawn & moment.active[:, :1]
        for row in np.flatnonzero(apart)[:1].tolist():
            pair = f"{name} {both(a[row, 0], b[row, 0])} {where(moment.time, moment.tasks, row, 0)}"
            probe.refuse(f"a copy depends on how many copies its task has, {probe.n_envs} and 1: {pair}")


def _kept_between(probe: Probe, moment: Moment, started: State) -> None:
    order = np.arange(probe.n)[::-1]
    tasks, rngs = take_tasks(probe.tasks, order), probe.streams("between", order)
    state, _ = probe.reset(tasks, rngs)
    probe.step(tasks, state, np.repeat(probe.actions(1, purpose="between"), probe.n, axis=0), rngs)
    step, _ = probe.again(moment)
    promise = "a step depends on what the family did for another batch in between,"
    probe.require_equal(promise, moment.time, outcome(moment.step), outcome(step), moment.active)


def _clipped(probe: Probe, moment: Moment, started: State) -> None:
    space = probe.action_space
    if not (isinstance(space, spaces.Box) and probe.family.clips_actions):
        return
    rng = np.random.default_rng(moment.time)
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    far = BEYOND[moment.time % len(BEYOND)] * (high - low) / 2
    side = rng.integers(3, size=moment.actions.shape)
    # Some entries stay where they are; a lone one never does.
    side = np.where(side == 0, 1 + moment.time % 2, side) if space.shape == (1,) else side
    outside = np.choose(side, [moment.actions, low - far, high + far]).astype(moment.actions.dtype)
    inside = np.clip(outside, space.low, space.high)
    a, _ = probe.again(moment, actions=outside)
    b, _ = probe.again(moment, actions=inside)
    for name in ("terminated", "reward", "obs"):
        x, y = np.asarray(getattr(a, name), np.float64), np.asarray(getattr(b, name), np.float64)
        # A family may clip to a bound in float64 that the space holds in float32.
        apart = unlike(x, y) & ~(np.abs(x - y) <= 1e-5 + 1e-4 * np.abs(y))
        apart = rowwise(apart) & moment.active
        for row, env in np.argwhere(apart)[:1].tolist():
            at = where(moment.time, moment.tasks, row, env)
            pair = f"{number(x[row, env])}, clipped to {number(inside[row, env])} it gives {number(y[row, env])}"
            given = f"action {number(outside[row, env])} gives {name} {pair}"
            probe.refuse(f"actions outside the action space are not clipped to it {at}: {given}")


def _wide(mask: np.ndarray, value: np.ndarray) -> np.ndarray:
    return mask.reshape(mask.shape + (1,) * (value.ndim - 2))


# ------------------------------------------------------------------------------------------------------------- threads
def check_use(probe: Probe) -> None:
    """Require that threads may step the family at once where it says so, and that it goes on after ``close``."""
    from concurrent.futures import ThreadPoolExecutor

    family, plan = probe.family, probe.actions(min(probe.n_steps, 5))

    def run(index: int) -> list[Step]:
        tasks, rngs = take_tasks(probe.tasks, slice(index, index + 1)), probe.streams(rows=[index])
        state, _ = family.reset(tasks, rngs, probe.n_envs)
        steps = []
        drawn = [rng.bit_generator.state for rng in rngs]
        for actions in plan:
            steps.append(family.step(tasks, state, actions[None], rngs))
            state = steps[-1].state
        if not family.draws_in_steps and drawn != [rng.bit_generator.state for rng in rngs]:
            probe.refuse("a step draws from its generator, and draws_in_steps is False")
        return steps

    def require_same(promise: str, index: int, before: list[Step], after: list[Step]) -> None:
        going = np.ones((1, probe.n_envs), dtype=bool)
        for time, (a, b) in enumerate(zip(before, after, strict=True), start=1):
            probe.require_equal(promise, time, outcome(a), outcome(b), going, index)
            going &= ~a.ended

    ways = [run(index) for index in range(n_tasks(probe.tasks))]
    if family.concurrent:
        with ThreadPoolExecutor(2) as pool, family.shared_by(2):
            together = list(pool.map(run, range(len(ways))))
        for index, (a, b) in enumerate(zip(ways, together, strict=True)):
            require_same("two threads that step the family at once get other numbers", index, a, b)
    if has_stepper(family):
        _check_stepper(probe, plan)
    family.close()
    require_same("after close the family gives other numbers", 0, ways[0], run(0))


def _check_stepper(probe: Probe, plan: np.ndarray) -> None:
    """Require that a family's own stepper does what its steps do."""
    family, rngs, others = probe.family, probe.streams(), probe.streams()
    state, _ = family.reset(probe.tasks, rngs, probe.n_envs)
    stepper = stepper_of(family, probe.tasks, family.reset(probe.tasks, others, probe.n_envs)[0], others)
    active = np.ones((probe.n, probe.n_envs), dtype=bool)
    steps, masks = [], []
    for actions in np.repeat(plan[:, None], probe.n, axis=1):
        steps.append(family.step(probe.tasks, state, actions, rngs, active))
        reached = stepper.step(actions, active)
        masks.append(active)
        same = np.array_equal(steps[-1].obs[active], reached.obs[active])
        none = np.zeros_like(active)
        for ours, theirs in ((steps[-1].terminated, reached.terminated), (steps[-1].ended, reached.ended)):
            same = same and np.array_equal(ours & active, (none if theirs is None else theirs) & active)
        if not same:
            probe.refuse(f"what stepper() reaches in step {len(steps)} is not what step() does")
        state, over = steps[-1].state, steps[-1].ended & active
        active = active & ~over if over.any() else active
        if not active.any():
            break
    rewards, _ = stepper.earned()
    if not all(np.array_equal(a[mask], b.reward[mask]) for a, b, mask in zip(rewards, steps, masks, strict=True)):
        probe.refuse("what stepper() earns is not what step() does")
