"""Types of plain data: what YAML and JSON hold is checked against type hints, one dialect for every file.

The schema of a document is a dataclass; :func:`read_as` checks the one and builds the other::

    @dataclass(frozen=True)
    class Card:
        algo: str
        num_timesteps: Annotated[int, Range(0)]
        seeds: list[int]
        note: str | None = None

    card = read_as(Card, parse_json(text, "card.json"), "card.json")
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from metarl.errors import CheckpointError, ConfigError, MetaRLError, shorten, unknown_name

T = TypeVar("T")

LARGEST = 10**12
"""The largest count that is taken: an array of so many entries cannot be had, and NumPy overflows at some more."""
MOST = 10**5
"""The largest number of rounds of a loop, such as inner steps: nobody would live to see the end of more."""
LARGEST_SEED = 2**64 - 1
"""The largest seed."""


@dataclasses.dataclass(frozen=True)
class Range:
    """Bounds of a number, both allowed: ``Annotated[int, Range(0)]``."""

    low: float = -math.inf
    high: float = math.inf

    def __str__(self) -> str:
        if math.isinf(self.high):
            return f"of at least {self.low:g}"
        return f"from {self.low:g} to {self.high:g}"


def read_as(cls: type[T], document: Any, source: str, error: type[MetaRLError] = CheckpointError) -> T:
    """Return a document as an instance of a dataclass.

    Fields without a default must be there; what the dataclass does not name is refused, unless it has a field ``rest``
    of type ``dict[str, Any]``, which takes it.

    :param source: where the document is from, for the error message.
    :param error: what is raised.
    :raises MetaRLError: of the class ``error``: a field that is missing, unknown, or of another type than its hint.
    """
    try:
        return _read_fields(cls, document)
    except MetaRLError as reason:
        raise error(f"{source} is damaged: {reason}") from None


def _read_fields(cls: type[T], document: Any, place: str = "") -> T:
    """Read the fields of a dataclass.

    :param place: what stands before their names in messages.
    """
    if not isinstance(document, Mapping) or not all(isinstance(key, str) for key in document):
        raise ConfigError(f"{shorten(document)} is no mapping from names to values")
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    takes_rest = "rest" in fields
    values: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    for name, value in document.items():
        if name in fields and not (takes_rest and name == "rest"):
            values[name] = convert(place + name, value, hints[name])
        elif takes_rest:
            rest[name] = value
        else:
            raise unknown_name("field", name, fields)
    if takes_rest:
        values["rest"] = rest
    for name, field in fields.items():
        optional = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if name not in values and not optional:
            raise ConfigError(f"{place}{name} is missing")
    return cls(**values)


def convert(name: str, value: Any, hint: Any) -> Any:
    """Return ``value`` as ``hint`` says: an int for a float, a whole float for an int, otherwise as it is.

    Hints are those of plain data: ``int``, ``float`` (finite), ``bool``, ``str``, ``None``, ``Literal``, unions, lists,
    tuples and mappings of them, dataclasses, and ``Annotated[int, Range(low, high)]``.

    :param name: what the value is of, for the error message.
    :raises ConfigError: it cannot be had.
    """
    converted = _convert(value, hint)
    if converted is _MISMATCH:
        raise _find_fault(name, value, hint)
    return converted


def _find_fault(name: str, value: Any, hint: Any) -> MetaRLError:
    """Return the error for the innermost part of a value that is not as its hint says."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    wrong = "of the wrong type"
    if origin is typing.Annotated and _convert(value, arguments[0]) is not _MISMATCH:
        wrong = "out of range"
    elif origin in (typing.Union, types.UnionType):
        options = [option for option in arguments if option is not type(None)]
        if len(options) == 1 and isinstance(value, list | tuple | Mapping):
            return _find_fault(name, value, options[0])
    elif dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        try:
            _read_fields(typing.cast("type[Any]", hint), value, f"{name}.")
        except MetaRLError as error:
            return error
    elif origin in (list, tuple, Sequence) and isinstance(value, list | tuple):
        for i, item in enumerate(value):
            if _convert(item, arguments[0]) is _MISMATCH:
                return _find_fault(f"{name}[{i}]", item, arguments[0])
    elif origin in (dict, Mapping) and isinstance(value, Mapping):
        for key, item in value.items():
            if isinstance(key, str) and _convert(item, arguments[1]) is _MISMATCH:
                return _find_fault(f"{name}.{shorten(key, quote=False)}", item, arguments[1])
    return ConfigError(f"{name}={shorten(value)} is {wrong}: {name} takes {describe_hint(hint)}")


_MISMATCH = object()


