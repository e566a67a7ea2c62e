"""Several reports side by side: paired differences, one table, one figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from metarl.errors import ConfigError
from metarl.meta.published import Published
from metarl.meta.report import Report, require_same_tasks
from metarl.meta.statistics import Bands, Interval, paired_bands
from metarl.meta.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Comparison:
    """Paired differences ``a - b`` on the same tasks and streams.

    :param a: label of the first.
    :param b: label of the second.
    :param env: the family's id.
    :param split: which tasks.
    :param returns: difference of the returns after 0, 1, … inner steps.
    :param gains: difference of the gains over step 0.
    :param level: of the intervals.
    :param unit: what the intervals are over, in words.
    """

    a: str
    b: str
    env: str
    split: str
    returns: Bands
    gains: Bands
    level: float
    unit: str

    def table(self) -> Table:
        """Return the table of differences; a star marks intervals that exclude zero."""

        def cell(interval: Interval) -> str:
            return f"{interval}{' *' if interval.excludes_zero else '  '}"

        rows = [
            [str(step), cell(self.returns.at(step)), cell(self.gains.at(step)) if step else ""]
            for step in range(self.returns.n_points)
        ]
        return Table(
            ("inner steps", "return", "gain"),
            rows,
            f"{self.a} minus {self.b} on {self.env}, {self.split} tasks",
            (f"paired {self.level:.0%} intervals {self.unit}; * excludes zero",),
        )


def compare(a: Report, b: Report, level: float = 0.95, n_resamples: int = 10_000) -> Comparison:
    """Compare two reports task by task, after as many inner steps as both have.

    :raises ConfigError: they are on different tasks or streams.
    """
    require_same_tasks(a, b)
    points = min(a.n_inner_steps, b.n_inner_steps) + 1
    x, y = a.returns[..., :points], b.returns[..., :points]
    runs = f"{a.n_runs} and {b.n_runs} runs"
    tasks = f"over {a.n_tasks} {'tasks' if a.strata is None else 'adaptations'}"
    return Comparison(
        a.label,
        b.label,
        a.env,
        a.split,
        paired_bands(x, y, level, n_resamples, strata=a.strata),
        paired_bands(x - x[..., :1], y - y[..., :1], level, n_resamples, strata=a.strata),
        level,
        f"{tasks}, {runs}",
    )


def comparison_table(
    reports: Sequence[Report], published: Sequence[Published] | None = None, level: float = 0.95
) -> Table:
    """Return several reports, and published numbers, in one table: one row each, one column for each inner step.

    The last columns hold the gain of the last inner step and, of several reports, the paired difference to the first
    one there, where tasks and streams are the same.
    """
    if not reports:
        raise ConfigError("no reports to compare")
    points = max(report.n_inner_steps for report in reports) + 1
    rows: list[list[str]] = []
    for report in reports:
        bands = report.bands(level)
        cells = [str(bands.at(step)) if step <= report.n_inner_steps else "" for step in range(points)]
        rows.append([report.label, *cells, str(report.gain(report.n_inner_steps, level))])
    notes = [reports[0].describe_intervals(level)]
    for entry in published or ():
        halves = [*entry.half_widths, *[None] * points]
        cells = [
            f"{value:.1f}" + (f" ±{half:.1f}" if half is not None else "")
            for value, half in zip(entry.returns[:points], halves, strict=False)
        ]
        rise = f"{entry.returns[len(cells) - 1] - entry.returns[0]:.1f}" if len(cells) > 1 else ""
        rows.append([f"{entry.method}, published", *cells, *[""] * (points - len(cells)), rise])
    notes += dict.fromkeys(f"{entry.source}: {entry.caveat}" for entry in published or ())
    names = sorted({f"{report.env}, {report.split} tasks" for report in reports})
    header = ["", *(f"{step} steps" if step != 1 else "1 step" for step in range(points))]
    header.append("gain")
    if len(reports) > 1:
        header.append(f"minus {reports[0].label}")
        notes[0] += "; * paired interval excludes zero"
        last = [_against(reports[0], report, level) for report in reports]
        rows = [[*row, cell] for row, cell in zip(rows, last + [""] * (len(rows) - len(last)), strict=True)]
    return Table(header, rows, "; ".join(names), notes)


def _against(first: Report, report: Report, level: float) -> str:
    if report is first:
        return ""
    try:
        require_same_tasks(report, first)
    except ConfigError:
        return "not paired"
    interval = compare(report, first, level).returns.at(min(report.n_inner_steps, first.n_inner_steps))
    return f"{interval}{' *' if interval.excludes_zero else ''}"


def comparison_figure(
    reports: Sequence[Report],
    published: Sequence[Published] | None = None,
    level: float = 0.95,
    colours: Mapping[str, str] | None = None,
) -> Figure:
    """Draw several reports, and published numbers, in one figure; see :func:`metarl.meta.figures.adaptation_figure`."""
    from metarl.meta.figures import adaptation_figure

    return adaptation_figure(reports, published, level=level, colours=colours)
