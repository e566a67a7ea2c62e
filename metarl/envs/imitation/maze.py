"""MazeImitation: discrete moves to imitate, shown by a search that knows the maze."""

from __future__ import annotations

import numpy as np

from metarl.envs.family import Family
from metarl.envs.imitation.expert import Expert
from metarl.envs.imitation.imitation import Imitation
from metarl.envs.maze.maze import Maze
from metarl.envs.registry import register_family
from metarl.envs.tasks import Tasks


class Search(Expert):
    """Takes the shortest way through a maze, which breadth-first search finds.

    :param real: the mazes.
    """

    fingerprint = "breadth-first search"

    def __init__(self, real: Maze) -> None:
        self._real = real

    def act(self, tasks: Tasks, obs: np.ndarray) -> np.ndarray:
        return self._real.expert(tasks, {"cell": self._real.cells(obs)})


class MazeImitation(Imitation):
    """Imitation of an expert that takes the shortest way through ``Maze-v0``.

    **Task.** ``obstacles``, as in ``Maze-v0``: training tasks and splits are its own.

    **Observation.** The cell that the expert is in, as in ``Maze-v0``. A fifth of its moves are random ones
    (``acting_noise=0.2``), so that cells beside the shortest way are shown too, with the expert's move there.

    **Action.** Discrete(4): what the policy would do there.

    **Reward.** 1 for the expert's move and 0 for others, so the expectation is π(a*); the learner ``cloning`` takes
    log π(a*) and its exact gradient. ``info`` has the ``target`` a*.

    **Episode.** One env step: a pair of a cell and a move. K episodes are K pairs.

    **Score.** The return of 5 episodes of the adapted policy in ``Maze-v0``: 1 at the goal, the score plus 1 elsewhere.
    The expert's is 1.

    ::

        env = gymnasium.make("MazeImitation-v0", obstacles=[1, 0, 1, 0, 1, 0])
        obs, info = env.reset(seed=0)
        obs, reward, terminated, truncated, info = env.step(0)
        assert terminated and reward == (info["target"] == 0)

    **Versions.** v0: first version.

    The arguments are those of :class:`~metarl.envs.imitation.imitation.Imitation`; ``real_kwargs`` are those of
    :class:`~metarl.envs.maze.maze.Maze`, whose mazes are all there are, so that ``n_tasks`` has no effect.
    """

    id = "MazeImitation-v0"
    real_id = "Maze-v0"
    default_acting_noise = 0.2

    def make_expert(self, real: Family) -> Expert:
        assert isinstance(real, Maze)
        return Search(real)


register_family("MazeImitation-v0", MazeImitation)
