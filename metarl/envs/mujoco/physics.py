"""Batched MuJoCo: every copy of every task advances in one call of :mod:`mujoco.rollout`.

The state of a copy is MuJoCo's own physics state, so a result depends on that state and the action alone: not on the
number of threads, not on the other copies in the batch. What a step reports (observation, reward, contact forces)
belongs to the state after the step; where that takes more than positions and velocities, a *sense* model evaluates
the new state once, with the same controls.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NamedTuple

import gymnasium
import numpy as np

from metarl.checks import ABOVE_ZERO, COUNT, SWITCH
from metarl.envs.family import Family, State, Step
from metarl.envs.mujoco.bindings import Rollout, mujoco
from metarl.envs.mujoco.models import Blueprint, Model
from metarl.envs.mujoco.pictures import draw_robot
from metarl.envs.tasks import Tasks, n_tasks
from metarl.errors import unknown_name
from metarl.processes import NATIVE_WORK, ProcessLocal

_MAX_VALUE = 1e10
"""MuJoCo's own limit on positions, velocities and accelerations (mjMAXVAL)."""


class Sensed(NamedTuple):
    """What the sense model says about a state, for ``n`` copies."""

    com: np.ndarray
    """``[n, 3]``: centre of mass of the whole robot, m."""
    com_velocity: np.ndarray
    """``[n, 3]``: its velocity, m/s."""
    rotation: np.ndarray
    """``[n, 9]``: rotation matrix of the root body, row by row."""
    contact: np.ndarray
    """``[n, (body - 1) * 6]``: contact torque (N m) and force (N) on every body but the world, as MuJoCo's
    ``cfrc_ext``: world axes, torque about the robot's centre of mass; clipped to the family's ``contact_limit``. Empty
    for families without contact forces."""


