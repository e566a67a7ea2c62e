"""What an outer optimiser is, and those that there are by name.

Each is a file of its own beside this one, and registers itself::

    @register_outer("sign")
    class Sign(SGD):
        def step(self, objective, params, remaining=1.0):
            gradient = objective.gradient().gradient
            rate = self.learning_rate
            return OuterStep({name: tensor - rate * gradient[name].sign() for name, tensor in params.items()}, {})
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch

from metarl.errors import NonFiniteError, unknown_name
from metarl.files.schema import constructor_hints
from metarl.meta.outer.objective import MetaObjective
from metarl.params import Params
from metarl.registry import Registry
from metarl.synonyms import HYPERPARAMETERS

Class = TypeVar("Class", bound=type[Any])
OUTER: Registry[type[Any]] = Registry("outer optimiser")
"""The outer optimisers by name."""


@dataclass(frozen=True)
class OuterStep:
    """What an outer step did.

    :param params: the new meta-parameters; the old ones where a line search failed.
    :param stats: scalars for the log, under SB3's keys where SB3 has the thing.
    """

    params: Params
    stats: dict[str, float]


class Outer(Protocol):
    """An outer optimiser; its state is a flat dict of tensors so that checkpoints can hold it."""

    evaluates: bool
    """Whether it asks the objective to adapt other parameters again, as line searches do."""

    def step(self, objective: MetaObjective, params: Params, remaining: float = 1.0) -> OuterStep:
        """Return the next meta-parameters.

        :param remaining: the share of training that is left, which annealed step sizes go with.
        """
        ...

    def state(self) -> dict[str, torch.Tensor]:
        """Return the optimiser's tensors, by name."""
        ...

    def load_state(self, state: Mapping[str, torch.Tensor], params: Params) -> None:
        """Restore what :meth:`state` returned.

        :param params: the meta-parameters that the state belongs to.
        :raises CheckpointError: it does not fit them.
        """
        ...


def require_finite(gradient: Params) -> None:
    """Raise :class:`NonFiniteError` for a meta-gradient that has a NaN or an infinity in it."""
    for name, tensor in gradient.items():
        if not bool(torch.isfinite(tensor).all()):
            raise NonFiniteError(f"non-finite meta-gradient in {name}")


def register_outer(name: str) -> Callable[[Class], Class]:
    """Return a decorator that registers an outer optimiser under a name.

    :raises ConfigError: see :meth:`metarl.registry.Registry.add`.
    """

    def register(cls: Class) -> Class:
        OUTER.add(name, cls)
        return cls

    return register


def make_outer(name: str, kwargs: Mapping[str, Any] | None = None) -> Outer:
    """Build an outer optimiser by name.

    :raises UnknownNameError: no such optimiser, or a keyword that it does not take.
    :raises ConfigError: a value outside its range.
    """
    cls = OUTER.find(name)
    known = constructor_hints(cls)  # with what it passes on to the classes that it inherits from
    for argument in kwargs or {}:
        if argument not in known:
            raise unknown_name(f"argument of outer optimiser {name!r}:", argument, known, HYPERPARAMETERS)
    outer: Outer = cls(**(kwargs or {}))
    return outer
