"""CosineSine: a cosine is seen, and the sine of the same amplitude and phase is to be predicted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from metarl.envs.registry import register_family
from metarl.envs.supervised.one_step import SUPPORT_NOISE, with_noise
from metarl.envs.supervised.waves import Wave
from metarl.envs.tasks import Tasks

PHASES = -np.pi, np.pi


class Cosine(Wave):
    """What is seen of the tasks of :class:`CosineSine`: ``y = amplitude · cos(x + phase)``.

    :param support_noise: σ of the normal deviate that is added to y.
    """

    id = "CosineSine-v0/support"

    def __init__(self, support_noise: float = 0.0) -> None:
        super().__init__(PHASES)
        self.support_noise = SUPPORT_NOISE("support_noise", support_noise)

    @staticmethod
    def wave(x: np.ndarray, phase: np.ndarray) -> np.ndarray:
        curve: np.ndarray = np.cos(x + phase)
        return curve

    def examples(self, tasks: Tasks, rngs: Sequence[np.random.Generator], n: int) -> tuple[np.ndarray, np.ndarray]:
        x, y = super().examples(tasks, rngs, n)
        return x, with_noise(y, rngs, self.support_noise)


class CosineSine(Wave):
    """Transfer from a cosine that is seen to the sine of the same task (meta-transfer, section 5.2).

    **Task.** ``amplitude``, uniform in [0.1, 5], and ``phase``, rad, uniform in [-π, π]. Shifted (out of distribution):
    the amplitude is uniform in [5, 7.5].

    **Support.** ``support_family``: x, uniform in [-5, 5], and ``y = amplitude · cos(x + phase)``, with a normal
    deviate of ``support_noise`` added to y. The paper states neither the range of x nor the number of examples; the
    range is that of ``Sinusoid-v0``, and the number an argument of whoever asks.

    **Observation.** Box of 1: x, uniform in [-5, 5].

    **Action.** Box(-20, 20) of 1: the predicted ``amplitude · sin(x + phase)``, clipped.

    **Reward.** Minus the squared error of the prediction: a mean return is −MSE. ``info`` has the ``target``, which
    never has noise.

    **Episode.** One env step: an example. Predicting 0 everywhere returns -4.25 in the mean over tasks, and nothing
    that does not know the task does better.

    Published, as MSE: without noise from 0.13 (max pooling) to 0.41 (non-linear gradients); with noise of 1.5, linear
    0.51, context 0.61, non-linear 0.69, mean 0.86, max 1.31, transformer 2.30.

    To meta-wrappers that adapt by gradients in the family itself it is few-shot regression of sines::

        env = gymnasium.make("CosineSine-v0", amplitude=2.0, phase=0.5)
        obs, info = env.reset(seed=0)
        obs, reward, terminated, truncated, info = env.step(2.0 * np.sin(obs + 0.5))
        assert terminated and abs(reward) < 1e-10

    **Versions.** v0: first version.

    :param support_noise: σ of the normal deviate that is added to what is seen.
    """

    id = "CosineSine-v0"
    render_fps = 2

    def __init__(self, *, support_noise: float = 0.0) -> None:
        super().__init__(PHASES)
        self.support_family = Cosine(support_noise)

    @staticmethod
    def wave(x: np.ndarray, phase: np.ndarray) -> np.ndarray:
        curve: np.ndarray = np.sin(x + phase)
        return curve


register_family("CosineSine-v0", CosineSine)
