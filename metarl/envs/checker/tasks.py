"""Before a family is stepped: its declarations, tasks, splits and spaces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any, TypeGuard

import gymnasium
import numpy as np
from gymnasium import spaces

from metarl.envs.checker.common import FamilyCheckError, equal, family_name, is_array, require
from metarl.envs.family import SPLITS, Family
from metarl.envs.promises import broken_declaration, broken_spaces, kind_of
from metarl.envs.tasks import Tasks, concatenate_tasks, n_tasks, one_task, stack_tasks, take_tasks
from metarl.envs.views.single import drawn_task
from metarl.errors import MetaRLError, shorten
from metarl.streams import stream

MAX_EDGES = 64
"""Most tasks at the edge of the task space that are tried."""


def check_declarations(family: Family) -> None:
    """Require the attributes that every family sets."""
    given: Any = family
    if not isinstance(given, Family):
        hint = ""
        if isinstance(given, str):
            hint = f": metarl.envs.make_family({shorten(given)}) is, if it is registered"
        elif isinstance(given, type):
            hint = f" but a class: {given.__name__}(...) makes one"
        elif isinstance(given, gymnasium.Env):
            hint = " but one environment: a family has tasks, and dynamics for all of them at once"
        raise FamilyCheckError(f"{shorten(given)} is not a Family{hint}")
    fault = broken_declaration(family)
    require(fault is None, family, str(fault))


def check_finite_tasks(family: Family) -> None:
    """Require that a finite family lists every task once, and parts of it by index."""
    finite = family.finite_tasks()
    if finite is None:
        return
    require_valid(family, finite, "finite_tasks")
    count = n_tasks(finite)
    rows = row_list(finite)
    for copy, row in enumerate(rows):
        first = rows.index(row)
        require(first == copy, family, f"finite_tasks holds task {first} {_words(finite, first)} twice, as {copy} too")
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
        require_valid(family, family.sample_shifted_tasks(stream(0, "check/shifted"), 2), "sample_shifted_tasks")
    for split in SPLITS:
        if split == "shifted" and family.shifted_space is None:
            continue
        many, few = family.tasks(split, 8), family.tasks(split, 3)
        for tasks, asked in ((many, 8), (few, 3)):
            require_valid(family, tasks, f"the {split} split")
            count = n_tasks(tasks)
            require(
                count == asked or (finite is not None and count < asked),
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
        trained = _in_training_range(family, shifted).copy()
        for name, space in family.task_space.spaces.items():
            # Intervals share their ends, so a bound itself counts as outside.
            trained &= ~_on_edge(space, shifted[name])
        for index in np.flatnonzero(trained)[:1]:
            what = f"the shifted split holds tasks of the training range: {_words(shifted, index)}"
            require(False, family, what)
    if finite is None:
        _check_apart(family)
    elif n_tasks(finite) >= 10:
        _check_finite_splits(family, finite)


def _check_apart(family: Family) -> None:
    """Require that the splits of a family that lists no tasks are lists of their own."""
    lists = {split: family.tasks(split, 20) for split in ("validation", "test")}
    validation, test = row_list(lists["validation"]), row_list(lists["test"])
    require(validation != test, family, "the validation split and the test split hold the same tasks")
    trained = row_list(family.sample_tasks(stream(0, "check/apart"), 100))
    if len(set(trained)) < len(trained):
        # Draws from few tasks, such as a Discrete space's, coincide anyhow.
        return
    for split, rows, others in (
        ("test", test, {"the validation split": validation, "training draws": trained}),
        ("validation", validation, {"training draws": trained}),
    ):
        for other, held in others.items():
            shared = [index for index, row in enumerate(rows) if row in held]
            for index in shared[:1]:
                what = f"{other} and the {split} split share task {_words(lists[split], index)}"
                require(False, family, what)


def _check_finite_splits(family: Family, finite: Tasks) -> None:
    parts = {part: family.finite_split(part).tolist() for part in ("train", "validation", "test")}
    for part, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        for index in [index for index in parts[part] if index in parts[other]][:1]:
            both = f"{part} and {other} hold task {index} {_words(finite, index)}"
            require(False, family, f"finite splits overlap: {both}")
    for part in ("validation", "test"):
        expected = take_tasks(finite, np.array(sorted(parts[part])))
        listed = family.tasks(part, n_tasks(finite))
        require(
            set(row_list(listed)) == set(row_list(expected)),
            family,
            f"the {part} split is not the {part} part of finite_tasks",
        )
    drawn = family.sample_tasks(stream(0, "check/finite"), 200)
    trained = set(row_list(take_tasks(finite, np.array(parts["train"]))))
    for index, row in enumerate(row_list(drawn)):
        require(row in trained, family, f"training draws hold held-out tasks: {_words(drawn, index)}")


def check_training_draws(family: Family, n: int, seed: int) -> None:
    """Require that draws are tasks and come from the generator that is given."""
    tasks = family.sample_tasks(stream(seed, "check/tasks"), n)
    require_valid(family, tasks, "sample_tasks")
    require(n_tasks(tasks) == n, family, f"sample_tasks(rng, {n}) returned {n_tasks(tasks)} tasks")
    again = family.sample_tasks(stream(seed, "check/tasks"), n)
    require(equal(tasks, again), family, "sample_tasks draws from something else than the generator it is given")
    for index in np.flatnonzero(~_in_training_range(family, tasks))[:1]:
        what = f"sample_tasks draws {_words(tasks, index)}, which in_training_range says training does not"
        require(False, family, what)
    many = [row_list(family.sample_tasks(stream(seed, "check/draws", index), 32)) for index in range(2)]
    require(
        many[0] != many[1] or len(set(many[0])) == 1,
        family,
        f"sample_tasks ignores its generator: two streams draw the same tasks, {_words(tasks, 0)} first",
    )


def check_validation(family: Family, tasks: Tasks) -> None:
    """Require that ``validate_tasks`` refuses what is outside the task space, and tasks that lack a parameter."""
    task = {name: value[:1].tolist() for name, value in tasks.items()}
    for name, part in family.task_space.spaces.items():
        around = [part] if family.shifted_space is None else [part, family.shifted_space[name]]
        top = max(float(np.max(_ends(space)[1])) for space in around)
        beyond = top + abs(top) + 1
        strange = {**task, name: np.full(tasks[name][:1].shape, beyond).tolist()}
        missing = {other: value for other, value in task.items() if other != name}
        for given, what in (
            (strange, f"takes {name}={beyond:g}, outside the task space"),
            (missing, f"takes a task without {name}"),
        ):
            try:
                family.validate_tasks(given)
            except MetaRLError:
                continue
            require(False, family, f"validate_tasks {what}: {shorten(given)}")


def _ends(space: spaces.Space[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest and the highest values of a task parameter."""
    if isinstance(space, spaces.Box):
        return np.asarray(space.low), np.asarray(space.high)
    assert isinstance(space, spaces.Discrete)
    return np.asarray(space.start, space.dtype), np.asarray(space.start + space.n - 1, space.dtype)


