"""Errors a user can act on: each is one line that names the bad value and what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MetaRLError(Exception):
    """Base of every expected error. The command line prints it as one line and exits with code 2."""


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


class TaskError(MetaRLError, ValueError):
    """A task outside its family's task space."""


class CheckpointError(MetaRLError):
    """A file or run folder that is missing, damaged, foreign or from another version."""


class NonFiniteError(MetaRLError, ArithmeticError):
    """A NaN or infinity in rewards, observations or gradients."""


class DivergedError(NonFiniteError):
    """Learning went so far astray that actions or parameters are no numbers; the environment's numbers are."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """Return the error for an unknown ``name``, with the nearest known one or the whole list.

    :param kind: what the name should be, for instance ``"algorithm"``.
    :param name: what was given.
    :param known: what exists.
    """
    options = sorted(known)
    lowered = {option.lower(): option for option in options}
    near = difflib.get_close_matches(str(name).lower(), lowered, n=1, cutoff=0.5)
    hint = f"did you mean {lowered[near[0]]!r}?" if near else f"known: {', '.join(options)}"
    return UnknownNameError(f"unknown {kind} {name!r}: {hint}", name, options)
