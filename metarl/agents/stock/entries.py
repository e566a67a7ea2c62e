"""The stock algorithms of SB3 and sb3-contrib among the learners: ``"sb3_ppo"``, ``"sb3_sac"`` and so on."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from metarl.agents.learners.registry import LEARNERS, Abilities, register_learner
from metarl.agents.stock.learner import ALGORITHMS, OWN, REFUSED, check_names

PREFIX = "sb3_"
"""Begins the names of learners that are stock algorithms."""


class StockAlgorithm(Abilities):
    """A stock algorithm as it is; :class:`~metarl.agents.stock.learner.SB3Learner` learns a task with it.

    It has no instances: this is what is asked of it before a learner is built.
    """

    algorithm: str
    """Its name without :data:`PREFIX`."""
    stock: type[BaseAlgorithm]

    @classmethod
    def options(cls) -> frozenset[str]:
        own = {"self", "policy_kwargs", "learning_rate", *OWN}
        further = {"n_envs", "normalize", *(["segments"] if issubclass(cls.stock, OnPolicyAlgorithm) else [])}
        return frozenset({*inspect.signature(cls.stock.__init__).parameters, *further} - own)

    @classmethod
    def arguments(cls, options: Mapping[str, Any], batch_steps: int) -> dict[str, Any]:
        """Return the arguments of the learner: what is given, and what makes an inner step one rollout where the
        algorithm takes minibatches of it (PPO, TRPO) and ``n_steps`` is not given.

        The minibatch is the largest part of the rollout that is not larger than the algorithm's default.

        :param options: what is given.
        :param batch_steps: env steps of an inner step.
        :raises UnknownNameError: the algorithm has no such argument.
        """
        check_names(cls.algorithm, options)
        n_envs = options.get("n_envs", 1)
        known = inspect.signature(cls.stock.__init__).parameters
        if not issubclass(cls.stock, OnPolicyAlgorithm) or "batch_size" not in known or "n_steps" in options:
            return dict(options)
        if not isinstance(n_envs, int) or n_envs < 1:  # refused by the learner
            return dict(options)
        n_steps, default = -(-batch_steps // n_envs), int(known["batch_size"].default)
        rollout = n_steps * n_envs
        most = min(default, rollout)
        parts = (size for size in range(most, most // 4, -1) if rollout % size == 0)
        return {"n_steps": n_steps, "batch_size": next(parts, default), **options}


def _register(algorithm: str, stock: type[BaseAlgorithm]) -> None:
    own = {
        "__doc__": f"{stock.__name__} of {stock.__module__.partition('.')[0]}, as it is.",
        "__module__": __name__,
        "algorithm": algorithm,
        "stock": stock,
        "default_rate": float(inspect.signature(stock.__init__).parameters["learning_rate"].default),
        "policies": stock.policy_aliases,
    }
    register_learner(f"{PREFIX}{algorithm}")(type(f"Stock{stock.__name__}", (StockAlgorithm,), own))


for _algorithm, _stock in ALGORITHMS.items():
    _register(_algorithm, _stock)
LEARNERS.refused.update({f"{PREFIX}{name}": reason for name, reason in REFUSED.items()})
