"""Supervised tasks as environments: an episode is one example, and its only action is a prediction.

Reinforcement learning takes them as they are, by the reward. The learner ``supervised`` takes the declared ``loss`` and
the ``target`` that every step reports, and so the exact gradient.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
from gymnasium import spaces

from metarl.checks import NOT_NEGATIVE
from metarl.envs.family import Family, State, Step
from metarl.envs.tasks import Tasks
from metarl.errors import ConfigError


class OneStep(Family):
    """Base of families whose tasks are supervised: subclasses draw examples, and this class plays them.

    **Episode.** ``reset`` draws an example and shows its input; the action predicts its target; the episode ends. So
    ``n_episodes=K`` is K shots.

    **Loss and reward.** ``loss = "squared_error"`` goes with a ``Box`` of actions: the reward is minus the squared
    error, summed over the entries of a prediction, so that a mean return is −MSE, which tables and figures show
    as the mean squared error. ``loss = "cross_entropy"`` goes with ``Discrete`` ones: the reward is 1 for the right
    class and 0 for others, so that a mean return is the accuracy. ``info`` has the ``target``.

    A line through the origin whose slope is the task::

        class Line(OneStep):
            def __init__(self):
                self.id = "Line-v0"
                self.task_space = Dict({"slope": Box(-1.0, 1.0, (), np.float64)})
                self.observation_space = Box(-1.0, 1.0, (1,), np.float32)
                self.action_space = Box(-2.0, 2.0, (1,), np.float32)

            def examples(self, tasks, rngs, n):
                x = np.stack([rng.uniform(-1.0, 1.0, (n, 1)) for rng in rngs])
                return x, tasks["slope"][:, None, None] * x

        family = Line()
        check_family(family)
        state, obs = family.reset({"slope": np.array([0.5])}, [np.random.default_rng(0)], n_envs=3)
        step = family.step({"slope": np.array([0.5])}, state, 0.5 * obs, [], None)
        assert np.allclose(step.reward, 0.0)
    """

    horizon = 1

    loss = "squared_error"
    n_examples: int | None = None
    """How many different examples a task has; None for any number."""
    largest_batch: int | None = None
    """Most examples of a task that one batch holds; None for any number."""

    @abstractmethod
    def examples(self, tasks: Tasks, rngs: Sequence[np.random.Generator], n: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw ``n`` examples of every task.

        :param rngs: one generator for each task; task ``i`` draws from ``rngs[i]`` only.
        :return: inputs ``[task, n, *observation]`` and targets ``[task, n, *action]``: numbers for a ``Box``, classes
            counted from the first one of a ``Discrete`` space for that.
        """

    def reset(self, tasks: Tasks, rngs: Sequence[np.random.Generator], n_envs: int) -> tuple[State, np.ndarray]:
        inputs, targets = self.examples(tasks, rngs, n_envs)
        obs = inputs.astype(self.observation_space.dtype)
        return {"input": obs, "target": targets, "prediction": np.zeros_like(targets)}, obs

    def step(
        self,
        tasks: Tasks,
        state: State,
        actions: np.ndarray,
        rngs: Sequence[np.random.Generator],
        active: np.ndarray | None = None,
    ) -> Step:
        target = state["target"]
        space = self.action_space
        if isinstance(space, spaces.Box):
            prediction = np.clip(actions, space.low, space.high) if self.clips_actions else actions
            prediction = prediction.astype(target.dtype)
            reward, name = -np.square(prediction - target).sum(-1, dtype=np.float64), "reward_squared_error"
        else:
            prediction = actions.astype(target.dtype)
            reward, name = (actions == target).astype(np.float64), "reward_right"
        ended = np.ones(reward.shape, dtype=bool)
        after = {**state, "prediction": prediction}
        return Step(after, state["input"], reward, ended, {name: reward, "target": target})


def require_examples(family: Family, of: str, counts: Mapping[str, int | None], different: bool = False) -> None:
    """Look whether batches of a supervised family can be as large as they are to be.

    :param of: what users call it.
    :param counts: examples of a task in a batch, by the name of what says so; None where nothing does.
    :param different: whether a batch shows no example twice.
    :raises ConfigError: one is too large; says how large it may be.
    """
    if not isinstance(family, OneStep):
        return
    for name, count in counts.items():
        if count is None:
            continue
        if different and family.n_examples is not None and count > family.n_examples:
            raise ConfigError(f"{name}={count:,}: a task of {of} has {family.n_examples:,} such examples, at most")
        if family.largest_batch is not None and count > family.largest_batch:
            raise ConfigError(
                f"{name}={count:,}: a batch of {of} has {family.largest_batch:,} such examples of a task, at most"
            )


SUPPORT_NOISE = NOT_NEGATIVE
"""Checks an argument ``support_noise``: σ of the normal deviate on what is seen of a task, in the units of targets."""


def with_noise(targets: np.ndarray, rngs: Sequence[np.random.Generator], sigma: float) -> np.ndarray:
    """Return targets ``[task, n, …]`` with a normal deviate of ``sigma`` added to every entry.

    Draw it after the inputs: then examples without noise, and with any amount of it, have the same inputs.
    """
    if sigma == 0.0:
        return targets
    noise = np.stack([rng.standard_normal(each.shape) for rng, each in zip(rngs, targets, strict=True)])
    noisy: np.ndarray = targets + sigma * noise
    return noisy
