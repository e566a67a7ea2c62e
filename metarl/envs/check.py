"""Check that a family keeps the promises that the rest of metarl builds on."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from metarl.envs import check_tasks
from metarl.envs.batch import SingleEnv, episode_stream
from metarl.envs.check_tasks import (
    FamilyCheckError,
    alike,
    check_declarations,
    check_finite_tasks,
    check_spaces,
    check_splits,
    check_training_draws,
    different_tasks,
    equal,
    family_name,
    is_array,
    kind_of,
    one_line,
    require,
)
from metarl.envs.family import Family, State, Step, Tasks, inside, n_tasks, one_task, take_tasks
from metarl.envs.groups import group_tasks
from metarl.errors import MetaRLError, shorten
from metarl.streams import stream

__all__ = ["FamilyCheckError", "check_family"]


class _Path(NamedTuple):
    """A trajectory of a batch, steps first."""

    first: tuple[State, np.ndarray]
    steps: list[Step]


def check_family(family: Family, n: int = 4, n_envs: int = 2, n_steps: int = 20, seed: int = 0) -> None:
    """Raise for the first promise that ``family`` breaks; return silently if it keeps them all.

    Checked are: the declared spaces; splits and training draws; shapes and dtypes; that a stream decides a trajectory,
    whatever else is in the batch; that ``step`` leaves its arguments alone and respects ``active``; that nothing of
    the task can be seen at reset (unless ``observes_task``), and that every task parameter matters; that the single
    Gymnasium view equals the batched one and passes Stable-Baselines3's checker.

    :param n: tasks to try, 2 or more.
    :param n_envs: copies of each.
    :param n_steps: env steps of each trajectory.
    :param seed: of tasks, streams and actions.
    :raises FamilyCheckError: one line that says what is wrong; whatever else the family raised is its cause.
    """
    try:
        _check(family, n, n_envs, n_steps, seed)
    except FamilyCheckError:
        raise
    except Exception as error:
        raise FamilyCheckError(f"{family_name(family)}: {_blame(error)}") from error


def _check(family: Family, n: int, n_envs: int, n_steps: int, seed: int) -> None:
    check_declarations(family)
    check_finite_tasks(family)
    check_training_draws(family, n, seed)
    check_splits(family)
    tasks = different_tasks(family, n, seed)
    check_spaces(family, tasks)
    groups = group_tasks(family, tasks)
    for group in groups:
        probe = _Probe(family, group.tasks, group.observation_space, group.action_space, n_envs, n_steps, seed)
        for check in _DYNAMICS:
            check(probe)
    if len(groups) == 1:
        _check_task_matters(family, tasks, n_envs, n_steps, seed)
    for index in range(min(2, n_tasks(tasks))):
        _check_single(family, take_tasks(tasks, slice(index, index + 1)), n_steps, seed)


def _blame(error: Exception) -> str:
    """Return which function of the family raised ``error``, on one line."""
    checks = __file__, check_tasks.__file__
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename not in checks]
    ours = Path(__file__).parents[1]
    # The family's author knows their own lines; a call of NumPy's that failed is further in.
    theirs = [frame for frame in frames if ours not in Path(frame.filename).parents]
    what = one_line(f"{type(error).__name__}: {error}").removesuffix(":")
    for frame in (theirs or frames)[:1]:
        return f"{frame.name} raises {what} ({Path(frame.filename).name}, line {frame.lineno})"
    return what


# ---------------------------------------------------------------------------------------------------------- dynamics
class _Probe:
    """Trajectories of tasks of equal spaces, with the same actions and streams each time."""

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
        self.actions = _actions(action_space, stream(seed, "check/actions"), min(n_steps, family.horizon), n_envs)
        self._state: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}

    def run(self, index: Any = slice(None), rows: list[int] | None = None, active: np.ndarray | None = None) -> _Path:
        """Run some of the tasks; every task gets the same actions, and stream ``rows[i]`` (by default its own)."""
        # A copy: a family that changes its tasks must not change the check's.
        tasks = {name: np.array(value[index]) for name, value in self.tasks.items()}
        n = n_tasks(tasks)
        rows = np.arange(self.n)[index].tolist() if rows is None else rows
        rngs = [stream(self.seed, "check/episodes", row) for row in rows]
        first = self.reset(tasks, rngs)
        state, steps = first[0], []
        for action in self.actions:
            steps.append(self.step(tasks, state, np.repeat(action[None], n, axis=0), rngs, active))
            state = steps[-1].state
        return _Path(first, steps)

    def reset(self, tasks: Tasks, rngs: list[np.random.Generator]) -> tuple[State, np.ndarray]:
        """Reset the family, and require shapes and dtypes."""
        first = self.family.reset(tasks, rngs, self.n_envs)
        self.require(isinstance(first, tuple) and len(first) == 2, f"reset returns {kind_of(first)}, not (state, obs)")
        state, obs = first
        batch = len(rngs), self.n_envs
        self._require_obs(obs, batch, "reset")
        self._require_state(state, batch, "reset")
        self._state = _kinds(state)
        return state, obs

    def step(
        self,
        tasks: Tasks,
        state: State,
        actions: np.ndarray,
        rngs: list[np.random.Generator],
        active: np.ndarray | None = None,
    ) -> Step:
        """Step the family, and require shapes and dtypes."""
        batch = actions.shape[:2]
        step = self.family.step(tasks, state, actions, rngs, active)
        self.require(isinstance(step, Step), f"step returns {kind_of(step)}, not a Step")
        self._require_obs(step.obs, batch, "step")
        for name, array, dtype in (("reward", step.reward, np.float64), ("terminated", step.terminated, np.bool_)):
            right = is_array(array) and array.shape == batch and array.dtype == dtype
            self.require(right, f"{name} is {kind_of(array)}, not {list(batch)} {np.dtype(dtype).name}")
        self.require(isinstance(step.info, Mapping), f"info is {kind_of(step.info)}, not a dict of arrays")
        for name, value in step.info.items():
            right = is_array(value) and value.shape == batch and value.dtype.kind in "biuf"
            self.require(right, f"info {shorten(name)} is {kind_of(value)}, not numbers {list(batch)}")
        self._require_state(step.state, batch, "step")
        self.require(
            _kinds(step.state) == self._state, "the state after a step has other arrays than the state after reset"
        )
        return step

    def _require_obs(self, obs: Any, batch: tuple[int, ...], source: str) -> None:
        shape = (*batch, *self.observation_space.shape)
        self.require(
            is_array(obs) and obs.shape == shape and obs.dtype == np.float32,
            f"{source} observes {kind_of(obs)}, not {list(shape)} float32 in {one_line(self.observation_space)}",
        )

    def _require_state(self, state: Any, batch: tuple[int, ...], source: str) -> None:
        self.require(
            isinstance(state, Mapping), f"{source} gives a state that is {kind_of(state)}, not a dict of arrays"
        )
        for name, value in state.items():
            self.require(
                is_array(value) and value.shape[:2] == batch and value.dtype.kind in "biuf",
                f"state {shorten(name)} is {kind_of(value)}, not numbers [task, env, ...]",
            )

    def require(self, condition: bool | np.bool_, message: str) -> None:
        require(condition, self.family, message)


def _check_values(probe: _Probe) -> None:
    space = probe.observation_space
    path = probe.run()
    going = np.ones((probe.n, probe.n_envs), dtype=bool)
    for source, obs in (("reset", path.first[1]), *(("step", step.obs) for step in path.steps)):
        seen = inside(space, obs.reshape(-1, *space.shape)).all()
        probe.require(seen, f"{source} observes values outside {one_line(space)}")
    for step in path.steps:
        probe.require(np.isfinite(step.reward[going]).all(), "a reward is NaN or infinite")
        going &= ~step.terminated


def _check_determinism(probe: _Probe) -> None:
    probe.require(_same(probe.run(), probe.run()), "the same streams and actions give two different trajectories")


def _check_independence(probe: _Probe) -> None:
    whole = probe.run()
    for index in range(probe.n):
        alone = probe.run(slice(index, index + 1))
        probe.require(
            _same(alone, _pick(whole, np.array([index]))),
            f"the trajectory of task {index} depends on the other tasks in the batch",
        )
    backwards = np.arange(probe.n)[::-1].copy()
    probe.require(
        _same(probe.run(backwards), _pick(whole, backwards)),
        "trajectories depend on the order of the tasks in the batch",
    )


def _check_purity(probe: _Probe) -> None:
    tasks = _copy(probe.tasks)
    rngs = [stream(probe.seed, "check/episodes", row) for row in range(probe.n)]
    state, obs = probe.reset(tasks, rngs)
    before = {"observations": obs}
    for action in probe.actions:
        actions = np.repeat(action[None], probe.n, axis=0)
        held, held_before = _copy(state), _copy(before)
        held_actions = actions.copy()
        step = probe.step(tasks, state, actions, rngs)
        probe.require(equal(state, held), "step modifies the state it is given")
        for name, array in before.items():
            probe.require(alike(array, held_before[name]), f"step modifies the {name} returned before")
        probe.require(alike(actions, held_actions), "step modifies the actions it is given")
        probe.require(equal(tasks, probe.tasks), "reset or step modifies the tasks it is given")
        state = step.state
        before = {"observations": step.obs, "rewards": step.reward, "ends of episodes": step.terminated}


def _check_active(probe: _Probe) -> None:
    # Some copies of each task end at different times, as collecting does it.
    active = np.ones((probe.n, probe.n_envs), dtype=bool)
    active[::2, -1] = False
    if probe.n_envs == 1:
        active[0] = probe.n == 1
    whole, part = probe.run(), probe.run(active=active)
    for expected, step in zip(whole.steps, part.steps, strict=True):
        for a, b in ((expected.obs, step.obs), (expected.reward, step.reward), (expected.terminated, step.terminated)):
            probe.require(alike(a[active], b[active]), "copies that are active depend on which others are")


def _check_leak(probe: _Probe) -> None:
    if probe.family.observes_task:
        return
    _, obs = probe.run(rows=[0] * probe.n).first
    probe.require(
        all(alike(row, obs[0]) for row in obs),
        "the first observation tells tasks apart (set observes_task if it should)",
    )


_DYNAMICS: tuple[Callable[[_Probe], None], ...] = (
    _check_values,
    _check_determinism,
    _check_purity,
    _check_independence,
    _check_active,
    _check_leak,
)


def _check_task_matters(family: Family, tasks: Tasks, n_envs: int, n_steps: int, seed: int) -> None:
    """Vary one parameter at a time (of a finite family: the whole task) and look for any difference."""
    n = n_tasks(tasks)
    base = take_tasks(tasks, np.zeros(n, dtype=int))
    varied: dict[str, Tasks] = {}
    if family.finite_tasks() is None:
        varied = {name: {**base, name: tasks[name]} for name in tasks}
    for name, batch in (varied or {"the task": tasks}).items():
        # A task may show only far from the start: try the whole horizon before saying that it does nothing.
        for length in (n_steps, family.horizon):
            probe = _Probe(family, batch, family.observation_space, family.action_space, n_envs, length, seed)
            path = probe.run(rows=[0] * n)
            first = _pick(path, np.zeros(n, dtype=int))
            if not _same(path, first, observed=not family.observes_task):
                break
        else:
            what = name if not varied else f"task parameter {shorten(name)}"
            raise FamilyCheckError(f"{family_name(family)}: {what} changes neither dynamics nor reward")


# -------------------------------------------------------------------------------------------------------- single view
def _check_single(family: Family, tasks: Tasks, n_steps: int, seed: int) -> None:
    observation_space, action_space = family.spaces(one_task(tasks, 0))
    probe = _Probe(family, tasks, observation_space, action_space, 1, n_steps, seed)
    rngs = [episode_stream(seed)]
    env = SingleEnv(family, **one_task(tasks, 0))
    state, obs = probe.reset(tasks, rngs)
    seen, _ = env.reset(seed=seed)
    require(alike(obs[0, 0], seen), family, "the single view and the batched one start differently")
    for action in probe.actions:
        step = probe.step(tasks, state, action[None], rngs)
        seen, reward, terminated, truncated, _ = env.step(action[0])
        same = alike(step.obs[0, 0], seen) and alike(step.reward[0, 0], np.float64(reward))
        require(same, family, "the single view and the batched one step differently")
        if terminated or truncated:
            break
        state = step.state
    from stable_baselines3.common.env_checker import check_env

    try:
        check_env(env, warn=False)
    except (AssertionError, ValueError, TypeError, MetaRLError) as error:
        raise FamilyCheckError(f"{family_name(family)}: check_env: {one_line(error)}") from error


# ---------------------------------------------------------------------------------------------------------- comparing
def _actions(space: spaces.Space[Any], rng: np.random.Generator, n_steps: int, n_envs: int) -> np.ndarray:
    """Return actions ``[time, env, ...]``: for the first half of the time one direction a copy, then any."""
    shape = (n_steps, n_envs)
    if isinstance(space, spaces.Box):
        actions = rng.uniform(space.low, space.high, (*shape, *space.shape)).astype(space.dtype)
    else:
        assert isinstance(space, spaces.Discrete)
        actions = rng.integers(space.start, space.start + space.n, shape)
    actions[: n_steps // 2] = actions[:1]
    return actions


def _kinds(state: State) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    return {name: (value.shape, value.dtype) for name, value in state.items()}


def _copy(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value.copy() for name, value in arrays.items()}


def _same(a: _Path, b: _Path, observed: bool = True) -> bool:
    """Return whether two trajectories agree to the last bit until each copy ends."""
    if observed and not alike(a.first[1], b.first[1]):
        return False
    going = np.ones(a.first[1].shape[:2], dtype=bool)
    for x, y in zip(a.steps, b.steps, strict=True):
        arrays = [(x.reward, y.reward), (x.terminated, y.terminated)] + ([(x.obs, y.obs)] if observed else [])
        if not all(alike(p[going], q[going]) for p, q in arrays):
            return False
        going &= ~x.terminated
    return True


def _pick(path: _Path, index: np.ndarray) -> _Path:
    """Return some tasks' part of a trajectory."""
    state, obs = path.first
    steps = [
        Step(take_tasks(step.state, index), step.obs[index], step.reward[index], step.terminated[index], {})
        for step in path.steps
    ]
    return _Path((take_tasks(state, index), obs[index]), steps)
