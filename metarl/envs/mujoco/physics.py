"""Batched MuJoCo: every copy of every task advances in one call of :mod:`mujoco.rollout`.

The state of a copy is MuJoCo's own physics state, so a result depends on that state and the action alone: not on the
number of threads, not on the other copies in the batch. What a step reports (observation, reward, contact forces)
belongs to the state after the step; where that takes more than positions and velocities, a *sense* model evaluates
the new state once, with the same controls.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import gymnasium
import numpy as np

from metarl.checks import ABOVE_ZERO, COUNT, SWITCH
from metarl.envs.family import Family, State, Step
from metarl.envs.mujoco.bindings import mujoco
from metarl.envs.mujoco.models import Blueprint, Model
from metarl.envs.mujoco.pictures import draw_robot
from metarl.envs.mujoco.pools import Pools
from metarl.envs.mujoco.rows import Move, Rows, RowStepper, Sensed, Track, total
from metarl.envs.tasks import Tasks, n_tasks
from metarl.errors import unknown_name

_MAX_VALUE = 1e10
"""MuJoCo's own limit on positions, velocities and accelerations (mjMAXVAL)."""
_LEAST, _GREATEST = np.array(-1.0), np.array(1.0)
"""Of clipped actions, as arrays: NumPy takes longer for Python's numbers."""


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
    draws_in_steps = False

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
        self._pools = Pools()
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
        rows = self._rows(tasks, self.models(tasks), (n, n_envs), None)
        flat = physics.reshape(n * n_envs, -1)
        sensed, _ = self._sense(rows, flat, np.zeros((len(flat), 1, self.model.step.nu)))
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
        shape = state["physics"].shape[0], state["physics"].shape[1]
        everything = state["physics"].reshape(-1, self._n_physics)
        index = None if active is None or np.count_nonzero(active) == active.size else np.flatnonzero(active)
        rows = self._rows(tasks, self.models(tasks), shape, index)
        flat = np.asarray(actions).reshape(len(everything), -1)
        track = Track(rows.of(everything), 1, self.model.step.nu)
        move = self._move(rows, track, rows.of(flat))
        terms = self._judge(rows, track)
        diverged, terminated = (
            np.zeros(rows.n, dtype=bool) if each is None else each for each in (move.diverged, move.terminated)
        )
        new = {
            "physics": rows.whole(track.reached, everything),
            "diverged": rows.whole(diverged, state["diverged"].reshape(-1)),
        }
        info = {name: rows.whole(value) for name, value in terms.items()}
        reward = rows.whole(total(terms, rows.n))
        return Step(new, rows.whole(move.obs), reward, rows.whole(terminated), info)

    def stepper(
        self, tasks: Tasks, state: State, rngs: Sequence[np.random.Generator], info: Sequence[str] = ()
    ) -> RowStepper:
        del rngs
        shape = state["physics"].shape[0], state["physics"].shape[1]
        choose = partial(self._rows, tasks, self.models(tasks), shape)
        return RowStepper(choose, state["physics"].reshape(-1, self._n_physics), self._move, self._judge, info)

    @abstractmethod
    def observe(self, physics: np.ndarray, sensed: Sensed | None) -> np.ndarray:
        """Return the observations ``[n, *observation]``, float32, of ``n`` states ``[n, physics]``."""

    @abstractmethod
    def reward_terms(
        self, tasks: Tasks, before: np.ndarray, after: np.ndarray, actions: np.ndarray, sensed: Sensed | None
    ) -> dict[str, np.ndarray]:
        """Return the reward's terms, by name, each ``[n]``, whose sum is the reward.

        Rows may come from several env steps of the same copies.

        :param tasks: the task of each of the ``n`` rows.
        :param before: physics states ``[n, physics]`` before the step; ``after``: after it.
        :param actions: ``[n, action]``, clipped, in units of the motors' half range.
        :param sensed: of the states after the step.
        """

    def terminates(self, tasks: Tasks, after: np.ndarray) -> np.ndarray | None:
        """Return which episodes terminate, ``[n]``, at physics states ``[n, physics]``; None (the default): none."""
        del tasks, after
        return None

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

    def shared_by(self, n_callers: int) -> AbstractContextManager[None]:
        return self._pools.shared_by(n_callers)

    def close(self) -> None:
        self._pools.close()

    def _rows(self, tasks: Tasks, models: Sequence[Model], shape: tuple[int, int], index: np.ndarray | None) -> Rows:
        return Rows(tasks, models, shape, index, self.frame_skip, self._n_physics)

    def _move(self, rows: Rows, track: Track, actions: np.ndarray) -> Move:
        """Take one env step of rows, on their track."""
        # Every call here is one of each env step: what is not needed in each is done where steps are prepared.
        t = track.length
        before, after, clipped = track.physics[t], track.physics[t + 1], track.actions[t]
        track.length = t + 1
        clipped[:] = actions
        if self._action_scale != 1.0:
            clipped /= self._action_scale
        np.maximum(clipped, _LEAST, out=clipped)
        np.minimum(clipped, _GREATEST, out=clipped)
        controls = self._control_half * clipped
        controls += self._control_mean
        rows.controls[:] = controls[:, None]
        self._pools.run(rows.step, self.n_threads, before, rows.controls, state=rows.states)
        after[:] = rows.states[:, -1]
        diverged = self._held_back(before, after)
        sensed, unsound = self._sense(rows, after, rows.controls)
        if sensed is not None:
            track.sensed.append(sensed)
        terminated = self.terminates(rows.tasks, after)
        if unsound is not None:
            diverged = unsound if diverged is None else diverged | unsound
        if diverged is not None:
            terminated = diverged if terminated is None else terminated | diverged
        return Move(self.observe(after, sensed), diverged, terminated)

    def _judge(self, rows: Rows, track: Track) -> dict[str, np.ndarray]:
        """Return the terms of the rewards of rows' steps, one after the other."""
        tasks, n = rows.tasks, track.length
        if n > 1:
            tasks = {name: np.concatenate([value] * n) for name, value in tasks.items()}
        return self.reward_terms(tasks, *track.flat())

    def _held_back(self, before: np.ndarray, after: np.ndarray) -> np.ndarray | None:
        """Return which copies diverged in a step, None for none; they are put back to where they were."""
        # Written so that NaN counts as too large. A dot product would be one call instead of two, but BLAS works on it
        # with threads of its own, which keep the cores from physics; for few copies it gains nothing.
        if after.max(initial=0.0) <= _MAX_VALUE and after.min(initial=0.0) >= -_MAX_VALUE:
            return None
        diverged: np.ndarray = ~(np.abs(after).max(axis=1) <= _MAX_VALUE)
        after[diverged] = before[diverged]
        return diverged

    def _sense(self, rows: Rows, physics: np.ndarray, controls: np.ndarray) -> tuple[Sensed | None, np.ndarray | None]:
        """Evaluate states; return what the sensors say, and which copies have no finite answer (theirs is 0).

        :param controls: ``[n, step, motor]``, the same in each physics step.
        """
        if rows.sense is None or self.model.sense is None:
            return None, None
        data = np.empty((len(physics), 1, self.model.sense.nsensordata))
        once = np.ascontiguousarray(controls[:, :1])
        self._pools.run(rows.sense, self.n_threads, physics, once, sensordata=data)
        data = data[:, 0]
        if np.isfinite(data.sum()):
            return _sensed(data, self._contact_limit), None
        unsound = np.asarray(~np.isfinite(data).all(axis=1))
        data[unsound] = 0.0
        return _sensed(data, self._contact_limit), unsound


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
