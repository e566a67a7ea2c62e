"""PointMassFamilies: 2D navigation to goals in families of one rectangle each (Devos and Dandi, 2020, section 4.2)."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict

from metarl.checks import choice
from metarl.envs.plane.point_mass import PointMass
from metarl.envs.registry import register_family
from metarl.envs.tasks import Tasks
from metarl.envs.two_levels import TwoLevels
from metarl.errors import ConfigError

DRIFTS = ("none", "goal", "friction")
SHORTEST, LONGEST = 0.25, 0.75
"""The sides of a rectangle, as parts of the side of the goals' square."""


class PointMassFamilies(TwoLevels, PointMass):
    """2D navigation whose tasks come in families of goals: each is a rectangle, a random crop of the square.

    **Family of tasks.** ``low`` ``[2]``, m, the rectangle's corner with the smallest coordinates, and ``size`` ``[2]``,
    m, its sides. Each side is uniform in 25% to 75% of the side of the square of ±0.5 (the paper: a random crop of the
    unit square, bounded by 25% to 75% of its length), and then the corner is uniform where the rectangle fits in.

    **Task.** ``goal`` ``[2]``, m, uniform in the rectangle of its family; over all families goals are denser in the
    middle of the square. Shifted: as in ``PointMass-v0``.

    **Drift.** With ``drift`` the tasks of a family that are drawn together follow each other, evenly from one task of
    the family to another: a task is (1 − t) · first + t · last, with t from 0 to 1. ``"goal"``: the goal goes along a
    line in the rectangle; ``"friction"``: the goal stays, and the friction (an argument of ``PointMass-v0``) rises or
    falls.

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
    :param drift: ``"none"``, ``"goal"`` or ``"friction"``.
    :param constants: its further arguments.
    """

    id = "PointMassFamilies-v0"

    def __init__(self, lineage: str = "maml_rl", *, drift: str = "none", **constants: Any) -> None:
        super().__init__(lineage, **constants)
        self.drift: str = choice(*DRIFTS)("drift", drift)
        if drift == "friction" and not self.constants.friction:
            raise ConfigError("drift='friction' with friction=0.0: no task has any; say the largest one")
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
        # A rectangle at the edge may end beyond it by rounding.
        return {"goal": np.clip(goal, -half, half), **self._draw_friction(rng, len(low))}

    def sample_tasks(self, rng: np.random.Generator, n: int, families: Tasks | None = None) -> Tasks:
        """Draw training tasks; with ``drift`` those of one family lie between two draws, one after the other."""
        if families is None or self.drift == "none":
            return super().sample_tasks(rng, n, families)
        first, last = (self.tasks_within(rng, families) for _ in range(2))
        place = np.linspace(0.0, 1.0, n)
        ends = {name: (value, last[name] if name == self.drift else value) for name, value in first.items()}
        return {name: _between(*pair, place) for name, pair in ends.items()}


def _between(first: np.ndarray, last: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Return ``[family · n, …]``, the points from the first to the last, family after family."""
    t = place.reshape(1, -1, *[1] * (first.ndim - 1))
    points = (1.0 - t) * first[:, None] + t * last[:, None]
    # They may lie beyond by rounding, and where both are the same they are that.
    points = np.maximum(np.minimum(points, np.maximum(first, last)[:, None]), np.minimum(first, last)[:, None])
    return np.asarray(points.reshape(-1, *first.shape[1:]))


register_family("PointMassFamilies-v0", PointMassFamilies)
