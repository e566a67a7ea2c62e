"""Stepping a family as learning does, with a look at everything that goes in and comes out."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, NoReturn

import numpy as np
from gymnasium import spaces

from metarl.envs.checker.common import (
    FamilyCheckError,
    alike,
    blame,
    both,
    copied,
    equal,
    family_name,
    number,
    require,
    unlike,
    where,
)
from metarl.envs.family import Family, State, Step
from metarl.envs.promises import broken_start, broken_step, broken_target
from metarl.envs.tasks import Tasks, n_tasks, take_tasks
from metarl.errors import shorten
from metarl.streams import stream

Rngs = list[np.random.Generator]
BLOCK = 20
"""Env steps that actions of one kind last."""


class Moment(NamedTuple):
    """One env step of a batch: what went in and what came out."""

    time: int
    """Env steps of the episode up to this one, 1 or more."""
    tasks: Tasks
    state: State
    """Before the step."""
    actions: np.ndarray
    rngs: Rngs
    """As they were before the step."""
    active: np.ndarray
    """``[task, env]``, the copies that had not ended before the step."""
    step: Step
    after: Rngs
    """The generators as the step left them."""


class Probe:
    """A family with tasks of equal spaces, and the actions and streams to try them with.

    Every call of the family goes through :meth:`reset` and :meth:`step`, which require shapes and dtypes, and that
    neither changes what it is given or what it returned before.

    :param n_envs: copies of each task.
    :param n_steps: env steps of a long walk.
    :param seed: of streams and actions.
    """

    def __init__(
        self,
        family: Family,
        tasks: Tasks,
        observation_space: spaces.Box,
        action_space: spaces.Space[Any],
        n_envs: int,
        n_steps: int,
        seed: int,
    ) -> None:
        self.family, self.tasks, self.n, self.n_envs, self.seed = family, tasks, n_tasks(tasks), n_envs, seed
        self.observation_space, self.action_space = observation_space, action_space
        self.n_steps = n_steps
        self._state: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
        self._returned: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._declared = copy.deepcopy(declarations(family))

    # -------------------------------------------------------------------------------------------------------- stepping
    def streams(self, purpose: str = "episodes", rows: Any = None) -> Rngs:
        """Return a generator for each task; ``rows`` says which, by default its own."""
        return [stream(self.seed, f"check/{purpose}", row) for row in (range(self.n) if rows is None else rows)]

    def actions(self, n_steps: int, n_envs: int | None = None, purpose: str = "actions") -> np.ndarray:
        """Return actions ``[time, env, ...]`` within the action space, every kind of them."""
        rng = stream(self.seed, f"check/{purpose}")
        return varied_actions(self.action_space, rng, n_steps, self.n_envs if n_envs is None else n_envs)

    def reset(self, tasks: Tasks, rngs: Rngs, n_envs: int | None = None) -> tuple[State, np.ndarray]:
        """Reset the family."""
        n_envs = self.n_envs if n_envs is None else n_envs
        given = copied(tasks)
        try:
            first: Any = self.family.reset(given, rngs, n_envs)
        except Exception as error:
            raise FamilyCheckError(f"{family_name(self.family)}: {blame(error)}") from error
        fault = broken_start(first, (len(rngs), n_envs), self.observation_space, self.family.live)
        if fault is not None:
            self.refuse(fault)
        state, obs = first
        self.require(equal(given, tasks), "reset modifies the tasks it is given")
        self._require_kept("reset", 0)
        require_declared(self.family, self._declared, 0)
        self._state = _kinds(state)
        self._returned = {"observations": (obs, obs.copy())}
        return dict(state), obs

    def step(
        self,
        tasks: Tasks,
        state: State,
        actions: np.ndarray,
        rngs: Rngs,
        active: np.ndarray | None = None,
        time: int = 1,
    ) -> Step:
        """Step the family."""
        held, given_tasks, given_actions = copied(state), copied(tasks), actions.copy()
        given_active = None if active is None else active.copy()
        try:
            step: Any = self.family.step(given_tasks, state, given_actions, rngs, given_active)
        except Exception as error:
            raise FamilyCheckError(f"{family_name(self.family)}: {blame(error)} at time step {time}") from error
        self._require_step(step, (len(rngs), actions.shape[1]), time)
        for what, kept in (
            ("state", equal(state, held)),
            ("actions", alike(given_actions, actions)),
            ("tasks", equal(given_tasks, tasks)),
            ("mask of active copies", active is None or alike(given_active, active)),
        ):
            if not kept:
                self.refuse(f"step modifies the {what} it is given at time step {time}")
        self._require_kept("step", time)
        require_declared(self.family, self._declared, time)
        returned = {"observations": step.obs, "rewards": step.reward, "ends of episodes": step.terminated}
        self._returned = {name: (value, value.copy()) for name, value in returned.items()}
        state_after, info = dict(step.state), dict(step.info)
        return Step(state_after, step.obs, step.reward, step.terminated, info, step.truncated)

    def walk(self, tasks: Tasks, rngs: Rngs, n_steps: int, purpose: str = "actions") -> Iterator[Moment | np.ndarray]:
        """Step tasks as collecting does: copies that ended are left where they are, until all have; then again.

        Every task gets the same actions.

        :return: the first observations of each episode, and each step.
        """
        plan = self.actions(n_steps, purpose=purpose)
        n = n_tasks(tasks)
        active = np.zeros((n, self.n_envs), dtype=bool)
        state: State = {}
        time = 0
        for now in range(n_steps):
            if not active.any() or time >= self.family.horizon:
                state, obs = self.reset(tasks, rngs)
                active, time = np.ones_like(active), 0
                yield obs
            time += 1
            actions = np.repeat(plan[now][None], n, axis=0)
            before, held = clones(rngs), copied(state)
            # The vector view steps without a mask, collecting with one.
            step = self.step(tasks, state, actions, rngs, None if active.all() and now % 2 else active, time)
            yield Moment(time, tasks, held, actions, before, active, step, clones(rngs))
            state, active = copied(step.state), active & ~step.ended

    def again(self, moment: Moment, **changed: Any) -> tuple[Step, Rngs]:
        """Repeat a step with some of its arguments changed; return it, and the generators as it left them."""
        new = moment._replace(**changed)
        rngs = clones(new.rngs)
        return self.step(new.tasks, copied(new.state), new.actions, rngs, new.active, new.time), rngs

    # ------------------------------------------------------------------------------------------------------- requiring
    def refuse(self, message: str) -> NoReturn:
        """Raise with the name of the family."""
        raise FamilyCheckError(f"{family_name(self.family)}: {message}")

    def require(self, condition: bool | np.bool_, message: str) -> None:
        """Raise unless ``condition`` holds."""
        require(condition, self.family, message)

    def require_equal(
        self,
        promise: str,
        time: int,
        a: Mapping[str, Any],
        b: Mapping[str, Any],
        mask: Any = True,
        first: int = 0,
    ) -> None:
        """Require that arrays ``[task, env, ...]`` agree to the last bit where ``mask`` ``[task, env]`` is True.

        :param first: which task the arrays begin with.
        """
        for name, value in a.items():
            apart = rowwise(unlike(value, b[name])) & mask
            for row, env in np.argwhere(apart)[:1].tolist():
                pair = both(value[row, env], b[name][row, env])
                self.refuse(f"{promise} {where(time, self.tasks, first + row, env)}: {name} {pair}")

    def require_numbers(self, tasks: Tasks, time: int, obs: np.ndarray, step: Step | None, active: np.ndarray) -> None:
        """Require that observations are in their space, rewards fit float32 and the terms of the reward add up to it.

        :param active: ``[task, env]``, the copies that are looked at.
        """
        space, source = self.observation_space, "step" if time else "reset"

        def refuse(bad: np.ndarray, values: np.ndarray, words: str) -> None:
            for index in np.argwhere(bad & active.reshape(active.shape + (1,) * (bad.ndim - 2)))[:1].tolist():
                row, env, *place = index
                entry = f" (entry {', '.join(map(str, place))})" if place else ""
                value = number(values[tuple(index)])
                at = where(time, tasks, row, env)
                self.refuse(words.format(value=value, entry=entry, at=at, space=shorten(space, quote=False)))

        refuse(~np.isfinite(obs), obs, f"{source} observes {{value}}{{entry}} {{at}}: observations are finite")
        outside = (obs < space.low) | (obs > space.high)
        refuse(outside, obs, f"{source} observes {{value}}{{entry}} outside {{space}} {{at}}")
        if step is None:
            return
        words = "the reward is {value} {at}: rewards are finite in float32"
        refuse(~np.isfinite(step.reward.astype(np.float32)), step.reward, words)
        terms = [np.asarray(value, np.float64) for name, value in step.info.items() if str(name).startswith("reward")]
        if terms:
            total = np.sum(terms, axis=0)
            size = np.sum(np.abs(terms), axis=0) + np.abs(step.reward)
            apart = ~(np.abs(total - step.reward) <= 1e-5 * size + 1e-9)
            names = ", ".join(str(name) for name in step.info if str(name).startswith("reward"))
            for row, env in np.argwhere(apart & active)[:1].tolist():
                sums = f"{names} make {number(total[row, env])}, the reward is {number(step.reward[row, env])}"
                at = where(time, tasks, row, env)
                self.refuse(f"the terms of the reward in info do not add up to it {at}: {sums}")

    def _require_step(self, step: Any, batch: tuple[int, int], time: int) -> None:
        fault = broken_step(step, batch, self.observation_space, self.family.live)
        if fault is None and self.family.loss is not None:
            fault = broken_target(step.info, batch, self.action_space)
        if fault is not None:
            self.refuse(f"{fault}, at time step {time}")
        kinds = _kinds(step.state)
        if kinds != self._state:
            name = next(name for name in {**self._state, **kinds} if kinds.get(name) != self._state.get(name))
            what = f"the state after a step has other arrays than the state after reset: {shorten(name)}"
            self.refuse(f"{what} at time step {time}")

    def _require_kept(self, source: str, time: int) -> None:
        for name, (array, before) in self._returned.items():
            if not alike(array, before):
                at = f" at time step {time}" if time else ""
                self.refuse(f"{source} modifies the {name} returned before{at}")


def outcome(step: Step) -> dict[str, np.ndarray]:
    """Return what a step says about each copy, by name: what may be compared."""
    cut = {} if step.truncated is None else {"truncated": step.truncated}
    return {"obs": step.obs, "reward": step.reward, "terminated": step.terminated, **cut, **comparable(step.state)}


def comparable(state: State) -> dict[str, np.ndarray]:
    """Return what may be compared of a state: of a live family's instances there is nothing to see."""
    return {f"state {shorten(name)}": value for name, value in state.items() if value.dtype.kind != "O"}


