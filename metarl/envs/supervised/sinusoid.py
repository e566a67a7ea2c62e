"""Sinusoid: few-shot regression of a sine wave (Finn, Abbeel and Levine, 2017, section 5.1)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from gymnasium.spaces import Box, Dict

from metarl.envs.family import State
from metarl.envs.plane.canvas import Canvas
from metarl.envs.registry import register_family
from metarl.envs.supervised.one_step import OneStep
from metarl.envs.tasks import Tasks

LARGEST_INPUT = 5.0
LARGEST_AMPLITUDE = 5.0
SIZE = 400
"""Height and width of a picture, pixels."""


class Sinusoid(OneStep):
    """Regression of ``y = amplitude · sin(x − phase)`` from a few examples.

    **Task.** ``amplitude``, uniform in [0.1, 5], and ``phase``, rad, uniform in [0, π]. Shifted: the amplitude is
    uniform in [5, 7.5]. The phase is subtracted, as in the code that goes with the paper.

    **Observation.** Box of 1: x, uniform in [-5, 5].

    **Action.** Box(-20, 20) of 1: the predicted y, clipped. The bounds are four times the largest amplitude in
    training, so that they are no part of what is learnt.

    **Reward.** Minus the squared error of the prediction: a mean return is −MSE. ``info`` has the ``target`` y.

    **Episode.** One env step: an example. K episodes are K shots. Predicting 0 everywhere returns -4.25 in the mean
    over tasks; the best prediction that does not know the task, -1.62 cos x, -3.0.

    Published, with the learner ``supervised`` and 5 shots, as MSE after 1, 5 and 10 gradient steps: MAML 0.67, 0.38 and
    0.35; joint training 2.41, 2.23 and 2.19.

    ::

        env = gymnasium.make("Sinusoid-v0", amplitude=2.0, phase=0.0)
        obs, info = env.reset(seed=0)
        obs, reward, terminated, truncated, info = env.step(2.0 * np.sin(obs))
        assert terminated and abs(reward) < 1e-10

    **Versions.** v0: first version.
    """

    id = "Sinusoid-v0"
    render_fps = 2

    def __init__(self) -> None:
        phase = Box(0.0, np.pi, (), np.float64)
        self.task_space = Dict({"amplitude": Box(0.1, LARGEST_AMPLITUDE, (), np.float64), "phase": phase})
        shifted = Box(LARGEST_AMPLITUDE, 1.5 * LARGEST_AMPLITUDE, (), np.float64)
        self.shifted_space = Dict({"amplitude": shifted, "phase": phase})
        self.observation_space = Box(-LARGEST_INPUT, LARGEST_INPUT, (1,), np.float32)
        self.action_space = Box(-4 * LARGEST_AMPLITUDE, 4 * LARGEST_AMPLITUDE, (1,), np.float32)

    def examples(self, tasks: Tasks, rngs: Sequence[np.random.Generator], n: int) -> tuple[np.ndarray, np.ndarray]:
        x = np.stack([rng.uniform(-LARGEST_INPUT, LARGEST_INPUT, (n, 1)) for rng in rngs])
        # What is shown is what the target belongs to: float32.
        x = x.astype(np.float32)
        amplitude, phase = (tasks[name][:, None, None] for name in ("amplitude", "phase"))
        return x, amplitude * np.sin(x - phase)

    def render(self, tasks: Tasks, trail: Sequence[State], task: int, env: int) -> np.ndarray:
        """Return a picture of the task's sine (grey), the example (green) and, once it is made, the prediction (blue),
        with the error between them.
        """
        state = {name: value[task, env, 0] for name, value in trail[-1].items()}
        amplitude, phase = tasks["amplitude"][task], tasks["phase"][task]
        example = np.array([state["input"], state["target"]])
        canvas = Canvas(SIZE, 1.1 * max(LARGEST_INPUT, amplitude))
        x = np.linspace(-LARGEST_INPUT, LARGEST_INPUT, 60)
        for start, end in pairwise(np.stack([x, amplitude * np.sin(x - phase)], axis=-1)):
            canvas.line(start, end, 2.0, (205, 205, 205))
        if len(trail) > 1:
            prediction = np.array([state["input"], state["prediction"]])
            canvas.line(example, prediction, 2.0, (150, 190, 230))
            canvas.disc(prediction, 7.0, (31, 119, 180))
        canvas.disc(example, 7.0, (44, 160, 44))
        return canvas.image()


register_family("Sinusoid-v0", Sinusoid)