def require_valid(family: Family, tasks: Tasks, source: str) -> None:
    """Require a batch of tasks of the task space."""
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


def _in_training_range(family: Family, tasks: Tasks) -> np.ndarray:
    within, n = family.in_training_range(tasks), n_tasks(tasks)
    fits = is_array(within) and within.dtype == bool and within.shape == (n,)
    require(fits, family, f"in_training_range returns {kind_of(within)} for {n} tasks, not a truth value for each")
    return within


def different_tasks(family: Family, n: int, seed: int) -> Tasks:
    """Draw until at least two tasks differ, of a family without a list of tasks in every parameter.

    A family of one task has nothing to learn across; a parameter of a few values may come out the same several times.
    """
    tasks = family.sample_tasks(stream(seed, "check/tasks"), n)
    apart = family.finite_tasks() is None
    for attempt in range(50):
        parts = [{name: tasks[name]} for name in tasks] if apart else [tasks]
        if all(len(set(row_list(part))) > 1 for part in parts):
            return tasks
        tasks = concatenate_tasks([tasks, family.sample_tasks(stream(seed, "check/tasks", attempt), 1)])
    if len(set(row_list(tasks))) > 1:
        return tasks
    raise FamilyCheckError(f"{family_name(family)}: sample_tasks draws the same task every time")


