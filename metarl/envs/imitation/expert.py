"""Experts: they know the task, and say what to do."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from metarl.envs.tasks import Tasks


class Expert(ABC):
    """Acts in every task of a family, because it knows which task it is.

    One that searches, or computes what is best, is a class with two members::

        class Towards(Expert):
            fingerprint = "straight towards the goal"

            def act(self, tasks, obs):
                return np.clip(tasks["goal"][:, None] - obs, -1.0, 1.0)

        expert = Towards()
        assert np.allclose(expert.act({"goal": np.array([[0.5, 0.0]])}, np.zeros((1, 3, 2))), [0.5, 0.0])

    One that was learnt is a :class:`~metarl.envs.imitation.network.NetworkExpert`.
    """

    fingerprint: str
    """Tells it from every expert that acts otherwise: what it showed once is kept under this name. The source code of
    its class, and of those it inherits from, need not be in it."""

    @abstractmethod
    def act(self, tasks: Tasks, obs: np.ndarray) -> np.ndarray:
        """Return what it does, as a function of its arguments.

        :param tasks: a batch of tasks of equal spaces.
        :param obs: ``[task, env, *observation]``.
        :return: actions ``[task, env, *action]``, of each task the same whatever other tasks are in the batch; of a
            ``Discrete`` space counted as the space does. What lies outside a ``Box`` is clipped to it.
        """
