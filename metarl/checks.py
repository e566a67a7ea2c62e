"""The one dialect of argument checks: what a value may be, in words, and the plain Python value that it stands for.

A :class:`Check` takes what people have at hand: integers and floats of Python and NumPy, arrays and tensors of no axis,
and whole floats for counts (``learn(1e6)``). It returns the plain value, so that what is kept is what JSON holds, and
results have the same bits whatever the number was given as. Truth values, text and NaN are no numbers::

    n_episodes = COUNT("n_episodes", n_episodes)
    gamma = number("[0, 1]")("gamma", gamma)
    chunk_size = (COUNT | NONE)("chunk_size", chunk_size)
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from metarl.errors import ConfigError, shorten, unknown_name
from metarl.files.schema import LARGEST, LARGEST_SEED, MOST
from metarl.synonyms import HYPERPARAMETERS

T = TypeVar("T")
S = TypeVar("S")

LARGEST_FLOAT32 = float(np.finfo(np.float32).max)
"""What no number is beyond but infinity: stock algorithms fail on it while they learn."""


@dataclass(frozen=True)
class Check(Generic[T]):
    """What an argument may be.

    :param words: as an error message says it.
    :param read: returns the plain value, or raises ValueError.
    :param no_schedule: what the message adds where somebody gives a schedule, as SB3 takes them.
    """

    words: str
    read: Callable[[Any], T]
    no_schedule: str = ""

    def __call__(self, name: str, value: Any) -> T:
        """Return ``value`` as a plain Python value.

        :param name: the argument's, for the error message.
        :raises ConfigError: it is something else.
        """
        try:
            return self.read(plain(value))
        except (TypeError, ValueError, OverflowError):
            hint = f": {self.no_schedule}" if self.no_schedule and is_schedule(value) else ""
            if _is_beyond_float32(value):
                hint = f": networks compute in float32, which ends at {LARGEST_FLOAT32:.3g}"
            raise ConfigError(f"{name}={shorten(value)} is not {self.words}{hint}") from None

    def __or__(self, other: Check[S]) -> Check[T | S]:
        """Return the check that takes what either takes."""

        def read(value: Any) -> T | S:
            try:
                return self.read(value)
            except (TypeError, ValueError, OverflowError):
                return other.read(value)

        return Check(f"{self.words} or {other.words}", read, other.no_schedule or self.no_schedule)

    def says(self, words: str) -> Check[T]:
        """Return the same check in other words."""
        return Check(words, self.read, self.no_schedule)


def plain(value: Any) -> Any:
    """Return the plain Python value of a NumPy scalar, or of an array or a tensor of no axis; others as they are."""
    if getattr(value, "ndim", None) == 0 and callable(getattr(value, "item", None)) and not np.ma.is_masked(value):
        value = value.item()
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return float(value) if isinstance(value, np.floating) else value  # a long double stays one in NumPy


def as_array(given: Any, dtype: Any = None) -> np.ndarray:
    """Return what somebody hands over as a plain array.

    :param given: anything that NumPy takes; a masked array, too, where nothing is masked.
    :raises ValueError: entries are masked: what lies under a mask is no value.
    """
    if any(map(np.ma.is_masked, given if isinstance(given, (list, tuple)) else [given])):
        raise ValueError("masked entries have no value")
    return np.asarray(given, dtype)


def plain_tree(value: Any) -> Any:
    """Return a copy of mappings and lists with every value plain; arrays and tensors become lists."""
    if isinstance(value, Mapping):
        return {plain(key): plain_tree(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain_tree(item) for item in value]
    if type(value) is tuple:
        return tuple(plain_tree(item) for item in value)
    if getattr(value, "ndim", 0) and callable(getattr(value, "tolist", None)):
        return value.tolist()
    return plain(value)


def _is_beyond_float32(value: Any) -> bool:
    return isinstance(value, float) and LARGEST_FLOAT32 < abs(value) < math.inf


def is_schedule(value: Any) -> bool:
    """Return whether ``value`` is a step size that SB3 would change over training."""
    return callable(value) or (isinstance(value, str) and value.startswith("lin_"))


def _number(value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        raise ValueError
    return value


def integer(low: float = 1, high: float = LARGEST) -> Check[int]:
    """Return the check for an integer in ``[low, high]``; a whole float is one."""

    def read(value: Any) -> int:
        value = _number(value)
        if value != int(value) or not low <= value <= high:
            raise ValueError
        return int(value)

    return Check(f"an integer in [{low:g}, {high:g}]", read, "it cannot be a schedule")


def number(interval: str = "(-∞, ∞)", no_schedule: str = "it cannot be a schedule") -> Check[float]:
    """Return the check for a number in an interval.

    :param interval: in the usual notation: ``"[0, 1)"``; ``"(0, ∞)"`` leaves infinity out, ``"(0, ∞]"`` does not.
    :param no_schedule: what the message adds where somebody gives a schedule.
    """
    low, high = (float(bound.strip().replace("∞", "inf")) for bound in interval[1:-1].split(","))
    with_low, with_high = interval.startswith("["), interval.endswith("]")

    def read(value: Any) -> float:
        found = float(_number(value))
        if _is_beyond_float32(found):
            raise ValueError
        inside = (low <= found if with_low else low < found) and (found <= high if with_high else found < high)
        if not inside:
            raise ValueError
        return found

    words = "a finite number" if interval == "(-∞, ∞)" else f"a number in {interval}"
    return Check(words, read, no_schedule)


def instance(kind: type[T], words: str) -> Check[T]:
    """Return the check for an instance of a class."""

    def read(value: Any) -> T:
        if not isinstance(value, kind):
            raise ValueError
        return value

    return Check(words, read)


def choice(*options: Any) -> Check[Any]:
    """Return the check for one of some values."""

    def read(value: Any) -> Any:
        for option in options:
            if type(option) is type(value) and option == value:
                return option
        raise ValueError

    words = ", ".join(map(repr, options))
    return Check(words if len(options) == 1 else f"one of {words}", read)


def check_arguments(
    function: Callable[..., Any],
    kwargs: Mapping[str, Any],
    kind: str,
    own: Sequence[str] = (),
    around: Callable[..., Any] | None = None,
) -> None:
    """Raise :class:`~metarl.errors.UnknownNameError` for the first keyword that ``function`` does not take.

    :param own: arguments that the caller sets itself: they are not to be given either.
    :param around: the caller, where it hands on what it does not take itself: what it takes is named too.
    """
    parameters = inspect.signature(function).parameters
    variable = [name for name, parameter in parameters.items() if parameter.kind is inspect.Parameter.VAR_KEYWORD]
    refused = ("self", *own)
    known = [name for name in parameters if name not in (*refused, *variable)]
    for name in kwargs:
        if name in refused or not (variable or name in known):
            outer = {} if around is None else inspect.signature(around).parameters
            further = [other for other, each in outer.items() if each.kind is not inspect.Parameter.VAR_KEYWORD]
            raise unknown_name(kind, name, [*known, *(set(further) - {"self"})], HYPERPARAMETERS)


COUNT = integer(1)
ROUNDS = integer(1, MOST)
COUNT_OR_ZERO = integer(0)
SEED = integer(0, LARGEST_SEED)
FINITE = number()
POSITIVE = number("(0, ∞)")
ABOVE_ZERO = number("(0, ∞]")
NOT_NEGATIVE = number("[0, ∞)")
FRACTION = number("[0, 1]")
SWITCH = instance(bool, "true or false")
MAPPING: Check[Mapping[str, Any]] = instance(Mapping, "a mapping")  # type: ignore[type-abstract]
NONE: Check[None] = choice(None)
