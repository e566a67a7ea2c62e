"""Attributes that are set once, and values that cannot be changed in place."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest

from metarl.checks import COUNT
from metarl.errors import ConfigError
from metarl.frozen import SetOnce, frozen


class Thing(SetOnce):
    may_change = {"count": COUNT}  # noqa: RUF012

    def __init__(self) -> None:
        self.sizes = {"net": [1, 2], "deep": {"x": [3]}}
        self.count = 1
        self._private = 0

    @property
    def double(self) -> int:
        return 2 * self.count

    def act(self) -> int:
        return self.count


def test_public_attributes_are_set_once() -> None:
    thing = Thing()
    for change in (
        lambda: setattr(thing, "sizes", {}),
        lambda: setattr(thing, "double", 3),
        lambda: delattr(thing, "sizes"),
    ):
        with pytest.raises(ConfigError, match="of a Thing is set when it is built"):
            change()
    thing.count = 2.0  # type: ignore[assignment]
    assert type(thing.count) is int
    with pytest.raises(ConfigError, match="count=0 is not an integer"):
        thing.count = 0
    thing._private = 3
    thing.note = "mine"  # type: ignore[attr-defined]
    thing.act = lambda: 7  # type: ignore[method-assign]
    thing.act = lambda: 8  # type: ignore[method-assign]
    assert thing.act() == 8


def test_no_public_attribute_is_added_to_what_is_in_use() -> None:
    thing = Thing()
    thing.take_into_use()
    said = (
        r"^note of a Thing was not set when it was built: what changes while it is used has a private name, such as _n"
    )
    with pytest.raises(ConfigError, match=said):
        thing.note = "mine"  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="sizes of a Thing is set when it is built"):
        thing.sizes = {}
    thing._private, thing.count = 4, 5
    thing.act = lambda: 7  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="note of a Thing was not set"):
        copy.copy(thing).note = "mine"  # type: ignore[attr-defined]


CHANGES: dict[str, Any] = {
    "d[]": lambda d: d.__setitem__("a", 1),
    "del d[]": lambda d: d.__delitem__("a"),
    "d.update": lambda d: d.update(a=1),
    "d.pop": lambda d: d.pop("a"),
    "d.popitem": lambda d: d.popitem(),
    "d.clear": lambda d: d.clear(),
    "d.setdefault": lambda d: d.setdefault("z", 1),
    "d |=": lambda d: d.__ior__({"a": 1}),
    "l[]": lambda d: d["a"].__setitem__(0, 1),
    "del l[]": lambda d: d["a"].__delitem__(0),
    "l.append": lambda d: d["a"].append(1),
    "l.extend": lambda d: d["a"].extend([1]),
    "l.insert": lambda d: d["a"].insert(0, 1),
    "l.pop": lambda d: d["a"].pop(),
    "l.remove": lambda d: d["a"].remove(1),
    "l.clear": lambda d: d["a"].clear(),
    "l.sort": lambda d: d["a"].sort(),
    "l.reverse": lambda d: d["a"].reverse(),
    "l +=": lambda d: d["a"].__iadd__([1]),
    "l *=": lambda d: d["a"].__imul__(2),
    "deep": lambda d: d["b"]["c"].append(1),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("how", ["itself", "pickled", "copied"])
def test_nothing_inside_can_be_changed(change: str, how: str) -> None:
    given: dict[str, Any] = {"a": [1, 2], "b": {"c": []}}
    value = frozen(given, "a of a Thing stays")
    value = {"itself": value, "pickled": pickle.loads(pickle.dumps(value)), "copied": copy.deepcopy(value)}[how]
    with pytest.raises(ConfigError, match=r"^a of a Thing stays$"):
        CHANGES[change](value)
    assert value == {"a": [1, 2], "b": {"c": []}}
    assert json.loads(json.dumps(value)) == value


def test_a_copy_can_be_changed() -> None:
    value = frozen({"a": [1]}, "stays")
    mine = {**value, "a": [*value["a"], 2]}
    mine["b"] = 1
    assert mine == {"a": [1, 2], "b": 1}
    assert value == {"a": [1]}
