"""MazeTransfer: it is seen where a maze has obstacles, and the way through is to be predicted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metarl.checks import MAPPING, NONE, check_arguments
from metarl.envs.imitation.imitation import Imitation
from metarl.envs.imitation.maze import MazeImitation
from metarl.envs.maze.cells import MazeCells
from metarl.envs.maze.maze import Maze
from metarl.envs.registry import register_family


class MazeTransfer(MazeImitation):
    """Transfer from where a maze's obstacles are to the way through it (meta-transfer, section 5.5).

    **Task, observation, action, reward and expert** are those of ``MazeImitation-v0``: what the expert does in a cell
    is asked for. Support and score are others:

    **Support.** ``support_family``: the input is a cell's position (column, row), as whole numbers, as in the paper
    (``positions="scaled"`` divides by N - 1 and 1); the target is 1 where the cell is occupied and 0 elsewhere, with a
    normal deviate of ``support_noise`` added. Cells are drawn in random order, none twice before each was there: an
    example more than 2 N is a repetition. The paper does not say how many it has.

    **Score.** That of the paper: minus the distance to the goal at the end of an episode in ``Maze-v0`` with
    ``reward="distance"``, measured along the shortest way and divided by that from the start; 0 at the goal, -1 at the
    start. The paper states neither the measure nor the number of env steps: here they are 2 N; see
    ``distance`` and ``horizon`` of :class:`~metarl.envs.maze.maze.Maze` (``real_kwargs``).

    Published (table 3), of N = 6, 12 and 24: linear 0, -0.04, -0.36; non-linear 0, -0.35, -0.42; context -0.24, -0.37,
    -0.44; mean 0, -0.29, -0.40; max 0, -0.16, -0.39; transformer -0.03, -0.28, -0.40; deep kernel 0, -0.26, -0.43.

    To meta-wrappers that adapt by gradients in the family itself it is ``MazeImitation-v0``, but for the score::

        family = make_family("MazeTransfer-v0", width=6)
        tasks = family.tasks("test", 2)
        cells, occupied = family.support_family.examples(tasks, [np.random.default_rng(task) for task in range(2)], 12)
        assert cells.shape == (2, 12, 2) and set(occupied.ravel()) == {0.0, 1.0}

    **Versions.** v0: first version.

    :param width: N, the number of columns; the paper has 6, 12 and 24. By default 12.
    :param positions: ``"integers"`` or ``"scaled"``.
    :param support_noise: σ of the normal deviate that is added to what is seen.
    :param real_kwargs: further arguments of ``Maze-v0``.
    :param arguments: those of :class:`~metarl.envs.imitation.maze.MazeImitation`.
    """

    id = "MazeTransfer-v0"

    def __init__(
        self,
        width: int | None = None,
        *,
        positions: str = "integers",
        support_noise: float = 0.0,
        real_kwargs: Mapping[str, Any] | None = None,
        **arguments: Any,
    ) -> None:
        check_arguments(Imitation.__init__, arguments, "argument of MazeTransfer-v0", around=MazeTransfer.__init__)
        given = (MAPPING | NONE)("real_kwargs", real_kwargs) or {}
        size = {} if width is None else {"width": width}
        super().__init__(real_kwargs={"reward": "distance", **size, **given}, **arguments)
        assert isinstance(self.real, Maze)
        id = "MazeTransfer-v0/support"
        self.support_family = MazeCells(id, self.real, self.real.occupied, self.real.width, positions, support_noise)


register_family("MazeTransfer-v0", MazeTransfer)