def picked(step: Step, index: Any) -> Step:
    """Return some tasks' part of a step."""
    info = take_tasks(step.info, index)
    cut = None if step.truncated is None else step.truncated[index]
    return Step(take_tasks(step.state, index), step.obs[index], step.reward[index], step.terminated[index], info, cut)


def clones(rngs: Rngs) -> Rngs:
    """Return generators that will draw the same numbers; a tenth of the time of copying them deeply."""
    result = []
    for rng in rngs:
        seed = rng.bit_generator.seed_seq
        if not isinstance(seed, np.random.SeedSequence):
            result.append(copy.deepcopy(rng))
            continue
        same = np.random.SeedSequence(
            seed.entropy, spawn_key=seed.spawn_key, pool_size=seed.pool_size, n_children_spawned=seed.n_children_spawned
        )
        bits = type(rng.bit_generator)(same)
        bits.state = rng.bit_generator.state
        result.append(np.random.Generator(bits))
    return result


def unmoved(a: Rngs, b: Rngs) -> np.ndarray:
    """Return which generators of two lists are in the same state, ``[task]``."""
    return np.array([x.bit_generator.state == y.bit_generator.state for x, y in zip(a, b, strict=True)])


def rowwise(bad: np.ndarray) -> np.ndarray:
    """Return which copies ``[task, env]`` any of their values belong to."""
    return np.asarray(bad.reshape(*bad.shape[:2], -1).any(-1))


