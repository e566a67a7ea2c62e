"""The Ant with legs of other lengths, one compiled model for each task (AntLeg)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict

from metarl.checks import choice, number
from metarl.envs.lineage import choose_constants
from metarl.envs.mujoco.ant import Ant, AntConstants, ant_spec
from metarl.envs.mujoco.bindings import mujoco
from metarl.envs.mujoco.models import Blueprint, KeptModels, Model
from metarl.envs.registry import register_family
from metarl.envs.supervised.random_steps import RandomSteps
from metarl.envs.tasks import Tasks
from metarl.errors import ConfigError, shorten
from metarl.processes import ProcessLocal

LEGS = ("front_left", "front_right", "back_left", "back_right")
UPPER_LEG, ANKLE = 0.2, 0.4
"""The lengths of Gymnasium's Ant, m along x and along y."""
OBSERVATIONS = (111, 105, 27)


@dataclass(frozen=True, kw_only=True)
class AntLegConstants(AntConstants):
    """Constants of AntLeg."""

    min_length: float
    """Shortest upper leg and ankle, m along x and along y; at least 0.05."""
    max_length: float
    """Longest ones; at most 0.9: feet of longer ones start in the ground."""
    each_leg: bool
    """Whether each of the four legs has lengths of its own."""
    pose: str
    """``"bent"``: episodes start with ankles bent by 30 degrees, the least that their joints allow; or ``"straight"``:
    with straight legs, as Gymnasium's do, from where joints throw long legs up."""
    corners: str
    """``"shifted"``: training leaves out the corners of the square of lengths, which are the shifted split; or
    ``"trained"``: training takes the whole square, and there is no shifted split."""


def leg_models(physics: str, warm_start: bool, root: str | None, contact_forces: bool) -> KeptModels:
    """Return the Ants of one process, by lengths ``[task, leg, (upper leg, ankle)]``.

    :param physics: ``"reference"`` or ``"gymnasium"``.
    :param warm_start: see :class:`~metarl.envs.mujoco.models.Blueprint`, as the next two.
    """
    spec = ant_spec(physics)
    # What only pictures show takes 95 % of a model's memory.
    for geom in spec.geoms:
        geom.material = ""
    for part in (*spec.materials, *spec.textures):
        spec.delete(part)
    return KeptModels(Blueprint(spec, warm_start, root, contact_forces), set_lengths)


def set_lengths(spec: mujoco.MjSpec, lengths: np.ndarray) -> None:
    """Give an Ant other legs; joints, and masses and inertias with the next compilation, follow.

    :param lengths: ``[leg, (upper leg, ankle)]``, m along x and along y, of the legs in :data:`LEGS`.
    """
    for leg, (upper, ankle) in enumerate(lengths.tolist(), start=1):
        hip = spec.body(f"aux_{leg}")
        knee = hip.bodies[0]
        side = np.sign(hip.pos[:2])
        hip.geoms[0].fromto[3:5] = knee.pos[:2] = upper * side
        knee.geoms[0].fromto[3:5] = ankle * side


