"""PointMassImitation: the first family to try imitation on, quick and with a known best."""

from __future__ import annotations

import numpy as np
from gymnasium.spaces import Box

from metarl.envs.family import Family
from metarl.envs.imitation.expert import Expert
from metarl.envs.imitation.imitation import Imitation
from metarl.envs.plane.point_mass import PointMass
from metarl.envs.registry import register_family
from metarl.envs.tasks import Tasks


class Straight(Expert):
    """Moves a point mass as far towards its goal as it can.

    With momentum it changes the velocity to the distance that is left, cut to what still can be braked.

    :param real: the point mass.
    """

    fingerprint = "straight to the goal"

    def __init__(self, real: PointMass) -> None:
        c = real.constants
        space = real.action_space
        assert isinstance(space, Box)
        self._bound = float(space.high[0])
        self._max_step = c.max_step
        self._momentum = c.momentum

    def act(self, tasks: Tasks, obs: np.ndarray) -> np.ndarray:
        left = tasks["goal"][:, None] - obs[..., :2]
        if self._momentum:
            # A distance d is stopped in from a speed of √(2 d · max_step), and in the last step from d itself.
            fastest = np.sqrt(2.0 * self._max_step * np.abs(left))
            left = np.clip(left, -fastest, fastest) - obs[..., 2:4]
        move = np.clip(left / self._max_step, -1.0, 1.0)
        return np.asarray(self._bound * move)


class PointMassImitation(Imitation):
    """Imitation of an expert that walks straight to the goal of ``PointMass-v0``.

    **Task.** ``goal`` ``[2]``, as in ``PointMass-v0``: the splits are its own, and training tasks are 100 draws.

    **Observation.** Box of 2: a position that the expert visits, m. It acts with noise of a full step
    (``acting_noise=1``) and shows how it comes back to its way. Without noise it shows five points of a straight line,
    and what is cloned from them goes on past the goal.

    **Action.** Box(-1, 1) of 2: what the policy would do there. It is not clipped: an action costs what it says.

    **Reward.** −‖a − a*‖², with a* what the expert does. ``info`` has the ``target`` a*.

    **Episode.** One env step: a pair of a state and an action. K episodes are K pairs.

    **Score.** The return of 5 episodes of the adapted policy in ``PointMass-v0``; the expert's is -0.5 without noise.

    ::

        env = gymnasium.make("PointMassImitation-v0", goal=[0.3, 0.0])
        obs, info = env.reset(seed=0)
        obs, reward, terminated, truncated, info = env.step(np.array([1.0, 0.0], np.float32))
        assert terminated and np.isclose(reward, -np.square(info["target"] - [1.0, 0.0]).sum())

    **Versions.** v0: first version.

    The arguments are those of :class:`~metarl.envs.imitation.imitation.Imitation`; ``real_kwargs`` are those of
    :class:`~metarl.envs.plane.point_mass.PointMass`.
    """

    id = "PointMassImitation-v0"
    real_id = "PointMass-v0"
    default_acting_noise = 1.0

    def make_expert(self, real: Family) -> Expert:
        assert isinstance(real, PointMass)
        return Straight(real)


register_family("PointMassImitation-v0", PointMassImitation)
