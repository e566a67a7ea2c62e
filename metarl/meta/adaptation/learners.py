"""The learners by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy

from metarl.agents.learners.a2c import A2C
from metarl.agents.learners.ppo import PPO
from metarl.agents.learners.vpg import VPG
from metarl.agents.networks.policy import POLICIES, FunctionalPolicy
from metarl.agents.parallel import Parallel
from metarl.agents.stock.learner import ALGORITHMS, REFUSED, check_names
from metarl.checks import check_arguments
from metarl.envs.family import Family
from metarl.errors import ConfigError, shorten, unknown_name
from metarl.meta.adaptation.batched import FunctionalLoop
from metarl.meta.adaptation.stock import PREFIX, SB3Loop
from metarl.synonyms import LEARNERS

FUNCTIONAL: dict[str, tuple[type[VPG] | type[A2C] | type[PPO], float]] = {
    "vpg": (VPG, 0.1),
    "a2c": (A2C, 7e-4),
    "ppo": (PPO, 3e-4),
}
"""Learners that are batched over tasks, with the learning rate where none is given: the MAML papers', and SB3's."""


STOCK = tuple(f"{PREFIX}{name}" for name in ALGORITHMS)
"""Learners that are stock algorithms of SB3 and sb3-contrib."""
OF_META = {
    "algorithm": "learner",
    "family": "env",
    "learning_rate": "inner_lr",
    "parallel": "n_threads",
    "policy": "policy",
    "policy_kwargs": "policy_kwargs",
}
"""Arguments of learners that the meta-algorithm sets, with what they are called there."""
Loop = FunctionalLoop | SB3Loop


def require_learner(name: Any, learner_kwargs: Any) -> None:
    """Raise unless there is a learner of that name, and its arguments are such.

    :raises UnknownNameError: it is misspelt.
    :raises ConfigError: it is an SB3 algorithm that is not supported, or ``learner_kwargs`` is no mapping.
    """
    if name not in [*FUNCTIONAL, *STOCK]:
        reason = REFUSED.get(name.removeprefix(PREFIX)) if isinstance(name, str) and name.startswith(PREFIX) else None
        if reason is not None:
            raise ConfigError(f"learner {shorten(name)} is not supported: {reason}")
        given = name.__name__ if isinstance(name, type) else name
        raise unknown_name("learner", given, [*FUNCTIONAL, *STOCK], LEARNERS)
    if not isinstance(learner_kwargs, (Mapping, type(None))):
        raise ConfigError(f"learner_kwargs={shorten(learner_kwargs)} is not a mapping of the learner's arguments")


def known_policies(name: str) -> Mapping[str, type[BasePolicy]]:
    """Return the policies that a learner takes, by name."""
    return ALGORITHMS[name.removeprefix(PREFIX)].policy_aliases if name in STOCK else POLICIES


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
    n_inner_steps: int,
    batch_steps: int,
) -> Loop:
    """Return the inner loop around a learner.

    :param name: the learner's.
    :param policy: the policy's name.
    :param rates: the learning rates of the inner steps in training; a stock algorithm has one.
    :param options: arguments of the learner.
    :param parallel: the threads to work on.
    :param n_inner_steps: of learning a task in training; 0 where none is learnt.
    :param batch_steps: env steps of each.
    :raises ConfigError: a value outside its range, or a learner that the family, the policy or the env steps do not
        fit.
    """
    for option in options:
        if option in OF_META:
            raise ConfigError(f"{option} of the learner is {OF_META[option]} of the meta-algorithm")
    if name not in FUNCTIONAL:
        check_names(name.removeprefix(PREFIX), options)
        options = {**one_rollout(name.removeprefix(PREFIX), options, batch_steps), **options}
        loop = SB3Loop(name, family, policy, policy_kwargs, rates, options)
        if n_inner_steps:
            loop.learner.require_budget(n_inner_steps * batch_steps)
        return loop
    cls = FUNCTIONAL[name][0]
    check_arguments(cls.__init__, options, f"argument of learner {name!r}:", own=tuple(OF_META))
    functional = FunctionalPolicy(
        policy, family.observation_space, family.action_space, policy_kwargs, critic=cls is not VPG
    )
    return FunctionalLoop(family, cls(functional, **options, parallel=parallel), parallel)


def one_rollout(algorithm: str, options: Mapping[str, Any], batch_steps: int) -> dict[str, int]:
    """Return arguments with which an inner step is one rollout of a stock algorithm with minibatches (PPO, TRPO).

    The minibatch is the largest part of the rollout that is not larger than the algorithm's default.

    :param options: what is given; with ``n_steps`` among it nothing is chosen.
    :param batch_steps: env steps of an inner step.
    """
    cls, n_envs = ALGORITHMS[algorithm], options.get("n_envs", 1)
    known = inspect.signature(cls.__init__).parameters
    if not issubclass(cls, OnPolicyAlgorithm) or "batch_size" not in known or "n_steps" in options:
        return {}
    if not isinstance(n_envs, int) or n_envs < 1:  # refused by the learner
        return {}
    n_steps, default = -(-batch_steps // n_envs), int(known["batch_size"].default)
    rollout = n_steps * n_envs
    parts = (size for size in range(min(default, rollout), default // 4, -1) if rollout % size == 0)
    return {"n_steps": n_steps, "batch_size": next(parts, default)}
