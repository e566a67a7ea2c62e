"""Messages: one printable line each, however long and whatever what they repeat is."""

from __future__ import annotations

import copy
import pickle

import pytest

from metarl import FOMAML, errors, make_family
from metarl.checks import integer
from metarl.errors import LONGEST, ConfigError, MetaRLError, UnknownNameError, unknown_name

HUGE = 16**5000
"""More digits than Python writes."""


@pytest.mark.parametrize(
    "cls", [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, MetaRLError)]
)
def test_a_message_is_one_printable_line_of_bounded_length(cls: type[MetaRLError]) -> None:
    assert str(cls("two\nlines,  \x1b[31mred\udcf6")) == r"two lines, \x1b[31mred\udcf6"
    message = str(cls(f"/{'x' * 50_000}/a.yml is damaged"))
    assert len(message) < LONGEST + 30
    assert message.endswith("/a.yml is damaged (50,018 characters)")


def test_errors_can_be_copied_and_sent_to_another_process() -> None:
    error = unknown_name("environment", "AntVle-v0", ["AntVel-v0"])
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(other) is UnknownNameError
        assert (str(other), other.name, other.known) == (str(error), "AntVle-v0", ("AntVel-v0",))


@pytest.mark.parametrize("value", ["x" * 5000, HUGE, [1.0] * 5000, "a\n\x00\udcf6"], ids=["text", "int", "list", "odd"])
def test_a_value_of_any_length_is_repeated_in_short(value: object) -> None:
    def hyperparameter() -> None:
        FOMAML("MlpPolicy", "PointMass-v0", inner_lr=value)

    def number() -> None:
        integer(0, 10)("n", value)

    def family() -> None:
        make_family("PointMass-v0", horizon=value)

    for act in (hyperparameter, number, family):
        with pytest.raises(ConfigError) as caught:
            act()
        assert len(str(caught.value)) < 250
        assert str(caught.value).isprintable()


def test_an_unknown_name_where_there_are_none_says_so() -> None:
    assert str(unknown_name("argument of Sinusoid-v0", "noise", [])).endswith("'noise': known: none")
