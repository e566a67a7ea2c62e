"""The learners by name, and what each says that it can do: meta-wrappers ask for that, never for a name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from stable_baselines3.common.policies import BasePolicy

from metarl import synonyms
from metarl.agents.networks.policy import POLICIES
from metarl.envs.family import Family
from metarl.errors import ConfigError, shorten
from metarl.registry import Registry


class Abilities(ABC):
    """What a learner declares, before it is built: class attributes, of which every learner overrides some."""

    name: str = ""
    """On the command line; registering sets it."""
    default_rate: float
    """The learning rate where none is given."""
    path_rate: float | None = None
    """The learning rate where a wrapper looks at the whole path (Reptile, Leap) and none is given; None: the same."""
    policies: Mapping[str, type[BasePolicy]] = POLICIES
    """The policies that it takes, by name."""
    differentiable: bool = False
    """Whether its loss on a batch is a function of the parameters that can be differentiated twice, as MAML does."""
    needs_critic: bool = False
    """Whether it learns values beside the policy."""
    plain_steps: bool = False
    """Whether an update is one plain gradient step on its loss, so that MAML can differentiate it as it is."""
    trust_region: bool = False
    """Whether its loss on a query batch is that of a likelihood ratio, which a trust region can bound."""
    steps_per_update: int | None = None
    """How many steps of an optimiser an update takes; None: that depends."""
    update_options: tuple[str, ...] = ()
    """Its arguments that say how it goes down its loss; a plain gradient step has no use for them."""
    info: tuple[str, ...] = ()
    """What it needs of what steps report, such as ``"target"``."""
    deterministic: bool = False
    """Whether it acts by the most likely action while it learns, and samples none."""
    predicts: bool = False
    """Whether its loss is a function of observations, their targets and what the policy says there, and not of what was
    done: then nobody has to act for it in a supervised family."""
    reuses_support: bool = False
    """Whether all inner steps learn from the first batch; otherwise each collects its own."""

    @classmethod
    def misfit(cls, family: Family) -> str | None:
        """Return why it does not learn the tasks of a family, as the end of a sentence; None where it does."""
        del family
        return None

    @classmethod
    @abstractmethod
    def options(cls) -> frozenset[str]:
        """Return the names of its arguments, without those that a meta-wrapper sets."""


LEARNERS: Registry[type[Abilities]] = Registry("learner", synonyms.LEARNERS)
"""Every learner by its name on the command line."""
Class = TypeVar("Class", bound=type[Abilities])


def learners_with(ability: str) -> str:
    """Return the names of the learners that have an ability of :class:`Abilities`, for an error message."""
    return " or ".join(repr(name) for name, learner in LEARNERS.items() if getattr(learner, ability))


def register_learner(name: str) -> Callable[[Class], Class]:
    """Return a decorator that registers a learner under a name: the constructor, the command line and the tests of
    wrappers find it from then on.

    :raises ConfigError: a name that cannot be typed, or one that another learner has; a class without
        ``default_rate``.
    """

    def register(cls: Class) -> Class:
        if not hasattr(cls, "default_rate"):
            raise ConfigError(f"learner {shorten(name)}: {cls.__name__} has no default_rate, the rate of its steps")
        LEARNERS.add(name, cls)
        cls.name = name
        return cls

    return register


def learner_names() -> list[str]:
    """Return the names of all learners, sorted."""
    return list(LEARNERS)


def find_learner(name: Any) -> type[Abilities]:
    """Return the learner of that name.

    :raises UnknownNameError: it is misspelt.
    :raises ConfigError: it is an algorithm that is not supported.
    """
    return LEARNERS.find(name)
