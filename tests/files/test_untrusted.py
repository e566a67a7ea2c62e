"""Whatever a stranger wrote is read as plain data within limits, or refused in one line."""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metarl.errors import CheckpointError, ConfigError, MetaRLError, shorten, unknown_name
from metarl.files.untrusted import dump_yaml, parse_json, parse_yaml, read_bytes, read_text


def read_yaml(text: str) -> Any:
    return parse_yaml(text, "here", ConfigError)


def read_json(text: str) -> Any:
    return parse_json(text, "here")


def multiplying(levels: int) -> str:
    return "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, levels))


BAD_YAML = """0b_ | 0x_ | !!timestamp 2001-13-45 | !!int x | !!float x | [1 | !!python/name:os.system | &a [*a] | *a
<<: 1 | !!python/object/apply:os.system [id] | a: &a {b: *a} | {[1]: 2}"""
LONG_YAML = ["9" * 5000, "[" * 1000, "{a: " * 1000, "- " * 1000, multiplying(9), "a: " + "x" * 2**18]
ODD_YAML = ["\ud800", "a: \0", "\x1b", "a: 1\na: 2", "a: 1\n...\nb: 2"]


@pytest.mark.parametrize(
    "text", [*re.split(r" \| |\n", BAD_YAML), *LONG_YAML, *ODD_YAML], ids=lambda text: ascii(text[:20])
)
def test_yaml_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^here is not plain YAML: .{1,400}$"):
        read_yaml(text)


def test_yaml_that_people_write_is_read() -> None:
    assert read_yaml("base: &b {a: 1e-3}\nAnt:\n  <<: *b\n  c: 2001-13-45\n  d: 1_000\n") == {
        "base": {"a": 1e-3},
        "Ant": {"a": 1e-3, "c": "2001-13-45", "d": 1000},
    }
    assert read_yaml("[[[[[[[[[[1]]]]]]]]]]") == [[[[[[[[[[1]]]]]]]]]]


BAD_JSON = ["", "[1", "NaN", "-Infinity", "1e999", "{'a': 1}", '{"a": 1, "a": 2}', '"\\ud800', "\0"]
LONG_JSON = ["9" * 5000, "[" * 100_000, '{"a":' * 1000, '"' * 1000, "[" * 41 + "]" * 41, '"' + '\\"' * 500_000]


@pytest.mark.parametrize("text", [*BAD_JSON, *LONG_JSON], ids=lambda text: ascii(text[:20]))
def test_json_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(CheckpointError, match=r"^here is not JSON: .{1,400}$"):
        read_json(text)


def test_json_in_limits_is_read() -> None:
    assert read_json('{"a": [1, 2.5, null, "[[[[", "\\"["]}') == {"a": [1, 2.5, None, "[[[[", '"[']}
    assert read_json("[" * 40 + "]" * 40)


PIECES = st.sampled_from(
    [
        "&a ",
        "*a ",
        "- ",
        "? ",
        ": ",
        "{",
        "}",
        "[",
        "]",
        ",",
        "\n",
        "  ",
        "!!int ",
        "!!set ",
        "!!binary ",
        "<<: ",
        "'",
        '"',
        "0x",
        "1e9",
        "\\",
        "�",
        "\x00",
        "\x85",
        "---\n",
        "...\n",
        "null",
        "é",
        "#",
        "~",
        "%YAML 9.9\n",
        "99999999999999999999",
    ]
)
TEXTS = st.lists(PIECES | st.text(max_size=5), max_size=40).map("".join)


@pytest.mark.parametrize("read", [read_yaml, read_json])
@settings(max_examples=400, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=TEXTS)
def test_any_text_is_read_or_refused(read: Callable[[str], Any], text: str) -> None:
    said = ""
    try:
        read(text)
    except MetaRLError as error:
        said = str(error)
    assert len(said.encode("utf-8")) < 1000
    assert "\n" not in said


@pytest.mark.parametrize(
    "unit", ["[", "- ", "a: b\n", '"', "\\", "&a *a ", "{a: [", "x", "? ", "9", " ", "\n", '{"a":1},']
)
def test_a_megabyte_takes_no_longer_than_a_moment(unit: str) -> None:
    text = unit * (2**20 // len(unit))
    started = time.process_time()
    for read, part in ((read_yaml, text), (read_yaml, text[: 2**18]), (read_json, text)):
        try:
            read(part)
        except MetaRLError:
            continue
    # Not how fast it is, but that it does not grow with the square of the length: that would be hours.
    assert time.process_time() - started < 60


@settings(max_examples=100, derandomize=True, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc1e-", max_size=4), inner, max_size=3),
        max_leaves=8,
    )
)  # fmt: skip
def test_what_is_written_is_read_back(value: Any) -> None:
    assert read_yaml(dump_yaml(value)) == value


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"a\r\nb\rc")
    assert read_text(tmp_path / "text") == "a\nb\nc"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "latin").write_bytes(b"\xf6")
    for path, words in (
        (tmp_path, "a folder"), (tmp_path / "pipe", "a device or a pipe"), (Path("/dev/zero"), "a device or a pipe"),
        (tmp_path / "none", "no such file"), (tmp_path / "text" / "below", "no such file"),
        (tmp_path / "latin", "not UTF-8 text"), (tmp_path / "\0", "null"),
    ):  # fmt: skip
        with pytest.raises(CheckpointError, match=words):
            read_text(path)
    with pytest.raises(ConfigError, match="larger than 5 bytes"):
        read_bytes(tmp_path / "text", 5, ConfigError)
    assert read_bytes(tmp_path / "text", 6) == b"a\r\nb\rc"


def test_what_a_message_repeats_is_short_and_printable() -> None:
    assert shorten("AntVel-v0") == "'AntVel-v0'"
    assert shorten([1, None, "x"]) == "[1, None, 'x']"
    assert len(shorten("x" * 5000)) < 130
    assert "5,002 characters" in shorten("x" * 5000)
    assert shorten(10**5000) == "<int>"
    assert shorten("a\ud800\x1b[31m\nb", quote=False) == r"a\ud800\x1b[31m b"
    assert len(str(unknown_name("algorithm", "m" * 10**6, ["maml"]))) < 250
