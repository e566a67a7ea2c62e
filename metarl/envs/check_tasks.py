"""What :mod:`metarl.envs.check` asks of a family before it is stepped: its declarations, tasks and splits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

import numpy as np
from gymnasium import spaces

from metarl.envs.family import SPLITS, Family, Tasks, concatenate_tasks, inside, n_tasks, one_task, take_tasks
from metarl.errors import MetaRLError, shorten
from metarl.streams import stream


class FamilyCheckError(MetaRLError, AssertionError):
    """A family that breaks a promise of the :class:`~metarl.envs.family.Family` interface."""


def require(condition: bool | np.bool_, family: Family, message: str) -> None:
    """Raise :class:`FamilyCheckError`, with the name of the family, unless ``condition`` holds."""
    if not condition:
        raise FamilyCheckError(f"{family_name(family)}: {message}")


def family_name(family: Family) -> str:
    """Return what a family is called in messages."""
    name = getattr(family, "id", "")
    return name if name and isinstance(name, str) else type(family).__name__


def check_declarations(family: Family) -> None:
    """Require the attributes that every family sets."""
    require(isinstance(family, Family), family, f"{shorten(family)} is not a Family")
    for name in ("task_space", "observation_space", "action_space", "horizon"):
        require(hasattr(family, name), family, f"{name} is not set: __init__ does that")
    require(isinstance(family.id, str), family, f"id={shorten(family.id)}: a str")
    _require_task_space(family, "task_space")
    _require_spaces(family, (family.observation_space, family.action_space))
    require(type(family.horizon) is int, family, f"horizon={shorten(family.horizon)}: an int")
    require(family.horizon >= 1, family, f"horizon={family.horizon}: at least 1 env step")
    if family.shifted_space is not None:
        _require_task_space(family, "shifted_space")
        require(
            _parameters(family.shifted_space) == _parameters(family.task_space),
            family,
            "shifted_space and task_space have different parameters",
        )


def _require_task_space(family: Family, name: str) -> None:
    space = getattr(family, name)
    parts = space.spaces if isinstance(space, spaces.Dict) else {}
    require(
        len(parts) > 0
        and all(
            isinstance(part, spaces.Discrete) or (isinstance(part, spaces.Box) and part.is_bounded())
            for part in parts.values()
        ),
        family,
        f"{name} {one_line(space)} is not a Dict of bounded Box and Discrete spaces",
    )


def _parameters(space: spaces.Dict) -> dict[str, Any]:
    """Return the kind and shape of every task parameter."""
    return {name: (type(part), part.shape) for name, part in space.spaces.items()}


def _require_spaces(family: Family, pair: tuple[Any, Any]) -> None:
    box, actions = pair
    require(
        isinstance(box, spaces.Box) and box.dtype == np.float32,
        family,
        f"observation_space {one_line(box)} is not a float32 Box",
    )
    require(
        isinstance(actions, spaces.Discrete)
        or (isinstance(actions, spaces.Box) and actions.dtype is not None and actions.dtype.kind == "f"),
        family,
        f"action_space {one_line(actions)} is not a Box of floats or Discrete",
    )
    require(
        not isinstance(actions, spaces.Box) or actions.is_bounded(),
        family,
        f"action_space {one_line(actions)} is not bounded: Stable-Baselines3 takes finite bounds",
    )


def check_finite_tasks(family: Family) -> None:
    """Require that a finite family lists every task once, and parts of it by index."""
    finite = family.finite_tasks()
    if finite is None:
        return
    _require_valid(family, finite, "finite_tasks")
    count = n_tasks(finite)
    require(len(_rows(finite)) == count, family, "finite_tasks holds a task twice")
    if family.splits_coincide:
        return
    for part in ("train", "validation", "test"):
        index = family.finite_split(part)
        require(
            is_array(index)
            and index.ndim == 1
            and index.dtype.kind in "iu"
            and set(index.tolist()) <= set(range(count)),
            family,
            f"finite_split({shorten(part)}) is not an array of indices into the {count} tasks of finite_tasks",
        )


def check_splits(family: Family) -> None:
    """Require that the fixed lists stay as they are, in the task space and apart from training."""
    finite = family.finite_tasks()
    if family.shifted_space is not None:
        _require_valid(family, family.sample_shifted_tasks(stream(0, "check/shifted"), 2), "sample_shifted_tasks")
    for split in SPLITS:
        if split == "shifted" and family.shifted_space is None:
            continue
        many, few = family.tasks(split, 8), family.tasks(split, 3)
        for tasks, asked in ((many, 8), (few, 3)):
            _require_valid(family, tasks, f"the {split} split")
            count = n_tasks(tasks)
            require(
                count == asked or (finite is not None and split != "shifted" and count < asked),
                family,
                f"tasks({shorten(split)}, {asked}) returned {count} tasks",
            )
        require(
            equal(few, take_tasks(many, slice(0, n_tasks(few)))) and equal(many, family.tasks(split, 8)),
            family,
            f"the first tasks of the {split} split change with n or from call to call",
        )
    if family.shifted_space is not None:
        shifted = family.tasks("shifted", 20)
        trained = np.ones(n_tasks(shifted), dtype=bool)
        for name, space in family.task_space.spaces.items():
            # Intervals share their ends, so a bound itself counts as outside.
            trained &= inside(space, shifted[name]) & ~_on_edge(space, shifted[name])
        require(not trained.any(), family, "the shifted split holds tasks of the training range")
    if finite is not None and n_tasks(finite) >= 10:
        parts = [set(family.finite_split(part).tolist()) for part in ("train", "validation", "test")]
        require(
            not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2]), family, "finite splits overlap"
        )
        for split, part in (("validation", parts[1]), ("test", parts[2])):
            expected = take_tasks(finite, np.array(sorted(part)))
            listed = family.tasks(split, n_tasks(finite))
            require(
                _rows(listed) == _rows(expected), family, f"the {split} split is not the {split} part of finite_tasks"
            )
        drawn = _rows(family.sample_tasks(stream(0, "check/finite"), 200))
        require(
            drawn <= _rows(take_tasks(finite, np.array(sorted(parts[0])))), family, "training draws hold held-out tasks"
        )


def check_training_draws(family: Family, n: int, seed: int) -> None:
    """Require that draws are tasks and come from the generator that is given."""
    tasks = family.sample_tasks(stream(seed, "check/tasks"), n)
    _require_valid(family, tasks, "sample_tasks")
    require(n_tasks(tasks) == n, family, f"sample_tasks(rng, {n}) returned {n_tasks(tasks)} tasks")
    again = family.sample_tasks(stream(seed, "check/tasks"), n)
    require(equal(tasks, again), family, "sample_tasks draws from something else than the generator it is given")


def _require_valid(family: Family, tasks: Tasks, source: str) -> None:
    require(_is_arrays(tasks), family, f"{source} gives {kind_of(tasks)}, not a dict of arrays [task, ...]")
    try:
        # Users write tasks as lists.
        valid = family.validate_tasks({name: value.tolist() for name, value in tasks.items()})
    except MetaRLError as error:
        message = f"{source} gives a task outside the task space: {error}"
        raise FamilyCheckError(f"{family_name(family)}: {message}") from None
    require(_is_arrays(valid), family, f"validate_tasks returns {kind_of(valid)}, not a dict of arrays [task, ...]")
    require(
        {name: value.dtype for name, value in valid.items()} == {name: value.dtype for name, value in tasks.items()},
        family,
        f"{source} gives tasks of another dtype than the task space's",
    )


def different_tasks(family: Family, n: int, seed: int) -> Tasks:
    """Draw until at least two tasks differ; a family of one task has nothing to learn across."""
    tasks = family.sample_tasks(stream(seed, "check/tasks"), n)
    for attempt in range(50):
        if len(_rows(tasks)) > 1:
            return tasks
        tasks = concatenate_tasks([tasks, family.sample_tasks(stream(seed, "check/tasks", attempt), 1)])
    raise FamilyCheckError(f"{family_name(family)}: sample_tasks draws the same task every time")


def check_spaces(family: Family, tasks: Tasks) -> None:
    """Require that the spaces of tasks are of the kinds that policies take."""
    pairs = [family.spaces(one_task(tasks, index)) for index in range(n_tasks(tasks))]
    for pair in pairs:
        require(isinstance(pair, tuple) and len(pair) == 2, family, f"spaces(task) is {kind_of(pair)}, not a pair")
    own = (family.observation_space, family.action_space)
    if all(pair == pairs[0] for pair in pairs):
        require(pairs[0] == own, family, f"spaces(task) {one_line(pairs[0])} are not the family's own {one_line(own)}")
    for pair in pairs:
        _require_spaces(family, pair)


# ---------------------------------------------------------------------------------------------------------- comparing
def kind_of(value: Any) -> str:
    """Return what a value is in a few words."""
    if isinstance(value, np.ndarray):
        return f"{list(value.shape)} {value.dtype}"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {kind_of(part)}' for name, part in value.items())}}}"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def one_line(value: Any) -> str:
    """Return a space on one line; bounds that differ by entry are arrays, which NumPy writes on several."""
    return " ".join(str(value).split())


def is_array(value: Any) -> TypeGuard[np.ndarray]:
    """Return whether ``value`` is an array."""
    return isinstance(value, np.ndarray)


def _is_arrays(value: Any) -> TypeGuard[Mapping[str, np.ndarray]]:
    """Return whether ``value`` is a dict of arrays that have a first axis, not an empty one."""
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(is_array(array) and array.ndim > 0 and len(array) > 0 for array in value.values())
    )


def alike(a: Any, b: Any) -> bool:
    """Return whether two arrays are equal, NaN included."""
    return bool(np.array_equal(np.asarray(a), np.asarray(b), equal_nan=True))


def equal(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> bool:
    """Return whether two dicts of arrays are equal, NaN included."""
    return a.keys() == b.keys() and all(alike(value, b[name]) for name, value in a.items())


def _rows(tasks: Tasks) -> set[bytes]:
    """Return a batch of tasks as a set."""
    return {b"".join(np.asarray(value[index]).tobytes() for value in tasks.values()) for index in range(n_tasks(tasks))}


def _on_edge(space: spaces.Space[Any], values: np.ndarray) -> np.ndarray:
    if not isinstance(space, spaces.Box):
        return np.zeros(len(values), dtype=bool)
    edge = (values == space.low) | (values == space.high)
    return np.asarray(edge.any(axis=tuple(range(1, edge.ndim))))
