"""ContinualSinusoid: sines that are learnt one after another, each told by a slot (Javed and White, 2019)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from gymnasium.spaces import Box, Dict, Discrete

from metarl.checks import integer
from metarl.envs.registry import register_family
from metarl.envs.supervised.one_step import OneStep
from metarl.envs.supervised.waves import LARGEST_INPUT
from metarl.envs.tasks import Tasks, n_tasks
from metarl.envs.two_levels import TwoLevels
from metarl.errors import TaskError

AMPLITUDES = 0.1, 5.1
"""5 (u + 0.02) with u uniform in [0, 1], as the code has it that goes with OML."""
FREQUENCIES = 0.5, 2.0


class ContinualSinusoid(TwoLevels, OneStep):
    """Regression of ``y = amplitude · sin(frequency · x + phase)``; the input says in which slot a task is.

    A continual learner meets the tasks of a family one after another and is asked for all of them. Each has a slot of
    its own, which is observed: what is learnt in one need not disturb the others, if the representation keeps them
    apart.

    **Family of tasks.** ``frequency``, rad per unit of x, uniform in [0.5, 2]: a continual prediction problem (Devos
    and Dandi, 2020, section 4.2, which states no range). The code of OML draws a frequency too and does not use it, so
    that all of its problems have a frequency of 1.

    **Task.** ``amplitude``, uniform in [0.1, 5.1], ``phase``, rad, uniform in [0, π], the ``frequency`` of its family,
    and ``slot``, one of 50. Tasks that are drawn together within a family have different slots. Shifted: the amplitude
    is uniform in [5.1, 7.65].

    **Observation.** Box of 51: the slot, one-hot (50), and x, uniform in [-5, 5].

    **Action.** Box(-20, 20) of 1: the predicted y, clipped.

    **Reward.** Minus the squared error of the prediction: a mean return is −MSE. ``info`` has the ``target`` y.

    **Episode.** One env step: an example. Predicting 0 everywhere returns -4.4 in the mean over tasks::

        family, rng = make_family("ContinualSinusoid-v0", n_slots=10), np.random.default_rng(0)
        families = family.sample_families(rng, 2)
        tasks = family.sample_tasks(rng, 10, families=families)
        assert sorted(tasks["slot"][:10]) == list(range(10))

    **Versions.** v0: first version.

    :param n_slots: slots of the input.
    """

    id = "ContinualSinusoid-v0"
    # The slot is a part of the task.
    observes_task = True

    def __init__(self, *, n_slots: int = 50) -> None:
        self.n_slots = integer(1, 10_000)("n_slots", n_slots)
        phase, frequency = Box(0.0, np.pi, (), np.float64), Box(*FREQUENCIES, (), np.float64)
        rest = {"phase": phase, "frequency": frequency, "slot": Discrete(self.n_slots)}
        self.task_space = Dict({"amplitude": Box(*AMPLITUDES, (), np.float64), **rest})
        self.shifted_space = Dict({"amplitude": Box(AMPLITUDES[1], 1.5 * AMPLITUDES[1], (), np.float64), **rest})
        self.family_space = Dict({"frequency": frequency})
        high = np.array([1.0] * self.n_slots + [LARGEST_INPUT], np.float32)
        self.observation_space = Box(np.where(high == 1.0, 0.0, -high).astype(np.float32), high, dtype=np.float32)
        self.action_space = Box(-20.0, 20.0, (1,), np.float32)

    def tasks_within(self, rng: np.random.Generator, families: Tasks) -> Tasks:
        n = n_tasks(families)
        amplitude, phase = rng.uniform(*AMPLITUDES, n), rng.uniform(0.0, np.pi, n)
        slot = rng.integers(self.n_slots, size=n)
        return {"amplitude": amplitude, "phase": phase, "frequency": families["frequency"].copy(), "slot": slot}

    def sample_tasks(self, rng: np.random.Generator, n: int, families: Tasks | None = None) -> Tasks:
        """Draw training tasks; those of one family have different slots.

        :raises TaskError: more tasks of a family than slots.
        """
        tasks = super().sample_tasks(rng, n, families)
        if families is None:
            return tasks
        if n > self.n_slots:
            raise TaskError(f"{n} tasks of a family of {self.id}: each has one of n_slots={self.n_slots} slots")
        slots = [rng.permutation(self.n_slots)[:n] for _ in range(n_tasks(families))]
        return {**tasks, "slot": np.concatenate(slots)}

    def examples(self, tasks: Tasks, rngs: Sequence[np.random.Generator], n: int) -> tuple[np.ndarray, np.ndarray]:
        x = np.stack([rng.uniform(-LARGEST_INPUT, LARGEST_INPUT, (n, 1)) for rng in rngs]).astype(np.float32)
        slots = tasks["slot"][:, None] == np.arange(self.n_slots)
        inputs = np.concatenate([np.repeat(slots[:, None], n, axis=1).astype(np.float32), x], axis=-1)
        amplitude, phase, frequency = (tasks[name][:, None, None] for name in ("amplitude", "phase", "frequency"))
        return inputs, amplitude * np.sin(frequency * x + phase)


register_family("ContinualSinusoid-v0", ContinualSinusoid)
