"""The types of words on a command line, for argparse; each says in one line what is wrong with a word."""

from __future__ import annotations

import difflib
import math
import os
from argparse import ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path

from metarl.errors import shorten
from metarl.files.schema import LARGEST, LARGEST_SEED, MOST

MOST_THREADS = 1024
"""More threads than any machine of ours has cores."""


def name(text: str) -> str:
    """A name that is not empty, as the value of an unset shell variable would be."""
    if not text.strip():
        raise ArgumentTypeError("it is empty")
    return text


def path(text: str) -> str:
    """A file or a folder, to read or to write. Shells leave the ``~`` of ``--flag=~/x`` to the program."""
    found = Path(os.path.expanduser(name(text)))
    try:
        os.path.abspath(found).encode("utf-8")
    except UnicodeEncodeError:
        raise ArgumentTypeError(f"{shorten(os.path.abspath(found))} is not UTF-8 text") from None
    for place in (found, *found.parents):
        if os.path.islink(place) and not os.path.exists(place):
            target = shorten(os.readlink(place), quote=False)
            raise ArgumentTypeError(f"{shorten(place, quote=False)} is a link to {target}, which is not there")
    return str(found)


def existing_folder(text: str) -> str:
    """A folder that is there."""
    found = Path(folder(text))
    if not found.is_dir():
        raise ArgumentTypeError(f"there is no folder {shorten(found, quote=False)}{similar(found)}")
    return str(found)


def similar(missing: Path, suffixes: Sequence[str] = ()) -> str:
    """Return a question whether a path of nearly the same name in its folder is meant; empty where there is none.

    :param suffixes: the suffixes of files that may be meant; folders always may.
    """
    try:
        others = [other.name for other in missing.parent.iterdir() if other.is_dir() or other.suffix in suffixes]
    except OSError:
        return ""
    near = difflib.get_close_matches(missing.name, others, n=1)
    return f": did you mean {shorten(missing.with_name(near[0]), quote=False)}?" if near else ""


def folder(text: str) -> str:
    """A folder, whether or not it is there yet."""
    found = path(text)
    for place in (Path(found), *Path(found).parents):
        if os.path.exists(place):
            if not os.path.isdir(place):
                raise ArgumentTypeError(f"{shorten(place, quote=False)} is a file, not a folder")
            break
    return found


def integer(text: str) -> int:
    """A whole number; ``1e6`` and ``1_000_000`` are fine."""
    return _whole(text, "a whole number")


def count(text: str) -> int:
    """A positive whole number."""
    return _whole(text, "a positive whole number", 1, LARGEST)


def tasks(text: str) -> int:
    """A number of tasks."""
    return _whole(text, "a positive whole number", 1, MOST)


def inner_steps(text: str) -> int:
    """A number of inner steps."""
    return _whole(text, "0 or a positive whole number", 0, MOST)


def interval(text: str) -> int:
    """A positive number of env steps, or -1."""
    return -1 if text.strip() == "-1" else count(text)


def threads(text: str) -> int | None:
    """A positive number of threads, or -1 for all, which is None."""
    return None if text.strip() == "-1" else _whole(text, "a positive whole number", 1, MOST_THREADS)


def workers(text: str) -> int:
    """A number of processes, of which 0 and 1 are this one."""
    return _whole(text, "a whole number", 0, MOST_THREADS)


def seed(text: str) -> int:
    """A seed."""
    return _whole(text, "a seed: 0 or more", 0, LARGEST_SEED)


def seed_or_draw(text: str) -> int:
    """A seed, or a negative number where one is to be drawn."""
    value = integer(text)
    return value if value < 0 else seed(text)


def _whole(text: str, what: str, low: float = -math.inf, high: float = math.inf) -> int:
    value: float
    try:
        value = int(text)
    except ValueError:  # 1e6, no number, or one of so many digits that Python reads it as a float only
        try:
            value = float(text)
        except ValueError:
            raise ArgumentTypeError(f"{shorten(text)} is not a number") from None
    if value < low or (isinstance(value, float) and not value.is_integer()):
        raise ArgumentTypeError(f"{shorten(text, quote=False)} is not {what}")
    if value > high:
        raise ArgumentTypeError(f"{shorten(text, quote=False)} is more than {high:g}")
    return int(value)
