"""What people have at hand where a family or an environment is wanted: names, objects, classes, SB3's ``VecEnv``.

A family is a distribution over tasks, an environment has one task. An environment of ours knows its family; a family
has environments, one for each task. Where that leaves one meaning it is taken, otherwise an error says what to do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, RecordEpisodeStatistics, TimeLimit
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecCheckNan, VecEnv, VecEnvWrapper, VecMonitor, VecNormalize

from metarl.envs.family import Family
from metarl.envs.registry import family_ids, family_of_class, require_family
from metarl.envs.views.single import SingleEnv
from metarl.envs.views.vec_env import FamilyVecEnv
from metarl.errors import ConfigError, shorten

AnyEnv = gym.Env[Any, Any] | VecEnv

_HARMLESS = (OrderEnforcing, PassiveEnvChecker, RecordEpisodeStatistics, Monitor)
"""Wrappers that change neither what is seen nor what is done: Gymnasium's own around every environment, and SB3's."""
_HARMLESS_AROUND_MANY = (VecMonitor, VecCheckNan)


def as_family(given: Any) -> str | Family:
    """Return what an algorithm learns on: a registered family's name, or a family.

    An environment of ours stands for its family, whatever its task is, and so does a ``VecEnv`` of them.

    :param given: a name, a family, its class, an environment, or a ``VecEnv``.
    :raises UnknownNameError: a name that no family has.
    :raises ConfigError: something else.
    """
    if isinstance(given, str):
        require_family(given)
        return given
    if isinstance(given, Family):
        return given
    if isinstance(given, type) and issubclass(given, Family):
        name = family_of_class(given)
        if name is None:
            raise ConfigError(f"env is the class {given.__name__}: pass an object of it, {given.__name__}(…)")
        return name
    if isinstance(given, VecEnv):
        return _family_of_many(given)
    if isinstance(given, gym.Env):
        return _family_of_one(given)
    raise ConfigError(
        f"env={shorten(given)} is no family of tasks: pass its name, such as 'PointMass-v0'; python -m metarl.zoo list "
        f"has the names of all {len(family_ids())}"
    )


def _family_of_one(env: gym.Env[Any, Any]) -> Family:
    inner = env.unwrapped
    if not isinstance(inner, SingleEnv):
        name = env.spec.id if env.spec is not None else type(inner).__name__
        raise ConfigError(
            f"env is one environment, {name}, not a family of tasks: metarl.envs.from_gym makes one of its id, "
            "register_family adds one, and metarl.envs.family_ids() says which there are"
        )
    layer: Any = env
    while isinstance(layer, gym.Wrapper):
        as_long = isinstance(layer, TimeLimit) and layer._max_episode_steps >= inner.horizon
        if not (as_long or isinstance(layer, _HARMLESS)):
            raise ConfigError(
                f"env is wrapped in {type(layer).__name__}, which would be lost: metarl learns on the family "
                f"{inner.family.id} itself, so pass that, or write a family that does what the wrapper does"
            )
        _refuse_monitor_file(layer)
        layer = layer.env
    return inner.family


def _refuse_monitor_file(layer: Any) -> None:
    """Raise :class:`ConfigError` for a wrapper that writes episodes to a file, which would stay empty."""
    if isinstance(layer, (Monitor, VecMonitor)) and layer.results_writer is not None:
        path = layer.results_writer.file_handler.name
        raise ConfigError(
            f"env is a {type(layer).__name__} that writes {shorten(path, quote=False)}, which would stay empty: metarl "
            "collects from the family itself and logs each meta-iteration, to tensorboard_log or a logger that is set"
        )


def _family_of_many(env: VecEnv) -> Family:
    layer = env
    while isinstance(layer, VecEnvWrapper):
        if not isinstance(layer, _HARMLESS_AROUND_MANY):
            raise ConfigError(
                f"env is wrapped in {type(layer).__name__}, which would be lost: pass the family's name"
                + ("; a stock learner normalises by itself, with learner_kwargs={'normalize': True}")
                * isinstance(layer, VecNormalize)
            )
        _refuse_monitor_file(layer)
        layer = layer.venv
    if isinstance(layer, FamilyVecEnv):
        return layer.family
    if isinstance(layer, DummyVecEnv):
        families = [_family_of_one(single) for single in layer.envs]
        if len({family.id for family in families}) == 1:
            return families[0]
        raise ConfigError("env has environments of several families: pass the name of one")
    raise ConfigError(f"env is a {type(layer).__name__}, whose environments are elsewhere: pass the family's name")


def as_env(given: Any, family: Family | None = None) -> gym.Env[Any, Any]:
    """Return one environment.

    :param given: an environment, a registered name or a family, which stand for one with a task that is drawn, or a
        ``VecEnv`` of a single environment.
    :param family: what its own name, or the class registered under it, stands for.
    :raises ConfigError: something else.
    """
    return _only_one(given) if isinstance(given, VecEnv) else _made(given, family)


def as_any_env(given: Any, family: Family | None = None) -> AnyEnv:
    """Return one environment or several: what :func:`as_env` takes, and any ``VecEnv``."""
    return given if isinstance(given, VecEnv) else _made(given, family)


def _made(given: Any, family: Family | None) -> gym.Env[Any, Any]:
    if isinstance(given, gym.Env):
        return given
    if isinstance(given, type) and issubclass(given, Family):
        given = family_of_class(given) or given
    if family is not None and isinstance(given, str) and given == family.id:
        return SingleEnv(family)
    if isinstance(given, Family):
        return SingleEnv(given)
    if isinstance(given, str):
        try:
            return gym.make(given)
        except Exception as error:
            raise ConfigError(f"env={shorten(given)} cannot be made: {shorten(error, quote=False)}") from None
    hint = "call it" if isinstance(given, Callable) else "pass gymnasium.make(…)"  # type: ignore[arg-type]
    raise ConfigError(f"env={shorten(given)} is no environment: {hint}")


def _only_one(env: VecEnv) -> gym.Env[Any, Any]:
    if isinstance(env, VecMonitor):
        env = env.venv
    if env.num_envs == 1 and isinstance(env, DummyVecEnv):
        return env.envs[0]
    if env.num_envs == 1 and isinstance(env, FamilyVecEnv):
        task = {name: value[0] for name, value in env.tasks.items()}
        return SingleEnv(env.family, **task)
    count = f"{env.num_envs} environments" if env.num_envs > 1 else "one"
    raise ConfigError(
        f"env is a {type(env).__name__} of {count}: one environment is adapted to, so pass gymnasium.make(…) itself"
    )
