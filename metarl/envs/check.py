"""Check that a family keeps the promises that the rest of metarl builds on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from metarl.envs.batch import SingleEnv, episode_stream
from metarl.envs.family import (
    SPLITS,
    Family,
    State,
    Step,
    Tasks,
    concatenate_tasks,
    inside,
    n_tasks,
    one_task,
    take_tasks,
)
from metarl.envs.groups import group_tasks
from metarl.errors import MetaRLError
from metarl.streams import stream


class FamilyCheckError(MetaRLError, AssertionError):
    """A family that breaks a promise of the :class:`~metarl.envs.family.Family` interface."""


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
    :raises FamilyCheckError: one line that says what is wrong.
    """
    _check_declarations(family)
    _check_splits(family)
    _check_training_draws(family, n, seed)
    tasks = _different_tasks(family, n, seed)
    _check_spaces(family, tasks)
    groups = group_tasks(family, tasks)
    for group in groups:
        probe = _Probe(family, group.tasks, group.observation_space, group.action_space, n_envs, n_steps, seed)
        for check in _DYNAMICS:
            check(probe)
    if len(groups) == 1:
        _check_task_matters(family, tasks, n_envs, n_steps, seed)
    for index in range(min(2, n_tasks(tasks))):
        _check_single(family, take_tasks(tasks, slice(index, index + 1)), n_steps, seed)


def _require(condition: bool | np.bool_, family: Family, message: str) -> None:
    if not condition:
        raise FamilyCheckError(f"{family.id or type(family).__name__}: {message}")


# ------------------------------------------------------------------------------------------------------------- tasks
def _check_declarations(family: Family) -> None:
    parts = family.task_space.spaces if isinstance(family.task_space, spaces.Dict) else {}
    _require(
        len(parts) > 0
        and all(
            isinstance(part, spaces.Discrete) or (isinstance(part, spaces.Box) and part.is_bounded())
            for part in parts.values()
        ),
        family,
        f"task_space {family.task_space} is not a Dict of bounded Box and Discrete spaces",
    )
    box = family.observation_space
    _require(
        isinstance(box, spaces.Box) and box.dtype == np.float32, family, f"observation_space {box} is not a float32 Box"
    )
    _require(
        isinstance(family.horizon, int) and family.horizon > 0,
        family,
        f"horizon {family.horizon!r} is not a positive int",
    )
    if family.shifted_space is not None:
        _require(
            set(family.shifted_space.spaces) == set(parts),
            family,
            "shifted_space and task_space have different parameters",
        )


def _check_splits(family: Family) -> None:
    finite = family.finite_tasks()
    for split in SPLITS:
        if split == "shifted" and family.shifted_space is None:
            continue
        many, few = family.tasks(split, 8), family.tasks(split, 3)
        _require(
            _equal(few, take_tasks(many, slice(0, n_tasks(few)))) and _equal(many, family.tasks(split, 8)),
            family,
            f"the first tasks of the {split} split change with n or from call to call",
        )
        _require_valid(family, many, f"the {split} split")
    if family.shifted_space is not None:
        shifted = family.tasks("shifted", 20)
        trained = np.ones(n_tasks(shifted), dtype=bool)
        for name, space in family.task_space.spaces.items():
            # Intervals share their ends, so a bound itself counts as outside.
            trained &= inside(space, shifted[name]) & ~_on_edge(space, shifted[name])
        _require(not trained.any(), family, "the shifted split holds tasks of the training range")
    if finite is not None and n_tasks(finite) >= 10:
        parts = [set(family.finite_split(part).tolist()) for part in ("train", "validation", "test")]
        _require(
            not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2]), family, "finite splits overlap"
        )
        for split, part in (("validation", parts[1]), ("test", parts[2])):
            expected = take_tasks(finite, np.array(sorted(part)))
            listed = family.tasks(split, n_tasks(finite))
            _require(
                _rows(listed) == _rows(expected), family, f"the {split} split is not the {split} part of finite_tasks"
            )
        drawn = _rows(family.sample_tasks(stream(0, "check/finite"), 200))
        _require(
            drawn <= _rows(take_tasks(finite, np.array(sorted(parts[0])))), family, "training draws hold held-out tasks"
        )


def _check_training_draws(family: Family, n: int, seed: int) -> None:
    tasks = family.sample_tasks(stream(seed, "check/tasks"), n)
    _require_valid(family, tasks, "sample_tasks")
    _require(n_tasks(tasks) == n, family, f"sample_tasks(rng, {n}) returned {n_tasks(tasks)} tasks")
    again = family.sample_tasks(stream(seed, "check/tasks"), n)
    _require(_equal(tasks, again), family, "sample_tasks draws from something else than the generator it is given")


