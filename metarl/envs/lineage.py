"""Lineages: the constants that a code base or paper gives to an environment, chosen by name and overridden by field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from metarl.checks import FINITE, SWITCH, Check, instance, integer
from metarl.errors import unknown_name
from metarl.files.schema import LARGEST
from metarl.synonyms import FAMILIES

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    C = TypeVar("C", bound=DataclassInstance)


_KINDS: dict[type, Check[Any]] = {
    int: integer(-LARGEST).says("a whole number"),
    float: FINITE,
    bool: SWITCH,
    str: instance(str, "a name"),
}
"""What a field takes; JSON, as checkpoints use it, has no other floats than finite ones."""


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
    values: dict[str, Any] = {}
    for name, value in changes.items():
        if name not in names:
            raise unknown_name(f"argument of {family}", name, ["lineage", *names], FAMILIES)
        kind = type(getattr(constants, name))
        values[name] = _KINDS.get(kind, instance(kind, kind.__name__))(name, value)
    return replace(constants, **values)
