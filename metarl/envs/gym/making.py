"""What makes the environments of a family: a Gymnasium id, a class, or a function."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.wrappers import TimeLimit

from metarl.errors import ConfigError, UnknownNameError, shorten, suggestion

Env = gymnasium.Env[Any, Any]
OURS = "metarl.envs.views.single:SingleEnv"
"""What Gymnasium calls for families that are registered with it."""


@dataclass(frozen=True)
class Maker:
    """Makes environments.

    :param label: what they are called in messages.
    :param make: takes arguments of the environment's constructor.
    :param arguments: their names.
    :param name: from which :func:`as_maker` finds the same again; None where nothing but the object does.
    :param horizon: the longest episode that Gymnasium's registry says; None: it does not, or there is no entry.
    """

    label: str
    make: Callable[..., Env]
    arguments: frozenset[str]
    name: str | None = None
    horizon: int | None = None

    def __call__(self, arguments: Mapping[str, Any]) -> Env:
        """Return a new environment.

        :raises ConfigError: it cannot be made.
        """
        try:
            env: Any = self.make(**arguments)
        except Exception as error:  # whatever somebody's constructor raises
            reason = shorten(str(error) or type(error).__name__, quote=False, limit=200)
            raise ConfigError(f"{self.label} cannot be made: {reason}") from error
        if not isinstance(env, gymnasium.Env):
            raise ConfigError(f"{self.label} makes a {type(env).__name__}, not an environment of Gymnasium")
        return env


def as_maker(given: Any) -> Maker:
    """Return what makes environments.

    :param given: an id of Gymnasium, ``"module:Class"`` of an imported module, a class of environments, or a function
        that makes one.
    :raises UnknownNameError: no such id.
    :raises ConfigError: something else.
    """
    if isinstance(given, str):
        _, colon, id = given.partition(":")
        # Gymnasium writes an id as "module:Id-v0" too, and imports the module.
        return _from_id(given) if not colon else _from_id(id) if is_id(id) else _from_class(_imported(given))
    if isinstance(given, gymnasium.Env):
        raise ConfigError(f"{shorten(given)} is one environment: give its id, its class, or a function that makes it")
    if isinstance(given, type) and issubclass(given, gymnasium.Env):
        return _from_class(given)
    if isinstance(given, type) or not callable(given):
        raise ConfigError(f"env={shorten(given)}: an id of Gymnasium, a class of environments, or a function")
    label = getattr(given, "__name__", type(given).__name__)
    return Maker(label, given, _arguments(given))


def is_id(name: str) -> bool:
    """Whether a name is that of an environment in Gymnasium's registry that is no family of ours."""
    return name in gymnasium.registry and gymnasium.registry[name].entry_point != OURS


def may_be_made(name: str) -> bool:
    """Whether :func:`as_maker` may take a name: an id, or a class of a module that is imported."""
    module, colon, _ = name.partition(":")
    return is_id(name) or (bool(colon) and module in sys.modules)


def module_of(name: str) -> str | None:
    """Return the module of an environment that :func:`as_maker` takes by name; None where there is none."""
    module, colon, _ = name.partition(":")
    if colon or not is_id(name):
        return module if colon else None
    entry = gymnasium.registry[name].entry_point
    return str(entry).partition(":")[0] if isinstance(entry, str) else getattr(entry, "__module__", None)


def unknown_id(name: str, families: list[str]) -> UnknownNameError:
    """Return the error for an environment's name that neither we nor Gymnasium have.

    :param families: the names that we have.
    """
    ids = [each for each in gymnasium.registry if is_id(each)]
    known = f"known: {', '.join(families)}; with tasks, any id of Gymnasium"
    return UnknownNameError(
        f"unknown environment {shorten(name)}: {suggestion(name, [*families, *ids]) or known}", name, families
    )


def _from_id(name: str) -> Maker:
    if name not in gymnasium.registry:
        raise unknown_id(name, [])
    if not is_id(name):
        raise ConfigError(f"{shorten(name)} is a family of tasks already: metarl.envs.make_family({name!r})")
    spec: EnvSpec = gymnasium.registry[name]
    # Without its TimeLimit, which would end episodes again: the family has a horizon.
    make = partial(gymnasium.make, name, max_episode_steps=-1, disable_env_checker=True)
    try:
        creator = spec.entry_point if callable(spec.entry_point) else load_env_creator(str(spec.entry_point))
    except Exception as error:  # whatever an import raises: what the environment needs is not installed
        raise ConfigError(f"{name} cannot be made: {shorten(error, quote=False, limit=200)}") from error
    return Maker(name, make, _arguments(creator), name, spec.max_episode_steps)


def _from_class(cls: type[Env]) -> Maker:
    name = f"{cls.__module__}:{cls.__qualname__}"
    return Maker(cls.__name__, cls, _arguments(cls), None if "<locals>" in name else name)


def _imported(name: str) -> type[Env]:
    """Return the class of a name ``module:Class``. Names are in files too, so that nothing is imported by them."""
    module, _, path = name.partition(":")
    if module not in sys.modules:
        raise ConfigError(
            f"{shorten(name)} is in a module that is not imported: import {module} before (--gym-packages {module})"
        )
    found: Any = sys.modules[module]
    for part in path.split("."):
        found = getattr(found, part, None)
    if not (isinstance(found, type) and issubclass(found, gymnasium.Env)):
        raise ConfigError(f"{shorten(name)} is no class of environments: {module} has no gymnasium.Env of that name")
    return found


def _arguments(make: Callable[..., Any]) -> frozenset[str]:
    """Return the names of the arguments that a constructor takes."""
    try:
        parameters = inspect.signature(make).parameters
    except (TypeError, ValueError):  # native code may hide its signature
        return frozenset()
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return frozenset(name for name, each in parameters.items() if each.kind in kinds)


def time_limit(env: Env) -> int | None:
    """Return after how many env steps an environment's own wrapper, or its specification, ends an episode."""
    layer: Any = env
    while isinstance(layer, gymnasium.Wrapper):
        if isinstance(layer, TimeLimit):
            return int(layer._max_episode_steps)
        layer = layer.env
    return None if env.spec is None else env.spec.max_episode_steps
