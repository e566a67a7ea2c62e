"""The report of ``leap-ablation.yml``: which path Leap shortens, and how good the identity is for its Jacobian."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from metarl.meta.evaluating import Evaluates
from metarl.meta.evaluation.comparison import compare
from metarl.meta.evaluation.jacobian import identity_error
from metarl.meta.evaluation.points import so_many
from metarl.meta.evaluation.report import Report
from metarl.meta.evaluation.tables import Table
from metarl.zoo.algorithms import algorithm
from metarl.zoo.experiments.comparison import Verdict
from metarl.zoo.experiments.jobs import Job, jobs
from metarl.zoo.experiments.measuring import Results
from metarl.zoo.experiments.report import PaperReport, Section, register_report
from metarl.zoo.experiments.reports.leap_omniglot import Cell, conditions
from metarl.zoo.experiments.testing import Trained, with_report
from metarl.zoo.runs.curves import read_curve

FIGURES = ("training_loss", "jacobian")
SIMPLEST = {"metric": "energy", "loss": False, "stabilizer": False}
"""The configuration whose meta-gradient is Reptile's."""


@dataclass(frozen=True)
class Jacobian:
    """What figure 5 is computed with: arguments of :func:`~metarl.meta.evaluation.jacobian.identity_error`.

    :param tensor: whose Jacobian.
    :param rates: a line for each.
    """

    tensor: str
    rates: list[float]
    n_steps: int
    every: int
    n_tasks: int


@dataclass(frozen=True)
class Settings:
    """What the YAML says for this report.

    :param jacobian: by scale.
    :param jacobian_source: what the paper has.
    """

    jacobian: dict[str, Jacobian]
    jacobian_source: str


