"""The Ant: a four-legged robot that runs at a given speed (AntVel) or in a given direction (AntDir)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict

from metarl.envs.family import Tasks, register_family
from metarl.envs.mujoco import Constants, MujocoFamily, Sensed, check_choice, choose_constants, gymnasium_spec
from metarl.errors import ConfigError

OBSERVATIONS = (125, 111, 105, 27)
REFERENCE_POSE = (0.0, 0.0, 0.55, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, -1.0, 0.0, -1.0, 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class AntConstants(Constants):
    """Constants of an Ant family; see :class:`~metarl.envs.mujoco.Constants` for the rest."""

    contact_cost: float
    """Weight of the squared contact forces, each clipped to [-1, 1]."""
    survive_bonus: float
    """Added in every env step."""
    min_z: float
    """The episode terminates when the torso is lower than this, m."""
    max_z: float
    """The episode terminates when the torso is higher than this, m."""


@dataclass(frozen=True, kw_only=True)
class AntVelConstants(AntConstants):
    """Constants of AntVel."""

    goal_bonus: float
    """Added to minus the velocity error."""
    max_velocity: float
    """Target velocities are uniform in [0, max_velocity], m/s."""


@dataclass(frozen=True, kw_only=True)
class AntDirConstants(AntConstants):
    """Constants of AntDir."""

    directions: str
    """``"forward_backward"`` or ``"any"``."""


class Ant(MujocoFamily):
    """What the Ant families share: the robot, its observation, costs and termination."""

    def __init__(self, constants: AntConstants, *, warm_start: bool, n_threads: int | None) -> None:
        check_choice("physics", constants.physics, ("reference", "gymnasium"))
        check_choice("observation", constants.observation, OBSERVATIONS)
        check_choice("point", constants.point, ("com", "torso"))
        if not constants.min_z < constants.max_z:
            raise ConfigError(f"min_z={constants.min_z}: below max_z={constants.max_z}")
        reference = constants.physics == "reference"
        spec = gymnasium_spec("ant.xml")
        if reference:
            spec.option.timestep = 0.02
            for geom in spec.geoms:
                geom.solimp[:3] = 0.8, 0.8, 0.01
        super().__init__(
            spec,
            frame_skip=1 if reference else 5,
            horizon=constants.horizon,
            action_scale=constants.action_scale,
            init_qpos=REFERENCE_POSE if reference else None,
            reset_noise=constants.reset_noise,
            sense=constants.point == "com" or constants.observation == 125,
            contact_forces=constants.contact_cost != 0 or constants.observation != 27,
            contact_limit=1.0,
            warm_start=warm_start,
            n_threads=n_threads,
        )
        self.constants = constants
        self.observation_space = Box(-np.inf, np.inf, shape=(constants.observation,), dtype=np.float32)

    def observe(self, physics: np.ndarray, sensed: Sensed | None) -> np.ndarray:
        size, n = self.constants.observation, len(physics)
        obs = np.empty((n, size), dtype=np.float32)
        skip = 0 if size == 125 else 2
        end = 29 - skip
        obs[:, :end] = physics[:, 1 + skip : 30]
        if size == 27:
            return obs
        assert sensed is not None
        if size != 105:
            # The world body comes first in MuJoCo's list, and its entry is always 0.
            obs[:, end : end + 6] = 0.0
            end += 6
        obs[:, end : end + 78] = sensed.contact
        if size == 125:
            obs[:, 113:122] = sensed.rotation
            obs[:, 122:125] = sensed.com if self.constants.point == "com" else self.qpos(physics)[:, :3]
        return obs

    def velocity(self, before: np.ndarray, after: np.ndarray, sensed: Sensed | None) -> np.ndarray:
        """Return the robot's velocity ``[n, 2]`` along x and y, m/s."""
        if self.constants.point == "com":
            assert sensed is not None
            return sensed.com_velocity[:, :2]
        return np.asarray((after[:, 1:3] - before[:, 1:3]) / self.dt)

    def judge(
        self, tasks: Tasks, before: np.ndarray, after: np.ndarray, actions: np.ndarray, sensed: Sensed | None
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        constants = self.constants
        terms = {
            "reward_forward": self.forward_reward(tasks, self.velocity(before, after, sensed)),
            "reward_ctrl": -constants.control_cost * np.einsum("na,na->n", actions, actions),
        }
        if constants.contact_cost != 0:
            assert sensed is not None
            squares = np.einsum("nf,nf->n", sensed.contact, sensed.contact)
            terms["reward_contact"] = -constants.contact_cost * squares
        terms["reward_survive"] = np.full(len(after), constants.survive_bonus)
        z = after[:, 3]
        return terms, (z < constants.min_z) | (z > constants.max_z)

    def forward_reward(self, tasks: Tasks, velocity: np.ndarray) -> np.ndarray:
        """Return the task's part of the reward, ``[n]``, for velocities ``[n, 2]``."""
        raise NotImplementedError


_MAML_RL = AntVelConstants(
    physics="reference",
    observation=125,
    point="com",
    control_cost=0.005,
    contact_cost=0.0005,
    survive_bonus=0.05,
    min_z=0.2,
    max_z=1.0,
    horizon=200,
    action_scale=1.0,
    reset_noise="rllab",
    goal_bonus=1.0,
    max_velocity=3.0,
)
_CAVIA = replace(_MAML_RL, physics="gymnasium", point="torso", reset_noise="gymnasium")
_GYMNASIUM = replace(_CAVIA, observation=105, control_cost=0.5, survive_bonus=1.0, goal_bonus=0.0, horizon=1000)

VEL_LINEAGES = {
    "maml_rl": _MAML_RL,
    "s4": replace(_MAML_RL, max_velocity=2.0),
    "pmr": replace(_CAVIA, action_scale=10.0, horizon=100),
    "cavia": _CAVIA,
    "gymnasium": _GYMNASIUM,
}
"""Constants of AntVel by lineage."""


class AntVel(Ant):
    """Run along x at a given velocity."""

    def __init__(
        self, lineage: str = "maml_rl", *, warm_start: bool = False, n_threads: int | None = None, **constants: Any
    ) -> None:
        chosen = choose_constants(VEL_LINEAGES, lineage, constants, "AntVel")
        high = chosen.max_velocity
        if not high > 0:
            raise ConfigError(f"max_velocity={high}: above 0")
        super().__init__(chosen, warm_start=warm_start, n_threads=n_threads)
        self._goal_bonus = chosen.goal_bonus
        self.task_space = Dict({"velocity": Box(0.0, high, shape=(), dtype=np.float64)})
        self.shifted_space = Dict({"velocity": Box(high, high + 1.0, shape=(), dtype=np.float64)})

    def forward_reward(self, tasks: Tasks, velocity: np.ndarray) -> np.ndarray:
        return np.asarray(self._goal_bonus - np.abs(velocity[:, 0] - tasks["velocity"]))


register_family("AntVel-v0", AntVel)
