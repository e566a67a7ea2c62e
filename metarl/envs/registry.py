"""Families by name: registering one also tells Gymnasium."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
from gymnasium.envs.registration import WrapperSpec

from metarl.checks import SWITCH, check_arguments
from metarl.envs.family import Family
from metarl.envs.gym.family import from_gym
from metarl.envs.gym.making import is_id, may_be_made, module_of, unknown_id
from metarl.envs.views.oracle import Oracle
from metarl.envs.views.trials import Trials
from metarl.errors import ConfigError, MetaRLError, UnknownNameError, shorten


class FamilySpec(NamedTuple):
    """A registry entry."""

    id: str
    make: Callable[..., Family]
    kwargs: dict[str, Any]
    module: str | None = None
    """The module that registered it."""


_REGISTRY: dict[str, FamilySpec] = {}

KEEP_HORIZON = WrapperSpec("keep_horizon", "metarl.envs.views.rules:keep_horizon", {})
"""What Gymnasium does last with a view that it makes. The horizon depends on the family's arguments, so the registered
specification does not hold it; that of every view does."""


def register_family(id: str, make: Callable[..., Family], **kwargs: Any) -> None:
    """Register a family under a versioned name such as ``"AntVel-v0"``, with Gymnasium too.

    Afterwards ``make_family(id)`` builds the family and ``gymnasium.make(id, **task)`` one copy of one task.

    :param make: the class, or any callable that returns a family.
    :param kwargs: arguments that ``make`` is always called with, unless the caller overrides them.
    :raises ConfigError: a name without a version, or one that Gymnasium has given to something else.
    """
    if not re.fullmatch(r"[A-Za-z0-9_.:-]+-v\d+", id):
        raise ConfigError(f"family name {shorten(id)}: letters, digits and a version, for instance 'AntVel-v0'")
    if id in gymnasium.registry and id not in _REGISTRY:
        raise ConfigError(f"family name {shorten(id)}: Gymnasium has an environment of that name")
    if id not in gymnasium.registry:
        gymnasium.register(
            id,
            entry_point="metarl.envs.views.single:SingleEnv",
            kwargs={"family": id},
            additional_wrappers=(KEEP_HORIZON,),
        )
    _REGISTRY[id] = FamilySpec(id, make, kwargs, sys._getframe(1).f_globals.get("__name__"))


def family_ids() -> list[str]:
    """Return the registered names, sorted."""
    return sorted(_REGISTRY)


def family_of_class(cls: type[Family]) -> str | None:
    """Return the name under which a class of families is registered as it is; None where there is no such name."""
    return next((name for name, spec in _REGISTRY.items() if spec.make is cls and not spec.kwargs), None)


def require_family(id: str) -> None:
    """Raise :class:`~metarl.errors.UnknownNameError` unless :func:`make_family` may take a name."""
    if not is_family(id):
        raise unknown_id(id, family_ids())


def is_family(id: str) -> bool:
    """Return whether :func:`make_family` may take a name: a registered one, or one that :func:`from_gym` takes."""
    return id in _REGISTRY or may_be_made(id)


def make_family(id: str, /, *, oracle: bool = False, trial_episodes: int | None = None, **kwargs: Any) -> Family:
    """Build a registered family, or one of a Gymnasium environment: ``make_family("CartPole-v1", tasks={…})`` is
    :func:`~metarl.envs.gym.family.from_gym`.

    :param oracle: return the oracle view, whose observation ends with the task
        (:class:`metarl.envs.views.oracle.Oracle`).
    :param trial_episodes: return the view in which an episode is a trial of that many
        (:class:`metarl.envs.views.trials.Trials`).
    :param kwargs: arguments of the family.
    :raises UnknownNameError: no such family; the message has the nearest name.
    :raises ConfigError: an argument that the family does not take.
    """
    require_family(id)
    oracle = SWITCH("oracle", oracle)
    if id not in _REGISTRY and "tasks" not in kwargs:
        kind = "one environment of Gymnasium" if is_id(id) else "a class of environments"
        example = """{"tasks": {"gravity": "5..15"}}"""
        words = f"{shorten(id)} is {kind}, not a family of tasks: say what differs by task, as in env_kwargs={example}"
        flags = "train --task gravity:5..15, elsewhere --env-kwargs tasks.gravity:5..15"
        known = family_ids()
        raise UnknownNameError(f"{words} ({flags}), or take a family that metarl list names", id, known)
    spec = _REGISTRY.get(id) or FamilySpec(id, from_gym, {"env": id})
    check_arguments(spec.make, kwargs, f"argument of {id}")
    family = spec.make(**{**spec.kwargs, **kwargs})
    family.id = id
    family._made_with = dict(kwargs)
    if oracle:
        family = Oracle(family)
    return family if trial_episodes is None else Trials(family, trial_episodes)


def registering_module(id: str) -> str | None:
    """Return the module that another process imports so that :func:`make_family` takes a name there too; None where
    there is none.
    """
    return _REGISTRY[id].module if id in _REGISTRY else module_of(id)


def takes_tasks(id: str) -> bool:
    """Whether what differs by task is an argument of a family, which :func:`make_family` takes by name."""
    return id not in _REGISTRY or "tasks" in inspect.signature(_REGISTRY[id].make).parameters


def takes_argument(id: str, name: str) -> bool:
    """Whether a registered family takes an argument of that name.

    A family may hand arguments on, so that its signature does not say it: it is made with what it has anyway.
    """
    make = _REGISTRY[id].make
    try:
        check_arguments(make, {name: None}, "argument")
        make(**{name: getattr(make(), name, None)})
    except UnknownNameError:
        return False
    except MetaRLError:  # that value is refused, the name is not
        return True
    return True
