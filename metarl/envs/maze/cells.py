"""What is seen of mazes: which of their cells are occupied."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from gymnasium import spaces

from metarl.checks import choice
from metarl.envs.family import Family
from metarl.envs.maze.grid import ROWS
from metarl.envs.supervised.one_step import SUPPORT_NOISE, with_noise
from metarl.envs.supervised.real_tasks import RealTasks
from metarl.envs.tasks import Tasks

POSITIONS = ("integers", "scaled")


class MazeCells(RealTasks):
    """Cells of a maze: the input is a position (column, row), the target 1 where it is occupied and 0 elsewhere.

    :param id: its name.
    :param real: the mazes, a :class:`~metarl.envs.maze.maze.Maze`.
    :param occupied: returns which cells of tasks are occupied, ``[task, row, column]``.
    :param width: the number of columns.
    :param positions: how cells are told: ``"integers"``, as in the paper, or ``"scaled"`` to at most 1.
    :param support_noise: σ of the normal deviate that is added to the 0 or 1.
    """

    clips_actions = False

    def __init__(
        self,
        id: str,
        real: Family,
        occupied: Callable[[Tasks], np.ndarray],
        width: int,
        positions: str,
        support_noise: float,
    ) -> None:
        self.id = id
        self._real, self._occupied = real, occupied
        self.support_noise = SUPPORT_NOISE("support_noise", support_noise)
        rows, columns = np.divmod(np.arange(ROWS * width), width)
        cells = np.stack([columns, rows], axis=-1)
        largest = cells[-1] if choice(*POSITIONS)("positions", positions) == "scaled" else 1
        self._cells = (cells / largest).astype(np.float32)
        self.task_space, self.shifted_space = real.task_space, real.shifted_space
        self.observation_space = spaces.Box(np.zeros(2, np.float32), self._cells[-1], dtype=np.float32)
        self.action_space = spaces.Box(-1000.0, 1000.0, (1,), np.float32)

    @property
    def real(self) -> Family:
        return self._real

    def examples(self, tasks: Tasks, rngs: Sequence[np.random.Generator], n: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw ``n`` cells of every maze, none twice before each was there: 2 N of them are all."""
        size = len(self._cells)
        drawn = [np.concatenate([rng.permutation(size) for _ in range(-(-n // size))])[:n] for rng in rngs]
        cells = np.stack(drawn)
        occupied = self._occupied(tasks).reshape(len(cells), size)
        targets = np.take_along_axis(occupied, cells, axis=1).astype(np.float64)
        return self._cells[cells], with_noise(targets[..., None], rngs, self.support_noise)