class AntLeg(Ant):
    """AntLeg-v0: run along x, as far as possible, with legs whose lengths are the task.

    **Task**: ``upper_leg`` (from hip to knee) and ``ankle`` (from knee to foot), the same for all four legs, or with
    ``each_leg`` ``[4]`` of the legs front left, front right, back left, back right. The unit is that of Gymnasium's
    file: m along x and along y, so that the segment is sqrt(2) times as long. The Ant has 0.2 and 0.4. What joins hip
    and torso stays as it is. Each task has a model of its own, in which masses, inertias and joints follow.

    A leg's pair of lengths lies in the square [min_length, max_length]^2. Training, validation and test tasks are
    uniform in the circle inscribed in it (79 % of the square); the *shifted* split is uniform in the corners outside
    the circle, the part farthest from the middle. With ``each_leg`` that holds for every leg. With
    ``corners="trained"`` tasks are uniform in the square, and there is no shifted split.

    **Reward** = ``reward_forward`` + ``reward_ctrl`` + ``reward_contact`` + ``reward_survive``, each in ``info``, as
    forward in :class:`~metarl.envs.mujoco.ant.AntDir`: ``reward_forward`` is the velocity along x, m/s. Without
    ``contact_cost`` there is no ``reward_contact``.

    **Start**: z = 0.75 m, up to 0.92 where max_length is above 0.67, with ankles bent by 30 degrees, the least that
    their joints allow (``pose="bent"``), or straight, as Gymnasium's Ant starts (``"straight"``), from where its joints
    throw long legs up; then the reset noise. It is the same for all tasks, and feet start above the ground, so that the
    first observation does not tell lengths (with both: bent legs and Gymnasium's noise, long ones may touch it).

    **Termination**: torso z outside [min_z, max_z + rise], where the rise is sqrt(2) times what the longest ankle has
    more than the Ant's: long legs stand higher. Or a diverged simulation.

    Action, observation (without 125, whose centre of mass tells the lengths) and physics:
    :class:`~metarl.envs.mujoco.ant.Ant`.

    **Support.** ``support_family``: what wrappers that transfer see of a task are env steps of a policy that draws each
    action uniformly, (observation, action) and the next observation.

    **Lineages** (every field of :class:`AntLegConstants` can be given by itself):

    | | ``s0`` (default) | ``gymnasium`` | the meta-transfer paper (S0) says |
    |---|---|---|---|
    | physics | gymnasium | gymnasium | "the Mujoco Ant environment" |
    | lengths | U(0.2, 0.6), corners shifted | the same | U(0.2, 0.6), "adjustment the same for four legs"; no split |
    | tasks | fresh draws, and fixed lists | the same | 100 |
    | goal | velocity along x | the same | "walk as far as possible in the x-direction", stable |
    | control cost | 0.005 | 0.5 | not stated |
    | contact cost | 0 | 0.0005 | not stated |
    | survive bonus | 0.05 | 1 | not stated |
    | z, m | 0.2 to 1 | 0.2 to 1 | not stated |
    | observation | 27 | 105 | not stated |
    | horizon | 200 (10 s) | 1000 | not stated |
    | pose; reset noise | bent; rllab | straight; gymnasium | not stated |

    ``s0`` has the weights of the MAML line's AntDir on Gymnasium's robot, with which policies learn to walk before they
    learn to stand still; without contact terms a step takes no second evaluation. With ``corners="trained"`` tasks are
    S0's. Its table 2 ("final reward after one episode", 3.9 to 4.4, unit not stated) does not compare. ``gymnasium``
    at 0.2 and 0.4 is Ant-v5.

    Longer legs are heavier: the robot has 0.91 kg at the Ant's lengths, 0.80 to 1.25 kg at the square's ends. Compiling
    takes 1 to 2 ms a task. The models of the last 256 tasks are kept, 0.2 MB each, more only where a batch has more:
    1,000 tasks one after another take 50 MB, 1,000 side by side 210.

    :param lineage: where constants come from.
    :param warm_start: see :class:`~metarl.envs.mujoco.physics.MujocoFamily`.
    :param n_threads: physics threads, None for every core.
    :param support_noise: σ of the normal deviate that is added to each number of a next observation that is seen.
    :param constants: fields of :class:`AntLegConstants` that differ from the lineage's.

    Version history: v0, first version.
    """

    def __init__(
        self,
        lineage: str = "s0",
        *,
        warm_start: bool = False,
        n_threads: int | None = None,
        support_noise: float = 0.0,
        **constants: Any,
    ) -> None:
        chosen = choose_constants(LINEAGES, lineage, constants, "AntLeg")
        choice(*OBSERVATIONS)("observation", chosen.observation)
        choice("bent", "straight")("pose", chosen.pose)
        choice("shifted", "trained")("corners", chosen.corners)
        low, high = (_LENGTH(name, getattr(chosen, name)) for name in ("min_length", "max_length"))
        if not low < high:
            raise ConfigError(f"min_length={shorten(low)}: below max_length={shorten(high)}")
        super().__init__(chosen, warm_start=warm_start, n_threads=n_threads)
        self._init_qpos = _start(self.model.step, chosen)
        self._middle, self._half = (high + low) / 2, (high - low) / 2
        shape = (len(LEGS),) if chosen.each_leg else ()
        length = Box(low, high, shape=shape, dtype=np.float64)
        self.task_space = Dict({"upper_leg": length, "ankle": length})
        if chosen.corners == "shifted":
            self.shifted_space = self.task_space
        self.support_family = RandomSteps("AntLeg-v0/support", self, "observation", support_noise)
        root = self._root if self._senses else None
        self._models: ProcessLocal[KeptModels] = ProcessLocal(
            partial(leg_models, chosen.physics, self.warm_start, root, self._contact_forces)
        )

    # ----------------------------------------------------------------------------------------------------------- tasks
    def sample_tasks(self, rng: np.random.Generator, n: int) -> Tasks:
        """Draw tasks uniformly from the circle, or from the square; see the class."""
        shape = (n, *self._shape)
        if self.shifted_space is None:
            return self._tasks(rng.uniform(-1.0, 1.0, (*shape, 2)))
        radius, angle = np.sqrt(rng.random(shape)), rng.uniform(-np.pi, np.pi, shape)
        return self._tasks(np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1))

    def sample_shifted_tasks(self, rng: np.random.Generator, n: int) -> Tasks:
        """Draw tasks uniformly from the corners of the square outside the circle."""
        points = np.zeros((n, *self._shape, 2))
        for point in points.reshape(-1, 2):
            # A fifth of the square is corners: a few draws suffice.
            while point @ point <= 1.0:
                point[:] = rng.uniform(-1.0, 1.0, 2)
        return self._tasks(points)

    def in_training_range(self, tasks: Tasks) -> np.ndarray:
        if self.shifted_space is None:
            return super().in_training_range(tasks)
        points = (np.stack([tasks["upper_leg"], tasks["ankle"]], axis=-1) - self._middle) / self._half
        # Rounding may put what was drawn on the circle beside it.
        within = (points**2).sum(-1) <= 1.0 + 1e-9
        return np.asarray(within.reshape(len(within), -1).all(1))

    @property
    def _shape(self) -> tuple[int, ...]:
        return self.task_space["upper_leg"].shape or ()

    def _tasks(self, points: np.ndarray) -> Tasks:
        """Return the tasks at points of the square [-1, 1]^2, ``[task, 2]`` or ``[task, leg, 2]``."""
        lengths = np.clip(self._middle + self._half * points, self._middle - self._half, self._middle + self._half)
        return {"upper_leg": lengths[..., 0], "ankle": lengths[..., 1]}

    # -------------------------------------------------------------------------------------------------------- dynamics
    def lengths(self, tasks: Tasks) -> np.ndarray:
        """Return the lengths of tasks, ``[task, leg, (upper leg, ankle)]``."""
        pairs = np.stack([tasks["upper_leg"], tasks["ankle"]], axis=-1).reshape(len(tasks["ankle"]), -1, 2)
        return np.ascontiguousarray(np.broadcast_to(pairs, (len(pairs), len(LEGS), 2)))

    def models(self, tasks: Tasks) -> list[Model]:
        return self._models.get()(self.lengths(tasks))

    def drawn(self, tasks: Tasks, task: int) -> mujoco.MjModel:
        spec = ant_spec(self.constants.physics)
        set_lengths(spec, self.lengths(tasks)[task])
        return spec.compile()

    def max_z(self, tasks: Tasks) -> np.ndarray:
        longest = tasks["ankle"].reshape(len(tasks["ankle"]), -1).max(axis=1)
        return np.asarray(self.constants.max_z + np.sqrt(2.0) * np.maximum(longest - ANKLE, 0.0))

    def forward_reward(self, tasks: Tasks, velocity: np.ndarray) -> np.ndarray:
        return velocity[:, 0].copy()


