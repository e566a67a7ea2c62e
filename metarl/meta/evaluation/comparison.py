"""Several reports side by side: paired differences, one table, one figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from metarl.envs.score import RETURN, Score, common_score, fixed
from metarl.errors import ConfigError
from metarl.meta.evaluation.points import POINTS, so_many
from metarl.meta.evaluation.published import Published
from metarl.meta.evaluation.report import TASKS, Report, common_point, require_same_tasks
from metarl.meta.evaluation.statistics import MIN_UNITS, Bands, Interval, paired_bands
from metarl.meta.evaluation.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def few(entries: str) -> str:
    """Return what is said where there are too few of what intervals are over."""
    return f"no difference counts as clear with fewer than {MIN_UNITS} {entries}"


@dataclass(frozen=True)
class Comparison:
    """Paired differences ``a - b`` of returns on the same tasks and streams: above 0 where ``a`` is better.

    :param a: label of the first.
    :param b: label of the second.
    :param env: the family's id.
    :param split: which tasks.
    :param returns: difference of the returns after 0, 1, … inner steps.
    :param gains: difference of the gains over step 0.
    :param level: of the intervals.
    :param unit: what the intervals are over, in words.
    :param n_units: how many of them, tasks or independent adaptations, whatever the number of runs.
    :param score: how tables show returns: a higher return is a lower error.
    :param entries: what the reports' entries are called.
    :param point: what the reports count, see :data:`~metarl.meta.evaluation.points.POINTS`.
    """

    a: str
    b: str
    env: str
    split: str
    returns: Bands
    gains: Bands
    level: float
    unit: str
    n_units: int
    score: Score = RETURN
    entries: str = TASKS
    point: str = "step"

    @property
    def is_supported(self) -> bool:
        """Whether there are enough tasks for a difference to count as clear."""
        return self.n_units >= MIN_UNITS

    def is_clear(self, interval: Interval) -> bool:
        """Return whether one of the differences counts as clear: its interval excludes zero, and is supported."""
        return self.is_supported and interval.excludes_zero

    def table(self) -> Table:
        """Return the table of differences; a star marks clear ones."""

        def cell(interval: Interval) -> str:
            return f"{interval}{' *' if self.is_clear(interval) else '  '}"

        rows = [
            [str(step), cell(self.returns.at(step)), cell(self.gains.at(step)) if step else ""]
            for step in range(self.returns.n_points)
        ]
        lower = self.score.lower_is_better
        name, gain = self.score.name, self.score.gain
        clear = "* excludes zero" if self.is_supported else few(self.entries)
        return Table(
            (POINTS[self.point], f"{name} lower by" if lower else name, f"{gain} larger by" if lower else gain),
            rows,
            f"{self.a} {'against' if lower else 'minus'} {self.b} on {self.env}, {self.split} {self.entries}",
            (f"paired {self.level:.0%} intervals {self.unit}; {clear}",),
        )


def compare(a: Report, b: Report, level: float = 0.95, n_resamples: int = 10_000) -> Comparison:
    """Compare two reports task by task, after as many inner steps as both have.

    :raises ConfigError: they are on different tasks or streams.
    """
    require_same_tasks(a, b)
    points = min(a.n_inner_steps, b.n_inner_steps) + 1
    x, y = a.returns[..., :points], b.returns[..., :points]

    def paired(ours: np.ndarray, theirs: np.ndarray) -> Bands:
        (left, strata), (right, _) = a.units(ours), b.units(theirs)
        return paired_bands(left, right, level, n_resamples, strata=strata)

    returns, gains = paired(x, y), paired(x - x[..., :1], y - y[..., :1])
    unit = f"{a.over}, {a.n_runs} and {b.n_runs} runs"
    score = common_score([a.score, b.score])
    return Comparison(
        a.label,
        b.label,
        a.env,
        a.split,
        returns,
        gains,
        level,
        unit,
        a.n_units,
        score,
        a.entries,
        common_point([a, b]),
    )


def comparison_table(
    reports: Sequence[Report], published: Sequence[Published] | None = None, level: float = 0.95
) -> Table:
    """Return several reports, and published numbers, in one table: one row each, one column for each inner step.

    The last columns hold the gain of the last inner step and, of several reports, the paired difference to the first
    one there, where tasks and streams are the same. Of an error it is how much lower it is.
    """
    if not reports:
        raise ConfigError("no reports to compare")
    points = max(report.n_inner_steps for report in reports) + 1
    score = common_score(report.score for report in reports)
    rows: list[list[str]] = []
    for report in reports:
        bands = report.bands(level).signed(score.sign)
        cells = [str(bands.at(step)) if step <= report.n_inner_steps else "" for step in range(points)]
        rows.append([report.label, *cells, str(report.gain(report.n_inner_steps, level))])
    notes = [reports[0].describe_intervals(level)]
    for entry in published or ():
        halves = [*entry.half_widths, *[None] * points]
        cells = [
            fixed(score.sign * value, 1) + (f" ±{half:.1f}" if half is not None else "")
            for value, half in zip(entry.returns[:points], halves, strict=False)
        ]
        rise = fixed(entry.returns[len(cells) - 1] - entry.returns[0], 1) if len(cells) > 1 else ""
        rows.append([f"{entry.method}, published", *cells, *[""] * (points - len(cells)), rise])
    notes += dict.fromkeys(f"{entry.source}: {entry.caveat}" for entry in published or ())
    names = sorted({f"{report.env}, {report.split} {report.entries}" for report in reports})
    header = ["", *(so_many(step, common_point(reports)) for step in range(points))]
    header.append(score.gain)
    if len(reports) > 1:
        header.append(f"{'below' if score.lower_is_better else 'minus'} {reports[0].label}")
        enough = reports[0].n_units >= MIN_UNITS
        notes[0] += f"; {'* paired interval excludes zero' if enough else few(reports[0].entries)}"
        last = [_against(reports[0], report, level) for report in reports]
        rows = [[*row, cell] for row, cell in zip(rows, last + [""] * (len(rows) - len(last)), strict=True)]
    if score.name != RETURN.name:  # no column says it
        notes.append(score.axis)
    return Table(header, rows, "; ".join(names), notes)


def _against(first: Report, report: Report, level: float) -> str:
    if report is first:
        return ""
    try:
        require_same_tasks(report, first)
    except ConfigError:
        return "not paired"
    comparison = compare(report, first, level)
    interval = comparison.returns.at(min(report.n_inner_steps, first.n_inner_steps))
    return f"{interval}{' *' if comparison.is_clear(interval) else ''}"


def comparison_figure(
    reports: Sequence[Report],
    published: Sequence[Published] | None = None,
    level: float = 0.95,
    colours: Mapping[str, str] | None = None,
) -> Figure:
    """Draw several reports, and published numbers, in one figure; see ``adaptation_figure``."""
    from metarl.meta.evaluation.figures import adaptation_figure

    return adaptation_figure(reports, published, level=level, colours=colours)
