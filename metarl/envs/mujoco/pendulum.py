"""Pendulums on carts: what one pole does is seen, and what two do, or how long and heavy they are, is predicted."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict, Space

from metarl.checks import COUNT, integer, number
from metarl.envs.family import State
from metarl.envs.lineage import choose_constants
from metarl.envs.mujoco.poles import Poles
from metarl.envs.plane.canvas import Canvas, Colour
from metarl.envs.registry import register_family
from metarl.envs.supervised.one_step import SUPPORT_NOISE, OneStep, with_noise
from metarl.envs.tasks import Tasks
from metarl.errors import ConfigError, shorten


@dataclass(frozen=True, kw_only=True)
class PendulumConstants:
    """Constants of the families of pendulums."""

    min_length: float = 0.3
    """Shortest pole, m; at least 0.1."""
    max_length: float = 0.9
    """Longest one that training has, m; at most 2. Those of ``shifted`` are up to half the range longer."""
    min_gravity: float = 5.0
    """Least gravity, m/s²; at least 0."""
    max_gravity: float = 15.0
    """Largest one that training has, m/s²; at most 50. Those of ``shifted`` are up to half the range larger."""
    n_steps: int = 7
    """Transitions of a random policy after each reset."""


class PendulumFamily(OneStep):
    """Base of the families whose tasks are a pole's ``length`` and the ``gravity``.

    :param constants: fields of :class:`PendulumConstants` that differ from its own.
    """

    clips_actions = False
    render_fps = 2

    def __init__(self, **constants: Any) -> None:
        name = type(self).__name__
        self.constants = chosen = choose_constants({"s0": PendulumConstants()}, "s0", constants, name)
        integer(1, 1000)("n_steps", chosen.n_steps)
        within: dict[str, Space[Any]] = {}
        beyond: dict[str, Space[Any]] = {}
        for what, limits in (("length", number("[0.1, 2]")), ("gravity", number("[0, 50]"))):
            low, high = (limits(f"{end}_{what}", getattr(chosen, f"{end}_{what}")) for end in ("min", "max"))
            if not low < high:
                raise ConfigError(f"min_{what}={shorten(low)}: below max_{what}={shorten(high)}")
            within[what] = Box(low, high, (), np.float64)
            beyond[what] = Box(high, high + (high - low) / 2.0, (), np.float64)
        self.task_space, self.shifted_space = Dict(within), Dict(beyond)


class Transitions(PendulumFamily):
    """Base of the families that show transitions of a random policy; the observation is (s, a), the target s'.

    :param n_threads: physics threads; None for every core that the process may use. Results do not depend on it.
    """

    n_poles: int

    # The states on the way from a reset tell how long and heavy the pole is.
    observes_task = True

    def __init__(self, *, n_threads: int | None = None, **constants: Any) -> None:
        super().__init__(**constants)
        if n_threads is None:
            n_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.poles = Poles(self.n_poles, COUNT("n_threads", n_threads))
        n_state = 2 * (self.n_poles + 1)
        self.observation_space = Box(-np.inf, np.inf, (n_state + 1,), np.float32)
        self.action_space = Box(-LARGEST, LARGEST, (n_state,), np.float32)

    def examples(self, tasks: Tasks, rngs: Sequence[np.random.Generator], n: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw ``n`` transitions of every task, those of one episode after those of another; the last one is cut."""
        n_steps = self.constants.n_steps
        n_episodes = -(-n // n_steps)
        largest = self.poles.largest_action
        start = np.stack([self.poles.start(rng, n_episodes) for rng in rngs])
        actions = np.stack([rng.uniform(-largest, largest, (n_episodes, n_steps)) for rng in rngs])
        after = self.poles.play(tasks["length"], tasks["gravity"], start, actions)
        before = np.concatenate([start[:, :, None], after[:, :, :-1]], axis=2)
        seen = np.concatenate([before, actions[..., None]], axis=-1)
        inputs, targets = (each.reshape(len(rngs), n_episodes * n_steps, -1)[:, :n] for each in (seen, after))
        return inputs.astype(np.float32), targets

    def render(self, tasks: Tasks, trail: Sequence[State], task: int, env: int) -> np.ndarray:
        """Return a picture of the state (grey), the one that follows (green) and, once it is made, the one that is
        predicted (blue).
        """
        state = {name: value[task, env] for name, value in trail[-1].items()}
        length, n = float(tasks["length"][task]), self.n_poles
        canvas = Canvas(SIZE, PICTURE_REACH * n)
        shown = [(state["input"], GREY), (state["target"], GREEN)]
        shown += [(state["prediction"], BLUE)] if len(trail) > 1 else []
        for numbers, colour in shown:
            draw_cart(canvas, float(numbers[0]), np.cumsum(numbers[1 : 1 + n]), length, colour)
        return canvas.image()

    def close(self) -> None:
        self.poles.close()


class SinglePendulum(Transitions):
    """What is seen of the tasks of the families of pendulums: transitions of a single one.

    :param support_noise: σ of the normal deviate that is added to each entry of s'.
    """

    id = "Pendulum-v0/support"
    n_poles = 1

    def __init__(self, *, support_noise: float = 0.0, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.support_noise = SUPPORT_NOISE("support_noise", support_noise)

    def examples(self, tasks: Tasks, rngs: Sequence[np.random.Generator], n: int) -> tuple[np.ndarray, np.ndarray]:
        inputs, targets = super().examples(tasks, rngs, n)
        return inputs, with_noise(targets, rngs, self.support_noise)


class DoublePendulum(Transitions):
    """Transfer from the dynamics of a single pendulum to those of a double one (meta-transfer, section 5.3).

    **Task.** ``length`` of the poles, uniform in [0.3, 0.9] m, and ``gravity``, uniform in [5, 15] m/s². Shifted (out
    of distribution): both in the half range above, [0.9, 1.2] m and [15, 20] m/s². The paper states no ranges; these
    have Gymnasium's 0.6 m and nearly its gravity in their middle. Masses and inertias follow the length.

    **Support.** ``support_family``: transitions of Gymnasium's InvertedPendulum, observation (s, a) with
    s = (x, θ, x', θ') in m, rad, m/s and rad/s, 0.04 s apart; a in [-3, 3] is the motor's control, of 100 N each. The
    target is s', with a normal deviate of ``support_noise`` added to each entry.

    **Observation.** Box of 7: (s, a) of Gymnasium's InvertedDoublePendulum, with s = (x, θ1, θ2, x', θ1', θ2'); θ2 is
    the angle between the poles. a in [-1, 1] is its motor's control, of 500 N: the paper's [-3, 3] is the single one's.

    **Action.** Box(-100, 100) of 6: the predicted state 0.05 s later. It is not clipped: an action costs what it says.

    **Reward.** Minus the squared error, summed over the 6 entries: the mean over entries is a sixth. ``info`` has the
    ``target``.

    **Episode.** One env step: a transition. Both pendulums start upright with Gymnasium's noise, and their motor draws
    uniformly from its range; ``n_steps`` = 7 transitions follow each reset (a random policy's episode ends after
    about as many in Gymnasium), and whoever asks for more gets further resets. Predicting no change has a squared error
    of 3.3 in the mean over entries (20 in sum), where the paper has 3.23; with 5 steps after each reset it is 2.7, with
    10 it is 6.

    Published, as mean squared error: without noise 0.30 (transformer) to 0.33 and deep kernel 1.35; with noise of 3,
    context 0.35, non-linear 0.38, linear 0.41, mean 0.60, max 1.19, transformer 3.45.

    To meta-wrappers that adapt by gradients in the family itself the double pendulum is what is learnt from::

        env = gymnasium.make("DoublePendulum-v0", length=0.6, gravity=9.81)
        obs, info = env.reset(seed=0)
        obs, reward, terminated, truncated, info = env.step(obs[:6])
        assert terminated and np.isclose(reward, -np.square(info["target"] - obs[:6]).sum())

    **Versions.** v0: first version.

    :param support_noise: σ of the normal deviate that is added to what is seen.
    :param arguments: ``n_threads``, physics threads, and fields of :class:`PendulumConstants`.
    """

    id = "DoublePendulum-v0"
    n_poles = 2

    def __init__(self, *, support_noise: float = 0.0, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.support_family = SinglePendulum(support_noise=support_noise, **arguments)

    def close(self) -> None:
        super().close()
        assert self.support_family is not None
        self.support_family.close()


class PendulumParameters(PendulumFamily):
    """Transfer from the dynamics of a single pendulum to its length and gravity themselves (meta-transfer, figure 3).

    **Task** and **support** are those of :class:`DoublePendulum`.

    **Observation.** Box of 1: always 1. There is one question, and its answer is the task.

    **Action.** Box(-100, 100) of 2: the predicted length and gravity, each scaled so that training's range is [-1, 1]:
    (length - 0.6) / 0.3 and (gravity - 10) / 5. It is not clipped.

    **Reward.** Minus the squared error, summed over both. ``info`` has the ``target``. Who predicts the middle has -2/3
    in the mean over tasks.

    **Episode.** One env step. Whoever adapts in the family itself is told the answer by its first example; the family
    is for what sees the pendulum only::

        env = gymnasium.make("PendulumParameters-v0", length=0.9, gravity=5.0)
        obs, info = env.reset(seed=0)
        obs, reward, terminated, truncated, info = env.step(np.array([1.0, -1.0], np.float32))
        assert terminated and np.isclose(reward, 0.0)

    **Versions.** v0: first version.

    :param support_noise: σ of the normal deviate that is added to what is seen.
    :param arguments: ``n_threads``, physics threads, and fields of :class:`PendulumConstants`.
    """

    id = "PendulumParameters-v0"

    def __init__(self, *, support_noise: float = 0.0, n_threads: int | None = None, **constants: Any) -> None:
        super().__init__(**constants)
        self.support_family = SinglePendulum(support_noise=support_noise, n_threads=n_threads, **constants)
        c = self.constants
        low, high = np.array([c.min_length, c.min_gravity]), np.array([c.max_length, c.max_gravity])
        self._middles, self._halves = (low + high) / 2.0, (high - low) / 2.0
        self.observation_space = Box(0.0, 1.0, (1,), np.float32)
        self.action_space = Box(-LARGEST, LARGEST, (len(self.task_space.spaces),), np.float32)

    def examples(self, tasks: Tasks, rngs: Sequence[np.random.Generator], n: int) -> tuple[np.ndarray, np.ndarray]:
        known = np.stack([tasks["length"], tasks["gravity"]], axis=-1)
        targets = np.repeat(((known - self._middles) / self._halves)[:, None], n, axis=1)
        return np.ones((len(rngs), n, 1), np.float32), targets

    def render(self, tasks: Tasks, trail: Sequence[State], task: int, env: int) -> np.ndarray:
        """Return a picture of a pole of the task's length with an arrow for gravity below it (green) and, once they
        are made, of the predicted ones beside it (blue).
        """
        canvas = Canvas(SIZE, PICTURE_REACH)
        shown = [(-0.6, float(tasks["length"][task]), float(tasks["gravity"][task]), GREEN)]
        if len(trail) > 1:
            length, gravity = trail[-1]["prediction"][task, env] * self._halves + self._middles
            shown.append((0.6, float(length), float(gravity), BLUE))
        for x, length, gravity, colour in shown:
            draw_cart(canvas, x, np.array([SHOWN_ANGLE]), max(length, 0.0), colour)
            canvas.line((x, -0.1), (x, -0.1 - PICTURE_REACH * max(gravity, 0.0) / LARGEST_SHOWN), 4.0, colour)
        return canvas.image()

    def close(self) -> None:
        assert self.support_family is not None
        self.support_family.close()


def draw_cart(canvas: Canvas, x: float, angles: np.ndarray, length: float, colour: Colour) -> None:
    """Draw a cart with its poles.

    :param x: where it is, m.
    :param angles: of each pole to the vertical, rad.
    :param length: of each, m.
    """
    joint = np.array([x, 0.0])
    canvas.line((x - 0.12, 0.0), (x + 0.12, 0.0), 12.0, colour)
    for angle in angles:
        tip = joint + length * np.array([np.sin(angle), np.cos(angle)])
        canvas.line(joint, tip, 6.0, colour)
        joint = tip


SIZE = 400
"""Height and width of a picture, pixels."""
PICTURE_REACH = 1.4
"""m in each direction that pictures show for each pole; the same for all tasks, whose lengths differ."""
SHOWN_ANGLE = 0.3
"""rad from the vertical of poles whose length is the question."""
LARGEST_SHOWN = 25.0
"""Gravity whose arrow is as long as the picture."""
GREY, GREEN, BLUE = (190, 190, 190), (44, 160, 44), (31, 119, 180)
LARGEST = 100.0
"""Bounds of predictions, which nothing reaches that is worth predicting: Stable-Baselines3 takes finite ones."""

register_family("DoublePendulum-v0", DoublePendulum)
register_family("PendulumParameters-v0", PendulumParameters)
