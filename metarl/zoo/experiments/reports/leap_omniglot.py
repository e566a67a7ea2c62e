"""The report of ``leap-omniglot.yml``: errors on held-out alphabets by how many were trained on, and how fast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from metarl.meta.evaluation.comparison import compare
from metarl.meta.evaluation.figures import nth_colour
from metarl.meta.evaluation.points import so_many
from metarl.meta.evaluation.report import Report
from metarl.meta.evaluation.statistics import Interval, paired_interval
from metarl.meta.evaluation.tables import Table
from metarl.zoo.experiments.comparison import Verdict
from metarl.zoo.experiments.measuring import Results
from metarl.zoo.experiments.report import PaperReport, Section, register_report
from metarl.zoo.experiments.testing import Trained, with_report

NUMBER = "env_kwargs.n_alphabets"
"""The hyperparameter that makes the rows."""
FIGURES = ("learning_curves", "by_alphabets")


@dataclass(frozen=True)
class Settings:
    """What the YAML says for this report.

    :param source: the table of the paper.
    :param alphabets: the numbers of training alphabets that it has.
    :param published: by algorithm, its errors in %, one for each of these numbers.
    :param pairs: of algorithms that are compared.
    """

    source: str
    alphabets: list[int]
    published: dict[str, list[float]] = field(default_factory=dict)
    pairs: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Cell:
    """What the runs of one algorithm with one number of alphabets came to.

    :param report: of all seeds.
    :param losses: ``[run, task, step]``: the loss of the minibatch that each step was taken on; None where a record
        stands for run folders, which does not have them.
    """

    report: Report
    losses: np.ndarray | None

    @property
    def error(self) -> Interval:
        """The error on held-out drawings after the last step, in %."""
        interval = self.report.interval(self.report.n_inner_steps)
        return Interval(100.0 - 100.0 * interval.mean, 100.0 - 100.0 * interval.high, 100.0 - 100.0 * interval.low)

    @property
    def areas(self) -> np.ndarray | None:
        """``[run, task]``: the area under the curve of the losses by the rule of trapezoids, divided by the steps."""
        return None if self.losses is None else area(self.losses)

    @property
    def area(self) -> str:
        """The mean of the areas."""
        return "" if self.areas is None else f"{self.areas.mean():.3f}"


def area(losses: np.ndarray) -> np.ndarray:
    """Return Σ_i ½ (f_i + f_{i+1}) / T over the last axis, which has T numbers: the paper's area under the curve."""
    found: np.ndarray = 0.5 * (losses[..., 1:] + losses[..., :-1]).sum(-1) / losses.shape[-1]
    return found


