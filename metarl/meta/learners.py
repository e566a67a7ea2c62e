"""The learners by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from metarl.agents.a2c import A2C
from metarl.agents.parallel import Parallel
from metarl.agents.policy import FunctionalPolicy
from metarl.agents.ppo import PPO
from metarl.agents.sb3 import ALGORITHMS, REFUSED
from metarl.agents.vpg import VPG
from metarl.envs.family import Family, check_arguments
from metarl.errors import ConfigError, unknown_name
from metarl.meta.loops import FunctionalLoop
from metarl.meta.sb3_loop import PREFIX, SB3Loop

FUNCTIONAL: dict[str, tuple[type[VPG] | type[A2C] | type[PPO], float]] = {
    "vpg": (VPG, 0.1),
    "a2c": (A2C, 7e-4),
    "ppo": (PPO, 3e-4),
}
"""Learners that are batched over tasks, with the learning rate where none is given: the MAML papers', and SB3's."""


STOCK = tuple(f"{PREFIX}{name}" for name in ALGORITHMS)
"""Learners that are stock algorithms of SB3 and sb3-contrib."""
Loop = FunctionalLoop | SB3Loop


def require_learner(name: str) -> None:
    """Raise unless there is a learner of that name.

    :raises UnknownNameError: it is misspelt.
    :raises ConfigError: it is an SB3 algorithm that is not supported.
    """
    if name not in FUNCTIONAL and name not in STOCK:
        reason = REFUSED.get(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else None
        if reason is not None:
            raise ConfigError(f"learner {name!r} is not supported: {reason}")
        raise unknown_name("learner", name, [*FUNCTIONAL, *STOCK])


def default_rate(name: str) -> float:
    """Return the learning rate of a learner where none is given."""
    if name in FUNCTIONAL:
        return FUNCTIONAL[name][1]
    cls = ALGORITHMS[name.removeprefix(PREFIX)]
    return float(inspect.signature(cls.__init__).parameters["learning_rate"].default)


def make_loop(
    name: str,
    family: Family,
    policy: str,
    policy_kwargs: Mapping[str, Any],
    rates: Sequence[float],
    options: Mapping[str, Any],
    parallel: Parallel,
) -> Loop:
    """Return the inner loop around a learner.

    :param name: the learner's.
    :param policy: the policy's name.
    :param rates: the learning rates of the inner steps in training; a stock algorithm has one.
    :param options: arguments of the learner.
    :param parallel: the threads to work on.
    :raises ConfigError: a value outside its range, or a learner that the family or the policy does not fit.
    """
    normalize = options.get("normalize_advantage")
    if not isinstance(normalize, (bool, type(None))):
        raise ConfigError(f"normalize_advantage={normalize!r} is not true or false")
    if name not in FUNCTIONAL:
        return SB3Loop(name, family, policy, policy_kwargs, rates, options)
    cls = FUNCTIONAL[name][0]
    check_arguments(cls.__init__, options, f"argument of learner {name!r}:")
    functional = FunctionalPolicy(
        policy, family.observation_space, family.action_space, policy_kwargs, critic=cls is not VPG
    )
    return FunctionalLoop(family, cls(functional, **options, parallel=parallel), parallel)
