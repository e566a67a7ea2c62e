"""Maze: find the way through a narrow maze whose walls are not seen (S0's 2 x N maze)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict, Discrete

from metarl.checks import COUNT, NONE, NOT_NEGATIVE, choice, integer
from metarl.envs.family import Family, State, Step, cut_finite
from metarl.envs.maze.cells import MazeCells
from metarl.envs.maze.grid import MOVES, ROWS, distances, draw_maze, parse_maze, shortest_moves, transitions
from metarl.envs.plane.canvas import Canvas
from metarl.envs.registry import register_family
from metarl.envs.score import Score
from metarl.envs.tasks import Task, Tasks, take_tasks
from metarl.errors import ConfigError, shorten
from metarl.streams import stream

WIDTH = 12
LARGEST_WIDTH = 24
"""Columns of the largest maze: the family lists its mazes, and 2 to the power of 12 are 4,096."""
DISTANCES = ("path", "manhattan")
OBSERVATIONS = ("cell", "position")
COLUMNS = ("odd", "even")
REWARDS = ("progress", "distance")
LARGEST_SHIFTED = 0.25
"""Largest part of all mazes that the split ``shifted`` holds."""
SIZE = 480
"""Width of a picture, pixels."""


class Maze(Family):
    r"""Find the way through a maze of 2 rows and N columns: the observation tells where one is, not where walls are.

    **Mazes.** The start is the upper left cell, the goal the lower right one. Every other column (1, 3, 5, …, counted
    from 0) has one obstacle: in the upper cell where the task's bit is 1, in the lower one where it is 0. The two rows
    complement each other and the columns between are free, so a way always leads through. The last obstacle would stand
    on the goal where its bit is 0, and is left out then, so the last bit says only whether there is a second way round
    the corner: mazes that differ in nothing else are twins, and the same moves solve both.

    **Task.** ``obstacles`` ``[N / 2]``, the bits. There are 2^(N/2) mazes: 8 of N = 6, 64 of 12, 4,096 of 24.

    **Splits.** The mazes with the most turns on the shortest way (as many numbers of turns as make at most a quarter of
    all mazes) are the split ``shifted``, and are never trained on. The others are cut into 60% for training, 20% for
    validation and 20% for testing, twins together, so that neither a test maze nor its twin is trained on. Of N = 6 the
    others are 6 mazes, too few to cut: training, validation and testing all have them, and ``shifted`` alone holds
    mazes that training has not seen. N of 2, 4 and 8 have no ``shifted``.

    ===  =====  ========  ==========  ==========  =======  =================
    N    mazes  training  validation  test        shifted  turns of shifted
    ===  =====  ========  ==========  ==========  =======  =================
    6    8      6         the same 6  the same 6  2        3 (the others: 1)
    12   64     30        10          12          12       5 (1 or 3)
    24   4,096  2,178     726         728         464      9 or 11 (1 to 7)
    ===  =====  ========  ==========  ==========  =======  =================

    **Observation.** Box(0, 1) of 2 N: 1 at the agent's cell, cells counted row by row. ``observation="position"``: Box
    of 2, the column divided by N - 1 and the row.

    **Action.** Discrete(4): up, right, down, left. A move against a wall or an obstacle leads nowhere.

    **Reward.** How much nearer the move led, with d the number of moves on the shortest way from a cell to the goal:

    .. math:: r_t = (d(s_t) - d(s_{t+1})) / d(s_0) - c

    Terms in ``info``: ``reward_progress``, and ``reward_time`` = -c where there is a ``step_cost`` c (0 by default).
    ``info`` also has the ``score`` -d(s_{t+1}) / d(s_0): -1 at the start, 0 at the goal. Progress adds up, so an
    episode returns

    .. math:: 1 + score - c T

    after T env steps: without a step cost the return is the paper's measure plus 1, and 1 is perfect.
    With ``reward="distance"`` it is that measure itself, and 0 is perfect: the first env step costs 1 more
    (``reward_start``). ``distance="manhattan"`` takes d from the coordinates alone, as if there were no obstacles.

    **Support.** ``support_family``: what wrappers that transfer see of a maze are its cells, as in ``MazeTransfer-v0``:
    the input is a cell's (column, row), the target 1 where it is occupied and 0 elsewhere.

    **Episode.** Starts in the upper left cell, terminates at the goal, and is truncated after 2 N env steps: no
    shortest way takes more than 1.5 N - 1. Uniformly random moves return 0.17 (N = 6), 0.13 (12) and 0.10 (24). Who
    does not know the maze and goes right in columns without obstacles with a probability of 0.7, and changes the row
    otherwise, returns 0.78 (6 and 12) and 0.75 (24).

    The expert knows the maze::

        family = make_family("Maze-v0", width=6)
        tasks = family.tasks("test", 3)
        state, obs = family.reset(tasks, [np.random.default_rng(task) for task in range(3)], n_envs=1)
        actions = family.expert(tasks, state)
        step = family.step(tasks, state, actions, [])
        assert (step.info["score"] > -1.0).all()

    Mazes drawn by hand may have obstacles anywhere; one that no way leads through is refused::

        env = gymnasium.make("Maze-v0", mazes=["..#./#..."])

    What the paper leaves open is chosen here: which columns have obstacles, that start and goal are free, the moves,
    the number of env steps, and the distance that the score is measured in.

    **Versions.** v0: first version.

    :param width: N, the number of columns, even, at most 24; the paper has 6, 12 and 24. By default 12.
    :param mazes: the mazes of the family instead, each two rows of ``.`` (free) and ``#`` (occupied) with a slash
        between them. The task is then which cells are occupied, ``obstacles`` ``[2, N]``, and there is no ``shifted``.
    :param obstacle_columns: ``"odd"`` or ``"even"``: columns 0, 2, 4, …, where an obstacle on the start is left out.
    :param observation: ``"cell"`` or ``"position"``.
    :param distance: ``"path"`` or ``"manhattan"``.
    :param reward: ``"progress"`` or ``"distance"``.
    :param step_cost: what every env step costs.
    :param horizon: longest episode, env steps; None for 2 N.
    :param support_noise: σ of the normal deviate that is added to what is seen of a maze.
    """

    id = "Maze-v0"
    render_fps = 4

    def __init__(
        self,
        width: int | None = None,
        *,
        mazes: Sequence[str] | None = None,
        obstacle_columns: str = "odd",
        observation: str = "cell",
        distance: str = "path",
        reward: str = "progress",
        step_cost: float = 0.0,
        horizon: int | None = None,
        support_noise: float = 0.0,
    ) -> None:
        choice(*COLUMNS)("obstacle_columns", obstacle_columns)
        choice(*OBSERVATIONS)("observation", observation)
        choice(*DISTANCES)("distance", distance)
        self._pays_distance = choice(*REWARDS)("reward", reward) == "distance"
        if self._pays_distance:
            self.score = Score("score")
        self.step_cost = NOT_NEGATIVE("step_cost", step_cost)
        if mazes is None:
            bits, occupied, self._twins = _all_mazes(_checked_width(width), obstacle_columns == "odd")
        else:
            bits = occupied = _drawn_mazes(mazes, width)
            self._twins = np.arange(len(bits))[:, None]
        self.width = n = occupied.shape[2]
        self.horizon = (COUNT | NONE)("horizon", horizon) or 2 * n
        bits = bits.astype(np.int8)
        bits.flags.writeable = False
        self._tasks = {"obstacles": bits}
        self._codes = _code(bits)
        self._occupied = occupied
        self._after = transitions(occupied)
        path = distances(occupied)
        self._moves = shortest_moves(self._after, path)
        self._turns = path[:, 0, 0] - (n - 1)
        self._distance = _manhattan(occupied.shape) if distance == "manhattan" else path.reshape(len(path), -1)
        self._seen = _observations(observation, n)
        self._is_shifted = _most_turns(self._turns) if mazes is None else np.zeros(len(bits), dtype=bool)

        self.task_space = Dict({"obstacles": Box(0, 1, bits.shape[1:], np.int8)})
        self.shifted_space = self.task_space if self._is_shifted.any() else None
        self.observation_space = Box(0.0, 1.0, self._seen.shape[1:], np.float32)
        self.action_space = Discrete(len(MOVES))
        self.support_family = MazeCells("Maze-v0/support", self, self.occupied, n, "integers", support_noise)

    # ----------------------------------------------------------------------------------------------------------- tasks
    def finite_tasks(self) -> Tasks:
        return dict(self._tasks)

    def finite_split(self, split: str) -> np.ndarray:
        ordinary = self._twins[~self._is_shifted[self._twins[:, 0]]]
        return _in_turn(ordinary if self.splits_coincide else ordinary[cut_finite(self.id, len(ordinary), split)])

    def tasks(self, split: str, n: int = 40) -> Tasks:
        """Return the first ``n`` mazes of a fixed, named split, each once: at most as many as it has."""
        if split != "shifted" or self.shifted_space is None:
            return super().tasks(split, n)
        shifted = self._twins[self._is_shifted[self._twins[:, 0]]]
        order = stream(0, f"{self.id}/shifted").permutation(len(shifted))
        return take_tasks(self._tasks, _in_turn(shifted[order])[: COUNT("n", n)])

    def sample_shifted_tasks(self, rng: np.random.Generator, n: int) -> Tasks:
        """Draw mazes of the most turns."""
        shifted = np.flatnonzero(self._is_shifted)
        return take_tasks(self._tasks, shifted[rng.integers(len(shifted), size=n)])

    def in_training_range(self, tasks: Tasks) -> np.ndarray:
        return np.asarray(~self._is_shifted[self._find(tasks)])

    def drawing(self, task: Task) -> str:
        """Return a task's maze as two rows of ``.`` (free) and ``#`` (occupied), with a slash between them."""
        (maze,) = self._find({"obstacles": np.asarray(task["obstacles"])[None]})
        return draw_maze(self._occupied[maze])

    def occupied(self, tasks: Tasks) -> np.ndarray:
        """Return which cells of the mazes are occupied, ``[task, row, column]``, bool."""
        return np.asarray(self._occupied[self._find(tasks)])

    def _find(self, tasks: Tasks) -> np.ndarray:
        """Return which of the family's mazes each task is."""
        return np.searchsorted(self._codes, _code(tasks["obstacles"]))

    # -------------------------------------------------------------------------------------------------------- dynamics
    def reset(self, tasks: Tasks, rngs: Sequence[np.random.Generator], n_envs: int) -> tuple[State, np.ndarray]:
        cell = np.zeros((len(rngs), n_envs), dtype=np.int64)
        state = {"cell": cell}
        if self._pays_distance:
            state["begun"] = np.zeros(cell.shape, dtype=bool)
        return state, self._seen[cell]

    def step(
        self,
        tasks: Tasks,
        state: State,
        actions: np.ndarray,
        rngs: Sequence[np.random.Generator],
        active: np.ndarray | None = None,
    ) -> Step:
        maze = self._find(tasks)[:, None]
        before = state["cell"]
        after = self._after[maze, before, actions]
        start = self._distance[maze, 0]
        left = self._distance[maze, after]
        reward = (self._distance[maze, before] - left) / start
        info = {"reward_progress": reward, "score": -left / start}
        new = {"cell": after}
        if self._pays_distance:
            info["reward_start"] = np.where(state["begun"], 0.0, -1.0)
            reward = reward + info["reward_start"]
            new["begun"] = np.ones(after.shape, dtype=bool)
        if self.step_cost:
            info["reward_time"] = np.full(reward.shape, -self.step_cost)
            reward = reward + info["reward_time"]
        return Step(new, self._seen[after], reward, after == ROWS * self.width - 1, info)

    def expert(self, tasks: Tasks, state: State) -> np.ndarray:
        """Return the next move of a shortest way to the goal, ``[task, env]``.

        It is found by breadth-first search, and is the first of up, right, down and left where several are as short.
        """
        return np.asarray(self._moves[self._find(tasks)[:, None], state["cell"]])

    def cells(self, obs: np.ndarray) -> np.ndarray:
        """Return the cells that observations ``[..., *observation]`` were made in."""
        if obs.shape[-1] == len(self._seen):
            return np.asarray(obs.argmax(-1))
        column, row = obs[..., 0] * (self.width - 1), obs[..., 1]
        return np.asarray(np.rint(column + self.width * row).astype(np.int64))

    # --------------------------------------------------------------------------------------------------------- pictures
    def render(self, tasks: Tasks, trail: Sequence[State], task: int, env: int) -> np.ndarray:
        """Return a picture of the maze: obstacles (dark), the start (grey), the goal (green), the way from there and
        the agent (blue).
        """
        n = self.width
        occupied = self._occupied[self._find(tasks)[task]]
        height = 2 * round(SIZE * (ROWS + 1) / (n + 1) / 2)
        canvas = Canvas(SIZE, (n + 1) / 2, height)
        scale = SIZE / (n + 1)

        def centre(cell: int) -> np.ndarray:
            row, column = divmod(cell, n)
            return np.array([column - (n - 1) / 2, (ROWS - 1) / 2 - row])

        for cell in range(ROWS * n):
            x, y = centre(cell)
            if occupied.ravel()[cell]:
                canvas.rectangle((x - 0.5, y - 0.5), (x + 0.5, y + 0.5), (90, 90, 90))
        for row in range(ROWS + 1):
            y = row - ROWS / 2
            canvas.line((-n / 2, y), (n / 2, y), 3.0 if row in (0, ROWS) else 1.0, (60, 60, 60))
        for column in range(n + 1):
            x = column - n / 2
            canvas.line((x, -ROWS / 2), (x, ROWS / 2), 3.0 if column in (0, n) else 1.0, (60, 60, 60))
        way = [int(state["cell"][task, env]) for state in trail]
        canvas.disc(centre(ROWS * n - 1), 0.3 * scale, (44, 160, 44))
        canvas.disc(centre(0), 0.2 * scale, (150, 150, 150))
        for start, end in pairwise(way):
            canvas.line(centre(start), centre(end), 0.1 * scale, (150, 190, 230))
        canvas.disc(centre(way[-1]), 0.2 * scale, (31, 119, 180))
        return canvas.image()


