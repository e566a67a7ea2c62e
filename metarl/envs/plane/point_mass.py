"""PointMass: a point moves in the plane to a goal that it does not see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict

from metarl.checks import ABOVE_ZERO, COUNT, NOT_NEGATIVE, choice, number
from metarl.envs.family import Family, State, Step
from metarl.envs.lineage import choose_constants
from metarl.envs.plane.canvas import Canvas
from metarl.envs.registry import register_family
from metarl.envs.supervised.random_steps import RandomSteps
from metarl.envs.tasks import Tasks
from metarl.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PointMassConstants:
    """The arguments of :class:`PointMass`; the values here are those of the reference."""

    wrap_actions: bool = True
    """Whether the action space is ±``action_scale``, mapped to ±``max_step``; otherwise it is ±``max_step`` itself."""
    action_scale: float = 1.0
    """Actions of this size are full steps, with ``wrap_actions``."""
    max_step: float = 0.1
    """Longest move along each axis, m each env step (with ``momentum``: largest change of it)."""
    goals: str = "square"
    """``"square"``: uniform in ±``goal_range``; ``"corners"``: its four corners, a finite family."""
    goal_range: float = 0.5
    """Half the side of the goals' square, m."""
    start_range: float = 0.0
    """The start is uniform in a square of half this side, m; 0 is the origin."""
    reward: str = "distance"
    """One of ``REWARDS``."""
    reward_radius: float = 0.5
    """Where ``"corner"`` and ``"near"`` begin to pay, m."""
    termination: str = "box"
    """One of ``TERMINATIONS``."""
    goal_radius: float = 0.01
    """How near is there, m."""
    goal_bonus: float = 0.0
    """Added to the reward of the env step that terminates the episode."""
    momentum: bool = False
    """Whether actions change the velocity, which is observed, instead of the position."""
    friction: float = 0.0
    """The largest friction μ, of which each task has its own where this is above 0: a move is (1 − μ) times as long;
    with ``momentum`` the velocity loses the share μ before the action changes it."""
    start_speed: float = 0.0
    """With ``momentum``: the first velocity is uniform in ± this along each axis, m each env step."""
    observe_distance: bool = False
    """Whether the observation ends with the distance to the goal, which tells much of the task."""
    arena: float = np.inf
    """Walls: the position is clipped to ± this, m; by default there are none."""
    horizon: int = 100
    """Longest episode, env steps."""


REWARDS = ("distance", "squared", "corner", "near")
"""``"distance"``: -d, with d the Euclidean distance to the goal after the move. ``"squared"``: -d².
``"corner"``: how much d has shrunk in this env step, if the position's L1 norm is ``reward_radius`` or more and no
other corner is nearer than the goal; otherwise 0. ``"near"``: max(``reward_radius`` - d, 0)."""
SIZE = 400
"""Height and width of a picture, pixels."""
TERMINATIONS = ("box", "radius", "origin", "none")
"""``"box"``: both |dx| and |dy| below ``goal_radius``. ``"radius"``: d below it. ``"origin"``: both |x| and |y| below
it, wherever the goal is. ``"none"``: never."""

_REFERENCE = PointMassConstants()
_UNWRAPPED = replace(_REFERENCE, wrap_actions=False)
_CORNER = PointMassConstants(
    action_scale=10.0,
    max_step=0.2,
    goals="corners",
    goal_range=2.0,
    start_range=0.2,
    reward="corner",
    termination="none",
)

LINEAGES: dict[str, PointMassConstants] = {
    "maml_rl": _REFERENCE,
    "maml_paper": replace(_REFERENCE, reward="squared"),
    "pmr": _UNWRAPPED,
    "cavia": _UNWRAPPED,
    "l2l": _UNWRAPPED,
    "s4": replace(_UNWRAPPED, start_range=0.5),
    "promp": replace(_REFERENCE, action_scale=10.0, goal_range=2.0, termination="origin"),
    "promp_corner": _CORNER,
    "promp_momentum": replace(_CORNER, max_step=0.1, reward="near", reward_radius=2.0, momentum=True, start_speed=0.1),
    "garage": replace(
        _REFERENCE,
        action_scale=10.0,
        goal_range=2.0,
        termination="radius",
        goal_radius=0.1 * 2**0.5,
        observe_distance=True,
        arena=5.0,
    ),
}
"""Constants by the code base or paper they come from."""


