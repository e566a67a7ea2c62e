"""Many env steps of a batch, as a family takes them best."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from metarl.envs.family import Family, State
from metarl.envs.tasks import Tasks


class Reached(NamedTuple):
    """What a :class:`Stepper` says of an env step: what decides how episodes go on."""

    obs: np.ndarray
    terminated: np.ndarray | None
    """As of :class:`Step`; None where no copy has."""
    ended: np.ndarray | None
    """As of :class:`Step`; None where no episode is over."""


Earned = tuple[Sequence[np.ndarray] | np.ndarray, Mapping[str, Sequence[np.ndarray] | np.ndarray]]
"""Rewards of several env steps, and terms of them by name, ``[step, task, env, ...]`` each."""


class Stepper(ABC):
    """Takes the env steps of a batch of episodes, and says at the end what they earned.

    Nobody looks at rewards before the end, so a family may compute those of many env steps at once, and prepare what is
    the same in each. Its bits are those of :meth:`~metarl.envs.family.Family.step`.
    """

    @abstractmethod
    def step(self, actions: np.ndarray, active: np.ndarray) -> Reached:
        """Advance every copy by one env step.

        :param actions: ``[task, env, *action]``, as a family's step takes them.
        :param active: ``[task, env]``, some of those that were active before; the same array where they are the same.
        """

    @abstractmethod
    def earned(self) -> Earned:
        """Return what all steps so far earned."""


class PlainStepper(Stepper):
    """Takes one step of a family after the other."""

    def __init__(
        self, family: Family, tasks: Tasks, state: State, rngs: Sequence[np.random.Generator], info: Sequence[str]
    ) -> None:
        self._family, self._tasks, self._state, self._rngs = family, tasks, state, rngs
        self._rewards: list[np.ndarray] = []
        self._info: dict[str, list[np.ndarray]] = {name: [] for name in info}

    def step(self, actions: np.ndarray, active: np.ndarray) -> Reached:
        step = self._family.step(self._tasks, self._state, actions, self._rngs, active)
        self._state = step.state
        self._rewards.append(step.reward)
        for name, kept in self._info.items():
            kept.append(step.info[name])
        return Reached(step.obs, step.terminated, step.ended)

    def earned(self) -> Earned:
        return self._rewards, self._info


@runtime_checkable
class HasStepper(Protocol):
    """A family with a stepper of its own."""

    def stepper(self, tasks: Tasks, state: State, rngs: Sequence[np.random.Generator], info: Sequence[str]) -> Stepper:
        """Return what steps many times from ``state`` on, as the family's ``step`` does.

        :param info: which of the terms that steps report to keep.
        """
        ...


def has_stepper(family: Family) -> bool:
    """Whether a family has a stepper of its own, which knows of its step: not one inherited beside a newer step."""
    first = next((set(vars(cls)) for cls in type(family).__mro__ if {"step", "stepper"} & set(vars(cls))), set())
    return "stepper" in first and "step" not in vars(family)


def stepper_of(
    family: Family, tasks: Tasks, state: State, rngs: Sequence[np.random.Generator], info: Sequence[str] = ()
) -> Stepper:
    """Return what steps a batch many times from ``state`` on.

    :param info: which of the terms that steps report to keep.
    """
    if isinstance(family, HasStepper) and has_stepper(family):
        return family.stepper(tasks, state, rngs, info)
    return PlainStepper(family, tasks, state, rngs, info)