@register_report("leap-omniglot")
class LeapOmniglot(PaperReport):
    """A row for each number of training alphabets, a column for each algorithm, with the published numbers beside."""

    about: ClassVar[str] = (
        "Errors on held-out drawings of held-out alphabets, after so many gradient steps on minibatches of theirs, "
        "each augmented anew; and the area under the curve of the losses of these minibatches, divided by the number "
        "of steps. Images are normalised by their batch (transductive), as in the reference code. Intervals are 95% "
        "bootstrap intervals by alphabet, then by training seed; algorithms are compared on equal tasks and streams. "
        "Other ways of fine-tuning have columns of their own, at rates chosen on validation alphabets."
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
        found = cells(results.runs)
        tables, lines, verdicts = [self._table(found), self._areas(found)], [], []
        others = {name: cells(results.runs, name) for name in conditions(results.runs)}
        tables += [self._table(own, name) for name, own in others.items()]
        for kind, own in {"last": found, **others}.items():
            compared = [item for pair in self.settings.pairs for n in numbers(own) for item in _compared(own, *pair, n)]
            where = "" if kind == "last" else f", {kind}"
            lines += [f"{item.number} alphabets{where}: {item.sentence}" for item in compared]
            verdicts += [
                {"env": item.env, "cell": {NUMBER: item.number}, **item.verdict.to_dict(), "checkpoint": kind}
                for item in compared
            ]
        figures = {FIGURES[0]: self._curves(found), FIGURES[1]: self._by_number(found)}
        return {"Errors": Section(tables, lines, figures, verdicts)}

    def _algos(self, found: Found) -> list[str]:
        """Return the algorithms that there are, each followed by the other ways in which it is fine-tuned."""
        names = dict.fromkeys(name for name, _ in found)
        return [name for algo in self.experiment.algos for name in names if name.split(", ")[0] == algo]

    def _style(self, algo: str) -> tuple[str, str]:
        """Return the colour of an algorithm, and how its lines are drawn: dotted where it is fine-tuned otherwise."""
        base, _, way = algo.partition(", ")
        return nth_colour(self.experiment.algos.index(base)), ":" if way else "-"

    def _table(self, found: Found, condition: str = "") -> Table:
        settings, algos, rows = self.settings, self._algos(found), []
        for n in numbers(found):
            row = [str(n)]
            for algo in algos:
                cell = found.get((algo, n))
                row.append("" if cell is None else str(cell.error))
                known = settings.published.get(algo, [])
                place = settings.alphabets.index(n) if n in settings.alphabets else len(known)
                row.append(f"{known[place]:.1f}" if place < len(known) else "")
            rows.append(row)
        columns = ["alphabets", *(name for algo in algos for name in (algo, "published"))]
        first = next(iter(found.values())).report
        last = so_many(first.n_inner_steps)
        title = f"Error in % on held-out drawings of held-out alphabets after {last}"
        title += f", {condition}" if condition else ""
        return Table(columns, rows, title, [first.describe_intervals(), f"published: {settings.source}"])

    def _areas(self, found: Found) -> Table:
        algos = self._algos(found)
        rows = [
            [str(n), *(found[algo, n].area if (algo, n) in found else "" for algo in algos)] for n in numbers(found)
        ]
        return Table(["alphabets", *algos], rows, "Area under the curve of losses, divided by the number of steps")

    def _curves(self, found: Found) -> Figure:
        """Draw the losses of minibatches against steps, a panel for each number of alphabets."""
        shown = numbers(found)
        figure = Figure(figsize=(4.0 * len(shown) + 1.0, 4.0), layout="constrained")
        axes: Any = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
        for axis, n in zip(axes, shown, strict=True):
            for algo in self._algos(found):
                losses = found[algo, n].losses if (algo, n) in found else None
                if losses is not None:
                    colour, line = self._style(algo)
                    axis.plot(losses.mean((0, 1)), ls=line, color=colour, label=algo)
            axis.set_title(f"{n} training alphabets")
            axis.set_xlabel("step on a held-out alphabet")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.grid(alpha=0.3)
        axes[0].set_ylabel("loss of the minibatch")
        if axes[-1].lines:
            axes[-1].legend(fontsize="small")
        return figure

    def _by_number(self, found: Found) -> Figure:
        """Draw errors and areas against the number of training alphabets, published errors dashed."""
        settings, figure = self.settings, Figure(figsize=(12.0, 4.0), layout="constrained")
        left, right = figure.subplots(1, 2)
        for algo in self._algos(found):
            colour, line = self._style(algo)
            own = {n: found[algo, n] for n in numbers(found) if (algo, n) in found}
            error = np.array([list(cell.error) for cell in own.values()])
            below_above = np.maximum(np.stack([error[:, 0] - error[:, 1], error[:, 2] - error[:, 0]]), 0.0)
            left.errorbar(list(own), error[:, 0], below_above, marker="o", ls=line, capsize=2, color=colour, label=algo)
            if algo in settings.published:
                left.plot(settings.alphabets, settings.published[algo], "--", color=colour, alpha=0.5)
            known = {n: cell.areas.mean() for n, cell in own.items() if cell.areas is not None}
            right.plot(list(known), list(known.values()), marker="o", ls=line, color=colour)
        left.set_ylabel("error, % (dashed: published)")
        right.set_ylabel("area under the losses / steps")
        for axis in (left, right):
            axis.set_xlabel("training alphabets")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.grid(alpha=0.3)
        # Outside: curves may lie anywhere inside.
        figure.legend(*left.get_legend_handles_labels(), fontsize="small", loc="outside right center")
        return figure


Found = Mapping[tuple[str, int], Cell]
"""By algorithm, or algorithm and way of fine-tuning, and number of alphabets."""


def conditions(runs: Sequence[Trained]) -> list[str]:
    """Return the names of what runs were tested under, too, that any of them has a report of."""
    return list(dict.fromkeys(name for item in runs for name in item.job.entry.conditions if name in item.reports))


def cells(runs: Sequence[Trained], kind: str = "last") -> Found:
    """Return what runs came to at the end of training; fine-tuned in other ways too, as ``algorithm, way``.

    :param kind: or under a condition, where nothing is fine-tuned in other ways.
    """
    groups: dict[tuple[str, int], list[Report]] = {}
    for item in with_report(runs, kind):
        n = int(item.job.cell[NUMBER])
        groups.setdefault((item.job.algo, n), []).append(item.reports[kind])
        for way in item.job.tunings if kind == "last" else ():
            if way in item.reports:
                groups.setdefault((f"{item.job.algo}, {way}", n), []).append(item.reports[way])
    found = {}
    for key, reports in groups.items():
        losses = [report.meta["losses"] for report in reports if "losses" in report.meta]
        found[key] = Cell(Report.merge(reports, key[0]), np.array(losses) if len(losses) == len(reports) else None)
    return found


def numbers(found: Found) -> list[int]:
    """Return the numbers of training alphabets that there are, ascending."""
    return sorted({n for _, n in found})


@dataclass(frozen=True)
class _Compared:
    env: str
    number: int
    verdict: Verdict
    area: Interval | None

    @property
    def sentence(self) -> str:
        """What the comparison says."""
        item = self.verdict
        few = "" if item.supported else "; fewer than 20 alphabets, which is too few for a verdict"
        lower = item.interval.mean >= 0.0
        error, area = (
            interval if interval is None or lower else Interval(-interval.mean, -interval.high, -interval.low)
            for interval in (Interval(*(100.0 * value for value in item.interval)), self.area)
        )
        return (
            f"the error of {item.a} is {'lower' if lower else 'higher'} than that of {item.b} by {error} points after "
            f"{so_many(item.step)}{'' if area is None else f', and its area by {area}'} (paired{few})."
        )


def _compared(found: Found, a: str, b: str, number: int) -> list[_Compared]:
    """Compare two algorithms with one number of alphabets, where both are there."""
    if (a, number) not in found or (b, number) not in found:
        return []
    ours, theirs = found[a, number], found[b, number]
    pair = compare(ours.report, theirs.report)
    last = pair.returns.n_points - 1
    areas = None
    if ours.areas is not None and theirs.areas is not None:
        (left, strata), (right, _) = (ours.report.units(each[..., None]) for each in (ours.areas, theirs.areas))
        areas = paired_interval(-left[..., 0], -right[..., 0], strata=strata)
    verdict = Verdict(a, b, "last", last, pair.returns.at(last), pair.is_supported)
    return [_Compared(ours.report.env, number, verdict, areas)]
