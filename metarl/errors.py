"""Errors a user can act on: each is one line that names the bad value and what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from types import MappingProxyType
from typing import Any

from metarl.synonyms import Words

ECHOED = 100
"""Characters of a value that a message repeats."""
NEAR = 0.65
"""Ratio of equal letters from which a name is taken for a misspelling of another."""
LONGEST = 1500
"""Characters of a message: more than any needs, unless what it repeats is of a stranger's length."""


class MetaRLError(Exception):
    """Base of every expected error. The command line prints it as one line and exits with code 2.

    :param message: becomes one printable line, and is cut in the middle where it has more than :data:`LONGEST`
        characters: paths and other people's messages may be of any length.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(shorten(message, limit=LONGEST, quote=False))


class MetaRLWarning(UserWarning):
    """What goes on, but not as wished. The command line prints it as one line."""


class UnknownNameError(MetaRLError, ValueError):
    """A name that no registry holds.

    :param message: the line to print.
    :param name: what was given.
    :param known: what exists.
    """

    def __init__(self, message: str, name: str = "", known: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.name = name
        self.known = tuple(known)


class ConfigError(MetaRLError, ValueError):
    """A hyperparameter or argument of the wrong type or outside its range."""


class NoSuchNameError(ConfigError, AttributeError, KeyError):
    """A name of SB3's that is not here; the message says what is. ``hasattr`` and ``get`` see that it is missing."""

    def __str__(self) -> str:
        return str(self.args[0])


class UnregisteredError(UnknownNameError):
    """A name under which nothing is registered."""


class TaskError(MetaRLError, ValueError):
    """A task outside its family's task space."""


class CheckpointError(MetaRLError):
    """A file or run folder that is missing, damaged, foreign or from another version."""


class UnregisteredFamilyError(CheckpointError):
    """A model of a family that is not registered.

    :param family: the family's name.
    """

    def __init__(self, message: str, family: str = "") -> None:
        super().__init__(message)
        self.family = family


class NonFiniteError(MetaRLError, ArithmeticError):
    """A NaN or infinity in rewards, observations or gradients."""


class WorkerError(MetaRLError):
    """A worker process that ended, or failed, before it had learnt its task."""


class DivergedError(NonFiniteError):
    """Learning went so far astray that actions or parameters are no numbers; the environment's numbers are."""


def shorten(value: Any, *, limit: int = ECHOED, quote: bool = True) -> str:
    """Return a value for a message: one line, printable, and no longer than it takes to recognise it.

    Every message that repeats what it was given uses this, since that may be of any length and hold anything.

    :param limit: characters that are kept, half of them from the end where the value has more.
    :param quote: as ``repr`` writes it; otherwise as ``str`` does, for paths, flags and other people's messages.
    """
    try:
        text = (repr if quote else str)(value)
    except Exception:  # an integer of 5,000 digits, or somebody's object
        return f"<{type(value).__name__}>"
    text = " ".join("".join(c if c.isprintable() or c.isspace() else ascii(c)[1:-1] for c in text).split())
    if len(text) <= limit:
        return text
    end = limit // 4
    return f"{text[: limit - end]} … {text[-end:]} ({len(text):,} characters)"


def unknown_name(kind: str, name: Any, known: Iterable[str], words: Words = MappingProxyType({})) -> UnknownNameError:
    """Return the error for an unknown ``name``, with the nearest known one or the whole list.

    :param kind: what the name should be, for instance ``"algorithm"``.
    :param name: what was given.
    :param known: what exists.
    :param words: other people's words, see :mod:`metarl.synonyms`.
    """
    options = sorted(map(str, known))
    meant = suggestion(str(name), options, words)
    hint = meant if meant is not None else f"known: {', '.join(options) or 'none'}"
    return UnknownNameError(f"unknown {kind} {shorten(name)}: {hint}", str(name), options)


def suggestion(name: str, known: Iterable[str], words: Words = MappingProxyType({})) -> str | None:
    """Return what to say of an unknown name: a sentence, or what was meant; None where that is anybody's guess.

    Dashes before flags and dots within names of hyperparameters are looked through.
    """
    options = {option.lower().lstrip("-"): option for option in known}
    own = name[:ECHOED].lower().lstrip("-")
    word = words.get(name.lstrip("-"), words.get(own, ()))
    if isinstance(word, str):
        return word
    same = [other for other in word if other in options.values() or other.partition(".")[0] in options.values()]
    # Where letters alone decide, half of them in common is what most pairs of words have.
    near = same or [options[found] for found in difflib.get_close_matches(own, options, n=1, cutoff=NEAR)]
    return f"did you mean {' or '.join(map(repr, near))}?" if near else None
