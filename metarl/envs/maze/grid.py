"""Grids of free and occupied cells: drawings of them, what a move does in them, and the shortest ways through.

Everything is done for a batch of grids at once, ``[maze, row, column]``. Cells are counted row by row.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from metarl.errors import TaskError, shorten

MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))
"""Rows and columns that an action moves by: up, right, down, left."""
ROWS = 2
FREE, OCCUPIED = ".", "#"


def parse_maze(drawing: Any) -> np.ndarray:
    """Return which cells of a drawing are occupied, ``[2, column]``, bool.

    The way goes from the upper left corner to the lower right one::

        parse_maze("..#./#...")
        parse_maze("..#/.#.")  # refused: no way leads through it

    :param drawing: two rows of ``.`` (free) and ``#`` (occupied), with a slash or a line break between them.
    :raises TaskError: no such drawing, or one that no way leads through.
    """
    rows = drawing.strip().replace("\n", "/").split("/") if isinstance(drawing, str) else []
    rows = [row.strip() for row in rows]
    if len(rows) != ROWS or len({len(row) for row in rows}) != 1 or not rows[0]:
        raise TaskError(
            f"maze {shorten(drawing)}: two rows of one length and a slash between them, such as '..#./#...'"
        )
    strange = set("".join(rows)) - {FREE, OCCUPIED}
    if strange:
        raise TaskError(f"maze {shorten(drawing)} has {shorten(min(strange))}: cells are '.' (free) and '#' (occupied)")
    occupied = np.array([[cell == OCCUPIED for cell in row] for row in rows])
    if occupied[0, 0] or occupied[-1, -1]:
        corner = "start (upper left)" if occupied[0, 0] else "goal (lower right)"
        raise TaskError(f"maze {shorten(drawing)} cannot be solved: its {corner} is occupied")
    if distances(occupied[None])[0, 0, 0] < 0:
        raise TaskError(f"maze {shorten(drawing)} cannot be solved: no way leads from the start to the goal")
    return occupied


def draw_maze(occupied: np.ndarray) -> str:
    """Return the drawing of a maze ``[row, column]``, as :func:`parse_maze` reads it."""
    return "/".join("".join(OCCUPIED if cell else FREE for cell in row) for row in occupied)


def distances(occupied: np.ndarray) -> np.ndarray:
    """Return the number of moves from every cell to the lower right corner, -1 where no way leads there.

    Breadth-first search from the corner, in all mazes side by side: after k rounds the cells at a distance of k or less
    are known, so it ends after the longest of the shortest ways::

        occupied = np.array([[[0, 1], [0, 0]], [[0, 0], [1, 0]]], dtype=bool)
        assert distances(occupied).tolist() == [[[2, -1], [1, 0]], [[2, 1], [-1, 0]]]

    :param occupied: ``[maze, row, column]``, bool.
    :return: of the same shape; occupied cells have -1 too.
    """
    n, n_rows, n_columns = occupied.shape
    # With a border, so that no move leads out of the array.
    far = np.full((n, n_rows + 2, n_columns + 2), -1)
    free = np.zeros(far.shape, dtype=bool)
    free[:, 1:-1, 1:-1] = ~occupied
    inner = far[:, 1:-1, 1:-1]
    inner[:, -1, -1] = np.where(occupied[:, -1, -1], -1, 0)
    for k in range(n_rows * n_columns):
        frontier = far == k
        if not frontier.any():
            break
        reached = np.zeros(far.shape, dtype=bool)
        for rows, columns in MOVES:
            reached |= np.roll(frontier, (rows, columns), axis=(1, 2))
        far[reached & free & (far < 0)] = k + 1
    return inner.copy()


def transitions(occupied: np.ndarray) -> np.ndarray:
    """Return the cell that every move leads to, ``[maze, cell, action]``: a move against a wall leads nowhere else."""
    n, n_rows, n_columns = occupied.shape
    rows, columns = np.divmod(np.arange(n_rows * n_columns), n_columns)
    stay = np.arange(n_rows * n_columns)
    after = np.empty((n, len(stay), len(MOVES)), dtype=np.int64)
    for action, (down, right) in enumerate(MOVES):
        to_row, to_column = rows + down, columns + right
        inside = (to_row >= 0) & (to_row < n_rows) & (to_column >= 0) & (to_column < n_columns)
        target = np.where(inside, to_row * n_columns + to_column, stay)
        after[:, :, action] = np.where(occupied.reshape(n, -1)[:, target], stay, target)
    return after


def shortest_moves(after: np.ndarray, far: np.ndarray) -> np.ndarray:
    """Return a move along a shortest way from every cell, ``[maze, cell]``: where several are, the first of them.

    :param after: what :func:`transitions` returned.
    :param far: what :func:`distances` returned. Where no way leads on, the move is 0.
    """
    flat = far.reshape(len(far), -1)
    ahead = flat[np.arange(len(far))[:, None, None], after]
    nearer = (ahead >= 0) & (ahead == flat[:, :, None] - 1)
    return np.asarray(np.argmax(nearer, axis=-1))