def _require_valid(family: Family, tasks: Tasks, source: str) -> None:
    try:
        valid = family.validate_tasks(tasks)
    except MetaRLError as error:
        raise FamilyCheckError(
            f"{family.id or type(family).__name__}: {source} gives a task outside the task space: {error}"
        ) from None
    _require(
        all(valid[name].dtype == np.asarray(tasks[name]).dtype for name in valid),
        family,
        f"{source} gives tasks of another dtype than the task space's",
    )


def _different_tasks(family: Family, n: int, seed: int) -> Tasks:
    """Draw until at least two tasks differ; a family of one task has nothing to learn across."""
    tasks = family.sample_tasks(stream(seed, "check/tasks"), n)
    for attempt in range(50):
        if len(_rows(tasks)) > 1:
            return tasks
        tasks = concatenate_tasks([tasks, family.sample_tasks(stream(seed, "check/tasks", attempt), 1)])
    raise FamilyCheckError(f"{family.id or type(family).__name__}: sample_tasks draws the same task every time")


def _check_spaces(family: Family, tasks: Tasks) -> None:
    pairs = [family.spaces(one_task(tasks, index)) for index in range(n_tasks(tasks))]
    own = (family.observation_space, family.action_space)
    if all(pair == pairs[0] for pair in pairs):
        _require(pairs[0] == own, family, f"spaces(task) {pairs[0]} are not the family's own {own}")
    for box, _ in pairs:
        _require(isinstance(box, spaces.Box) and box.dtype == np.float32, family, f"spaces(task) observes {box}")


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

    def run(self, index: Any = slice(None), rows: list[int] | None = None, active: np.ndarray | None = None) -> _Path:
        """Run some of the tasks; every task gets the same actions, and stream ``rows[i]`` (by default its own)."""
        # A copy: a family that changes its tasks must not change the check's.
        tasks = {name: np.array(value[index]) for name, value in self.tasks.items()}
        n = n_tasks(tasks)
        rows = np.arange(self.n)[index].tolist() if rows is None else rows
        rngs = [stream(self.seed, "check/episodes", row) for row in rows]
        first = self.family.reset(tasks, rngs, self.n_envs)
        state, steps = first[0], []
        for action in self.actions:
            steps.append(self.family.step(tasks, state, np.repeat(action[None], n, axis=0), rngs, active))
            state = steps[-1].state
        return _Path(first, steps)

    def require(self, condition: bool | np.bool_, message: str) -> None:
        _require(condition, self.family, message)


def _check_shapes(probe: _Probe) -> None:
    batch = (probe.n, probe.n_envs)
    observed = (*batch, *probe.observation_space.shape)
    path = probe.run()

    def like(array: Any, shape: tuple[int, ...], dtype: Any) -> bool:
        return isinstance(array, np.ndarray) and array.shape == shape and array.dtype == dtype

    state, obs = path.first
    expected = f"{list(observed)} float32 in {probe.observation_space}"
    probe.require(like(obs, observed, np.float32), f"reset observes {_what(obs)}, not {expected}")
    probe.require(
        inside(probe.observation_space, obs.reshape(-1, *observed[2:])).all(),
        f"reset observes values outside {probe.observation_space}",
    )
    for name, value in state.items():
        probe.require(
            isinstance(value, np.ndarray) and value.shape[:2] == batch,
            f"state {name!r} is {_what(value)}, not [task, env, ...]",
        )
    for step in path.steps:
        probe.require(like(step.obs, observed, np.float32), f"step observes {_what(step.obs)}, not {expected}")
        probe.require(
            inside(probe.observation_space, step.obs.reshape(-1, *observed[2:])).all(),
            f"step observes values outside {probe.observation_space}",
        )
        probe.require(
            like(step.reward, batch, np.float64), f"reward is {_what(step.reward)}, not {list(batch)} float64"
        )
        probe.require(
            like(step.terminated, batch, np.bool_), f"terminated is {_what(step.terminated)}, not {list(batch)} bool"
        )
        for name, value in step.info.items():
            probe.require(
                isinstance(value, np.ndarray) and value.shape == batch,
                f"info {name!r} is {_what(value)}, not {list(batch)}",
            )
        probe.require(
            {name: (value.shape, value.dtype) for name, value in step.state.items()}
            == {name: (value.shape, value.dtype) for name, value in state.items()},
            "the state after a step has other arrays than the state after reset",
        )


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
    tasks = {name: value.copy() for name, value in probe.tasks.items()}
    rngs = [stream(probe.seed, "check/episodes", row) for row in range(probe.n)]
    state, obs = probe.family.reset(tasks, rngs, probe.n_envs)
    for action in probe.actions:
        actions = np.repeat(action[None], probe.n, axis=0)
        held = {name: value.copy() for name, value in state.items()}
        held_obs, held_actions = obs.copy(), actions.copy()
        step = probe.family.step(tasks, state, actions, rngs)
        probe.require(_equal(state, held), "step modifies the state it is given")
        probe.require(_alike(obs, held_obs), "step modifies the observations returned before")
        probe.require(_alike(actions, held_actions), "step modifies the actions it is given")
        probe.require(_equal(tasks, probe.tasks), "reset or step modifies the tasks it is given")
        state, obs = step.state, step.obs


