"""Waves: few-shot regression of curves that differ by amplitude and phase."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from gymnasium.spaces import Box, Dict

from metarl.envs.family import State
from metarl.envs.plane.canvas import Canvas
from metarl.envs.supervised.one_step import OneStep
from metarl.envs.tasks import Tasks

LARGEST_INPUT = 5.0
SMALLEST_AMPLITUDE, LARGEST_AMPLITUDE = 0.1, 5.0
SIZE = 400
"""Height and width of a picture, pixels."""


class Wave(OneStep):
    """Base of families that have a wave of a task's ``amplitude`` and ``phase`` predicted at x, uniform in [-5, 5].

    The amplitude is uniform in [0.1, 5]; shifted, in [5, 7.5]. Predictions are clipped to [-20, 20], four times the
    largest amplitude in training, so that the bounds are no part of what is learnt.

    :param phases: the smallest and the largest phase, rad.
    """

    def __init__(self, phases: tuple[float, float]) -> None:
        phase = Box(*phases, (), np.float64)
        self.task_space = Dict(
            {"amplitude": Box(SMALLEST_AMPLITUDE, LARGEST_AMPLITUDE, (), np.float64), "phase": phase}
        )
        shifted = Box(LARGEST_AMPLITUDE, 1.5 * LARGEST_AMPLITUDE, (), np.float64)
        self.shifted_space = Dict({"amplitude": shifted, "phase": phase})
        self.observation_space = Box(-LARGEST_INPUT, LARGEST_INPUT, (1,), np.float32)
        self.action_space = Box(-4 * LARGEST_AMPLITUDE, 4 * LARGEST_AMPLITUDE, (1,), np.float32)

    @staticmethod
    @abstractmethod
    def wave(x: np.ndarray, phase: np.ndarray) -> np.ndarray:
        """Return the curve of amplitude 1 at ``x``, rad."""

    def examples(self, tasks: Tasks, rngs: Sequence[np.random.Generator], n: int) -> tuple[np.ndarray, np.ndarray]:
        x = np.stack([rng.uniform(-LARGEST_INPUT, LARGEST_INPUT, (n, 1)) for rng in rngs])
        # What is shown is what the target belongs to: float32.
        x = x.astype(np.float32)
        amplitude, phase = (tasks[name][:, None, None] for name in ("amplitude", "phase"))
        return x, amplitude * self.wave(x, phase)

    def render(self, tasks: Tasks, trail: Sequence[State], task: int, env: int) -> np.ndarray:
        """Return a picture of the task's wave (grey), the example (green) and, once it is made, the prediction (blue),
        with the error between them.
        """
        state = {name: value[task, env, 0] for name, value in trail[-1].items()}
        amplitude, phase = tasks["amplitude"][task], tasks["phase"][task]
        example = np.array([state["input"], state["target"]])
        canvas = Canvas(SIZE, 1.1 * max(LARGEST_INPUT, amplitude))
        x = np.linspace(-LARGEST_INPUT, LARGEST_INPUT, 60)
        for start, end in pairwise(np.stack([x, amplitude * self.wave(x, phase)], axis=-1)):
            canvas.line(start, end, 2.0, (205, 205, 205))
        if len(trail) > 1:
            prediction = np.array([state["input"], state["prediction"]])
            canvas.line(example, prediction, 2.0, (150, 190, 230))
            canvas.disc(prediction, 7.0, (31, 119, 180))
        canvas.disc(example, 7.0, (44, 160, 44))
        return canvas.image()