class _Pool:
    """A thread pool with its scratch data: used by one caller at a time."""

    def __init__(self, n_threads: int) -> None:
        self.n_threads = n_threads
        # Without a pool, rollouts run on the calling thread: no hand-over to a lone worker.
        self.rollout = Rollout(nthread=n_threads if n_threads > 1 else 0)
        self._data: dict[tuple[int, ...], list[mujoco.MjData]] = {}

    def run(
        self,
        models: list[mujoco.MjModel],
        n_steps: int,
        physics: np.ndarray,
        controls: np.ndarray,
        out: Mapping[str, np.ndarray],
    ) -> None:
        first = models[0]
        sizes = (first.nq, first.nv, first.nu, first.nbody, first.ngeom, first.nsensordata, first.narena)
        if sizes not in self._data:
            self._data[sizes] = [mujoco.MjData(first) for _ in range(self.n_threads)]
        # MuJoCo's own choice for a few rows hands them out one by one, and wakes a thread for each.
        chunk = max(len(models) // (10 * self.n_threads), min(4, -(-len(models) // self.n_threads)))
        self.rollout.rollout(
            models, self._data[sizes], physics, controls, skip_checks=True, nstep=n_steps, chunk_size=chunk, **out
        )

    def close(self) -> None:
        self.rollout.close()


class MujocoFamily(Family):
    """Base of the MuJoCo families.

    The state is a dict of ``physics`` ``[task, env, n]`` (MuJoCo's FULLPHYSICS: time, qpos, qvel, act) and
    ``diverged`` ``[task, env]``. A copy whose step leaves any position or velocity non-finite or beyond 1e10
    (where MuJoCo would reset it by itself) is *diverged*: its physics stays at the last finite state, observation
    and reward are those of that state, the episode terminates and ``state["diverged"]`` is True. So a simulation
    that blows up never puts NaN into a batch; a NaN in an action does reach the reward.

    :param spec: the robot; sensors and flags are added here, so the spec is used up.
    :param frame_skip: physics steps in an env step; the same controls are held.
    :param horizon: longest episode, env steps.
    :param action_scale: actions lie in ``[-action_scale, action_scale]``, mapped linearly to the motors' range.
    :param init_qpos: where episodes start; None for the model's own pose.
    :param reset_noise: ``"rllab"`` (qpos + 0.01 N(0, 1)) or ``"gymnasium"`` (qpos + U(-0.1, 0.1)); qvel is 0.1 N(0, 1).
    :param sense: whether centre of mass and root rotation are needed: one more evaluation a step, without contacts.
    :param contact_forces: whether contact forces are needed as well: a full evaluation a step.
    :param contact_limit: clip every component of the contact forces to plus or minus this.
    :param root: name of the robot's root body.
    :param warm_start: let the contact solver start at the last physics step's solution within an env step. Off by
        default: with one call per env step it gains nothing, and without it a step can be compared bit by bit.
    :param n_threads: physics threads of a call; None for every core this process may use. Results do not depend on it,
        and the attribute may be changed at any time. Several Python threads may step one family at once, each with its
        own blocks of tasks; within :meth:`shared_by` they share the physics threads.
    """

    concurrent = True

    def __init__(
        self,
        spec: mujoco.MjSpec,
        *,
        frame_skip: int,
        horizon: int,
        action_scale: float = 1.0,
        init_qpos: Sequence[float] | None = None,
        reset_noise: str = "rllab",
        sense: bool = False,
        contact_forces: bool = False,
        contact_limit: float = np.inf,
        root: str = "torso",
        warm_start: bool = False,
        n_threads: int | None = None,
    ) -> None:
        if n_threads is None:
            n_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if reset_noise not in _RESET_NOISE:
            raise unknown_name("reset_noise", reset_noise, _RESET_NOISE)
        action_scale = ABOVE_ZERO("action_scale", action_scale)
        self.horizon = COUNT("horizon", horizon)
        self.frame_skip = COUNT("frame_skip", frame_skip)
        self.n_threads = COUNT("n_threads", n_threads)
        self.warm_start = SWITCH("warm_start", warm_start)
        self._root = root
        self._senses = sense or contact_forces
        self._contact_forces = contact_forces
        self._contact_limit = contact_limit
        self._reset_noise = reset_noise
        self._callers: ProcessLocal[list[int]] = ProcessLocal(list)
        self._pools: ProcessLocal[list[_Pool]] = ProcessLocal(list)
        self.model = self.compile(spec)
        model = self.model.step
        self.dt = float(model.opt.timestep) * frame_skip
        """Duration of an env step, s."""
        self.render_fps = round(1 / self.dt)
        self._n_physics = mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_FULLPHYSICS.value)
        self._qpos, self._qvel = slice(1, 1 + model.nq), slice(1 + model.nq, 1 + model.nq + model.nv)
        self._init_qpos = np.array(model.qpos0 if init_qpos is None else init_qpos, dtype=np.float64)
        low, high = model.actuator_ctrlrange.T
        self._control_mean, self._control_half = (high + low) / 2, (high - low) / 2
        self.action_space = gymnasium.spaces.Box(-action_scale, action_scale, shape=(model.nu,), dtype=np.float32)
        self._action_scale = action_scale
        free = model.jnt_type == mujoco.mjtJoint.mjJNT_FREE.value
        self._quaternions = [int(address) + 3 for address in model.jnt_qposadr[free]]

    # ---------------------------------------------------------------------------------------------------------- models
    def compile(self, spec: mujoco.MjSpec) -> Model:
        """Compile a robot into its step and sense models; for families with one model for each task."""
        return Blueprint(spec, self.warm_start, self._root if self._senses else None, self._contact_forces).compile()

    def models(self, tasks: Tasks) -> Sequence[Model]:
        """Return the models of a batch: a single one that all tasks share (the default), or one for each task.

        Models of a batch differ in numbers only: same bodies, joints, motors and geoms.
        """
        del tasks
        return (self.model,)

    # -------------------------------------------------------------------------------------------------------- dynamics
    def reset(self, tasks: Tasks, rngs: Sequence[np.random.Generator], n_envs: int) -> tuple[State, np.ndarray]:
        n = n_tasks(tasks)
        nq, nv = self.model.step.nq, self.model.step.nv
        physics = np.zeros((n, n_envs, self._n_physics))
        for index, rng in enumerate(rngs):
            physics[index, :, self._qpos] = self._init_qpos + _RESET_NOISE[self._reset_noise](rng, (n_envs, nq))
            physics[index, :, self._qvel] = 0.1 * rng.standard_normal((n_envs, nv))
        for address in self._quaternions:
            quaternion = physics[..., 1 + address : 5 + address]
            quaternion /= np.linalg.norm(quaternion, axis=-1, keepdims=True)
        flat = physics.reshape(n * n_envs, -1)
        controls = np.zeros((len(flat), self.model.step.nu))
        sensed, _ = self._sense(self.models(tasks), np.repeat(np.arange(n), n_envs), flat, controls)
        obs = self.observe(flat, sensed).reshape(n, n_envs, -1)
        return {"physics": physics, "diverged": np.zeros((n, n_envs), dtype=bool)}, obs

    def step(
        self,
        tasks: Tasks,
        state: State,
        actions: np.ndarray,
        rngs: Sequence[np.random.Generator],
        active: np.ndarray | None = None,
    ) -> Step:
        del rngs
        shape = state["physics"].shape[:2]
        everything = state["physics"].reshape(-1, self._n_physics)
        row_tasks = np.arange(len(everything)) // shape[1]
        rows = None if active is None or np.count_nonzero(active) == active.size else np.flatnonzero(active)
        actions = np.asarray(actions, dtype=np.float64).reshape(len(everything), -1)
        before = everything
        if rows is not None:
            before, actions, row_tasks = everything[rows], actions[rows], row_tasks[rows]
        before = np.ascontiguousarray(before)
        actions = np.minimum(np.maximum(actions / self._action_scale, -1.0), 1.0)
        controls = self._control_mean + self._control_half * actions
        models = self.models(tasks)

        after, diverged = self._advance(models, row_tasks, before, controls)
        sensed, unsound = self._sense(models, row_tasks, after, controls)
        diverged |= unsound
        obs = self.observe(after, sensed)
        batch = {name: value[row_tasks] for name, value in tasks.items()}
        terms, terminated = self.judge(batch, before, after, actions, sensed)
        terminated |= diverged
        reward = sum(terms.values(), np.zeros(len(after)))

        def whole(value: np.ndarray, held: np.ndarray | None = None) -> np.ndarray:
            if rows is not None:
                result = np.zeros((len(everything), *value.shape[1:]), value.dtype) if held is None else held.copy()
                result[rows] = value
                value = result
            return value.reshape(*shape, *value.shape[1:])

        new = {"physics": whole(after, everything), "diverged": whole(diverged, state["diverged"].reshape(-1))}
        info = {name: whole(value) for name, value in terms.items()}
        return Step(new, whole(obs), whole(reward), whole(terminated), info)

    @abstractmethod
    def observe(self, physics: np.ndarray, sensed: Sensed | None) -> np.ndarray:
        """Return the observations ``[n, *observation]``, float32, of ``n`` states ``[n, physics]``."""

    @abstractmethod
    def judge(
        self, tasks: Tasks, before: np.ndarray, after: np.ndarray, actions: np.ndarray, sensed: Sensed | None
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Return the reward's terms, by name, each ``[n]``, whose sum is the reward; and ``[n]`` terminated.

        :param tasks: the task of each of the ``n`` copies.
        :param before: physics states ``[n, physics]`` before the step; ``after``: after it.
        :param actions: ``[n, action]``, clipped, in units of the motors' half range.
        :param sensed: of the states after the step.
        """

    def qpos(self, physics: np.ndarray) -> np.ndarray:
        """Return the positions ``[..., nq]`` in a physics state, a view."""
        return physics[..., self._qpos]

    def qvel(self, physics: np.ndarray) -> np.ndarray:
        """Return the velocities ``[..., nv]`` in a physics state, a view."""
        return physics[..., self._qvel]

    def render(self, tasks: Tasks, trail: Sequence[State], task: int, env: int) -> np.ndarray:
        """Return a picture from the side; the camera follows the robot."""
        return draw_robot(self.id, self.drawn(tasks, task), trail[-1]["physics"][task, env], self._root)

    def drawn(self, tasks: Tasks, task: int) -> mujoco.MjModel:
        """Return the model that pictures of a task show."""
        models = self.models(tasks)
        return models[task if len(models) > 1 else 0].step

    @contextmanager
    def shared_by(self, n_callers: int) -> Iterator[None]:
        callers = self._callers.get()
        callers.append(n_callers)
        try:
            yield
        finally:
            callers.remove(n_callers)

    def close(self) -> None:
        pools = self._pools.get()
        with suppress(IndexError):
            while True:
                pools.pop().close()

    def _advance(
        self, models: Sequence[Model], row_tasks: np.ndarray, before: np.ndarray, controls: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the states after ``frame_skip`` physics steps, and which copies diverged: they stay as they were."""
        n = len(before)
        held = np.empty((n, self.frame_skip, controls.shape[1]))
        held[:] = controls[:, None]
        states = np.empty((n, self.frame_skip, self._n_physics))
        self._run(_each_row([model.step for model in models], row_tasks), self.frame_skip, before, held, state=states)
        after = states[:, 0] if self.frame_skip == 1 else states[:, -1].copy()
        diverged = np.zeros(n, dtype=bool)
        # Written so that NaN counts as too large. A dot product would be one call instead of two, but BLAS works on it
        # with threads of its own, which keep the cores from physics.
        if not (after.max(initial=0.0) <= _MAX_VALUE and after.min(initial=0.0) >= -_MAX_VALUE):
            diverged = ~(np.abs(after).max(axis=1) <= _MAX_VALUE)
            after[diverged] = before[diverged]
        return after, diverged

    def _sense(
        self, models: Sequence[Model], row_tasks: np.ndarray, physics: np.ndarray, controls: np.ndarray
    ) -> tuple[Sensed | None, np.ndarray]:
        """Evaluate states; return what the sensors say, and which copies have no finite answer (theirs is 0)."""
        n = len(physics)
        unsound = np.zeros(n, dtype=bool)
        if self.model.sense is None:
            return None, unsound
        data = np.empty((n, 1, self.model.sense.nsensordata))
        self._run(
            _each_row([model.sense for model in models], row_tasks), 1, physics, controls[:, None], sensordata=data
        )
        data = data[:, 0]
        if not np.isfinite(data.sum()):
            unsound |= ~np.isfinite(data).all(axis=1)
            data[unsound] = 0.0
        return _sensed(data, self._contact_limit), unsound

    def _run(
        self, models: list[mujoco.MjModel], n_steps: int, physics: np.ndarray, controls: np.ndarray, **out: np.ndarray
    ) -> None:
        """Fill ``out`` from one rollout of every row."""
        if not models:
            return
        # Callers on several threads get a pool each; list operations are atomic.
        n_threads = -(-self.n_threads // (sum(self._callers.get()) or 1))
        pools, pool = self._pools.get(), None
        while pools and pool is None:
            with suppress(IndexError):
                pool = pools.pop()
            if pool is not None and pool.n_threads != n_threads:
                pool.close()
                pool = None
        with NATIVE_WORK:
            pool = pool or _Pool(n_threads)
            pool.run(models, n_steps, physics, controls, out)
        pools.append(pool)


_RESET_NOISE = {
    "rllab": lambda rng, shape: 0.01 * rng.standard_normal(shape),
    "gymnasium": lambda rng, shape: rng.uniform(-0.1, 0.1, shape),
}

_NEXT, _AFTER = [1, 2, 0], [2, 0, 1]


def _sensed(data: np.ndarray, contact_limit: float) -> Sensed:
    """Turn the sensors' numbers ``[n, sensordata]`` into what they say: contacts come first, then the root."""
    n, root = len(data), data[:, -15:]
    com = root[:, 0:3]
    rotation = root[:, 6:15].reshape(n, 3, 3).transpose(0, 2, 1).reshape(n, 9)
    sensors = data[:, :-15].reshape(n, (data.shape[1] - 15) // 9, 3, 3)
    return Sensed(com, root[:, 3:6], rotation, _contact_forces(sensors, com, contact_limit))


def _contact_forces(sensors: np.ndarray, com: np.ndarray, limit: float) -> np.ndarray:
    """Turn net-force sensors ``[n, body, (force, torque, position), 3]`` into ``[n, body * 6]`` as ``cfrc_ext``.

    The sensor's force is the one the body exerts, its torque is about the position; ``cfrc_ext`` is what the body
    receives, torque first, about the centre of mass of the tree.
    """
    n, n_bodies = sensors.shape[:2]
    result = np.zeros((n * n_bodies, 6))
    if not n_bodies:
        return result.reshape(n, 0)
    flat = sensors.reshape(n * n_bodies, 9)
    # Few bodies touch anything at a time. A body's contact has a force, a sensor without contact reads 0.
    touching = np.flatnonzero((flat[:, 0] != 0) | (flat[:, 1] != 0) | (flat[:, 2] != 0))
    some = flat[touching]
    force = some[:, :3]
    arm = some[:, 6:] - com[touching // n_bodies]
    wrench = np.empty((len(some), 6))
    torque = wrench[:, :3]
    # The cross product force x arm; np.cross takes several times as long for a few rows.
    np.multiply(force[:, _NEXT], arm[:, _AFTER], out=torque)
    torque -= force[:, _AFTER] * arm[:, _NEXT]
    torque -= some[:, 3:6]
    np.negative(force, out=wrench[:, 3:])
    np.maximum(wrench, -limit, out=wrench)
    result[touching] = np.minimum(wrench, limit, out=wrench)
    return result.reshape(n, n_bodies * 6)


def _each_row(models: Sequence[mujoco.MjModel], row_tasks: np.ndarray) -> list[mujoco.MjModel]:
    """Return the model of each row of a flat batch."""
    if len(models) == 1:
        return [models[0]] * len(row_tasks)
    return [models[task] for task in row_tasks.tolist()]


# ------------------------------------------------------------------------------------------------------------ constants
@dataclass(frozen=True, kw_only=True)
class Constants:
    """What every lineage of a MuJoCo family fixes; families add their own."""

    physics: str
    """``"reference"`` (the robot of the MAML papers) or ``"gymnasium"``."""
    observation: int
    """Length of the observation."""
    point: str
    """What stands for the robot in velocities and positions: ``"com"``, the centre of mass of the whole robot, whose
    velocity is instantaneous, or ``"torso"``, whose velocity is its displacement over the env step."""
    control_cost: float
    """Weight of the squared actions, which are in units of the motors' half range."""
    horizon: int
    """Longest episode, env steps."""
    action_scale: float
    """Actions of this size reach the motors' limits."""
    reset_noise: str
    """``"rllab"`` or ``"gymnasium"``, see :class:`MujocoFamily`."""
