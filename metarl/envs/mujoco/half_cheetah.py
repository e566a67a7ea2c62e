"""The HalfCheetah: a planar runner at a given speed (HalfCheetahVel) or in a given direction (HalfCheetahDir)."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict

from metarl.checks import ABOVE_ZERO, choice
from metarl.envs.lineage import choose_constants
from metarl.envs.mujoco.bindings import mujoco
from metarl.envs.mujoco.models import Model, gymnasium_spec
from metarl.envs.mujoco.physics import Constants, MujocoFamily
from metarl.envs.mujoco.rows import Sensed
from metarl.envs.registry import register_family
from metarl.envs.tasks import Tasks

OBSERVATIONS = (20, 17)


@dataclass(frozen=True, kw_only=True)
class HalfCheetahVelConstants(Constants):
    """Constants of HalfCheetahVel; see :class:`~metarl.envs.mujoco.physics.Constants` for the rest."""

    max_velocity: float
    """Target velocities are uniform in [0, max_velocity], m/s."""


class PlanarCentreOfMass:
    """The centre of mass of a robot that moves in the x-z plane on two slides and y-hinges, in closed form.

    A body at angle φ adds ``R(φ) c`` with a constant ``c``: its own mass and the joints it carries, relative to its
    own joint. So position and velocity take one sine and one cosine a body instead of a sense model's evaluation.

    :param model: bodies in order, the first with slides along x and z and a hinge, the others with a hinge each.
    """

    def __init__(self, model: mujoco.MjModel) -> None:
        mass, subtree = model.body_mass[1:], model.body_subtreemass[1:]
        lever = mass[:, None] * model.body_ipos[1:]
        self._parents = [int(parent) - 1 for parent in model.body_parentid[2:]]
        for body, parent in enumerate(self._parents, start=1):
            lever[parent] += subtree[body] * model.body_pos[body + 1]
        self._x, self._z = lever[:, :1] / subtree[0], lever[:, 2:] / subtree[0]
        self._origin = model.body_pos[1].copy()

    def __call__(self, qpos: np.ndarray, qvel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return position (m) and velocity (m/s), ``[n, 3]`` each."""
        # Sums over bodies, not matrix products: those round differently for different n.
        angle, rate = qpos[:, 2:].T.copy(), qvel[:, 2:].T.copy()
        for body, parent in enumerate(self._parents, start=1):
            angle[body] += angle[parent]
            rate[body] += rate[parent]
        cos, sin = np.cos(angle), np.sin(angle)
        ahead, above = cos * self._x + sin * self._z, cos * self._z - sin * self._x
        position, velocity = np.zeros((len(qpos), 3)), np.zeros((len(qpos), 3))
        position[:, 0] = self._origin[0] + qpos[:, 0] + ahead.sum(axis=0)
        position[:, 2] = self._origin[2] + qpos[:, 1] + above.sum(axis=0)
        velocity[:, 0] = qvel[:, 0] + (rate * above).sum(axis=0)
        velocity[:, 2] = qvel[:, 1] - (rate * ahead).sum(axis=0)
        return position, velocity


