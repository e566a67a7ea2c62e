"""Points of a task space, one or a batch of them, and the spaces they are drawn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from metarl.errors import ConfigError, shorten

Task = dict[str, Any]
"""One point of a task space."""
Tasks = dict[str, np.ndarray]
"""A batch of tasks: every value has a leading task axis."""


def n_tasks(tasks: Tasks) -> int:
    """Return the number of tasks in a batch."""
    return len(next(iter(tasks.values())))


def take_tasks(tasks: Tasks, index: Any) -> Tasks:
    """Return the tasks at ``index`` (an integer array or a slice)."""
    return {name: value[index] for name, value in tasks.items()}


def one_task(tasks: Tasks, index: int) -> Task:
    """Return one task of a batch, without the task axis."""
    return {name: value[index] for name, value in tasks.items()}


def stack_tasks(tasks: Sequence[Mapping[str, Any]]) -> Tasks:
    """Return a batch made of single tasks."""
    return {name: np.stack([np.asarray(task[name]) for task in tasks]) for name in tasks[0]}


def concatenate_tasks(batches: Sequence[Tasks]) -> Tasks:
    """Join batches along the task axis."""
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def sample_uniform(space: spaces.Dict, rng: np.random.Generator, n: int) -> Tasks:
    """Draw ``n`` points uniformly from a Dict of bounded Box and Discrete spaces."""
    result: Tasks = {}
    for name, part in space.spaces.items():
        if isinstance(part, spaces.Box):
            result[name] = rng.uniform(part.low, part.high, size=(n, *part.shape)).astype(part.dtype)
        elif isinstance(part, spaces.Discrete):
            result[name] = rng.integers(part.start, part.start + part.n, size=n).astype(part.dtype)
        else:
            raise ConfigError(
                f"task parameter {shorten(name)} is a {type(part).__name__}: a task space holds Box and Discrete"
            )
    return result


def inside(space: spaces.Space[Any], values: np.ndarray) -> np.ndarray:
    """Return which of ``values`` ``[task, ...]`` lie in a Box or Discrete space, ``[task]``."""
    if isinstance(space, spaces.Discrete):
        return np.asarray((values >= space.start) & (values < space.start + space.n))
    if not isinstance(space, spaces.Box):
        raise ConfigError(f"a task space holds Box and Discrete, not {type(space).__name__}")
    within = (values >= space.low) & (values <= space.high)
    return np.asarray(within.all(axis=tuple(range(1, within.ndim))))


def describe_space(space: spaces.Space[Any]) -> str:
    """Return a space's range and shape in a few words, for error messages."""
    return f"{describe_range(space)}, shape {list(space.shape)}" if space.shape else describe_range(space)


def describe_range(space: spaces.Space[Any]) -> str:
    """Return a space's range in a few words, for error messages."""
    if isinstance(space, spaces.Box):
        low, high = np.unique(space.low), np.unique(space.high)
        bounds = f"[{low[0]:g}, {high[0]:g}]" if len(low) == len(high) == 1 else f"{space.low} to {space.high}"
        return " ".join(bounds.split())
    if isinstance(space, spaces.Discrete):
        return f"{space.start} to {space.start + space.n - 1}"
    return str(space)


def describe_task(task: Task) -> str:
    """Return a task's numbers in a few words."""
    return shorten(", ".join(f"{name} {_in_short(np.asarray(value))}" for name, value in task.items()), quote=False)


def _in_short(value: np.ndarray) -> Any:
    """Return whole numbers as they are, and others with two digits behind the point; no minus before a 0."""
    return value.tolist() if value.dtype.kind in "biu" else (np.round(value.astype(np.float64), 2) + 0.0).tolist()
