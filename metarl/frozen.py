"""Attributes that are set once: what was set is what is used and what is saved.

A model is built from its arguments, and much follows from them: loops, learners, optimisers, spaces. An argument that
is replaced later would be written to the checkpoint without ever having been used, or be used and not be written. So
what the constructor has set stays, and what holds several values cannot be changed in place; both are refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NoReturn

from metarl.checks import Check
from metarl.errors import ConfigError


class SetOnce:
    """Base of classes whose public attributes are set once, by the constructor.

    Private ones may change, and those in :attr:`may_change`, which are checked whenever they are set. Once an object is
    used, no public ones are added: what is set by its first use would be refused by its second.
    """

    may_change: ClassVar[Mapping[str, Check[Any]]] = {}
    """Public attributes that may change, with what they may be."""
    _in_use = False

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.may_change:
            value = self.may_change[name](name, value)
        elif not name.startswith("_"):
            if self._is_set(name):
                raise ConfigError(self._refusal(name))
            if self._in_use and not callable(getattr(type(self), name, None)):
                raise ConfigError(
                    f"{name} of a {type(self).__name__} was not set when it was built: what changes while it is used "
                    f"has a private name, such as _{name}"
                )
            if isinstance(value, (dict, list)):
                value = frozen(value, self._refusal(name))
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        if name not in self.may_change and not name.startswith("_") and self._is_set(name):
            raise ConfigError(self._refusal(name))
        object.__delattr__(self, name)

    def take_into_use(self) -> None:
        """Add no public attributes from here on."""
        self._in_use = True

    def _is_set(self, name: str) -> bool:
        """Return whether there is such an attribute; a method may be replaced, as a test or a profiler does."""
        own = getattr(type(self), name, None)
        return isinstance(own, property) or (name in self.__dict__ and not callable(own))

    def _refusal(self, name: str) -> str:
        """Return what is said to somebody who sets an attribute again."""
        return f"{name} of a {type(self).__name__} is set when it is built: build another one"


class FrozenDict(dict[str, Any]):
    """A dict that refuses to be changed; ``dict(it)`` is one that does not.

    :param values: what it holds.
    :param refusal: the message.
    """

    def __init__(self, values: Mapping[str, Any], refusal: str) -> None:
        super().__init__(values)
        self.refusal = refusal

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise ConfigError(self.refusal)

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self), self.refusal)


class FrozenList(list[Any]):
    """A list that refuses to be changed; ``list(it)`` is one that does not.

    :param values: what it holds.
    :param refusal: the message.
    """

    def __init__(self, values: list[Any], refusal: str) -> None:
        super().__init__(values)
        self.refusal = refusal

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise ConfigError(self.refusal)

    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse
    append = clear = extend = insert = pop = remove = reverse = sort = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (list(self), self.refusal)


def frozen(value: Any, refusal: str) -> Any:
    """Return a copy of a dict or a list, and of those inside, that cannot be changed; other values as they are."""
    if isinstance(value, dict):
        return FrozenDict({key: frozen(item, refusal) for key, item in value.items()}, refusal)
    if isinstance(value, list):
        return FrozenList([frozen(item, refusal) for item in value], refusal)
    return value