class HalfCheetah(MujocoFamily):
    """What the HalfCheetah families share: the robot, its observation and control cost.

    The robot: a torso with head and two legs of three segments in the x-z plane, 14 kg, 9 degrees of freedom, 6 motors
    (120, 90, 60, 120, 60 and 30 N m at full action).

    **Action** ``Box(-action_scale, action_scale, (6,))``: torques as parts of the motors' maximum, divided by
    ``action_scale`` and clipped to [-1, 1].

    **Observation** ``Box(-inf, inf, (observation,))``, float32, of the state after the step:

    | part | unit | 20 | 17 |
    |---|---|---|---|
    | torso z (relative to 0.7 m) and pitch; 6 joint angles | m, rad | 8 | 8 |
    | velocities: torso x and z, pitch; joints | m/s, rad/s | 9 | 9 |
    | x, y, z of the whole robot's centre of mass (``point="com"``) or of the torso (``"torso"``) | m | 3 | |

    **Physics**: one robot, Gymnasium's HalfCheetah-v5, with a time step of 0.01 s; ``"reference"`` takes one step an
    env step, ``"gymnasium"`` five.

    **Start**: ``"rllab"`` qpos + 0.01 N(0, 1) or ``"gymnasium"`` qpos + U(-0.1, 0.1); qvel 0.1 N(0, 1).

    **Termination**: never, unless the simulation diverges.
    """

    def __init__(self, constants: Constants, *, warm_start: bool, n_threads: int | None) -> None:
        choice("reference", "gymnasium")("physics", constants.physics)
        choice(*OBSERVATIONS)("observation", constants.observation)
        choice("com", "torso")("point", constants.point)
        super().__init__(
            gymnasium_spec("half_cheetah.xml"),
            frame_skip=1 if constants.physics == "reference" else 5,
            horizon=constants.horizon,
            action_scale=constants.action_scale,
            reset_noise=constants.reset_noise,
            warm_start=warm_start,
            n_threads=n_threads,
        )
        self.constants = constants
        self.observation_space = Box(-np.inf, np.inf, shape=(constants.observation,), dtype=np.float32)
        self._com = PlanarCentreOfMass(self.model.step)

    def compile(self, spec: mujoco.MjSpec) -> Model:
        # The asset sets its total mass through a compiler attribute that MuJoCo has deprecated.
        mass, spec.compiler.settotalmass = spec.compiler.settotalmass, -1.0
        model = super().compile(spec)
        mujoco.mj_setTotalmass(model.step, mass)
        mujoco.mj_setConst(model.step, mujoco.MjData(model.step))
        return model

    def observe(self, physics: np.ndarray, sensed: Sensed | None) -> np.ndarray:
        if self.constants.observation == 17:
            return physics[:, 2:19].astype(np.float32)
        obs = np.empty((len(physics), 20), dtype=np.float32)
        obs[:, :17] = physics[:, 2:19]
        if self.constants.point == "com":
            obs[:, 17:] = self._com(self.qpos(physics), self.qvel(physics))[0]
        else:
            obs[:, 17:] = self.model.step.body_pos[1]
            obs[:, 17] += physics[:, 1]
            obs[:, 19] += physics[:, 2]
        return obs

    def reward_terms(
        self, tasks: Tasks, before: np.ndarray, after: np.ndarray, actions: np.ndarray, sensed: Sensed | None
    ) -> dict[str, np.ndarray]:
        if self.constants.point == "com":
            velocity = self._com(self.qpos(after), self.qvel(after))[1][:, 0]
        else:
            velocity = (after[:, 1] - before[:, 1]) / self.dt
        return {
            "reward_forward": self.forward_reward(tasks, velocity),
            "reward_ctrl": -self.constants.control_cost * np.einsum("na,na->n", actions, actions),
        }

    @abstractmethod
    def forward_reward(self, tasks: Tasks, velocity: np.ndarray) -> np.ndarray:
        """Return the task's part of the reward, ``[n]``, for velocities along x ``[n]``."""


_REFERENCE: dict[str, Any] = {
    "physics": "reference",
    "observation": 20,
    "point": "com",
    "control_cost": 0.05,
    "horizon": 200,
    "action_scale": 1.0,
    "reset_noise": "rllab",
}
_PORT = {**_REFERENCE, "physics": "gymnasium", "point": "torso", "reset_noise": "gymnasium"}
_SCALED = {**_PORT, "action_scale": 10.0, "horizon": 100}
_PROMP = {**_SCALED, "observation": 17}
_GYMNASIUM = {**_PORT, "observation": 17, "control_cost": 0.1, "horizon": 1000}

VEL_LINEAGES = {
    "maml_rl": HalfCheetahVelConstants(**_REFERENCE, max_velocity=2.0),
    "pmr": HalfCheetahVelConstants(**_SCALED, max_velocity=2.0),
    "garage": HalfCheetahVelConstants(**_SCALED, max_velocity=2.0),
    "cavia": HalfCheetahVelConstants(**_PORT, max_velocity=2.0),
    "promp": HalfCheetahVelConstants(**_PROMP, max_velocity=3.0),
    "gymnasium": HalfCheetahVelConstants(**_GYMNASIUM, max_velocity=2.0),
}
"""Constants of HalfCheetahVel by lineage."""

DIR_LINEAGES = {
    "maml_rl": Constants(**_REFERENCE),
    "pmr": Constants(**_SCALED),
    "garage": Constants(**_SCALED),
    "cavia": Constants(**_PORT),
    "promp": Constants(**_PROMP),
    "gymnasium": Constants(**_GYMNASIUM),
}
"""Constants of HalfCheetahDir by lineage."""