def varied_actions(space: spaces.Space[Any], rng: np.random.Generator, n_steps: int, n_envs: int) -> np.ndarray:
    """Return actions ``[time, env, ...]``: blocks of one direction, of any, and of the ends and the middle.

    The first copy is pushed one way for half of the time, afterwards the last copy the other way, as far as it goes.
    """
    kinds = (np.arange(n_steps)[:, None] // BLOCK + np.arange(n_envs)) % 3
    if isinstance(space, spaces.Discrete):
        actions = rng.integers(space.start, space.start + space.n, (n_steps, n_envs))
        turns = space.start + np.broadcast_to(np.arange(n_steps)[:, None], kinds.shape) % space.n
        held = actions[np.arange(n_steps) // BLOCK * BLOCK]
        chosen = np.choose(kinds, [held, actions, turns]).astype(actions.dtype)
        low, high = space.start, space.start + space.n - 1
        chosen[: n_steps // 2, 0], chosen[n_steps // 2 :, -1] = high, low
        return chosen
    assert isinstance(space, spaces.Box)
    shape = (n_steps, n_envs, *space.shape)
    actions = np.clip(rng.uniform(space.low, space.high, shape).astype(space.dtype), space.low, space.high)
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    ends = np.choose(rng.integers(3, size=shape), [low, (low + high) / 2, high]).astype(space.dtype)
    held = actions[np.arange(n_steps) // BLOCK * BLOCK]
    which = kinds.reshape(kinds.shape + (1,) * len(space.shape))
    chosen = np.choose(np.broadcast_to(which, shape), [held, actions, ends]).astype(actions.dtype)
    chosen[: n_steps // 2, 0], chosen[n_steps // 2 :, -1] = space.high, space.low
    return chosen


def declarations(family: Family) -> dict[str, Any]:
    """Return what a family declares once and for all, by name."""
    names = ("observation_space", "action_space", "task_space", "shifted_space", "horizon")
    return {name: getattr(family, name, None) for name in names}


def require_declared(family: Family, declared: Mapping[str, Any], time: int | None = None) -> None:
    """Require that a family declares what it did.

    :param time: when it is looked at: env steps of an episode, 0 at its reset.
    """
    for name, now in declarations(family).items():
        if not _same(now, declared[name]):
            at = "" if time is None else f" at time step {time}" if time else " at reset"
            require(False, family, f"{name} changes from {_words(declared[name])} to {_words(now)}{at}")


def _same(a: Any, b: Any) -> bool:
    """Return whether two declarations are equal, to the last bit of their bounds."""
    if isinstance(a, spaces.Box) and isinstance(b, spaces.Box):
        return a.dtype == b.dtype and np.array_equal(a.low, b.low) and np.array_equal(a.high, b.high)
    if isinstance(a, spaces.Dict) and isinstance(b, spaces.Dict):
        return a.spaces.keys() == b.spaces.keys() and all(_same(part, b[name]) for name, part in a.spaces.items())
    return bool(a == b)


def _words(declared: Any) -> str:
    """Return a declaration for a message; a Box keeps what it printed first, whatever becomes of its bounds."""
    if isinstance(declared, spaces.Box):
        return shorten(spaces.Box(declared.low, declared.high, dtype=declared.dtype), quote=False)
    return shorten(declared, quote=False)


def _kinds(state: State) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Return the shape of one copy's part of each array, and its dtype."""
    return {name: (value.shape[2:], value.dtype) for name, value in state.items()}