def _convert(value: Any, hint: Any) -> Any:
    if hint is Any or hint is inspect.Parameter.empty:
        return value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        # exact types first, so that 3 stays an int under `float | int`
        ranked = sorted(arguments, key=lambda option: option is not type(value))
        return next((c for c in (_convert(value, option) for option in ranked) if c is not _MISMATCH), _MISMATCH)
    if origin is typing.Literal:
        return value if any(value == option and type(value) is type(option) for option in arguments) else _MISMATCH
    if origin is typing.Annotated:
        result = _convert(value, arguments[0])
        ranges = [part for part in arguments[1:] if isinstance(part, Range)]
        inside = result is not _MISMATCH and all(part.low <= result <= part.high for part in ranges)
        return result if inside else _MISMATCH
    if hint is None or hint is type(None):
        return None if value is None else _MISMATCH
    if origin in (list, tuple, Sequence) or hint in (list, tuple, Sequence):
        return _convert_sequence(value, origin or hint, arguments)
    if origin in (dict, Mapping) or hint in (dict, Mapping):
        return _convert_mapping(value, arguments)
    if dataclasses.is_dataclass(hint):
        try:
            return _read_fields(typing.cast("type[Any]", hint), value)
        except MetaRLError:
            return _MISMATCH
    if hint is float:
        return _as_float(value)
    if hint is int:
        whole = isinstance(value, float) and value.is_integer()
        return int(value) if (isinstance(value, int) and not isinstance(value, bool)) or whole else _MISMATCH
    if hint in (bool, str):
        return value if isinstance(value, hint) else _MISMATCH
    return _MISMATCH  # an object that YAML cannot hold, such as a Callable or a Path


def _as_float(value: Any) -> Any:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return _MISMATCH
    try:
        return float(value)
    except OverflowError:  # an int of 400 digits
        return _MISMATCH


def _convert_sequence(value: Any, container: Any, arguments: tuple[Any, ...]) -> Any:
    if not isinstance(value, list | tuple):
        return _MISMATCH
    element = arguments[0] if arguments else Any
    values = [_convert(item, element) for item in value]
    if any(item is _MISMATCH for item in values):
        return _MISMATCH
    return tuple(values) if container is tuple else values


def _convert_mapping(value: Any, arguments: tuple[Any, ...]) -> Any:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        return _MISMATCH
    element = arguments[1] if len(arguments) == 2 else Any
    result = {key: _convert(item, element) for key, item in value.items()}
    return _MISMATCH if any(item is _MISMATCH for item in result.values()) else result


def describe_hint(hint: Any) -> str:
    """Return a type hint in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe_hint(option) for option in arguments))
    if origin is typing.Literal:
        return " or ".join(repr(option) for option in arguments)
    if origin is typing.Annotated:
        return " ".join(
            [describe_hint(arguments[0]), *(str(part) for part in arguments[1:] if isinstance(part, Range))]
        )
    if origin in (list, tuple, Sequence) and arguments:
        return "a list of names, such as [a, b]" if arguments[0] is str else f"a list of {describe_hint(arguments[0])}"
    if origin in (dict, Mapping):
        return "a mapping"
    words: dict[Any, str] = {
        int: "int", float: "float", bool: "true or false", str: "a name", type(None): "null", None: "null",
        dict: "a mapping", list: "a list", tuple: "a list",
    }  # fmt: skip
    return words.get(hint, getattr(hint, "__name__", str(hint)))


def constructor_hints(cls: type) -> dict[str, Any]:
    """Return what a constructor takes, with the type hints.

    Where it passes ``**kwargs`` on, what the classes that it inherits from take counts as well.
    """
    hints: dict[str, Any] = {}
    for part in cls.__mro__:
        init = part.__dict__.get("__init__")
        if init is None:
            continue
        own, passes_on = _taken_by(init)
        for name, hint in own:
            hints.setdefault(name, hint)
        if not passes_on:
            break
    return hints


@functools.lru_cache(maxsize=1000)
def _taken_by(init: Any) -> tuple[tuple[tuple[str, Any], ...], bool]:
    """Return the names and hints of what one constructor takes, and whether it passes ``**kwargs`` on.

    It is kept: reading signatures was a tenth of a short run, whose model, files and records ask again and again.
    """
    try:
        annotations = typing.get_type_hints(init, include_extras=True)
    except NameError:  # somebody's class whose hints are for type checkers only
        annotations = {}
    parameters = inspect.signature(init).parameters.values()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    own = [(each.name, annotations.get(each.name, Any)) for each in parameters if each.kind in named]
    passes_on = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)
    return tuple(item for item in own if item[0] != "self"), passes_on