class HalfCheetahVel(HalfCheetah):
    """HalfCheetahVel-v0: run along x at the task's velocity.

    **Task** ``velocity``, m/s, uniform in [0, max_velocity]; the shifted split is the 1 m/s above that.

    **Reward** = ``reward_forward`` + ``reward_ctrl``, each in ``info``, with vx the velocity of the whole robot's
    centre of mass after the step (``point="com"``), or the torso's displacement over the step (``"torso"``), g the
    task and u the actions in [-1, 1]:

    - ``reward_forward`` = -abs(vx - g)
    - ``reward_ctrl`` = -control_cost * sum(u^2)

    Action, observation, start and termination: :class:`HalfCheetah`.

    **Lineages** (the constants of a code base; every field of :class:`HalfCheetahVelConstants` can be given by itself):

    | lineage | physics | observation | point | goals | control cost | action_scale | horizon |
    |---|---|---|---|---|---|---|---|
    | ``maml_rl`` (default) | reference | 20 | com | U(0, 2) | 0.05 | 1 | 200 |
    | ``pmr`` | gymnasium | 20 | torso | U(0, 2) | 0.05 | 10 | 100 |
    | ``garage`` | gymnasium | 20 | torso | U(0, 2) | 0.05 | 10 | 100 |
    | ``cavia`` | gymnasium | 20 | torso | U(0, 2) | 0.05 | 1 | 200 |
    | ``promp`` | gymnasium | 17 | torso | U(0, 3) | 0.05 | 10 | 100 |
    | ``gymnasium`` | gymnasium | 17 | torso | U(0, 2) | 0.1 | 1 | 1000 |

    All have the reset noise that goes with their physics.

    | lineage | source, and what it compares with |
    |---|---|
    | ``maml_rl`` | code of Finn et al. 2017, the table below |
    | ``pmr`` | configurations of pytorch-maml-rl; ANIL's table: MAML -139.0, ANIL -120.9 |
    | ``garage``, ``cavia``, ``promp`` | garage's examples; CAVIA's and ProMP's code, curves only |
    | ``gymnasium`` | HalfCheetah-v5's cost and observation, with a target velocity; no table |

    Published returns of ``maml_rl`` (40 goals, one training seed; the oracle, which is told the goal, reaches -54.5):

    | gradient steps | 0 | 1 | 2 | 3 |
    |---|---|---|---|---|
    | MAML | -129.5 | -78.6 | -66.6 | -60.8 |
    | pretrained on all goals | -158.0 | -135.4 | -128.5 | -133.6 |
    | random initialisation | -254.8 | -254.3 | -246.8 | -230.8 |

    Returns of different physics or horizons do not compare. With the default, ignoring costs: standing still earns
    -200, the best constant speed (1 m/s) -100.

    :param lineage: where constants come from.
    :param warm_start: see :class:`~metarl.envs.mujoco.physics.MujocoFamily`.
    :param n_threads: physics threads, None for every core.
    :param constants: fields of :class:`HalfCheetahVelConstants` that differ from the lineage's.

    Version history: v0, first version.
    """

    def __init__(
        self, lineage: str = "maml_rl", *, warm_start: bool = False, n_threads: int | None = None, **constants: Any
    ) -> None:
        chosen = choose_constants(VEL_LINEAGES, lineage, constants, "HalfCheetahVel")
        high = chosen.max_velocity
        ABOVE_ZERO("max_velocity", high)
        super().__init__(chosen, warm_start=warm_start, n_threads=n_threads)
        self.task_space = Dict({"velocity": Box(0.0, high, shape=(), dtype=np.float64)})
        self.shifted_space = Dict({"velocity": Box(high, high + 1.0, shape=(), dtype=np.float64)})

    def forward_reward(self, tasks: Tasks, velocity: np.ndarray) -> np.ndarray:
        return np.asarray(-np.abs(velocity - tasks["velocity"]))


class HalfCheetahDir(HalfCheetah):
    """HalfCheetahDir-v0: run as fast as possible forward or backward.

    **Task** ``direction``, -1 or +1 along x, equally likely; the only two tasks, so training, validation and test tasks
    coincide.

    **Reward** = ``reward_forward`` (the velocity in the task's direction, m/s) + ``reward_ctrl``, each in ``info``;
    everything else as in :class:`HalfCheetahVel` and :class:`HalfCheetah`.

    **Lineages**: those of :class:`HalfCheetahVel`, with the same constants but for the goals. They compare with:

    | lineage | compares with |
    |---|---|
    | ``maml_rl`` (default) | the table below |
    | ``pmr`` | ANIL's table: MAML 170.4, ANIL 363.2 |
    | ``garage``, ``cavia``, ``promp`` | curves only |
    | ``gymnasium`` | direction +1 is HalfCheetah-v5 |

    Published returns of ``maml_rl`` (one training seed; the oracle, which is told the direction, reaches 442.7):

    | gradient steps | 0 | 1 | 2 | 3 |
    |---|---|---|---|---|
    | MAML | -50.7 | 293.2 | 313.5 | 315.7 |
    | pretrained on both | -43.0 | -24.8 | -12.9 | 19.6 |
    | random initialisation | -35.7 | 21.8 | 62.3 | 86.2 |

    :param lineage: where constants come from.
    :param warm_start: see :class:`~metarl.envs.mujoco.physics.MujocoFamily`.
    :param n_threads: physics threads, None for every core.
    :param constants: fields of :class:`~metarl.envs.mujoco.physics.Constants` that differ from the lineage's.

    Version history: v0, first version.
    """

    def __init__(
        self, lineage: str = "maml_rl", *, warm_start: bool = False, n_threads: int | None = None, **constants: Any
    ) -> None:
        chosen = choose_constants(DIR_LINEAGES, lineage, constants, "HalfCheetahDir")
        super().__init__(chosen, warm_start=warm_start, n_threads=n_threads)
        self.task_space = Dict({"direction": Box(-1.0, 1.0, shape=(), dtype=np.float64)})

    def finite_tasks(self) -> Tasks:
        return {"direction": np.array([-1.0, 1.0])}

    def forward_reward(self, tasks: Tasks, velocity: np.ndarray) -> np.ndarray:
        return np.asarray(tasks["direction"] * velocity)


register_family("HalfCheetahVel-v0", HalfCheetahVel)
register_family("HalfCheetahDir-v0", HalfCheetahDir)
