"""The report of ``multi-cv.yml``: errors on data sets that were held out, and how fast they are learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from metarl.meta.evaluation.report import Report
from metarl.meta.evaluation.tables import Table
from metarl.zoo.experiments.comparison import steps
from metarl.zoo.experiments.measuring import Results
from metarl.zoo.experiments.report import PaperReport, Section, register_report
from metarl.zoo.experiments.testing import Trained

HELD_OUT = "env_kwargs.held_out"
"""The hyperparameter that makes the rows."""


@dataclass(frozen=True)
class Settings:
    """What the YAML says for this report.

    :param source: the table of the paper.
    :param published: by algorithm and data set, test error, training error and area.
    """

    source: str
    published: dict[str, dict[str, list[float]]]


@register_report("multi-cv")
class MultiCV(PaperReport):
    """A row for each data set that was held out and each algorithm, with the published numbers beside."""

    about: ClassVar[str] = (
        "Errors in % on data sets that were held out, after so many gradient steps on them: on the test part, on the "
        "last minibatch of the training part, and the area under the curve of the errors of all minibatches (0 to "
        "100), a mean over adaptations and training seeds. One data set is no sample of data sets: there are no "
        "intervals."
    )

    @property
    def settings(self) -> Settings:
        """What the YAML says for this report."""
        return self.read_settings(Settings)

    def sections(self, results: Results) -> dict[str, Section]:
        """Return the parts of the results, by title."""
        settings, groups = self.settings, dict[tuple[str, str], list[Trained]]()
        for item in results.runs:
            groups.setdefault((item.job.cell[HELD_OUT], item.job.algo), []).append(item)
        order = {algo: place for place, algo in enumerate(self.experiment.algos)}
        rows = []
        for (name, algo), own in sorted(groups.items(), key=lambda group: (group[0][0], order[group[0][1]])):
            ours = [f"{value:.1f}" for value in numbers(own)]
            theirs = [f"{value:.1f}" for value in settings.published.get(algo, {}).get(name, [])]
            rows.append([name, algo, *ours, *(theirs or [""] * 3)])
        last = steps(results.runs[0].reports["last"].n_inner_steps)
        columns = ["held out", "algorithm", "test error", "training error", "area", *["published"] * 3]
        table = Table(columns, rows, f"Errors in % after {last}", [f"published: {settings.source}"])
        return {"Held-out data sets": Section([table])}


def numbers(runs: Sequence[Trained]) -> tuple[float, float, float]:
    """Return the test error, the training error and the area under the curve of training errors, in %."""
    report = Report.merge([item.reports["last"] for item in runs])
    assert report.learning_returns is not None
    errors = 100.0 - 100.0 * report.learning_returns.mean((0, 1))
    area = float(np.mean(0.5 * (errors[1:] + errors[:-1])))
    return float(100.0 - 100.0 * report.returns[..., -1].mean()), float(errors[-1]), area
