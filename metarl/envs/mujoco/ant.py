"""The Ant: a four-legged robot that runs at a given speed (AntVel) or in a given direction (AntDir)."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict

from metarl.checks import ABOVE_ZERO, choice
from metarl.envs.lineage import choose_constants
from metarl.envs.mujoco.bindings import mujoco
from metarl.envs.mujoco.models import gymnasium_spec
from metarl.envs.mujoco.physics import Constants, MujocoFamily
from metarl.envs.mujoco.rows import Sensed
from metarl.envs.registry import register_family
from metarl.envs.tasks import Tasks
from metarl.errors import ConfigError, shorten

OBSERVATIONS = (125, 111, 105, 27)
REFERENCE_POSE = (0.0, 0.0, 0.55, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, -1.0, 0.0, -1.0, 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class AntConstants(Constants):
    """Constants of an Ant family; see :class:`~metarl.envs.mujoco.physics.Constants` for the rest."""

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


def ant_spec(physics: str) -> mujoco.MjSpec:
    """Return the robot: Gymnasium's, or with the constants of the reference; see :class:`Ant`."""
    spec = gymnasium_spec("ant.xml")
    if physics == "reference":
        spec.option.timestep = 0.02
        for geom in spec.geoms:
            geom.solimp[:3] = 0.8, 0.8, 0.01
    return spec


