"""Hyperparameters: YAML files keyed by environment, ``k:v`` pairs, and the check of names and types.

Nothing is ever evaluated: values are YAML scalars, lists and mappings, read by a safe loader.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import metarl
from metarl.arguments import merge as merge
from metarl.checks import COUNT
from metarl.errors import ConfigError, shorten, unknown_name
from metarl.files.schema import constructor_hints, convert
from metarl.files.untrusted import MAX_YAML, parse_yaml, read_text
from metarl.synonyms import HYPERPARAMETERS

HYPERPARAMS = Path(__file__).parent / "hyperparams"
"""The folder of the shipped YAML files, one for each algorithm."""

DEFAULT_ALGO, DEFAULT_ENV = "fomaml", "PointMass-v0"
"""The algorithm and the environment of a command that names none."""
UNTRAINED_ALGO = "random"
"""The algorithm whose YAML says what network plain SB3 starts with from scratch."""

RESERVED = {
    "env": "--env",
    "seed": "--seed",
    "device": "--device",
    "n_threads": "--num-threads",
    "n_workers": "--num-workers",
    "tensorboard_log": "--tensorboard-log",
    "verbose": "--verbose",
}
"""Constructor arguments that have a flag of their own, and so are no hyperparameters."""

_PAIR = re.compile(r"\s*(?P<name>[\w.]+)\s*:\s*(?P<value>\S.*)", re.DOTALL)
_LIKE_A_PAIR = re.compile(r"\W*(dict\b\W*)?(?P<name>[\w.]+)\W*?([=:]\s*(?P<value>[^)}]*))?[)}\s]*", re.DOTALL)
"""``name=value``, ``dict(name=value)``, ``{name: value}``."""

OWN = ("n_timesteps", "env_kwargs", "policy")
"""Keys of the YAML beside the constructor's hyperparameters."""


def load_yaml(text: str, source: str) -> Any:
    """Parse YAML without running anything.

    :param source: where ``text`` is from, for the error message.
    """
    return parse_yaml(text, source, ConfigError)


def parse_pairs(pairs: Iterable[str], flag: str) -> dict[str, Any]:
    """Return ``k:v`` words as a dict; a dotted key sets an entry of a mapping (``outer_kwargs.max_kl:0.02``).

    :param flag: what the pairs were given to, for error messages.
    :raises ConfigError: no such words, or two that set the same thing. RL Baselines3 Zoo lets the last one win; whoever
        reads the command line then cannot tell which value was used.
    """
    result: dict[str, Any] = {}
    words: dict[str, str] = {}
    for pair in pairs:
        found = _PAIR.fullmatch(pair)
        if not found:
            example = _LIKE_A_PAIR.fullmatch(pair)
            name, value = (example["name"], example["value"] or "1") if example else ("name", "1")
            shown = f"{shorten(name, quote=False)}:{shorten(value, quote=False)}"
            raise ConfigError(f"{flag} takes k:v pairs, such as {shown}, not {shorten(pair)}")
        name = found["name"]
        for other, word in words.items():
            if _sets_the_same(other, result[other], name):
                what = f"{flag} sets {shorten(name, quote=False)} twice"
                raise ConfigError(f"{what}, {shorten(word)} and {shorten(pair)}: leave one out")
        result[name] = load_yaml(found["value"], f"{flag} {shorten(pair, quote=False)}")
        words[name] = pair
    return result


def _sets_the_same(name: str, value: Any, other: str) -> bool:
    """Tell whether a pair that follows takes something away from ``name: value``."""
    if other.startswith(f"{name}."):
        return isinstance(value, Mapping) and lookup(value, other[len(name) + 1 :]) is not None
    return name == other or name.startswith(f"{other}.")


def lookup(config: Mapping[str, Any], key: str) -> Any:
    """Return what a dotted key stands for, None where there is nothing."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def merge_env_kwargs(config: Mapping[str, Any], env_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``config`` with arguments of the family on top of its own.

    :raises ConfigError: its own ``env_kwargs`` are no mapping.
    """
    if not env_kwargs:
        return dict(config)
    own = convert("env_kwargs", config.get("env_kwargs"), dict[str, Any] | None)
    return {**config, "env_kwargs": merge(own or {}, env_kwargs)}


def load_hyperparameters(algo: str, env_id: str, conf_file: str | None = None) -> dict[str, Any]:
    """Return the YAML's hyperparameters of an environment, or those under ``default``.

    :param algo: an algorithm; one of somebody's own takes the hyperparameters of the nearest class that it inherits
        from and that has some, or none: the constructor's defaults are left.
    :param conf_file: another YAML file than the shipped ``hyperparams/<algo>.yml``.
    :raises ConfigError: the file is missing, is no YAML, or has no entry for ``env_id``.
    """
    path = Path(conf_file) if conf_file is not None else _shipped(algo)
    if path is None:
        return {}
    if path.suffix not in (".yml", ".yaml"):
        raise ConfigError(f"--conf-file takes a .yml file, not {path}")
    table = load_yaml(read_text(path, MAX_YAML, ConfigError), str(path))
    if not isinstance(table, dict):
        raise ConfigError(f"{path} is not a mapping from environments to hyperparameters")
    entry = table.get(env_id, table.get("default"))
    if not isinstance(entry, dict) and not {env_id, "default"}.isdisjoint(table):
        raise ConfigError(f"{path}: the entry for {env_id} is {shorten(entry)}, not a mapping of hyperparameters")
    if not isinstance(entry, dict):
        raise ConfigError(
            f"{path} has no hyperparameters for {env_id} and no default: known: {', '.join(map(str, table))}"
        )
    return dict(entry)


def _shipped(algo: str) -> Path | None:
    """Return the shipped YAML file of an algorithm or of what it inherits from; None where there is none."""
    names = [algo, *(vars(cls).get("name", "") for cls in metarl.ALGORITHMS[algo].__mro__)]
    files = [HYPERPARAMS / f"{name}.yml" for name in names if name]
    return next((path for path in files if path.is_file()), None)


def check_hyperparameters(config: Mapping[str, Any], algorithm: type) -> dict[str, Any]:
    """Return ``config`` with each value in its declared type.

    Ranges are the constructor's business; names and types are checked here, where the nearest name can be said.

    :raises UnknownNameError: a name that the constructor does not take.
    :raises ConfigError: a value of the wrong type, or ``n_timesteps`` missing.
    """
    hints = constructor_hints(algorithm)
    known = {name: hint for name, hint in hints.items() if name not in RESERVED}
    known |= {"n_timesteps": int, "env_kwargs": dict[str, Any] | None, "policy": str}
    result: dict[str, Any] = {}
    for name, value in config.items():
        if name in RESERVED:
            raise ConfigError(f"{name} is no hyperparameter: use {RESERVED[name]}")
        if name not in known:
            raise unknown_name("hyperparameter", name, known, HYPERPARAMETERS)
        result[name] = convert(name, value, known[name])
    if "n_timesteps" not in result:
        raise ConfigError("n_timesteps is missing: give -n")
    COUNT("n_timesteps", result["n_timesteps"])
    return result