def check_spaces(family: Family, tasks: Tasks) -> None:
    """Require that the spaces of tasks are of the kinds that policies take, and some task has the family's own."""
    own = (family.observation_space, family.action_space)
    found = False
    for index in range(n_tasks(tasks)):
        task = one_task(tasks, index)
        pair = family.spaces(task)
        require(isinstance(pair, tuple) and len(pair) == 2, family, f"spaces(task) is {kind_of(pair)}, not a pair")
        fault = broken_spaces(*pair)
        require(fault is None, family, f"{fault} (spaces of task {_words(tasks, index)})")
        require(
            family.spaces(task) == pair,
            family,
            f"spaces(task) changes from call to call for task {_words(tasks, index)}",
        )
        found |= pair == own
    if not found:
        try:
            drawn_task(family, 0, *own)
        except MetaRLError:
            pair = family.spaces(one_task(tasks, 0))
            what = f"spaces(task) {_brief(pair)} are not the family's own {_brief(own)} for any training task"
            raise FamilyCheckError(f"{family_name(family)}: {what}") from None


def edge_tasks(family: Family) -> Tasks | None:
    """Return tasks at the edges of the task space and of the shifted one, and in their middle; of a finite family, all.

    Those that ``validate_tasks`` refuses are left out; None if nothing is left.
    """
    finite = family.finite_tasks()
    if finite is not None:
        return take_tasks(finite, slice(0, MAX_EDGES))
    found: dict[tuple[bytes, ...], dict[str, np.ndarray]] = {}
    for space in (family.task_space, family.shifted_space):
        for task in () if space is None else _corners(space):
            key = tuple(np.asarray(value).tobytes() for value in task.values())
            if len(found) < MAX_EDGES and key not in found:
                try:
                    family.validate_tasks({name: [value.tolist()] for name, value in task.items()})
                except MetaRLError:
                    continue
                found[key] = task
    return stack_tasks(list(found.values())) if found else None


def _corners(space: spaces.Dict) -> Iterator[dict[str, np.ndarray]]:
    """Return points of a task space: its ends, its middle, and each number's ends with the others in the middle."""
    lows, middles, highs = {}, {}, {}
    for name, part in space.spaces.items():
        low, high = _ends(part)
        middles[name] = np.asarray(low + (high - low) / 2).astype(part.dtype)
        lows[name], highs[name] = low, high
    places: list[tuple[str, tuple[int, ...]]] = [
        (name, index) for name, value in middles.items() for index in np.ndindex(value.shape)
    ]

    def point(ends: Mapping[tuple[str, tuple[int, ...]], bool]) -> dict[str, np.ndarray]:
        task = {name: np.array(value) for name, value in middles.items()}
        for (name, index), is_high in ends.items():
            task[name][index] = (highs if is_high else lows)[name][index]
        return task

    yield {name: np.array(value) for name, value in lows.items()}
    yield {name: np.array(value) for name, value in highs.items()}
    yield point({})
    for place in places:
        for side in (False, True):
            yield point({place: side})
    if len(places) <= 4:
        for sides in product((False, True), repeat=len(places)):
            yield point(dict(zip(places, sides, strict=True)))


def _is_arrays(value: Any) -> TypeGuard[Mapping[str, np.ndarray]]:
    """Return whether ``value`` is a dict of arrays that have a first axis, not an empty one."""
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(is_array(array) and array.ndim > 0 and len(array) > 0 for array in value.values())
    )


def row_list(tasks: Tasks) -> list[bytes]:
    """Return a batch of tasks as a list of values that compare."""
    return [b"".join(np.asarray(value[index]).tobytes() for value in tasks.values()) for index in range(n_tasks(tasks))]


def _words(tasks: Tasks, index: int) -> str:
    """Return one task for a message."""
    return shorten({name: np.asarray(value).tolist() for name, value in one_task(tasks, index).items()})


def _brief(pair: Any) -> str:
    return shorten(pair, quote=False)


def _on_edge(space: spaces.Space[Any], values: np.ndarray) -> np.ndarray:
    if not isinstance(space, spaces.Box):
        return np.zeros(len(values), dtype=bool)
    edge = (values == space.low) | (values == space.high)
    return np.asarray(edge.any(axis=tuple(range(1, edge.ndim))))
