"""What all parts of the check share: the error, words for what is wrong and where, and comparing to the last bit."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from metarl.envs.family import Family
from metarl.envs.tasks import Tasks, one_task
from metarl.errors import MetaRLError, shorten


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


def blame(error: Exception) -> str:
    """Return which function of the family raised ``error``, on one line."""
    checks = (*_HERE.iterdir(), _HERE.with_name("check.py"))
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) not in checks]
    # The family's author knows their own lines; a call of NumPy's that failed is further in.
    theirs = [frame for frame in frames if _OURS not in Path(frame.filename).parents]
    what = shorten(f"{type(error).__name__}: {error}", quote=False, limit=300).removesuffix(":")
    for frame in (theirs or frames)[:1]:
        return f"{frame.name} raises {what} ({Path(frame.filename).name}, line {frame.lineno})"
    return what


_HERE = Path(__file__).parent
_OURS = _HERE.parents[1]


def where(time: int, tasks: Tasks, task: int, copy: int | None = None) -> str:
    """Return where something was seen: time step 1 is the first step of an episode."""
    values = {name: np.asarray(value).tolist() for name, value in one_task(tasks, task).items()}
    when = f"at time step {time}" if time else "at reset"
    which = f"task {task} {shorten(values)}"
    return f"{when}, {which}" if copy is None else f"{when}, copy {copy} of {which}"


def number(value: Any) -> str:
    """Return a number or a small array for a message."""
    array = np.asarray(value)
    return f"{array.item():g}" if array.ndim == 0 and array.dtype.kind == "f" else shorten(array.tolist())


def both(a: Any, b: Any) -> str:
    """Return two values that differ, with as many digits as it takes."""
    words = number(a), number(b)
    return " and ".join(words if words[0] != words[1] else (repr(np.asarray(value).tolist()) for value in (a, b)))


def is_array(value: Any) -> TypeGuard[np.ndarray]:
    """Return whether ``value`` is an array."""
    return isinstance(value, np.ndarray)


def alike(a: Any, b: Any) -> bool:
    """Return whether two arrays are equal, NaN included."""
    return not unlike(a, b).any()


def unlike(a: Any, b: Any) -> np.ndarray:
    """Return where two arrays differ, NaN being equal to NaN; they are broadcast against each other."""
    a, b = np.asarray(a), np.asarray(b)
    return np.asarray((a != b) & ~((a != a) & (b != b)))


def equal(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> bool:
    """Return whether two dicts of arrays are equal, NaN included."""
    if a.keys() != b.keys():
        return False
    return all(value.shape == b[name].shape and alike(value, b[name]) for name, value in a.items())


def copied(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return copies of arrays."""
    return {name: np.array(value) for name, value in arrays.items()}
