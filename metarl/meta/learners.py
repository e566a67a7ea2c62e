"""The learners by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metarl.agents.a2c import A2C
from metarl.agents.parallel import Parallel
from metarl.agents.policy import FunctionalPolicy
from metarl.agents.ppo import PPO
from metarl.agents.vpg import VPG
from metarl.envs.family import Family, check_arguments
from metarl.errors import ConfigError, unknown_name
from metarl.meta.loops import FunctionalLoop

FUNCTIONAL: dict[str, tuple[type[VPG] | type[A2C] | type[PPO], float]] = {
    "vpg": (VPG, 0.1),
    "a2c": (A2C, 7e-4),
    "ppo": (PPO, 3e-4),
}
"""Learners that are batched over tasks, with the learning rate where none is given: the MAML papers', and SB3's."""


def require_learner(name: str) -> None:
    """Raise :class:`~metarl.errors.UnknownNameError` unless there is a learner of that name."""
    if name not in FUNCTIONAL:
        raise unknown_name("learner", name, FUNCTIONAL)


def default_rate(name: str) -> float:
    """Return the learning rate of a learner where none is given."""
    return FUNCTIONAL[name][1]


def make_loop(
    name: str,
    family: Family,
    policy: str,
    policy_kwargs: Mapping[str, Any],
    options: Mapping[str, Any],
    parallel: Parallel,
) -> FunctionalLoop:
    """Return the inner loop around a learner.

    :param name: the learner's.
    :param policy: the policy's name.
    :param options: arguments of the learner.
    :param parallel: the threads to work on.
    :raises ConfigError: a value outside its range, or a learner that the family or the policy does not fit.
    """
    cls = FUNCTIONAL[name][0]
    taken = dict.fromkeys(options)
    check_arguments(cls.__init__, taken, f"argument of learner {name!r}:")
    normalize = options.get("normalize_advantage")
    if not isinstance(normalize, (bool, type(None))):
        raise ConfigError(f"normalize_advantage={normalize!r} is not true or false")
    functional = FunctionalPolicy(
        policy, family.observation_space, family.action_space, policy_kwargs, critic=cls is not VPG
    )
    return FunctionalLoop(family, cls(functional, **options, parallel=parallel), parallel)
