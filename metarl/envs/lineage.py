"""Lineages: the constants that a code base or paper gives to an environment, chosen by name and overridden by field."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from metarl.errors import ConfigError, shorten, unknown_name
from metarl.schema import LARGEST

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    C = TypeVar("C", bound=DataclassInstance)


_KINDS = {int: "a whole number", float: "a finite number", bool: "True or False", str: "a name"}
"""What a field takes, in words."""


def choose_constants(lineages: Mapping[str, C], lineage: str, changes: Mapping[str, Any], family: str) -> C:
    """Return a lineage's constants with some of them replaced.

    :param lineages: frozen dataclasses by the name of the code base or paper they come from.
    :param lineage: which one to start from.
    :param changes: values by field name.
    :param family: for error messages.
    :raises UnknownNameError: no such lineage or field.
    :raises ConfigError: a value of another type than the lineage's, or a number that is not finite or too large.
    """
    if not isinstance(lineage, str) or lineage not in lineages:
        raise unknown_name("lineage", str(lineage), lineages)
    constants = lineages[lineage]
    names = [field.name for field in fields(constants)]
    for name, value in changes.items():
        if name not in names:
            raise unknown_name(f"argument of {family}", name, ["lineage", *names])
        kind = type(getattr(constants, name))
        # A bool is an int to Python, but not a number to anybody who writes `horizon=true`.
        right = isinstance(value, kind) or (kind is float and isinstance(value, int))
        if not right or (isinstance(value, bool) and kind is not bool):
            raise ConfigError(f"{name}={shorten(value)}: {family} takes {_KINDS.get(kind, kind.__name__)}")
        # JSON, as checkpoints use it, has no others. Written so that NaN counts as too large.
        if kind is float and not abs(value) <= sys.float_info.max:
            raise ConfigError(f"{name}={shorten(value)}: {family} takes a finite number")
        if kind is int and abs(value) > LARGEST:
            raise ConfigError(f"{name}={shorten(value)}: {family} takes an integer of at most {LARGEST:g}")
    return replace(constants, **changes)


def check_choice(name: str, value: Any, options: Sequence[Any]) -> None:
    """Raise :class:`ConfigError` unless ``value`` is one of ``options``."""
    if value not in options:
        raise ConfigError(f"{name}={shorten(value)}: one of {', '.join(repr(option) for option in options)}")