def _start(model: mujoco.MjModel, constants: AntLegConstants) -> np.ndarray:
    """Return the positions that episodes start at, the same for all tasks."""
    start = np.array(model.qpos0)
    if constants.pose == "bent":
        ranges = model.jnt_range[2::2]
        start[8::2] = np.where(ranges[:, 0] > 0, ranges[:, 0], ranges[:, 1])
        start[2] = max(start[2], np.sqrt(2.0) * constants.max_length * np.sin(0.55) + 0.25)
    return start


_LENGTH = number("[0.05, 0.9]")

_S0: dict[str, Any] = {
    "physics": "gymnasium",
    "observation": 27,
    "point": "torso",
    "control_cost": 0.005,
    "contact_cost": 0.0,
    "survive_bonus": 0.05,
    "min_z": 0.2,
    "max_z": 1.0,
    "horizon": 200,
    "action_scale": 1.0,
    "reset_noise": "rllab",
    "min_length": 0.2,
    "max_length": 0.6,
    "each_leg": False,
    "pose": "bent",
    "corners": "shifted",
}
_GYMNASIUM = {
    **_S0,
    "observation": 105,
    "control_cost": 0.5,
    "contact_cost": 0.0005,
    "survive_bonus": 1.0,
    "horizon": 1000,
    "reset_noise": "gymnasium",
    "pose": "straight",
}

LINEAGES = {"s0": AntLegConstants(**_S0), "gymnasium": AntLegConstants(**_GYMNASIUM)}
"""Constants of AntLeg by lineage."""

register_family("AntLeg-v0", AntLeg)
