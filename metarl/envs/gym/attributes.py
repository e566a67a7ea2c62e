"""Task parameters that are attributes of an environment: which there are, and what follows from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

from metarl.errors import ConfigError, shorten

Env = gymnasium.Env[Any, Any]


def set_attributes(env: Env, values: Mapping[str, Any]) -> None:
    """Set attributes of the unwrapped environment, and what its constructor derived from them.

    What an environment of somebody else's computes from others in its constructor stays as it was: a property, or a
    function that sets the task, is the place for that.
    """
    inner = env.unwrapped
    for name, value in values.items():
        setattr(inner, name, value)
    if isinstance(inner, CartPoleEnv):
        for name, value in _derived_of_cartpole(inner).items():
            if name not in values:
                setattr(inner, name, value)


def _derived_of_cartpole(env: CartPoleEnv) -> dict[str, float]:
    """M = m_pole + m_cart, and m_pole · l, where l is half the pole's length, as the constructor computes them."""
    return {"total_mass": env.masspole + env.masscart, "polemass_length": env.masspole * env.length}


def require_settable(env: Env, label: str, values: Mapping[str, Any]) -> None:
    """Raise unless attributes of an environment can be set, and are what a task changes.

    :param label: the environment, for error messages.
    :param values: by name; every name is an attribute.
    :raises ConfigError: a method, a space, or a property that cannot be set.
    """
    for name in values:
        old = getattr(env.unwrapped, name)
        if callable(old) or isinstance(old, gymnasium.Space):
            raise ConfigError(f"tasks cannot change {shorten(name)} of {label}, which is a {type(old).__name__}")
    try:
        set_attributes(env, values)
    except AttributeError as error:
        raise ConfigError(f"tasks cannot change attributes of {label}: {shorten(error, quote=False)}") from None


def numbers_of(env: Env) -> list[str]:
    """Return the attributes of an environment that are numbers, which tasks may change, its class's among them.

    Switches are left out, most of which say how an environment stands, as ``isopen`` does.
    """
    inner = env.unwrapped
    found: dict[str, Any] = {}
    for holder in (*reversed(type(inner).__mro__), inner):
        found |= vars(holder)
    return sorted(name for name, value in found.items() if _is_number(value) and not name.startswith("_"))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
