"""Task parameters as users write them: ranges, lists of values, spaces of Gymnasium."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

from metarl.checks import plain
from metarl.errors import ConfigError, shorten, unknown_name

TAKES = "a range (low, high) or 'low..high', a list of values, or a Box or Discrete of Gymnasium"
MOST_VALUES = 100_000


@dataclass(frozen=True)
class Parameter:
    """A task parameter.

    :param space: its part of the task space.
    :param document: what was written, as JSON that :func:`read_parameter` takes.
    :param numbers: the numbers that it may be, in order; None for all of the space.
    :param words: what the environment is given, one entry for each of ``numbers``, where those only count them.
    """

    space: spaces.Box | spaces.Discrete
    document: Any
    numbers: np.ndarray | None = None
    words: tuple[Any, ...] | None = None

    def value(self, number: np.ndarray) -> Any:
        """Return what the environment is given, a plain number where the parameter is one."""
        if self.words is not None:
            return self.words[int(number)]
        return np.array(number) if np.ndim(number) else np.asarray(number).item()


def read_parameters(what: str, given: Any) -> dict[str, Parameter]:
    """Return task parameters by name.

    :param what: the argument, for error messages.
    :raises ConfigError: one that is no range, no list and no space, or is nothing to choose from.
    """
    parts = given.spaces if isinstance(given, spaces.Dict) else given
    if not isinstance(parts, Mapping) or not parts:
        raise ConfigError(f"{what}={shorten(given)}: a dict of names, each with {TAKES}")
    for name in parts:
        if not isinstance(name, str) or not name.isidentifier():
            raise ConfigError(f"{what} has the name {shorten(name)}: letters, digits and '_'")
    return {name: read_parameter(f"{what}.{name}", part) for name, part in parts.items()}


def read_parameter(what: str, given: Any) -> Parameter:
    """Return a task parameter.

    :param what: its name, for error messages.
    """
    given = plain(given)
    if isinstance(given, str):
        given = _from_text(what, given)
    if isinstance(given, np.ndarray):
        given = given.tolist()
    if isinstance(given, Mapping) and not isinstance(given, spaces.Space):
        given = _from_document(what, given)
    if isinstance(given, spaces.Box):
        return _box(what, given.low, given.high, given.dtype)
    if isinstance(given, spaces.Discrete):
        if given.n > MOST_VALUES:
            raise ConfigError(f"{what} has {given.n:,} values: at most {MOST_VALUES:,}")
        numbers = np.arange(given.start, given.start + given.n)
        space = spaces.Discrete(int(given.n), start=int(given.start))
        return Parameter(space, {"n": int(given.n), "start": int(given.start)}, numbers)
    if isinstance(given, spaces.Space):
        raise ConfigError(f"{what} is a {type(given).__name__}: a task parameter is {TAKES}")
    if isinstance(given, tuple) and len(given) == 2 and all(_is_number(end) for end in given):
        return _box(what, *given)
    if isinstance(given, (list, tuple)):
        return _values(what, given)
    raise ConfigError(f"{what}={shorten(given)} is one value: a task parameter is {TAKES}")


def _from_text(what: str, text: str) -> tuple[float, float] | list[Any]:
    """Return ``low..high`` as a pair, ``a,b,c`` as a list."""
    low, dots, high = text.partition("..")
    if dots:
        try:
            return float(low), float(high)
        except ValueError:
            raise ConfigError(f"{what}={shorten(text)}: a range is low..high, such as 0.5..2.0") from None
    if "," not in text:
        raise ConfigError(f"{what}={shorten(text)} is one value: a range is low..high, a list a,b,c")
    return [_scalar(word.strip()) for word in text.split(",")]


def _scalar(word: str) -> Any:
    for read in (int, float):
        try:
            return read(word)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(word.lower(), word)


def _from_document(what: str, given: Mapping[str, Any]) -> spaces.Space[Any]:
    """Return the space of a mapping: ``low`` and ``high``, or ``n`` and ``start``."""
    names = ("n", "start") if "n" in given else ("low", "high")
    for name in given:
        if name not in names:
            raise unknown_name(f"part of {what}:", name, ("low", "high", "n", "start"))
    try:
        if "n" in given:
            return spaces.Discrete(int(given["n"]), start=int(given.get("start", 0)))
        low, high = np.broadcast_arrays(*(np.asarray(given[name], np.float64) for name in names))
        return spaces.Box(low, high, dtype=np.float64)
    except (KeyError, TypeError, ValueError, OverflowError, AssertionError):
        raise ConfigError(f"{what}={shorten(dict(given))}: {{low: …, high: …}} or {{n: …, start: …}}") from None


def _box(what: str, low: Any, high: Any, dtype: Any = np.float64) -> Parameter:
    ends = f"{what}={shorten(low, quote=False)}..{shorten(high, quote=False)}"
    if np.dtype(dtype).kind != "f":
        raise ConfigError(f"{what} is a Box of {np.dtype(dtype).name}: whole numbers are a list or a Discrete")
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    # Half of the largest numbers, so that a range is not longer than a float.
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (np.abs([low, high]) < 1e300).all()):
        raise ConfigError(f"{ends}: a range has finite ends")
    if not (low < high).all():
        raise ConfigError(f"{ends}: the low end of a range is below the high one")
    space = spaces.Box(low, high, low.shape, np.float64)
    document = {"low": low.tolist(), "high": high.tolist()} if low.shape else f"{low.item()!r}..{high.item()!r}"
    return Parameter(space, document)


def _values(what: str, given: Sequence[Any]) -> Parameter:
    values = [plain(value) for value in given]
    for value in values:
        if not isinstance(value, (bool, int, float, str)) or (isinstance(value, float) and not math.isfinite(value)):
            raise ConfigError(f"{what} has the value {shorten(value)}: numbers, words, true or false")
    if len(values) < 2 or len({(type(value), value) for value in values}) < len(values):
        raise ConfigError(f"{what}={shorten(values)}: two values or more, each once")
    if not all(_is_number(value) for value in values):
        return Parameter(spaces.Discrete(len(values)), values, np.arange(len(values)), tuple(values))
    whole = all(isinstance(value, int) for value in values)
    if any(abs(value) >= 2**53 for value in values):
        raise ConfigError(f"{what}={shorten(values)}: numbers below 2**53")
    numbers = np.array(values, np.int64 if whole else np.float64)
    if len(np.unique(numbers)) < len(numbers):
        raise ConfigError(f"{what}={shorten(values)}: two values or more, each once")
    space = spaces.Box(numbers.min(), numbers.max(), (), dtype=np.int64 if whole else np.float64)
    return Parameter(space, values, numbers)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
