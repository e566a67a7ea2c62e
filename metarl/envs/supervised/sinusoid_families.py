"""SinusoidFamilies: sines in families of one phase each (Devos and Dandi, 2020, section 4.1)."""

from __future__ import annotations

import numpy as np
from gymnasium.spaces import Box, Dict

from metarl.envs.registry import register_family
from metarl.envs.supervised.sinusoid import Sinusoid
from metarl.envs.supervised.waves import LARGEST_AMPLITUDE, SMALLEST_AMPLITUDE
from metarl.envs.tasks import Tasks, n_tasks
from metarl.envs.two_levels import TwoLevels


class SinusoidFamilies(TwoLevels, Sinusoid):
    """Regression of ``y = amplitude · sin(x − phase)``, whose tasks come in families of one phase.

    **Family of tasks.** ``phase``, rad, uniform in [0, π]: what the tasks of one family share.

    **Task.** ``amplitude``, uniform in [0.1, 5], and the ``phase`` of its family. Shifted: the amplitude is uniform in
    [5, 7.5].

    Observation, action, reward and episode are those of ``Sinusoid-v0``, and so are its tasks to whoever does not ask
    for families: over all of them amplitude and phase are as there. From a few tasks of a family its phase can be
    found, which then holds for all others of that family::

        family, rng = make_family("SinusoidFamilies-v0"), np.random.default_rng(0)
        families = family.sample_families(rng, 10)
        tasks = family.sample_tasks(rng, 5, families=families)  # five of each
        assert np.array_equal(tasks["phase"], np.repeat(families["phase"], 5))

    The text does not say whether the phase is added or subtracted; it is subtracted, as in ``Sinusoid-v0``. Published,
    as curves without numbers: after meta-finetuning on 5 tasks of 5 + 5 examples MALTML fits better than MAML.

    **Versions.** v0: first version.
    """

    id = "SinusoidFamilies-v0"

    def __init__(self) -> None:
        super().__init__()
        phase = self.task_space["phase"]
        assert isinstance(phase, Box)
        self.family_space = Dict({"phase": phase})

    def tasks_within(self, rng: np.random.Generator, families: Tasks) -> Tasks:
        amplitude = rng.uniform(SMALLEST_AMPLITUDE, LARGEST_AMPLITUDE, n_tasks(families))
        return {"amplitude": amplitude, "phase": families["phase"].copy()}


register_family("SinusoidFamilies-v0", SinusoidFamilies)
