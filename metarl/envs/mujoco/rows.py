"""Copies of a robot as rows of one flat batch: what is prepared for them, and how they go on from step to step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from metarl.envs.mujoco.bindings import mujoco
from metarl.envs.mujoco.models import Model
from metarl.envs.stepping import Earned, Reached, Stepper
from metarl.envs.tasks import Tasks

JUDGED_TOGETHER = 1024
"""Rows whose rewards are computed together: of a few copies many env steps, of many copies one."""


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


class Bodies:
    """The model of each row, for one rollout of all of them.

    :param models: one that all tasks share, or one for each task.
    :param row_tasks: the task of each row.
    """

    def __init__(self, models: Sequence[mujoco.MjModel], row_tasks: np.ndarray) -> None:
        alone = len(models) == 1
        self.models = [models[0]] * len(row_tasks) if alone else [models[task] for task in row_tasks.tolist()]
        first = models[0]
        self.sizes = (first.nq, first.nv, first.nu, first.nbody, first.ngeom, first.nsensordata, first.narena)
        """Models that agree in these can share scratch data."""


class Rows:
    """The copies of a batch that are stepped, and what does not change from step to step while they are the same.

    :param tasks: of the batch.
    :param models: one that all tasks share, or one for each task.
    :param shape: ``[task, env]`` of the batch.
    :param index: which of its copies, counted task by task; None: all.
    :param frame_skip: physics steps in an env step.
    :param n_physics: numbers in a physics state.
    """

    def __init__(
        self,
        tasks: Tasks,
        models: Sequence[Model],
        shape: tuple[int, int],
        index: np.ndarray | None,
        frame_skip: int,
        n_physics: int,
    ) -> None:
        row_tasks = np.repeat(np.arange(shape[0]), shape[1])
        row_tasks = row_tasks if index is None else row_tasks[index]
        self.shape, self.index, self.n = shape, index, len(row_tasks)
        self.tasks = {name: value[row_tasks] for name, value in tasks.items()}
        self.step = Bodies([model.step for model in models], row_tasks)
        sensing = [model.sense for model in models if model.sense is not None]
        self.sense = Bodies(sensing, row_tasks) if sensing else None
        # Filled anew in every step; fresh ones would be new pages of memory each time.
        self.controls = np.empty((self.n, frame_skip, models[0].step.nu))
        self.states = np.empty((self.n, frame_skip, n_physics))

    def of(self, flat: np.ndarray) -> np.ndarray:
        """Return these rows of an array ``[task * env, …]``."""
        return flat if self.index is None else flat[self.index]

    def whole(self, value: np.ndarray, held: np.ndarray | None = None) -> np.ndarray:
        """Return ``value``, ``[n, …]``, as ``[task, env, …]``.

        :param held: ``[task * env, …]``, what other copies have; None: 0.
        """
        if self.index is not None:
            size = (self.shape[0] * self.shape[1], *value.shape[1:])
            result = np.zeros(size, value.dtype) if held is None else held.copy()
            result[self.index] = value
            value = result
        return value.reshape(*self.shape, *value.shape[1:])

    def of_steps(self, value: np.ndarray) -> np.ndarray:
        """Return ``value``, ``[step * n]``, as ``[step, task, env]``; other copies have 0."""
        value = value.reshape(-1, self.n)
        if self.index is not None:
            result = np.zeros((len(value), self.shape[0] * self.shape[1]), value.dtype)
            result[:, self.index] = value
            value = result
        return value.reshape(-1, *self.shape)


class Move(NamedTuple):
    """What an env step of rows led to, beside the states after it."""

    obs: np.ndarray
    """``[n, *observation]``."""
    diverged: np.ndarray | None
    """``[n]``; None where no copy has. So is the next one."""
    terminated: np.ndarray | None


class Track:
    """Env steps of the same rows, one after the other, in arrays that are filled step by step.

    :param start: the states that they start from, ``[n, physics]``.
    :param n_steps: as many env steps have room.
    :param n_actions: numbers in an action.
    """

    def __init__(self, start: np.ndarray, n_steps: int, n_actions: int) -> None:
        self.physics = np.empty((n_steps + 1, *start.shape))
        """States ``[step + 1, n, physics]``: before each step, and after the last one."""
        self.actions = np.empty((n_steps, len(start), n_actions))
        """``[step, n, action]``, clipped, in units of the motors' half range."""
        self.sensed: list[Sensed] = []
        self.physics[0] = start
        self.length = 0
        """Steps that were taken."""

    @property
    def reached(self) -> np.ndarray:
        """The states after the last step, ``[n, physics]``."""
        state: np.ndarray = self.physics[self.length]
        return state

    @property
    def full(self) -> bool:
        """Whether there is no room for another step."""
        return self.length == len(self.actions)

    def flat(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, Sensed | None]:
        """Return before, after, actions and what was sensed of all steps, ``[step * n, …]``."""
        n, sensed = self.length, self.sensed[0] if self.sensed else None
        if len(self.sensed) > 1:
            sensed = Sensed(*map(np.concatenate, zip(*self.sensed, strict=True)))
        before, after = (part.reshape(-1, part.shape[-1]) for part in (self.physics[:n], self.physics[1 : n + 1]))
        return before, after, self.actions[:n].reshape(-1, self.actions.shape[-1]), sensed


