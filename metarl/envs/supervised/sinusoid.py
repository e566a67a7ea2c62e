"""Sinusoid: few-shot regression of a sine wave (Finn, Abbeel and Levine, 2017, section 5.1)."""

from __future__ import annotations

import numpy as np

from metarl.envs.registry import register_family
from metarl.envs.supervised.waves import Wave


class Sinusoid(Wave):
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
        super().__init__((0.0, np.pi))

    @staticmethod
    def wave(x: np.ndarray, phase: np.ndarray) -> np.ndarray:
        curve: np.ndarray = np.sin(x - phase)
        return curve


register_family("Sinusoid-v0", Sinusoid)
