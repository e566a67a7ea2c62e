"""How tasks are learnt with a learner that is chosen by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gymnasium import spaces

from metarl.agents.learners.base import Learner
from metarl.agents.learners.registry import LEARNERS, find_learner
from metarl.agents.networks.policy import FunctionalPolicy
from metarl.agents.parallel import Parallel
from metarl.agents.stock.entries import StockAlgorithm
from metarl.arguments import merge
from metarl.checks import SWITCH
from metarl.envs.family import Family
from metarl.errors import ConfigError, shorten, unknown_name
from metarl.meta.adaptation.base import Adaptation
from metarl.meta.adaptation.batched import BatchedAdaptation
from metarl.meta.adaptation.continuing import ContinuingAdaptation
from metarl.meta.adaptation.segments import SegmentedAdaptation
from metarl.meta.adaptation.stock import StockAdaptation
from metarl.synonyms import HYPERPARAMETERS

OF_META = {
    "algorithm": "learner",
    "family": "env",
    "learning_rate": "inner_lr",
    "parallel": "n_threads",
    "policy": "policy",
    "policy_kwargs": "policy_kwargs",
}
"""Arguments of learners that the meta-algorithm sets, with what they are called there."""


def require_learner(name: Any, learner_kwargs: Any) -> None:
    """Raise unless there is a learner of that name, and its arguments are such.

    :raises UnknownNameError: it is misspelt.
    :raises ConfigError: it is an SB3 algorithm that is not supported, or ``learner_kwargs`` is no mapping.
    """
    find_learner(name)
    if not isinstance(learner_kwargs, (Mapping, type(None))):
        raise ConfigError(f"learner_kwargs={shorten(learner_kwargs)} is not a mapping of the learner's arguments")


def merge_arguments(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return a meta-algorithm's arguments with others on top, as :func:`metarl.arguments.merge` does.

    Another learner inherits the discount factor only where it has one. A number of episodes replaces one of env steps,
    which would be taken before it.

    :raises ConfigError: both are on top.
    """
    result = merge(base, overrides)
    if overrides.get("n_episodes") is not None:
        if overrides.get("n_transitions") is not None:
            raise ConfigError("n_episodes and n_transitions both say how large a batch is: give one of them")
        result.pop("n_transitions", None)
    learner = LEARNERS.get(str(result.get("learner")))
    if learner is not None and "learner" in overrides and "gamma" not in {*learner.options(), *overrides}:
        result.pop("gamma", None)
    return result


def make_adaptation(
    name: str,
    family: Family,
    pair: tuple[spaces.Box, spaces.Space[Any]],
    policy: str,
    policy_kwargs: Mapping[str, Any],
    rates: Sequence[float],
    options: Mapping[str, Any],
    parallel: Parallel,
    n_inner_steps: int,
    batch_steps: int,
    context: int = 0,
    n_together: int = 1,
) -> Adaptation:
    """Return how tasks of a pair of spaces are learnt with a learner.

    :param name: the learner's.
    :param pair: the spaces of observations and actions.
    :param policy: the policy's name.
    :param rates: the learning rates of the inner steps in training; a stock algorithm has one.
    :param options: arguments of the learner.
    :param parallel: the threads to work on.
    :param n_inner_steps: of learning a task in training; 0 where none is learnt.
    :param batch_steps: env steps of each.
    :param context: the size of a context that the policy sees beside observations; 0 for none.
    :param n_together: tasks that a stock algorithm learns together in training.
    :raises ConfigError: a value outside its range, or a learner that the family, the policy or the env steps do not
        fit.
    """
    for option in options:
        if option in OF_META:
            raise ConfigError(f"{option} of the learner is {OF_META[option]} of the meta-algorithm")
    cls = find_learner(name)
    reason = cls.misfit(family)
    if reason is not None:
        raise ConfigError(f"learner {name!r} does not learn {family.id}: {reason}")
    if issubclass(cls, StockAlgorithm):
        if context:
            raise ConfigError(f"learner {name!r} has a policy of its own, which takes no context")
        in_segments = "segments" in cls.options() and SWITCH("segments", options.get("segments", False))
        own = {key: value for key, value in options.items() if key != "segments" or key not in cls.options()}
        of_stock = SegmentedAdaptation if in_segments else StockAdaptation
        arguments = cls.arguments(own, batch_steps)
        stock = of_stock(cls, family, pair, policy, policy_kwargs, rates, arguments, n_together)
        if n_inner_steps:
            stock.learner.require_budget(n_inner_steps * batch_steps)
        return stock
    assert issubclass(cls, Learner)
    for option in options:
        if option not in cls.options():
            raise unknown_name(f"argument of learner {name!r}:", option, cls.options(), HYPERPARAMETERS)
    functional = FunctionalPolicy(policy, *pair, policy_kwargs, critic=cls.needs_critic, context=context)
    learner = cls(functional, **options, parallel=parallel)
    kind = BatchedAdaptation if learner.continuing is None else ContinuingAdaptation
    return kind(family, learner, parallel)