def _check_active(probe: _Probe) -> None:
    # Some copies of each task end at different times, as collecting does it.
    active = np.ones((probe.n, probe.n_envs), dtype=bool)
    active[::2, -1] = False
    if probe.n_envs == 1:
        active[0] = probe.n == 1
    whole, part = probe.run(), probe.run(active=active)
    for expected, step in zip(whole.steps, part.steps, strict=True):
        for a, b in ((expected.obs, step.obs), (expected.reward, step.reward), (expected.terminated, step.terminated)):
            probe.require(_alike(a[active], b[active]), "copies that are active depend on which others are")


def _check_leak(probe: _Probe) -> None:
    if probe.family.observes_task:
        return
    _, obs = probe.run(rows=[0] * probe.n).first
    probe.require(
        all(_alike(row, obs[0]) for row in obs),
        "the first observation tells tasks apart (set observes_task if it should)",
    )


_DYNAMICS: tuple[Callable[[_Probe], None], ...] = (
    _check_shapes,
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
            what = name if not varied else f"task parameter {name!r}"
            raise FamilyCheckError(f"{family.id or type(family).__name__}: {what} changes neither dynamics nor reward")


# -------------------------------------------------------------------------------------------------------- single view
def _check_single(family: Family, tasks: Tasks, n_steps: int, seed: int) -> None:
    observation_space, action_space = family.spaces(one_task(tasks, 0))
    probe = _Probe(family, tasks, observation_space, action_space, 1, n_steps, seed)
    rngs = [episode_stream(seed)]
    env = SingleEnv(family, **one_task(tasks, 0))
    state, obs = family.reset(tasks, rngs, 1)
    seen, _ = env.reset(seed=seed)
    _require(_alike(obs[0, 0], seen), family, "the single view and the batched one start differently")
    for action in probe.actions:
        step = family.step(tasks, state, action[None], rngs)
        seen, reward, terminated, truncated, _ = env.step(action[0])
        same = _alike(step.obs[0, 0], seen) and _alike(step.reward[0, 0], np.float64(reward))
        _require(same, family, "the single view and the batched one step differently")
        if terminated or truncated:
            break
        state = step.state
    from stable_baselines3.common.env_checker import check_env

    try:
        check_env(env, warn=False)
    except (AssertionError, ValueError, TypeError, MetaRLError) as error:
        raise FamilyCheckError(
            f"{family.id or type(family).__name__}: check_env: {' '.join(str(error).split())}"
        ) from error


# ---------------------------------------------------------------------------------------------------------- comparing
def _actions(space: spaces.Space[Any], rng: np.random.Generator, n_steps: int, n_envs: int) -> np.ndarray:
    """Return actions ``[time, env, ...]``: for the first half of the time one direction a copy, then any."""
    shape = (n_steps, n_envs)
    if isinstance(space, spaces.Box):
        actions = rng.uniform(space.low, space.high, (*shape, *space.shape)).astype(space.dtype)
    elif isinstance(space, spaces.Discrete):
        actions = rng.integers(space.start, space.start + space.n, shape)
    else:
        raise FamilyCheckError(f"actions of {space}: a family has Box or Discrete actions")
    actions[: n_steps // 2] = actions[:1]
    return actions


def _what(value: Any) -> str:
    return f"{list(value.shape)} {value.dtype}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"


def _alike(a: Any, b: Any) -> bool:
    return bool(np.array_equal(np.asarray(a), np.asarray(b), equal_nan=True))


def _equal(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(_alike(value, b[name]) for name, value in a.items())


def _same(a: _Path, b: _Path, observed: bool = True) -> bool:
    """Return whether two trajectories agree to the last bit until each copy ends."""
    if observed and not _alike(a.first[1], b.first[1]):
        return False
    going = np.ones(a.first[1].shape[:2], dtype=bool)
    for x, y in zip(a.steps, b.steps, strict=True):
        arrays = [(x.reward, y.reward), (x.terminated, y.terminated)] + ([(x.obs, y.obs)] if observed else [])
        if not all(_alike(p[going], q[going]) for p, q in arrays):
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


def _rows(tasks: Tasks) -> set[bytes]:
    """Return a batch of tasks as a set."""
    return {b"".join(np.asarray(value[index]).tobytes() for value in tasks.values()) for index in range(n_tasks(tasks))}


def _on_edge(space: spaces.Space[Any], values: np.ndarray) -> np.ndarray:
    if not isinstance(space, spaces.Box):
        return np.zeros(len(values), dtype=bool)
    edge = (values == space.low) | (values == space.high)
    return np.asarray(edge.any(axis=tuple(range(1, edge.ndim))))
