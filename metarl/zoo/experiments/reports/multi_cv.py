"""The report of ``multi-cv.yml``: errors on data sets that were held out, and how fast they are learnt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from metarl.meta.evaluation.figures import nth_colour
from metarl.meta.evaluation.points import so_many
from metarl.meta.evaluation.report import Report
from metarl.meta.evaluation.tables import Table
from metarl.zoo.experiments.measuring import Results
from metarl.zoo.experiments.report import PaperReport, Section, register_report
from metarl.zoo.experiments.testing import Trained, with_report

HELD_OUT = "env_kwargs.held_out"
"""The hyperparameter that makes the rows."""
FIGURE = "learning_curves"
PANELS = 4
"""In a row of the figure, at most."""


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
        "intervals. Other ways of fine-tuning have rows of their own, at rates chosen on validation tasks."
    )

    @property
    def settings(self) -> Settings:
        """What the YAML says for this report."""
        return self.read_settings(Settings)

    def file_names(self) -> list[str]:
        """Return the names of what the results may be written to beside the record."""
        return [*super().file_names(), f"{FIGURE}.png"]

    def sections(self, results: Results) -> dict[str, Section]:
        """Return the parts of the results, by title."""
        settings, groups = self.settings, dict[tuple[str, str], list[Trained]]()
        for item in with_report(results.runs, "last"):
            groups.setdefault((item.job.cell[HELD_OUT], item.job.algo), []).append(item)
        order = {algo: place for place, algo in enumerate(self.experiment.algos)}
        rows = []
        for (name, algo), own in sorted(groups.items(), key=lambda group: (group[0][0], order[group[0][1]])):
            known = settings.published.get(algo, {}).get(name, [])
            for way in ["last", *own[0].job.tunings]:
                if all(way in item.reports for item in own):
                    ours = [f"{value:.1f}" for value in numbers([item.reports[way] for item in own])]
                    theirs = [f"{value:.1f}" for value in known] if way == "last" else []
                    rows.append([name, algo if way == "last" else f"{algo}, {way}", *ours, *(theirs or [""] * 3)])
        last = so_many(self.experiment.n_inner_steps)
        measures = ["test error", "training error", "area"]
        columns = ["held out", "algorithm", *measures, *(f"{name}, published" for name in measures)]
        notes = [f"published: {settings.source}"]
        if not any(any(row[len(columns) - 3 :]) for row in rows):  # of other data sets
            rows, columns, notes = [row[:-3] for row in rows], columns[:-3], []
        table = Table(columns, rows, f"Errors in % after {last}", notes)
        return {"Held-out data sets": Section([table], figures={FIGURE: learning_curves(groups, order)})}


def numbers(reports: Sequence[Report]) -> tuple[float, float, float]:
    """Return the test error, the training error and the area under the curve of training errors, in %."""
    errors = training_errors(reports)
    area = float(np.mean(0.5 * (errors[1:] + errors[:-1])))
    return float(100.0 - 100.0 * Report.merge(reports).returns[..., -1].mean()), float(errors[-1]), area


def training_errors(reports: Sequence[Report]) -> np.ndarray:
    """Return ``[step]``: the error on the minibatch that each step was taken on, in %, and last on one more."""
    report = Report.merge(reports)
    assert report.learning_returns is not None
    errors: np.ndarray = 100.0 - 100.0 * report.learning_returns.mean((0, 1))
    return errors


def learning_curves(groups: Mapping[tuple[str, str], Sequence[Trained]], order: Mapping[str, int]) -> Figure:
    """Draw the training errors whose areas the table has, a panel for each data set; a dot is the test error.

    :param groups: runs by data set and algorithm.
    :param order: the place of each algorithm, which says its colour.
    """
    names = sorted({name for name, _ in groups})
    n_rows, n_columns = -(-len(names) // PANELS), min(len(names), PANELS)
    figure = Figure(figsize=(4.0 * n_columns + 1.5, 3.5 * n_rows + 0.5), layout="constrained")
    panels = figure.subplots(n_rows, n_columns, squeeze=False, sharey=True).ravel()
    lines = {}
    for panel, name in zip(panels, names, strict=False):
        for algo in sorted((own for held_out, own in groups if held_out == name), key=order.__getitem__):
            reports, colour = [item.reports["last"] for item in groups[name, algo]], nth_colour(order[algo])
            errors, (test, *_) = training_errors(reports), numbers(reports)
            (lines[algo],) = panel.plot(errors, color=colour)
            panel.plot(len(errors) - 1, test, "o", color=colour, clip_on=False)
        panel.set_title(name)
        panel.set_xlabel("gradient steps on it")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(alpha=0.3)
    for panel in panels[len(names) :]:
        panel.set_visible(False)
    for panel in panels[::PANELS]:
        panel.set_ylabel("error of the minibatch, %\n(dots: test error at last)")
    figure.legend(list(lines.values()), list(lines), fontsize="small", loc="outside right center")
    return figure
