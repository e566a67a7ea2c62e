"""Imitation as a degenerate environment: what an expert does in a family is shown, and the score is had in that family.

A family of imitation is built on a real family, its *evaluation family*, whose tasks and spaces it has. Its
observation is a state that an expert visits there, its action is the policy's, and its reward is

- where actions are a ``Box``: −‖a − a*‖², with a* what the expert does. For a Gaussian policy the expectation is
  −(‖μ − a*‖² + tr Σ);
- where they are ``Discrete``: 1 for the expert's action and 0 for others. The expectation is Σ_a π(a) r(a) = π(a*).

So reinforcement learning imitates by the score function, without a change. The learner ``cloning`` takes exact
gradients instead: of −(‖μ − a*‖² + tr Σ), and of log π(a*), which is the declared ``loss`` of ``Discrete`` actions.
Their gradients have one direction in each state, ∇π(a*) = π(a*) ∇log π(a*): the reward's is small where the expert's
action is unlikely, and the logarithm's is not.

**What a subclass says.** ``real_id``, the registered name of the real family, and :meth:`Imitation.make_expert`. The
task space, the splits, the observation and the action space are the real family's. Training tasks are drawn from a pool
of ``n_tasks``, whose demonstrations are made once (:mod:`metarl.envs.imitation.demonstrations`); those of held-out
tasks are made when they are asked for.

**Evaluation.** ``evaluate``, validation, ``finetune`` and exports act in the real family: adaptation learns from
demonstrations, and the score is the return of whole episodes of the adapted policy there. The reward that the policy
has here, which is the imitation loss, is reported beside it.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from gymnasium import spaces

from metarl.checks import COUNT, FRACTION, MAPPING, NONE, NOT_NEGATIVE, Check, choice, integer, plain_tree
from metarl.envs.family import Family, draw_tasks
from metarl.envs.imitation.demonstrations import Demonstrations, Show, noisy
from metarl.envs.imitation.expert import Expert
from metarl.envs.imitation.network import NetworkExpert
from metarl.envs.registry import make_family
from metarl.envs.score import SCORES
from metarl.envs.supervised.real_tasks import RealTasks
from metarl.envs.tasks import Task, Tasks, take_tasks
from metarl.streams import stream

FILE = Check("a file", os.fspath)
ORDERS = ("shuffled", "trajectory")
"""``"shuffled"``: each pair is drawn by itself from all that the expert showed. ``"trajectory"``: the pairs of a reset
follow each other as the expert visited them, from a random one on; after the last comes the first."""


class Imitation(RealTasks):
    """Base of families that show what an expert does in another family; the module says how.

    An expert that walks straight to the goal of a point mass::

        class Towards(Expert):
            fingerprint = "straight towards the goal"

            def act(self, tasks, obs):
                return np.clip(10.0 * (tasks["goal"][:, None] - obs), -1.0, 1.0)

        class Straight(Imitation):
            id = "Straight-v0"
            real_id = "PointMass-v0"

            def make_expert(self, real):
                return Towards()

        family = Straight(n_tasks=4, n_demonstrations=1)
        check_family(family)
        tasks = family.tasks("test", 2)
        assert (family.expert_returns(tasks) > -3.0).all()

    :param expert: the file of a :class:`~metarl.envs.imitation.network.NetworkExpert`, which shows instead of the
        family's own expert.
    :param real_kwargs: arguments of the real family.
    :param n_tasks: training tasks. A real family that is finite has its own.
    :param n_demonstrations: episodes that the expert shows of each task. None takes the family's own default.
    :param n_states: the first so many states of them; None: all.
    :param order: see :data:`ORDERS`.
    :param acting_noise: while the expert acts, a normal deviate of this many half ranges is added to its actions (of
        ``Discrete`` ones: this is the probability of a random action instead). It then visits states beside its way,
        and shows what it would do there. None takes the family's own default.
    :param action_noise: the same for the actions that are shown, drawn anew each time that one is.
    :param n_eval_episodes: episodes in the real family that a task's score is the mean over.
    :raises ConfigError: an argument of another type or outside its range, and what the real family raises.
    """

    real_id: str
    """The registered name of the family in which the expert acts."""
    default_acting_noise: float = 0.0
    """The ``acting_noise`` where none is given."""
    default_demonstrations: int = 5
    """``n_demonstrations`` where it is not given."""

    # The states that an expert visits tell where it goes.
    observes_task = True
    clips_actions = False

    def __init__(
        self,
        *,
        expert: str | os.PathLike[str] | None = None,
        real_kwargs: Mapping[str, Any] | None = None,
        n_tasks: int = 100,
        n_demonstrations: int | None = None,
        n_states: int | None = None,
        order: str = "shuffled",
        acting_noise: float | None = None,
        action_noise: float = 0.0,
        n_eval_episodes: int = 5,
    ) -> None:
        real_kwargs = plain_tree((MAPPING | NONE)("real_kwargs", real_kwargs) or {})
        n_tasks = integer(1, 10**5)("n_tasks", n_tasks)
        given = self.default_demonstrations if n_demonstrations is None else n_demonstrations
        episodes = integer(1, 10**5)("n_demonstrations", given)
        n_states = (COUNT | NONE)("n_states", n_states)
        self.order = choice(*ORDERS)("order", order)
        self.evaluation_episodes = COUNT("n_eval_episodes", n_eval_episodes)
        real = self.make_real(real_kwargs)
        noise = FRACTION if isinstance(real.action_space, spaces.Discrete) else NOT_NEGATIVE
        acting_noise = self.default_acting_noise if acting_noise is None else acting_noise
        show = Show(episodes, n_states, noise("acting_noise", acting_noise))
        self.action_noise = noise("action_noise", action_noise)
        self.evaluation_family = real
        self.task_space = real.task_space
        self.shifted_space = real.shifted_space
        self.observation_space = real.observation_space
        self.action_space = real.action_space
        self.loss = "cross_entropy" if isinstance(real.action_space, spaces.Discrete) else "squared_error"
        self.score = replace(SCORES[self.loss], budget="expert's states")
        self.expert = self.make_expert(real) if expert is None else NetworkExpert(FILE("expert", expert), real)
        """Says what is to be done."""
        is_finite = real.finite_tasks() is not None
        self.pool = None if is_finite else draw_tasks(real, stream(0, "imitation/tasks"), n_tasks)
        """The training tasks; None: those of the real family."""
        # What another method made cannot be told from its name and arguments.
        registered = type(self).make_real is Imitation.make_real
        self.origin = {"id": real.id, "kwargs": real_kwargs} if registered else None
        """From what the real family was made; None where its name does not say it."""
        self.demonstrations = Demonstrations(real, self.expert, show, self.origin, self.pool)
        """What the expert shows."""

    def make_real(self, real_kwargs: Mapping[str, Any]) -> Family:
        """Return the family in which the expert acts; override it where that is not registered."""
        return make_family(self.real_id, **real_kwargs)

    @abstractmethod
    def make_expert(self, real: Family) -> Expert:
        """Return the expert of the real family."""

    @property
    def real(self) -> Family:
        """The family in which the expert acts, and policies are scored."""
        return self.acts_in

    def expert_returns(self, tasks: Tasks) -> np.ndarray:
        """Return the mean return of the episodes that the expert showed of each task, ``[task]``."""
        return np.array([pairs.expert_return for pairs in self.demonstrations.of(tasks)])

    def examples(self, tasks: Tasks, rngs: Sequence[np.random.Generator], n: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw ``n`` of the pairs that the expert showed of every task."""
        obs, actions = [], []
        for pairs, rng in zip(self.demonstrations.of(tasks), rngs, strict=True):
            count = len(pairs.obs)
            first = rng.integers(count, size=n if self.order == "shuffled" else 1)
            index = first if self.order == "shuffled" else (first + np.arange(n)) % count
            obs.append(pairs.obs[index])
            actions.append(pairs.actions[index])
        shown = noisy(np.stack(actions), self.action_space, rngs, self.action_noise)
        return np.stack(obs), shown

    # --------------------------------------------------------------------------------------- as the real family has it
    def spaces(self, task: Task) -> tuple[spaces.Box, spaces.Space[Any]]:
        return self.real.spaces(task)

    def sample_tasks(self, rng: np.random.Generator, n: int) -> Tasks:
        """Draw ``n`` training tasks from the pool, different ones where it has as many."""
        if self.pool is None:
            return self.real.sample_tasks(rng, n)
        size = len(next(iter(self.pool.values())))
        return take_tasks(self.pool, rng.choice(size, n, replace=n > size))
