"""Registries: what is found by name, because its class says so."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

from metarl.errors import ConfigError, UnregisteredError, shorten, unknown_name
from metarl.synonyms import Words

Item = TypeVar("Item", bound=type[Any])


class Registry(Mapping[str, Item], Generic[Item]):
    """Classes by name, in the order of names. It is live: what is registered later is in it at once.

    :param kind: what the classes are, for messages.
    :param words: what others call them, see :func:`metarl.errors.unknown_name`.
    :param capitals: whether names may have capitals, as those of Stable-Baselines3's policies do.
    """

    def __init__(self, kind: str, words: Words | None = None, capitals: bool = False) -> None:
        self.kind = kind
        self._letters, self._called = ("A-Za-z", "letters") if capitals else ("a-z", "small letters")
        self._words = words or {}
        self.refused: dict[str, str] = {}
        """Names that somebody may look for and that cannot be had, with the reason."""
        self._items: dict[str, Item] = {}

    def add(self, name: str, item: Item) -> None:
        """Register a class; a module that is imported again replaces its own.

        :raises ConfigError: a name that cannot be typed, or one that another class has.
        """
        if not isinstance(name, str) or not re.fullmatch(rf"[{self._letters}][{self._letters}0-9_.-]*", name):
            raise ConfigError(f"name of {self.kind} {shorten(name)}: {self._called}, digits, '_', '.' and '-'")
        other = self._items.get(name)
        if other is not None and (other.__module__, other.__qualname__) != (item.__module__, item.__qualname__):
            where = f"{other.__module__}.{other.__qualname__}"
            raise ConfigError(f"{self.kind} {shorten(name)}: {where} has it already")
        self._items = dict(sorted({**self._items, name: item}.items()))

    def find(self, name: Any) -> Item:
        """Return the class of that name.

        :raises UnregisteredError: it is misspelt, or the module that registers it was not imported.
        :raises ConfigError: it cannot be had.
        """
        if isinstance(name, str) and name in self.refused:
            raise ConfigError(f"{self.kind} {shorten(name)} is not supported: {self.refused[name]}")
        if not isinstance(name, str) or name not in self._items:
            given = name.__name__ if isinstance(name, type) else name
            error = unknown_name(self.kind, given, self._items, self._words)
            raise UnregisteredError(str(error), error.name, error.known)
        return self._items[name]

    def __getitem__(self, name: str) -> Item:
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)
