"""Carts with one pole or two, batched: whole episodes of every task in one call of :mod:`mujoco.rollout`."""

from __future__ import annotations

from functools import partial

import numpy as np

from metarl.envs.mujoco.bindings import mujoco
from metarl.envs.mujoco.models import Blueprint, KeptModels, gymnasium_spec
from metarl.envs.mujoco.pools import Pools
from metarl.envs.mujoco.rows import Bodies
from metarl.processes import ProcessLocal

FILES = {1: "inverted_pendulum.xml", 2: "inverted_double_pendulum.xml"}
FRAME_SKIP = {1: 2, 2: 5}
"""Physics steps in an env step, as in Gymnasium's classes: 0.04 s of the single one, 0.05 s of the double one."""
START_NOISE = {1: 0.01, 2: 0.1}
"""Half the width of what is added to upright positions, and to velocities their range (single) or deviation (double);
as in Gymnasium's classes."""
LENGTH, GRAVITY = 0.6, 9.81
"""Those of Gymnasium's files, m and m/s²."""


class Poles:
    """Gymnasium's InvertedPendulum or InvertedDoublePendulum, with poles of any length under any gravity.

    Each pair of numbers has a model of its own, in which masses, inertias and joints follow; the process keeps those
    of the last 256 pairs. The solver starts afresh at each physics step.

    :param n_poles: 1 or 2; both poles of a double pendulum have the length.
    :param n_threads: physics threads.
    """

    def __init__(self, n_poles: int, n_threads: int) -> None:
        self.n_poles = n_poles
        self.frame_skip = FRAME_SKIP[n_poles]
        self.n_threads = n_threads
        self._models: ProcessLocal[KeptModels] = ProcessLocal(partial(pole_models, n_poles))
        self._pools = Pools()
        (model,) = self.models(np.array([LENGTH]), np.array([GRAVITY]))
        self.largest_action = float(model.actuator_ctrlrange[0, 1])
        """The motor's limit, in the units of its control: 3 of the single, 1 of the double pendulum."""
        self._n_physics = mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_FULLPHYSICS.value)

    def models(self, length: np.ndarray, gravity: np.ndarray) -> list[mujoco.MjModel]:
        """Return the models of lengths and gravities ``[task]``."""
        return [model.step for model in self._models.get()(np.stack([length, gravity], axis=-1))]

    def start(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Return ``n`` states ``[n, state]`` that episodes start at: upright and at rest, with Gymnasium's noise."""
        noise, size = START_NOISE[self.n_poles], (n, self.n_poles + 1)
        positions = rng.uniform(-noise, noise, size)
        velocities = rng.uniform(-noise, noise, size) if self.n_poles == 1 else noise * rng.standard_normal(size)
        return np.concatenate([positions, velocities], axis=-1)

    def play(self, length: np.ndarray, gravity: np.ndarray, start: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Return the states after each env step, ``[task, episode, time, state]``: positions, then velocities.

        :param length: ``[task]``; ``gravity`` too.
        :param start: ``[task, episode, state]``.
        :param actions: ``[task, episode, time]``, controls of the motor, which are clipped to its limits.
        """
        n_tasks, n_episodes, n_steps = actions.shape
        n = n_tasks * n_episodes
        physics = np.zeros((n, self._n_physics))
        physics[:, 1 : 1 + start.shape[-1]] = start.reshape(n, -1)
        controls = np.repeat(actions.reshape(n, n_steps, 1), self.frame_skip, axis=1)
        states = np.empty((n, n_steps * self.frame_skip, self._n_physics))
        bodies = Bodies(self.models(length, gravity), np.repeat(np.arange(n_tasks), n_episodes))
        self._pools.run(bodies, self.n_threads, physics, controls, state=states)
        after = states[:, self.frame_skip - 1 :: self.frame_skip, 1 : 1 + start.shape[-1]]
        return np.ascontiguousarray(after).reshape(n_tasks, n_episodes, n_steps, -1)

    def close(self) -> None:
        """Free the threads; they are made again when they are needed."""
        self._pools.close()


def pole_models(n_poles: int) -> KeptModels:
    """Return the carts of one process, by ``[task, (length, gravity)]``."""
    return KeptModels(Blueprint(gymnasium_spec(FILES[n_poles]), False, None, False), set_poles)


def set_poles(spec: mujoco.MjSpec, numbers: np.ndarray) -> None:
    """Give a cart other poles, and its world another gravity; masses and inertias follow with the next compilation.

    What else Gymnasium's files have stays: the single pole leans by 1 mm, and the double pendulum's gravity has 1e-5
    m/s² along the rail.

    :param numbers: length, m, and gravity, m/s².
    """
    length, gravity = numbers.tolist()
    spec.option.gravity[2] = -gravity
    spec.geom("cpole").fromto[5] = length
    upper = spec.body("pole2")
    if upper is not None:
        upper.pos[2] = length
        spec.geom("cpole2").fromto[5] = length
        spec.site("tip").pos[2] = length