class RowStepper(Stepper):
    """Steps a batch, and computes the rewards of many env steps together.

    :param choose: returns the rows that are to be stepped, by their index.
    :param physics: the states to start from, ``[task * env, physics]``.
    :param move: takes one env step of them.
    :param judge: the terms of the rewards of the rows' moves, by name, ``[move * row]``.
    :param info: the terms to report.
    """

    def __init__(
        self,
        choose: Callable[[np.ndarray | None], Rows],
        physics: np.ndarray,
        move: Callable[[Rows, Track, np.ndarray], Move],
        judge: Callable[[Rows, Track], dict[str, np.ndarray]],
        info: Sequence[str],
    ) -> None:
        self._choose, self._move, self._judge = choose, move, judge
        self._active: np.ndarray | None = None
        self._rewards: list[np.ndarray] = []
        self._info: dict[str, list[np.ndarray]] = {name: [] for name in info}
        self._rows = choose(None)
        self._begin(physics)

    def _begin(self, physics: np.ndarray) -> None:
        """Go on from states of the rows."""
        n_steps = -(-JUDGED_TOGETHER // max(1, self._rows.n))
        self._track = Track(physics, n_steps, self._rows.controls.shape[-1])

    def step(self, actions: np.ndarray, active: np.ndarray) -> Reached:
        if active is not self._active:
            self._narrow(active)
        rows, track = self._rows, self._track
        if track.full:
            self._earn()
            self._begin(track.reached)
            track = self._track
        move = self._move(rows, track, rows.of(actions.reshape(-1, *actions.shape[2:])))
        terminated = None if move.terminated is None else rows.whole(move.terminated)
        return Reached(rows.whole(move.obs), terminated, terminated)

    def _narrow(self, active: np.ndarray) -> None:
        """Go on with those copies that are active, which are some of those before."""
        self._active, flat = active, active.reshape(-1)
        if np.count_nonzero(flat) == self._rows.n:
            return
        self._earn()
        going_on = self._track.reached[self._rows.of(flat)]
        self._rows = self._choose(np.flatnonzero(flat))
        self._begin(going_on)

    def _earn(self) -> None:
        """Compute the rewards of the steps since the last time."""
        rows, track = self._rows, self._track
        if not track.length:
            return
        terms = self._judge(rows, track)
        self._rewards.append(rows.of_steps(total(terms, track.length * rows.n)))
        for name, kept in self._info.items():
            kept.append(rows.of_steps(terms[name]))

    def earned(self) -> Earned:
        self._earn()
        self._begin(self._track.reached)
        none = np.zeros((0, *self._rows.shape))
        info = {name: np.concatenate([none, *kept]) for name, kept in self._info.items()}
        return np.concatenate([none, *self._rewards]), info


def total(terms: Mapping[str, np.ndarray], n: int) -> np.ndarray:
    """Return the rewards ``[n]`` that terms add up to."""
    return np.asarray(sum(terms.values(), np.zeros(n)))