# ---------------------------------------------------------------------------------------------------------- all mazes
def _checked_width(width: Any) -> int:
    n = integer(2, LARGEST_WIDTH)("width", WIDTH if width is None else width)
    if n % 2:
        raise ConfigError(f"width={n} is not even: a maze of N columns has N / 2 obstacles")
    return n


def _all_mazes(n: int, odd: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the bits of all mazes of ``n`` columns, ``[maze, bit]``, their occupied cells, and the pairs of twins."""
    bits = np.arange(2 ** (n // 2))[:, None] >> np.arange(n // 2) & 1
    occupied = np.zeros((len(bits), ROWS, n), dtype=bool)
    occupied[:, 0, odd::2] = bits == 1
    occupied[:, 1, odd::2] = bits == 0
    occupied[:, 0, 0] = occupied[:, -1, -1] = False
    # The bit whose obstacle may be left out is the goal's, or the start's.
    return bits, occupied, np.stack([np.flatnonzero(bits[:, -1 if odd else 0] == bit) for bit in (0, 1)], axis=-1)


def _in_turn(twins: np.ndarray) -> np.ndarray:
    """Return mazes of ``[pair, twin]`` in a row: one of each pair, the first or the second in turn, then the others."""
    pairs, n_twins = np.arange(len(twins)), twins.shape[1]
    return np.concatenate([twins[pairs, (pairs + turn) % n_twins] for turn in range(n_twins)])


def _drawn_mazes(mazes: Any, width: int | None) -> np.ndarray:
    """Return the occupied cells of mazes drawn by hand, in the order of their codes."""
    if isinstance(mazes, str) or not isinstance(mazes, Sequence) or not mazes:
        raise ConfigError(f"mazes={shorten(mazes)}: a list of drawings such as '..#./#...'")
    grids = [parse_maze(drawing) for drawing in mazes]
    n = grids[0].shape[1]
    for drawing, grid in zip(mazes, grids, strict=True):
        if grid.shape[1] != n:
            raise ConfigError(f"mazes differ in width: {shorten(mazes[0])} and {shorten(drawing)}")
    integer(2, LARGEST_WIDTH)("width of mazes", n)
    if width not in (None, n):
        raise ConfigError(f"width={shorten(width)}: the mazes have {n} columns")
    occupied = np.stack(grids)
    codes, first = np.unique(_code(occupied), return_index=True)
    if len(codes) < len(grids):
        twice = next(index for index in range(len(grids)) if index not in first)
        raise ConfigError(f"mazes holds {shorten(mazes[twice])} twice")
    return occupied[first]


def _code(bits: np.ndarray) -> np.ndarray:
    """Return a number for each row of bits."""
    flat = bits.reshape(len(bits), -1).astype(np.int64)
    return flat @ (1 << np.arange(flat.shape[1]))


def _manhattan(shape: tuple[int, ...]) -> np.ndarray:
    n_mazes, n_rows, n_columns = shape
    rows, columns = np.divmod(np.arange(n_rows * n_columns), n_columns)
    return np.broadcast_to(n_rows - 1 - rows + n_columns - 1 - columns, (n_mazes, n_rows * n_columns))


def _observations(kind: str, n: int) -> np.ndarray:
    """Return what is observed in each cell."""
    if kind == "cell":
        return np.eye(ROWS * n, dtype=np.float32)
    rows, columns = np.divmod(np.arange(ROWS * n), n)
    return np.stack([columns / (n - 1), rows], axis=-1).astype(np.float32)


def _most_turns(turns: np.ndarray) -> np.ndarray:
    """Return which mazes have the most turns: as many numbers of turns as make at most a quarter of the mazes."""
    for least in np.unique(turns):
        if (turns >= least).mean() <= LARGEST_SHIFTED:
            return np.asarray(turns >= least)
    return np.zeros(len(turns), dtype=bool)


register_family("Maze-v0", Maze)
