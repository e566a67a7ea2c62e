"""Plain data is taken as its hint says, or refused by name."""

import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest

from metarl.errors import CheckpointError, ConfigError
from metarl.files.schema import Range, convert, describe_hint, read_as


@dataclass(frozen=True)
class Part:
    name: str


@dataclass(frozen=True)
class Card:
    steps: Annotated[int, Range(0, 100)]
    rates: list[float]
    part: Part
    kind: Literal["a", "b"] = "a"
    notes: dict[str, str | None] = field(default_factory=dict)


GOOD: dict[str, Any] = {"steps": 3, "rates": [1, 2.5], "part": {"name": "x"}}


def test_a_document_becomes_its_dataclass() -> None:
    card = read_as(Card, {**GOOD, "notes": {"a": None}}, "card.json")
    assert card == Card(3, [1.0, 2.5], Part("x"), "a", {"a": None})
    assert [type(rate) for rate in card.rates] == [float, float]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": -1}, "steps=-1 is out of range: steps takes int from 0 to 100"),
        ({"steps": True}, "steps=True"),
        ({"steps": None}, "steps=None"),
        ({"steps": 2.5}, "steps=2.5"),
        ({"rates": "ab"}, "rates='ab' is of the wrong type: rates takes a list of float"),
        ({"rates": [1, None]}, "rates[1]=None is of the wrong type: rates[1] takes float"),
        ({"rates": [10**400]}, "rates[0]="),
        ({"part": []}, "part="),
        ({"part": {"name": 1}}, "part.name=1 is of the wrong type"),
        ({"part": {}}, "part.name is missing"),
        ({"part": {"name": "x", "nam": 1}}, "unknown field 'nam'"),
        ({"kind": "c"}, "kind='c' is of the wrong type: kind takes 'a' or 'b'"),
        ({"kind": 1}, "kind=1"),
        ({"notes": {"a": 1}}, "notes.a=1"),
        ({"notes": {1: "a"}}, "notes="),
        ({"step": 1}, "unknown field 'step': did you mean 'steps'"),
    ],
)
def test_other_types_are_refused_by_name(change: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=f"^{re.escape(f'card.json is damaged: {words}')}"):
        read_as(Card, {**GOOD, **change}, "card.json")


@pytest.mark.parametrize("document", [None, 3, "abc", [], {1: 2}, {}])
def test_what_is_no_card_is_refused(document: Any) -> None:
    with pytest.raises(CheckpointError, match=r"^card\.json is damaged: "):
        read_as(Card, document, "card.json")


@dataclass(frozen=True)
class Open:
    format: int
    rest: dict[str, Any]


def test_a_field_rest_takes_what_has_no_name() -> None:
    assert read_as(Open, {"format": 1, "rest": 2, "x": 3}, "here") == Open(1, {"rest": 2, "x": 3})


def test_numbers_that_no_float_holds_are_refused() -> None:
    with pytest.raises(ConfigError, match="inner_lr=<int>"):
        convert("inner_lr", 10**5000, float)
    assert describe_hint(dict) == "a mapping"


def test_a_name_where_names_are_wanted_is_told_how_a_list_is_written() -> None:
    with pytest.raises(ConfigError, match=r"^names='a' is of the wrong type: names takes a list of names, such as \["):
        convert("names", "a", list[str])
