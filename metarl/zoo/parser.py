"""An argument parser whose errors are one line each, and what is said of words that it does not know."""

from __future__ import annotations

import argparse
import re
from typing import Any, NoReturn

import metarl
from metarl import synonyms
from metarl.errors import ECHOED, ConfigError, UnknownNameError, shorten, suggestion
from metarl.files.schema import constructor_hints
from metarl.zoo.config import RESERVED


class _Help(argparse.RawDescriptionHelpFormatter):
    """Adds the default to the text of a flag that has one, unless the text says it already."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        told = action.help is None or "default" in action.help or not action.option_strings
        if told or action.default in (None, False, "", [], argparse.SUPPRESS):
            return action.help
        return f"{action.help} (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are :class:`~metarl.errors.MetaRLError`, one line each."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", _Help)
        super().__init__(allow_abbrev=False, **kwargs)
        # argparse's own takes -1e-3 for a flag, and says that a number is missing.
        self._negative_number_matcher = re.compile(r"-[\d_]*\.?\d[\d_]*\.?(e[-+]?\d+)?$", re.IGNORECASE)

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print and exit for."""
        raise ConfigError(shorten(message, limit=4 * ECHOED, quote=False))

    def flags(self) -> list[str]:
        """Return every flag that this parser knows."""
        return [flag for action in self._actions for flag in action.option_strings]


def require_text(word: str) -> None:
    """Refuse words that no record can hold: records are UTF-8 text, and a NUL character ends a name."""
    try:
        word.encode("utf-8")
    except UnicodeEncodeError:
        raise ConfigError(f"{shorten(word)} is not UTF-8 text: choose or link a name that is") from None
    if "\0" in word:
        raise ConfigError(f"{shorten(word)} holds a NUL character")


def typed(parser: Parser, argv: list[str]) -> frozenset[str]:
    """Return the destinations of the flags that were typed, not of those left at their defaults."""
    for action in parser._actions:
        if action.option_strings:  # a positional's default is checked against its choices
            action.default = argparse.SUPPRESS
    return frozenset(vars(parser.parse_known_args(argv)[0]))


def refuse_unknown(word: str, command: str, parser: Parser) -> NoReturn:
    """Raise the error for a word that a command does not know, with the nearest one."""
    if not word.startswith("-"):
        raise ConfigError(f"{command} does not know what to do with {shorten(word)}: see `metarl {command} --help`")
    flag = word.split("=", 1)[0]
    meant = suggestion(flag, parser.flags(), synonyms.FLAGS)
    if command == "train":
        meant = _hyperparameter(flag.lstrip("-").replace("-", "_")) or meant
    raise UnknownNameError(
        f"unknown flag of {command} {shorten(flag)}: {meant or f'see `metarl {command} --help`'}", flag
    )


def _hyperparameter(name: str) -> str | None:
    """Return what to say where a flag is the name of a hyperparameter, ours or SB3's; this imports the algorithms."""
    known = {name for cls in metarl.ALGORITHMS.values() for name in constructor_hints(cls)} - RESERVED.keys()
    if name in known:
        return f"it is a hyperparameter: -params {name}:VALUE"
    word = synonyms.HYPERPARAMETERS.get(name)
    if isinstance(word, tuple):
        own = [other for other in word if other.partition(".")[0] in known]
        return f"it is a hyperparameter: -params {' or '.join(f'{other}:VALUE' for other in own)}"
    return None
