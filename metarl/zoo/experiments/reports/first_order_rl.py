"""The report of ``first-order-rl.yml``: MAML, FOMAML, Reptile, Leap and baselines at equal env steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from metarl.zoo.experiments.measuring import Results
from metarl.zoo.experiments.report import PaperReport, Section, register_report

ABOUT = (
    "Returns on held-out tasks before and after inner steps, with equal env steps of training, support and query "
    "together. Intervals are 95% bootstrap intervals by task, then by training seed; algorithms are compared on the "
    "same tasks and streams, and one wins where the interval of the difference excludes zero. last: the end of "
    "training, adapted as in the reference, with half the inner rate after the first step, on AntDir a hundredth. "
    "best: chosen on validation tasks, of the end of training and the checkpoint that adapted best in its course "
    "(after as many inner steps as it was trained with), each at the inner rates that are best for it, the one with "
    "the higher return over all steps. The oracle sees the task and stays as it is. Intervals from few training seeds "
    "are too narrow: where nothing differs, up to 13 of 100 exclude zero with 3 seeds and 32 with 2 "
    "(benchmarks/coverage.py); with one they say nothing about other seeds. No clear difference is not equality."
)


@dataclass(frozen=True)
class Settings:
    """What the YAML says for this report.

    :param published_ratio: of the times of a second-order and a first-order meta-optimisation step, in the paper.
    """

    published_ratio: float


@register_report("first-order-rl")
class FirstOrderRL(PaperReport):
    """Adds how much longer a meta-optimisation step takes at second order."""

    about: ClassVar[str] = ABOUT

    def time(self, results: Results) -> Section:
        """Return how long a meta-iteration takes, and how much longer its last phase at second order than at first."""
        settings = self.read_settings(Settings)
        sentences = speed_sentences(results.step_seconds, settings.published_ratio)
        return replace(super().time(results), sentences=sentences)


def speed_sentences(measured: Mapping[str, Mapping[str, Sequence[float]]], published: float) -> list[str]:
    """Say how much longer the meta-optimisation step takes at second order than at first.

    :param measured: by environment; of second order, then of first, the seconds in each round.
    :param published: the paper's ratio.
    """
    lines = []
    for env, seconds in measured.items():
        (second, above), (first, below) = seconds.items()
        ratios = np.divide(above, below)
        lines.append(
            f"Meta-optimisation step on {env}: {second} takes {np.median(ratios):.2f} times as long as {first}, "
            f"{np.median(above):.3f} s and {np.median(below):.3f} s on the same batches ({ratios.min():.2f} to "
            f"{ratios.max():.2f} times in {len(ratios)} rounds; the paper says {published:g})."
        )
    return lines
