"""PointMassFamilies: 2D navigation to goals in families of one rectangle each (Devos and Dandi, 2020, section 4.2)."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict

from metarl.envs.plane.point_mass import PointMass
from metarl.envs.registry import register_family
from metarl.envs.tasks import Tasks
from metarl.envs.two_levels import TwoLevels
from metarl.errors import ConfigError

SHORTEST, LONGEST = 0.25, 0.75
"""The sides of a rectangle, as parts of the side of the goals' square."""


class PointMassFamilies(TwoLevels, PointMass):
    """2D navigation whose tasks come in families of goals: each is a rectangle, a random crop of the square.

    **Family of tasks.** ``low`` ``[2]``, m, the rectangle's corner with the smallest coordinates, and ``size`` ``[2]``,
    m, its sides. Each side is uniform in 25% to 75% of the side of the square of ±0.5 (the paper: a random crop of the
    unit square, bounded by 25% to 75% of its length), and then the corner is uniform where the rectangle fits in.

    **Task.** ``goal`` ``[2]``, m, uniform in the rectangle of its family; over all families goals are denser in the
    middle of the square. Shifted: as in ``PointMass-v0``.

    Observation, action, reward and episode are those of ``PointMass-v0``, whose arguments it takes but for
    ``goals="corners"``. The rectangle is observed as little as the goal is::

        family, rng = make_family("PointMassFamilies-v0", horizon=20), np.random.default_rng(0)
        families = family.sample_families(rng, 2)
        goals = family.sample_tasks(rng, 5, families=families)["goal"].reshape(2, 5, 2)
        assert np.all(goals >= families["low"][:, None])
        assert np.all(goals <= (families["low"] + families["size"])[:, None])

    Published: nothing; the paper proposes the experiment.

    **Versions.** v0: first version.

    :param lineage: constants to start from, as of :class:`~metarl.envs.plane.point_mass.PointMass`.
    :param constants: its further arguments.
    """

    id = "PointMassFamilies-v0"

    def __init__(self, lineage: str = "maml_rl", **constants: Any) -> None:
        super().__init__(lineage, **constants)
        if self.constants.goals != "square":
            raise ConfigError(f"goals={self.constants.goals!r}: families are rectangles in goals='square'")
        side = 2.0 * self.constants.goal_range
        low = Box(-0.5 * side, (0.5 - SHORTEST) * side, (2,), np.float64)
        self.family_space = Dict({"low": low, "size": Box(SHORTEST * side, LONGEST * side, (2,), np.float64)})

    def sample_families(self, rng: np.random.Generator, n: int) -> Tasks:
        """Draw rectangles: their sides, then where they lie."""
        half = self.constants.goal_range
        size = 2.0 * half * rng.uniform(SHORTEST, LONGEST, (n, 2))
        return {"low": -half + rng.random((n, 2)) * (2.0 * half - size), "size": size}

    def tasks_within(self, rng: np.random.Generator, families: Tasks) -> Tasks:
        low, half = families["low"], self.constants.goal_range
        goal = low + rng.random(low.shape) * families["size"]
        return {"goal": np.clip(goal, -half, half)}  # a rectangle at the edge may end beyond it by rounding


register_family("PointMassFamilies-v0", PointMassFamilies)