@register_report("leap-ablation")
class LeapAblation(PaperReport):
    """A row for each way to measure a path, the course of training, and the precision of the identity."""

    about: ClassVar[str] = (
        "Leap on alphabets of Omniglot with several measures of a path. Errors are on held-out drawings of held-out "
        "alphabets after the last step; areas are those under the curve of the losses of minibatches there, divided by "
        "the number of steps. The average training loss is that of the minibatches of a meta-iteration, over all "
        "inner steps, as in the paper's figure 6. Intervals are 95% bootstrap intervals by alphabet."
    )

    @property
    def settings(self) -> Settings:
        """What the YAML says for this report."""
        return self.read_settings(Settings)

    def file_names(self) -> list[str]:
        """Return the names of what the results may be written to beside the record."""
        return [*super().file_names(), *(f"{name}.png" for name in FIGURES)]

    def sections(self, results: Results) -> dict[str, Section]:
        """Return the parts of the results, by title."""
        return {"Paths": self._paths(results.runs), "Identity Jacobian": self._jacobian()}

    def _paths(self, runs: Sequence[Trained]) -> Section:
        groups: dict[str, list[Trained]] = {}
        for item in with_report(runs, "last"):
            groups.setdefault(words(item.job.cell), []).append(item)
        cells = {name: _cell(name, own) for name, own in groups.items()}
        kinds = conditions(runs)
        courses = {name: course for name, own in groups.items() if len(course := training_loss(own))}
        rows = [
            [
                name,
                *(str(each.error) for each in (cell, *(_cell(name, groups[name], kind) for kind in kinds))),
                cell.area,
                f"{courses[name][-1]:.3f}" if name in courses else "",
            ]
            for name, cell in cells.items()
        ]
        first = next(iter(cells.values())).report
        errors = [f"error in % after {so_many(first.n_inner_steps)}", *(f"{kind}: error in %" for kind in kinds)]
        columns = ["path", *errors, "area", "training loss, last"]
        table = Table(columns, rows, "Leap by what it shortens", [first.describe_intervals()])
        lines, verdicts = [], []
        for kind in ("last", *kinds):
            where = "" if kind == "last" else f"{kind}, "
            for found in _compared(runs, kind):
                few = "" if found.supported else "; fewer than 20 alphabets, which is too few for a verdict"
                reptile = ", which is Reptile" if found.b == words(SIMPLEST) else ""
                lines.append(f"{where}{found.a}: an accuracy {found.interval} above that of {found.b}{reptile}{few}.")
                verdicts.append({"env": first.env, "cell": {}, **found.to_dict()})
        figures = {FIGURES[0]: _course_figure(courses)} if courses else {}
        return Section([table], lines, figures, verdicts)

    def _jacobian(self) -> Section:
        how = self.settings.jacobian[self.experiment.scale]
        model = _fresh(jobs(self.experiment)[0])
        arguments = {"every": how.every, "n_tasks": how.n_tasks}
        found = {
            rate: identity_error(model, how.tensor, how.n_steps, rate=rate, **arguments).mean(0) for rate in how.rates
        }
        points = [how.every * (i + 1) for i in range(how.n_steps // how.every)]
        table = Table(
            ["rate", *map(so_many, points)],
            [[f"{rate:g}", *(f"{value:.2e}" for value in values)] for rate, values in found.items()],
            f"‖I − J‖ / ‖J‖ of {how.tensor} in the Schatten 1-norm",
            [f"from a random start, test tasks: {how.n_tasks}", f"published: {self.settings.jacobian_source}"],
        )
        figure = Figure(figsize=(5.0, 4.0), layout="constrained")
        axis = figure.subplots()
        for rate, values in found.items():
            axis.plot(points, values, marker="o", label=f"rate {rate:g}")
        axis.set_yscale("log")
        axis.set_xlabel("gradient step")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_ylabel("‖I − J‖ / ‖J‖")
        axis.legend(fontsize="small")
        axis.grid(alpha=0.3)
        return Section([table], (), {FIGURES[1]: figure})


def words(cell: Mapping[str, Any]) -> str:
    """Return a way to measure a path in words."""
    place = "loss surface" if cell["loss"] else "parameters only"
    return f"{cell['metric']}, {place}{', stabiliser' if cell['stabilizer'] else ''}"


def training_loss(runs: Sequence[Trained]) -> np.ndarray:
    """Return the loss of minibatches, a mean over inner steps and runs, by meta-iteration; empty without folders.

    Runs of other lengths are cut to the shortest.
    """
    found = []
    for item in runs:
        if item.run is None:
            return np.zeros(0)
        found.append(read_curve(item.run, "meta/n_meta_iterations", "inner/mean_loss").y)
    shortest = min(map(len, found))
    mean: np.ndarray = np.mean([each[:shortest] for each in found], axis=0)
    return mean


def _compared(runs: Sequence[Trained], kind: str) -> list[Verdict]:
    """Compare every path with the simplest one, and with those that one choice makes of it, at the end of training or
    under a condition.
    """
    groups: dict[str, list[Report]] = {}
    cells: dict[str, Mapping[str, Any]] = {}
    for item in with_report(runs, kind):
        name = words(item.job.cell)
        cells[name] = {choice: item.job.cell[choice] for choice in SIMPLEST}
        groups.setdefault(name, []).append(item.reports[kind])
    found = []
    for a, b in sorted(itertools.permutations(cells, 2), key=lambda names: cells[names[1]] != SIMPLEST):
        given_up = [choice for choice in SIMPLEST if cells[a][choice] != cells[b][choice]]
        simpler = all(cells[b][choice] == SIMPLEST[choice] for choice in given_up)
        if simpler and (len(given_up) == 1 or cells[b] == SIMPLEST):
            pair = compare(Report.merge(groups[a], a), Report.merge(groups[b], b))
            last = pair.returns.n_points - 1
            found.append(Verdict(a, b, kind, last, pair.returns.at(last), pair.is_supported))
    return found


def _cell(name: str, runs: Sequence[Trained], kind: str = "last") -> Cell:
    reports = [item.reports[kind] for item in with_report(runs, kind)]
    losses = [report.meta["losses"] for report in reports if "losses" in report.meta]
    return Cell(Report.merge(reports, name), np.array(losses) if len(losses) == len(reports) else None)


def _fresh(job: Job) -> Evaluates:
    """Return the model that a job's training begins with."""
    config = job.config()
    del config["n_timesteps"]
    model = algorithm(job.algo)(env=job.entry.env, seed=job.seed, **config)
    assert isinstance(model, Evaluates)
    return model


def _course_figure(courses: Mapping[str, np.ndarray]) -> Figure:
    figure = Figure(figsize=(7.0, 4.0), layout="constrained")
    axis = figure.subplots()
    for name, course in courses.items():
        axis.plot(np.arange(1, len(course) + 1), course, label=name)
    axis.set_xlabel("meta-iteration")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_ylabel("average training loss")
    axis.legend(fontsize="small")
    axis.grid(alpha=0.3)
    return figure