class PointMass(Family):
    """2D navigation: reach a goal in the plane; the observation does not tell where it is.

    **Task.** ``goal`` ``[2]``, m, uniform in ±0.5 along each axis. Shifted: uniform in the ring between that square and
    the one of ±0.75. With ``goals="corners"`` there are four tasks, and the splits coincide. With ``friction`` a task
    has a ``friction`` too, uniform between 0 and that in all splits.

    **Observation.** Box of 2: the position (x, y), m; its bounds are what can be reached within the horizon. With
    ``momentum`` the velocity (2) follows, m each env step; with ``observe_distance`` the distance to the goal (1), m.

    **Action.** Box(-1, 1) of 2: the move along x and y in units of 0.1 m each env step, clipped.
    ``wrap_actions=False``: Box(-0.1, 0.1), the move itself, clipped. A policy of unit standard deviation explores the
    wrapped space; in the unwrapped one nearly every action is at the bounds.

    **Reward.** After the move; terms in ``info``: ``reward_distance`` = -‖position - goal‖ (or as ``reward`` says), and
    ``reward_goal`` where there is a ``goal_bonus``.

    **Episode.** Starts at the origin with velocity 0. It terminates when both |dx| and |dy| to the goal are below 0.01,
    and is truncated after 100 env steps. Over goals, staying at the origin returns -38.1, the best policy that knows
    the goal -0.5, standard normal actions -90.

    ::

        family = PointMass(horizon=20, goal_bonus=1.0)
        tasks = family.tasks("test", 2)
        state, obs = family.reset(tasks, [np.random.default_rng(task) for task in range(2)], n_envs=3)
        step = family.step(tasks, state, np.zeros((2, 3, 2), np.float32), [])
        assert np.allclose(step.info["reward_distance"], -np.linalg.norm(tasks["goal"], axis=1)[:, None])

    **Lineages.** ``PointMass("promp")`` takes the constants of another code base, keywords replace single ones. Returns
    of different lineages do not compare; neither do published numbers of one lineage under another inner rate or batch.

    =================  ===============================================  ================================================
    ``lineage``        differs from the reference in                    compares with
    =================  ===============================================  ================================================
    ``maml_rl``        nothing: the default                             raw MAML results, 40 goals, after 0 to 3 steps:
                                                                        MAML -40.4 -11.7 -3.3 -3.2; random
                                                                        initialisation -82.7 -58.0 -53.8 -46.8; context
                                                                        vector -42.4 -13.9 -5.2 -3.2; oracle -2.3
    ``maml_paper``     reward -d², as the text of the MAML paper says   nothing: the published numbers fit -d
    ``pmr``,           ``wrap_actions=False``                           ANIL paper: MAML -20.3 ± 3.2, ANIL -20.1 ± 2.3
    ``cavia``, ``l2l``
    ``s4``             start uniform in ±0.5, ``wrap_actions=False``    the figures of the first-order meta-RL paper,
                                                                        which prints no returns
    ``promp``          goals in ±2, ``action_scale=10``, terminates     no table; the published code ends episodes at
                       near the origin wherever the goal is             its own start
    ``promp_corner``   goals (±2, ±2), start in ±0.2, steps of 0.2,     ProMP figures; ``reward="distance"`` and
                       ``action_scale=10``, sparse reward, no end       ``"squared"`` are its dense variants
    ``promp_momentum`` as the corners, steps of 0.1 change the          ProMP figures
                       velocity, which starts in ±0.1; reward near 2 m
    ``garage``         goals in ±2, ``action_scale=10``, distance       no table
                       observed, walls at ±5, ends within 0.141
    =================  ===============================================  ================================================

    **Support.** ``support_family``: what wrappers that transfer see of a task are env steps of a policy that draws each
    action uniformly, (observation, action) and the reward for it.

    **Versions.** v0: first version.

    :param lineage: constants to start from, a key of ``LINEAGES``.
    :param support_noise: σ of the normal deviate that is added to each of those rewards.
    :param constants: fields of :class:`PointMassConstants` to replace.
    """

    id = "PointMass-v0"
    render_fps = 20

    def __init__(self, lineage: str = "maml_rl", *, support_noise: float = 0.0, **constants: Any) -> None:
        self.constants = c = choose_constants(LINEAGES, lineage, constants, "PointMass")
        choice("square", "corners")("goals", c.goals)
        choice(*REWARDS)("reward", c.reward)
        choice(*TERMINATIONS)("termination", c.termination)
        for name in ("action_scale", "max_step", "goal_range", "reward_radius", "goal_radius", "arena"):
            ABOVE_ZERO(name, getattr(c, name))
        number("[0, 1)")("friction", c.friction)
        if c.friction and c.goals == "corners":
            raise ConfigError(f"friction={c.friction} with goals='corners': each task has another one, of any number")
        COUNT("horizon", c.horizon)
        for name in ("start_range", "start_speed"):
            NOT_NEGATIVE(name, getattr(c, name))
        if c.reward == "corner" and c.goals != "corners":
            raise ConfigError("reward='corner' needs goals='corners'")
        if c.start_speed and not c.momentum:
            raise ConfigError("start_speed needs momentum=True")
        self.horizon = c.horizon
        self.observes_task = c.observe_distance
        rest = {"friction": Box(0.0, c.friction, (), np.float64)} if c.friction else {}
        self.task_space = Dict({"goal": Box(-c.goal_range, c.goal_range, (2,), np.float64), **rest})
        if c.goals == "square":
            self.shifted_space = Dict({"goal": Box(-1.5 * c.goal_range, 1.5 * c.goal_range, (2,), np.float64), **rest})
        high = c.action_scale if c.wrap_actions else c.max_step
        self.action_space = Box(-high, high, (2,), np.float32)
        self._action_bound = high
        self._gain = c.max_step / high
        self.observation_space = self._observation_space()
        # Where a point moves to is the same in all tasks: what tells them apart is what that pays.
        self.support_family = RandomSteps("PointMass-v0/support", self, "reward", support_noise)

    def _observation_space(self) -> Box:
        c = self.constants
        # Bounds that cannot be left: Gymnasium's checker warns of infinite ones.
        speed = c.start_speed + c.horizon * c.max_step if c.momentum else c.max_step
        reach = float(np.ceil(min(c.arena, c.start_range + c.horizon * speed)))
        high = [reach, reach]
        if c.momentum:
            high += [float(np.ceil(speed))] * 2
        low = [-bound for bound in high]
        if c.observe_distance:
            low.append(0.0)
            high.append(float(np.ceil(2**0.5 * (reach + 1.5 * c.goal_range))))
        return Box(np.array(low, np.float32), np.array(high, np.float32), dtype=np.float32)

    # ----------------------------------------------------------------------------------------------------------- tasks
    def finite_tasks(self) -> Tasks | None:
        if self.constants.goals == "square":
            return None
        return {"goal": self.constants.goal_range * np.array([[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]])}

    def sample_shifted_tasks(self, rng: np.random.Generator, n: int) -> Tasks:
        """Draw goals uniformly from the ring between the training square and one half as large again."""
        goals = np.zeros((n, 2))
        for goal in goals:
            # 5/9 of the square is ring: a few draws suffice.
            while np.all(np.abs(goal) <= self.constants.goal_range):
                goal[:] = rng.uniform(-1.5, 1.5, 2) * self.constants.goal_range
        return {"goal": goals, **self._draw_friction(rng, n)}

    def _draw_friction(self, rng: np.random.Generator, n: int) -> Tasks:
        friction = self.constants.friction
        return {"friction": rng.uniform(0.0, friction, n)} if friction else {}

    # -------------------------------------------------------------------------------------------------------- dynamics
    def reset(self, tasks: Tasks, rngs: Sequence[np.random.Generator], n_envs: int) -> tuple[State, np.ndarray]:
        c = self.constants
        position = np.zeros((len(rngs), n_envs, 2))
        if c.start_range:
            for row, rng in zip(position, rngs, strict=True):
                row[:] = rng.uniform(-c.start_range, c.start_range, (n_envs, 2))
        state = {"position": position}
        if c.momentum:
            state["velocity"] = np.zeros_like(position)
            if c.start_speed:
                for row, rng in zip(state["velocity"], rngs, strict=True):
                    row[:] = rng.uniform(-c.start_speed, c.start_speed, (n_envs, 2))
        return state, self._observe(tasks, state, None)

    def step(
        self,
        tasks: Tasks,
        state: State,
        actions: np.ndarray,
        rngs: Sequence[np.random.Generator],
        active: np.ndarray | None = None,
    ) -> Step:
        c = self.constants
        # float64 costs nothing at this size, and single and batched views then agree to the last bit.
        move = np.asarray(actions).astype(np.float64)
        np.maximum(move, -self._action_bound, out=move)
        np.minimum(move, self._action_bound, out=move)
        move *= self._gain
        after = {}
        kept = 1.0 - tasks["friction"][:, None, None] if c.friction else 1.0
        if c.momentum:
            move += kept * state["velocity"]
            after["velocity"] = move
        else:
            move *= kept
        position = state["position"] + move
        if c.arena < np.inf:
            np.clip(position, -c.arena, c.arena, out=position)
        after["position"] = position

        delta = position - tasks["goal"][:, None]
        distance = self._length(delta)
        reward = self._reward(tasks, state, position, distance)
        terminated = self._terminated(position, delta, distance)
        info = {"reward_distance": reward}
        if c.goal_bonus:
            info["reward_goal"] = c.goal_bonus * terminated
            reward = reward + info["reward_goal"]
        return Step(after, self._observe(tasks, after, distance), reward, terminated, info)

    def render(self, tasks: Tasks, trail: Sequence[State], task: int, env: int) -> np.ndarray:
        """Return a picture of the plane: where goals lie (the square), the goal (green), the start (grey), the way from
        there and the position (blue), and walls (black). It shows more of the plane as the way leads out of it.
        """
        c = self.constants
        way = np.array([state["position"][task, env] for state in trail])
        goals = self.task_space["goal"] if self.shifted_space is None else self.shifted_space["goal"]
        assert isinstance(goals, Box)
        reach = 1.1 * max(float(goals.high.max()), c.start_range, np.abs(way).max())
        canvas = Canvas(SIZE, reach)
        canvas.square(c.goal_range, 1.5, (205, 205, 205))
        if c.arena < np.inf:
            canvas.square(c.arena, 3.0, (0, 0, 0))
        canvas.disc(tasks["goal"][task], 9.0, (44, 160, 44))
        canvas.disc(way[0], 6.0, (150, 150, 150))
        for start, end in pairwise(way):
            canvas.line(start, end, 2.0, (150, 190, 230))
        canvas.disc(way[-1], 6.0, (31, 119, 180))
        return canvas.image()

    def _observe(self, tasks: Tasks, state: State, distance: np.ndarray | None) -> np.ndarray:
        c = self.constants
        position = state["position"]
        if not (c.momentum or c.observe_distance):
            return position.astype(np.float32)
        parts = [position]
        if c.momentum:
            parts.append(state["velocity"])
        if c.observe_distance:
            if distance is None:
                distance = self._length(position - tasks["goal"][:, None])
            parts.append(distance[..., None])
        return np.concatenate(parts, axis=-1).astype(np.float32)

    @staticmethod
    def _length(delta: np.ndarray) -> np.ndarray:
        x, y = delta[..., 0], delta[..., 1]
        square = x * x
        square += y * y
        return np.asarray(np.sqrt(square, out=square))

    def _reward(self, tasks: Tasks, state: State, position: np.ndarray, distance: np.ndarray) -> np.ndarray:
        c = self.constants
        if c.reward == "distance":
            return np.asarray(-distance)
        if c.reward == "squared":
            return np.asarray(-distance * distance)
        if c.reward == "near":
            return np.asarray(np.maximum(c.reward_radius - distance, 0.0))
        goal = tasks["goal"][:, None]
        pays = (np.abs(position).sum(-1) >= c.reward_radius) & (position * goal >= 0).all(-1)
        return np.where(pays, self._length(state["position"] - goal) - distance, 0.0)

    def _terminated(self, position: np.ndarray, delta: np.ndarray, distance: np.ndarray) -> np.ndarray:
        c = self.constants
        if c.termination == "none":
            return np.zeros(distance.shape, dtype=bool)
        if c.termination == "radius":
            return np.asarray(distance < c.goal_radius)
        near = np.abs(position if c.termination == "origin" else delta) < c.goal_radius
        return np.asarray(near[..., 0] & near[..., 1])


register_family("PointMass-v0", PointMass)