class Ant(MujocoFamily):
    """What the Ant families share: the robot, its observation, costs and termination.

    The robot: a torso (sphere, 0.25 m) with four legs of two segments, 14 degrees of freedom, 8 motors (hips and
    ankles, at most 150 N m each).

    **Action** ``Box(-action_scale, action_scale, (8,))``: torques as parts of 150 N m, divided by ``action_scale`` and
    clipped to [-1, 1].

    **Observation** ``Box(-inf, inf, (observation,))``, float32, of the state after the step:

    | part | unit | 125 | 111 | 105 | 27 |
    |---|---|---|---|---|---|
    | torso x, y | m | 2 | | | |
    | torso z, quaternion; 8 joint angles | m, 1; rad | 13 | 13 | 13 | 13 |
    | velocities: torso along world axes, about its own axes; 8 joints | m/s, rad/s | 14 | 14 | 14 | 14 |
    | contact torque and force on each body, clipped to [-1, 1] | N m, N | 84 | 84 | 78 | |
    | rotation matrix of the torso, row by row | 1 | 9 | | | |
    | x, y, z of the whole robot's centre of mass (``point="com"``) or of the torso (``"torso"``) | m | 3 | | | |

    The bodies are the world, the torso and 12 parts of the legs; torques are about the robot's centre of mass, in world
    axes. The world's 6 contact entries are always 0; 105 leaves them out.

    **Physics**: ``"reference"``, the Ant of the MAML papers: RK4 with a time step of 0.02 s, one an env step; contact
    impedance 0.8. It starts at z = 0.55 m with bent legs. ``"gymnasium"``: Gymnasium's Ant-v5, five RK4 steps of 0.01 s
    an env step, from its own pose at z = 0.75 m.

    **Start**: ``"rllab"`` qpos + 0.01 N(0, 1) or ``"gymnasium"`` qpos + U(-0.1, 0.1), the quaternion normalised
    afterwards; qvel 0.1 N(0, 1).

    **Termination**: torso z outside [min_z, max_z], or a diverged simulation.

    Against Gymnasium and the ports on it: forces, velocities and positions belong to the state after the step, where
    theirs come from the integrator's last intermediate state; the survival bonus is paid on the last step too.
    """

    def __init__(self, constants: AntConstants, *, warm_start: bool, n_threads: int | None) -> None:
        choice("reference", "gymnasium")("physics", constants.physics)
        choice(*OBSERVATIONS)("observation", constants.observation)
        choice("com", "torso")("point", constants.point)
        if not constants.min_z < constants.max_z:
            raise ConfigError(f"min_z={shorten(constants.min_z)}: below max_z={shorten(constants.max_z)}")
        reference = constants.physics == "reference"
        super().__init__(
            ant_spec(constants.physics),
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

    def reward_terms(
        self, tasks: Tasks, before: np.ndarray, after: np.ndarray, actions: np.ndarray, sensed: Sensed | None
    ) -> dict[str, np.ndarray]:
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
        return terms

    def terminates(self, tasks: Tasks, after: np.ndarray) -> np.ndarray:
        z = after[:, 3]
        return np.asarray((z < self.constants.min_z) | (z > self.max_z(tasks)))

    def max_z(self, tasks: Tasks) -> float | np.ndarray:
        """Return the torso's height above which an episode terminates, m, for all tasks or ``[n]`` for each."""
        del tasks
        return self.constants.max_z

    @abstractmethod
    def forward_reward(self, tasks: Tasks, velocity: np.ndarray) -> np.ndarray:
        """Return the task's part of the reward, ``[n]``, for velocities ``[n, 2]``."""


_REFERENCE: dict[str, Any] = {
    "physics": "reference",
    "observation": 125,
    "point": "com",
    "control_cost": 0.005,
    "contact_cost": 0.0005,
    "survive_bonus": 0.05,
    "min_z": 0.2,
    "max_z": 1.0,
    "horizon": 200,
    "action_scale": 1.0,
    "reset_noise": "rllab",
}
_PORT = {**_REFERENCE, "physics": "gymnasium", "point": "torso", "reset_noise": "gymnasium"}
_GYMNASIUM = {**_PORT, "observation": 105, "control_cost": 0.5, "survive_bonus": 1.0, "horizon": 1000}
_L2L = {**_GYMNASIUM, "observation": 111, "min_z": 0.0, "horizon": 100}

VEL_LINEAGES = {
    "maml_rl": AntVelConstants(**_REFERENCE, goal_bonus=1.0, max_velocity=3.0),
    "s4": AntVelConstants(**_REFERENCE, goal_bonus=1.0, max_velocity=2.0),
    "pmr": AntVelConstants(**{**_PORT, "action_scale": 10.0, "horizon": 100}, goal_bonus=1.0, max_velocity=3.0),
    "cavia": AntVelConstants(**_PORT, goal_bonus=1.0, max_velocity=3.0),
    "gymnasium": AntVelConstants(**_GYMNASIUM, goal_bonus=0.0, max_velocity=3.0),
}
"""Constants of AntVel by lineage."""

DIR_LINEAGES = {
    "maml_rl": AntDirConstants(**_REFERENCE, directions="forward_backward"),
    "pmr": AntDirConstants(**{**_PORT, "action_scale": 10.0, "horizon": 100}, directions="forward_backward"),
    "cavia": AntDirConstants(**_PORT, directions="forward_backward"),
    "promp": AntDirConstants(**{**_L2L, "action_scale": 10.0}, directions="forward_backward"),
    "l2l": AntDirConstants(**_L2L, directions="forward_backward"),
    "gymnasium": AntDirConstants(**_GYMNASIUM, directions="forward_backward"),
}
"""Constants of AntDir by lineage."""


class AntVel(Ant):
    """AntVel-v0: run along x at the task's velocity.

    **Task** ``velocity``, m/s, uniform in [0, max_velocity]; the shifted split is the 1 m/s above that.

    **Reward** = ``reward_forward`` + ``reward_ctrl`` + ``reward_contact`` + ``reward_survive``, each in ``info``, with
    vx the velocity of the whole robot's centre of mass after the step (``point="com"``), or the torso's displacement
    over the step (``"torso"``), g the task, u the actions in [-1, 1] and f the contact observations:

    - ``reward_forward`` = goal_bonus - abs(vx - g)
    - ``reward_ctrl`` = -control_cost * sum(u^2)
    - ``reward_contact`` = -contact_cost * sum(f^2)
    - ``reward_survive`` = survive_bonus

    Action, observation, start and termination: :class:`Ant`.

    **Lineages** (the constants of a code base; every field of :class:`AntVelConstants` can be given by itself):

    | lineage | physics | observation | point | goals | goal, survive bonus | control cost | action_scale | horizon |
    |---|---|---|---|---|---|---|---|---|
    | ``maml_rl`` (default) | reference | 125 | com | U(0, 3) | 1, 0.05 | 0.005 | 1 | 200 |
    | ``s4`` | reference | 125 | com | U(0, 2) | 1, 0.05 | 0.005 | 1 | 200 |
    | ``pmr`` | gymnasium | 125 | torso | U(0, 3) | 1, 0.05 | 0.005 | 10 | 100 |
    | ``cavia`` | gymnasium | 125 | torso | U(0, 3) | 1, 0.05 | 0.005 | 1 | 200 |
    | ``gymnasium`` | gymnasium | 105 | torso | U(0, 3) | 0, 1 | 0.5 | 1 | 1000 |

    All have contact cost 0.0005, z in [0.2, 1] m, and the reset noise that goes with their physics.

    | lineage | source, and what it compares with |
    |---|---|
    | ``maml_rl`` | code of Finn et al. 2017, the table below |
    | ``s4`` | the goals that the first-order meta-RL paper's text states; curves only |
    | ``pmr`` | configurations of pytorch-maml-rl, whose author could not reproduce MAML's numbers with them; no table |
    | ``cavia`` | CAVIA's code; no table |
    | ``gymnasium`` | Ant-v5's costs, bonus and observation, with a target velocity; no table |

    Published returns of ``maml_rl`` (40 goals, one training seed; the oracle, which is told the goal, reaches 107.9):

    | gradient steps | 0 | 1 | 2 | 3 |
    |---|---|---|---|---|
    | MAML | 30.6 | 96.7 | 100.1 | 101.4 |
    | pretrained on all goals | -1.8 | 6.1 | 8.5 | 9.5 |
    | random initialisation | -78.6 | -62.8 | -48.6 | -35.6 |

    Returns of different physics, horizons or bonuses do not compare. With the default, ignoring costs: standing still
    earns -90, the best constant speed (1.5 m/s) 60, perfect tracking 210.

    :param lineage: where constants come from.
    :param warm_start: see :class:`~metarl.envs.mujoco.physics.MujocoFamily`.
    :param n_threads: physics threads, None for every core.
    :param constants: fields of :class:`AntVelConstants` that differ from the lineage's.

    Version history: v0, first version.
    """

    def __init__(
        self, lineage: str = "maml_rl", *, warm_start: bool = False, n_threads: int | None = None, **constants: Any
    ) -> None:
        chosen = choose_constants(VEL_LINEAGES, lineage, constants, "AntVel")
        high = chosen.max_velocity
        ABOVE_ZERO("max_velocity", high)
        super().__init__(chosen, warm_start=warm_start, n_threads=n_threads)
        self._goal_bonus = chosen.goal_bonus
        self.task_space = Dict({"velocity": Box(0.0, high, shape=(), dtype=np.float64)})
        self.shifted_space = Dict({"velocity": Box(high, high + 1.0, shape=(), dtype=np.float64)})

    def forward_reward(self, tasks: Tasks, velocity: np.ndarray) -> np.ndarray:
        return np.asarray(self._goal_bonus - np.abs(velocity[:, 0] - tasks["velocity"]))


class AntDir(Ant):
    """AntDir-v0: run as fast as possible in the task's direction.

    **Task**, by ``directions``: ``"forward_backward"``: ``direction``, -1 or +1 along x, equally likely; the only two
    tasks, so training, validation and test tasks coincide. ``"any"``: ``angle``, rad, uniform in [-pi, pi], 0 is +x.

    **Reward** = ``reward_forward`` + ``reward_ctrl`` + ``reward_contact`` + ``reward_survive``, each in ``info``:
    ``reward_forward`` is the velocity in the task's direction, m/s; everything else as in :class:`AntVel` and
    :class:`Ant`.

    **Lineages** (every field of :class:`AntDirConstants` can be given by itself):

    | lineage | physics | observation | point | survive bonus | control cost | z, m | action_scale | horizon |
    |---|---|---|---|---|---|---|---|---|
    | ``maml_rl`` (default) | reference | 125 | com | 0.05 | 0.005 | 0.2 to 1 | 1 | 200 |
    | ``pmr`` | gymnasium | 125 | torso | 0.05 | 0.005 | 0.2 to 1 | 10 | 100 |
    | ``cavia`` | gymnasium | 125 | torso | 0.05 | 0.005 | 0.2 to 1 | 1 | 200 |
    | ``promp`` | gymnasium | 111 | torso | 1 | 0.5 | 0 to 1 | 10 | 100 |
    | ``l2l`` | gymnasium | 111 | torso | 1 | 0.5 | 0 to 1 | 1 | 100 |
    | ``gymnasium`` | gymnasium | 105 | torso | 1 | 0.5 | 0.2 to 1 | 1 | 1000 |

    All have contact cost 0.0005 and the reset noise that goes with their physics.

    | lineage | source, and what it compares with |
    |---|---|
    | ``maml_rl`` | code of Finn et al. 2017, the table below |
    | ``pmr``, ``cavia`` | configurations of pytorch-maml-rl; CAVIA's code; no tables |
    | ``promp``, ``l2l`` | ProMP's code, curves only; learn2learn's; with ``directions="any"`` their 2-D tasks |
    | ``gymnasium`` | direction +1 is Ant-v5 |

    Published returns of ``maml_rl`` (one training seed; the oracle, which is told the direction, reaches 524.8):

    | gradient steps | 0 | 1 | 2 | 3 |
    |---|---|---|---|---|
    | MAML, 40 rollouts | 8.7 | 499.2 | 500.7 | 499.1 |
    | MAML, 20 rollouts | 12.9 | 434.4 | 425.6 | 411.8 |
    | pretrained on both | 3.2 | 1.3 | 6.5 | 6.9 |
    | random initialisation | 3.1 | 9.3 | 16.0 | 26.1 |

    :param lineage: where constants come from.
    :param warm_start: see :class:`~metarl.envs.mujoco.physics.MujocoFamily`.
    :param n_threads: physics threads, None for every core.
    :param constants: fields of :class:`AntDirConstants` that differ from the lineage's.

    Version history: v0, first version.
    """

    def __init__(
        self, lineage: str = "maml_rl", *, warm_start: bool = False, n_threads: int | None = None, **constants: Any
    ) -> None:
        chosen = choose_constants(DIR_LINEAGES, lineage, constants, "AntDir")
        choice("forward_backward", "any")("directions", chosen.directions)
        super().__init__(chosen, warm_start=warm_start, n_threads=n_threads)
        self._any = chosen.directions == "any"
        if self._any:
            self.task_space = Dict({"angle": Box(-np.pi, np.pi, shape=(), dtype=np.float64)})
        else:
            self.task_space = Dict({"direction": Box(-1.0, 1.0, shape=(), dtype=np.float64)})

    def finite_tasks(self) -> Tasks | None:
        return None if self._any else {"direction": np.array([-1.0, 1.0])}

    def forward_reward(self, tasks: Tasks, velocity: np.ndarray) -> np.ndarray:
        if self._any:
            angle = tasks["angle"]
            return np.asarray(np.cos(angle) * velocity[:, 0] + np.sin(angle) * velocity[:, 1])
        return np.asarray(tasks["direction"] * velocity[:, 0])


register_family("AntVel-v0", AntVel)
register_family("AntDir-v0", AntDir)
