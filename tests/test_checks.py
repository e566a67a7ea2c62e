"""The one dialect of argument checks: what is taken, what comes out, and how it is refused."""

from __future__ import annotations

import enum
import math
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import torch

from metarl.checks import (
    ABOVE_ZERO,
    COUNT,
    FINITE,
    FRACTION,
    NONE,
    POSITIVE,
    SEED,
    SWITCH,
    choice,
    integer,
    number,
    plain,
    plain_tree,
)
from metarl.envs import make_family
from metarl.errors import ConfigError, UnknownNameError


class Three(enum.IntEnum):
    THREE = 3


@pytest.mark.parametrize(
    "value",
    [
        *(3, 3.0, Three.THREE),
        *(kind(3) for kind in (np.int8, np.uint16, np.int32, np.int64, np.uint64)),
        *(kind(3) for kind in (np.float16, np.float32, np.float64, np.longdouble)),
        *(np.array(3), np.array(3.0), torch.tensor(3), torch.tensor(3.0, requires_grad=True)),
    ],
    ids=repr,
)
def test_a_count_is_a_plain_integer_whatever_it_was_given_as(value: Any) -> None:
    found = COUNT("n", value)
    assert found == 3
    assert type(found) is int


@pytest.mark.parametrize("value", [0.1, np.float64(0.1), np.array(0.1), torch.tensor(0.1, dtype=torch.float64)])
def test_a_number_has_the_same_bits_whatever_it_was_given_as(value: Any) -> None:
    found = POSITIVE("x", value)
    assert type(found) is float
    assert found.hex() == (0.1).hex()
    assert type(POSITIVE("x", 1)) is float
    assert POSITIVE("x", np.float32(0.1)) == float(np.float32(0.1))


NO_COUNTS = [
    *(0, -1, 2.5, 10**13, 10**400, True, False, np.True_, "3", b"3", None, math.nan, math.inf, -math.inf),
    *(np.float32("nan"), np.array([3]), torch.tensor([3]), [3], (3,), {}, 3j, np.complex64(3), Decimal(3), int, print),
    np.ma.masked,
]


@pytest.mark.parametrize("value", NO_COUNTS, ids=lambda value: str(value)[:20])
def test_what_is_no_count_is_refused_by_name(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^n_things=.* is not an integer in \[1, 1e\+12\]") as caught:
        COUNT("n_things", value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    ("interval", "inside", "outside"),
    [
        ("(0, ∞)", [1e-300, 3e38, 1], [1e39, 0, -1, math.inf, math.nan, True, "1", None]),
        ("(0, ∞]", [1e-300, math.inf], [0.0]),
        ("[0, 1)", [0, 0.999], [1, 1.0, -1e-9]),
        ("(0, 1]", [1, 0.1], [0, 1.1]),
        ("(-∞, ∞)", [-3e38, 0], [-1e39, 10**400, -math.inf, math.nan]),
    ],
)
def test_intervals(interval: str, inside: list[Any], outside: list[Any]) -> None:
    check = number(interval)
    for value in inside:
        assert check("x", value) == value
    for value in outside:
        with pytest.raises(ConfigError, match=r"^x="):
            check("x", value)
    assert interval in check.words or check is not FINITE


def test_what_float32_does_not_hold_is_said_to_be_too_large() -> None:
    """It is a number in the interval as it is written."""
    with pytest.raises(
        ConfigError, match=r"clip=1e\+39 is not a number in \(0, ∞\]: .* float32, which ends at 3.4e\+38"
    ):
        number("(0, ∞]")("clip", 1e39)
    assert number("(0, ∞]")("clip", float("inf")) == float("inf")


def test_bounds_of_integers() -> None:
    assert integer(0)("x", 0) == 0
    assert COUNT("x", 10**12) == 10**12
    assert SEED("seed", 2**64 - 1) == 2**64 - 1
    with pytest.raises(ConfigError, match="seed="):
        SEED("seed", 2**64)


def test_switches_and_choices() -> None:
    assert SWITCH("x", np.True_) is True
    for value in (0, 1, "yes", None, 1.0):
        with pytest.raises(ConfigError, match=r"^x=.* is not true or false$"):
            SWITCH("x", value)
    colour = choice("red", "blue")
    assert type(colour("x", np.str_("red"))) is str
    with pytest.raises(ConfigError, match=r"^x='green' is not one of 'red', 'blue'$"):
        colour("x", "green")
    with pytest.raises(ConfigError, match=r"^x=1 is not -1$"):
        choice(-1)("x", 1)


def test_either_of_two() -> None:
    maybe = COUNT | NONE
    assert maybe("x", None) is None
    assert maybe("x", np.int64(2)) == 2
    with pytest.raises(ConfigError, match=r"^x=0 is not an integer in \[1, 1e\+12\] or None$"):
        maybe("x", 0)


def test_schedules_are_named_as_such() -> None:
    check = number("(0, ∞)", "final_rate is where it falls to")
    for schedule in (lambda remaining: remaining, "lin_0.001"):
        with pytest.raises(ConfigError, match=r"final_rate is where it falls to$"):
            check("rate", schedule)
    with pytest.raises(ConfigError, match=r"\(0, ∞\)$"):
        check("rate", "fast")


def test_plain_values_and_trees() -> None:
    tree = plain_tree({"a": [np.int64(1), (np.float32(0.5), None)], "b": np.arange(2.0), np.str_("c"): torch.ones(2)})
    assert tree == {"a": [1, (0.5, None)], "b": [0.0, 1.0], "c": [1.0, 1.0]}
    assert {type(key) for key in tree} == {str}
    assert type(tree["a"][0]) is int
    assert type(plain(np.longdouble(1))) is float
    assert plain(torch.nn.Tanh) is torch.nn.Tanh
    given: dict[str, Any] = {"a": {"b": [1]}}
    plain_tree(given)["a"]["b"].append(2)
    assert given == {"a": {"b": [1]}}


def test_values_are_shortened() -> None:
    with pytest.raises(ConfigError) as caught:
        FRACTION("gamma", "x" * 10_000)
    assert len(str(caught.value)) < 250
    assert FRACTION("gamma", 1) == 1.0
    assert ABOVE_ZERO("x", math.inf) == math.inf


def test_what_a_caller_takes_itself_is_named_too() -> None:
    with pytest.raises(UnknownNameError, match="unknown argument of MazeTransfer-v0 'widt': did you mean 'width'"):
        make_family("MazeTransfer-v0", widt=6)
    with pytest.raises(UnknownNameError, match=r"'zzz': known: .*n_demonstrations, .*support_noise, width$"):
        make_family("MazeTransfer-v0", zzz=6)
