"""How the algorithms of an experiment compare, in tables, sentences and figures: who wins at 95%, and by how much."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from metarl.envs.score import RETURN, Score, common_score
from metarl.meta.evaluation.comparison import compare, comparison_figure, comparison_table
from metarl.meta.evaluation.figures import nth_colour
from metarl.meta.evaluation.points import so_many
from metarl.meta.evaluation.published import Published
from metarl.meta.evaluation.report import Report, common_point
from metarl.meta.evaluation.statistics import Interval
from metarl.meta.evaluation.tables import Table
from metarl.zoo.experiments.jobs import CHECKPOINTS
from metarl.zoo.experiments.testing import Tested, Trained, by_cell, of_checkpoint, tested, tuned


@dataclass(frozen=True)
class Verdict:
    """How two algorithms compare on the same tasks.

    :param a: the first.
    :param b: the second.
    :param checkpoint: which checkpoints.
    :param step: after so many inner steps.
    :param interval: of the return of ``a`` minus that of ``b``, paired, 95%.
    :param supported: whether there are enough tasks for a difference to count.
    """

    a: str
    b: str
    checkpoint: str
    step: int
    interval: Interval
    supported: bool = True

    @property
    def winner(self) -> str | None:
        """The algorithm that is ahead, if the interval of the difference excludes zero; else None."""
        if not (self.supported and self.interval.excludes_zero):
            return None
        return self.a if self.interval.mean > 0 else self.b

    @property
    def outcome(self) -> str:
        """Who wins, in words."""
        if not self.supported:
            return "too few tasks for a verdict"
        return "no clear difference" if self.winner is None else f"{self.winner} wins"

    def to_dict(self) -> dict[str, Any]:
        """Return what a record holds."""
        values = {**dataclasses.asdict(self), "interval": list(self.interval), "winner": self.winner}
        del values["supported"]  # a record has the returns
        return values


def point_of(runs: Sequence[Trained]) -> str:
    """Return what returns of runs are after so many of, a step where they differ in that."""
    return common_point(report for item in runs for report in item.reports.values())


def returns_table(items: Sequence[Tested], published: Sequence[Published], title: str) -> Table:
    """Return mean returns after 0, 1, … inner steps with 95% intervals: a row for each algorithm and checkpoint."""
    reports = [item.report for item in items]
    table = comparison_table(reports, published)
    cut = -1 if len(reports) > 1 else None  # differences have sentences of their own
    trained = [[_millions(float(np.mean(item.num_timesteps))), str(item.report.n_runs)] for item in items]
    trained += [["", "1"]] * (len(table.rows) - len(items))
    rows = [[row[0], *extra, *row[1:cut]] for row, extra in zip(table.rows, trained, strict=True)]
    for row, report in zip(rows, reports, strict=False):
        row[-1] = row[-1] if report.n_inner_steps else ""
    columns = [table.columns[0], f"million {reports[0].score.budget}", "seeds", *table.columns[1:cut]]
    widest = max(reports, key=lambda report: report.n_runs)
    return Table(columns, rows, title, [widest.describe_intervals(), *table.notes[1:]])


def _millions(n: float) -> str:
    """Return a number in millions, of few the first two digits."""
    return f"{n / 1e6:,.2f}" if n >= 10_000 else f"{n / 1e6:.2g}"


def verdicts(items: Sequence[Tested], n_inner_steps: int) -> list[Verdict]:
    """Compare every two algorithms after one and after ``n_inner_steps`` inner steps, last with last, best with best.

    A policy that does not adapt stands as it is beside those that do.
    """
    found = []
    algos = dict.fromkeys(item.algo for item in items)
    for a, b in itertools.combinations(algos, 2):
        for checkpoint in CHECKPOINTS:
            own = {item.algo: _repeated(item.report, n_inner_steps) for item in of_checkpoint(items, checkpoint)}
            if a not in own or b not in own:
                continue
            pair = compare(own[a], own[b])
            for step in sorted({1, n_inner_steps}):
                found.append(Verdict(a, b, checkpoint, step, pair.returns.at(step), pair.is_supported))
    return found


def _repeated(report: Report, n_inner_steps: int) -> Report:
    """Return a report in which the point before adaptation, where it is the only one, stands for all others."""
    if report.n_inner_steps > 0:
        return report
    n = n_inner_steps + 1
    learning = report.learning_returns
    return dataclasses.replace(
        report,
        returns=np.repeat(report.returns, n, axis=2),
        learning_returns=None if learning is None else np.repeat(learning, n, axis=2),
        env_steps=np.zeros(n),
    )


def sentences(found: Sequence[Verdict], score: Score = RETURN, point: str = "step") -> list[str]:
    """Return one sentence for each pair of algorithms: who wins after how many inner steps, and the differences.

    :param score: how the returns, whose differences the verdicts hold, are read.
    :param point: what they are after so many of.
    """
    lines = []
    for a, b in dict.fromkeys((item.a, item.b) for item in found):
        own = [item for item in found if (item.a, item.b) == (a, b)]
        clauses = []
        for step in dict.fromkeys(item.step for item in own):
            outcomes: dict[str, list[str]] = {}
            for item in own:
                if item.step == step:
                    outcomes.setdefault(item.outcome, []).append(item.checkpoint)
            words = ", ".join(f"{outcome} ({' and '.join(kinds)})" for outcome, kinds in outcomes.items())
            clauses.append(f"after {so_many(step, point)} {words}")
        differences = []
        for checkpoint in dict.fromkeys(item.checkpoint for item in own):
            intervals = [str(item.interval) for item in own if item.checkpoint == checkpoint]
            differences.append(f"{checkpoint} {', '.join(intervals)}")
        by = f"{a} below {b} by" if score.lower_is_better else f"{a} minus {b}"
        lines.append(f"{a} against {b}: {'; '.join(clauses)}. {by}: {'; '.join(differences)}.")
    return lines


def tuned_sentences(runs: Sequence[Trained], n_inner_steps: int) -> list[str]:
    """Return one sentence for each way in which an algorithm's runs were fine-tuned: how it compares with all others.

    :param runs: of one environment and cell.
    """
    items, lines = tested(runs), []
    last = {item.algo: _repeated(item.report, n_inner_steps) for item in of_checkpoint(items, "last")}
    for job in {item.job.algo: item.job for item in runs}.values():
        for item in tuned(items, job):
            groups: dict[str, list[str]] = {}
            for algo, report in last.items():
                pair = compare(item.report, report)
                ahead = pair.returns.at(n_inner_steps)
                clear = pair.is_supported and ahead.excludes_zero
                outcome = "no clear difference from" if not clear else "ahead of" if ahead.mean > 0 else "behind"
                groups.setdefault(outcome, []).append(algo)
            words = "; ".join(f"{outcome} {', '.join(algos)}" for outcome, algos in groups.items())
            words = words or "nothing to compare with"
            lines.append(
                f"{item.report.label}, after {so_many(n_inner_steps, item.report.point)}: {words} (last, paired)."
            )
    return lines


def adaptation_figures(
    items: Sequence[Tested], published: Sequence[Published], place: str, algos: Sequence[str]
) -> dict[str, Figure]:
    """Draw the returns against inner steps and against env steps of adaptation, a figure for each checkpoint.

    :param place: how their names begin.
    :param algos: all algorithms of the experiment; an algorithm has its colour by its place there.
    """
    found = {kind: [item.report for item in of_checkpoint(items, kind)] for kind in CHECKPOINTS}
    colours = {algo: nth_colour(i) for i, algo in enumerate(algos)}
    return {
        f"{place}_{kind}": comparison_figure(reports, published, colours=colours)
        for kind, reports in found.items()
        if reports
    }


# ------------------------------------------------------------------------------------------------------------ ablation
def ablation_table(runs: Sequence[Trained], checkpoint: str, n_inner_steps: int) -> Table:
    """Return the returns after one and after ``n_inner_steps`` inner steps, as the score shows them.

    :return: a row for each cell of the grid.
    """
    entry, score, point = runs[0].job.entry, _score(runs), point_of(runs)
    columns = [(algo, step) for algo in _algos(runs) for step in sorted({1, n_inner_steps})]
    rows: list[list[str]] = []
    notes: dict[str, None] = {}
    for cell, own in by_cell(runs):
        reports = {item.algo: item.report for item in of_checkpoint(tested(own), checkpoint)}
        notes |= dict.fromkeys(report.describe_intervals() for report in reports.values())
        bands = {algo: report.bands().signed(score.sign) for algo, report in reports.items()}
        cells = [str(bands[algo].at(step)) if algo in bands else "" for algo, step in columns]
        rows.append([", ".join(f"{name} {value}" for name, value in cell.items()), *cells])
    title = f"Ablation on {entry.env}, {score.amount(entry.n_timesteps)} a run, {checkpoint} checkpoints"
    header = ["", *(f"{algo}, {so_many(step, point)}" for algo, step in columns)]
    return Table(header, rows, title, [*notes, *([score.axis] if score.name != RETURN.name else [])])


def ablation_verdicts(runs: Sequence[Trained], n_inner_steps: int) -> list[tuple[Mapping[str, Any], Verdict]]:
    """Return how every two algorithms compare in each cell of the grid."""
    cells = [(cell, verdicts(tested(own), n_inner_steps)) for cell, own in by_cell(runs)]
    return [(cell, verdict) for cell, found in cells for verdict in found]


def ablation_sentences(found: Sequence[tuple[Mapping[str, Any], Verdict]], point: str = "step") -> list[str]:
    """Count in how many cells of the grid each of two algorithms wins, after so many of ``point``."""
    groups: dict[tuple[str, str, str, int], list[str | None]] = {}
    for _, item in found:
        groups.setdefault((item.a, item.b, item.checkpoint, item.step), []).append(item.winner)
    lines = []
    for (a, b, checkpoint, step), winners in groups.items():
        outcome = f"of {len(winners)} settings {a} wins {winners.count(a)} and {b} {winners.count(b)}; "
        outcome += f"{winners.count(None)} show no clear difference"
        if len(winners) == 1:
            outcome = f"{a} against {b}: " + ("no clear difference" if winners[0] is None else f"{winners[0]} wins")
        lines.append(f"Ablation, {checkpoint} checkpoints after {so_many(step, point)}: {outcome}.")
    return lines


def ablation_figure(runs: Sequence[Trained], checkpoint: str, n_inner_steps: int) -> Figure:
    """Draw the return after adaptation, as the score shows it, against the grid's last parameter.

    Each value of its first has a colour. Of a grid of one parameter the algorithms have, side by side at each value.
    """
    entry, score, algos = runs[0].job.entry, _score(runs), _algos(runs)
    names = list(entry.grid)
    colour, x_name = names[0], names[-1]
    alone, values = len(names) == 1, list(entry.grid[x_name])
    points = sorted({1, n_inner_steps})
    figure = Figure(figsize=(5.0 * len(points) + 2.0, 4.0), layout="constrained")
    panels = figure.subplots(1, len(points), sharey=True, squeeze=False)[0]
    lines: dict[tuple[str, Any], list[tuple[Any, Report]]] = {}
    for cell, own in by_cell(runs):
        for item in of_checkpoint(tested(own), checkpoint):
            beside = 0.5 * (algos.index(item.algo) - (len(algos) - 1) / 2) / len(algos)
            place = values.index(cell[x_name]) + beside if alone else cell[x_name]
            lines.setdefault((item.algo, None if alone else cell[colour]), []).append((place, item.report))
    styles = dict(zip(algos, itertools.cycle(("o-", "s--", "^:", "v-.")), strict=False))
    colours = {value: nth_colour(i) for i, value in enumerate(algos if alone else entry.grid[colour])}
    for panel, step in zip(panels, points, strict=True):
        for (algo, value), line in lines.items():
            x = [place for place, _ in line]
            mean, low, high = np.array([report.bands().signed(score.sign).at(step) for _, report in line]).T
            label = algo if alone else f"{algo}, {colour} {value}"
            bars, of_line = [mean - low, high - mean], colours[algo if alone else value]
            panel.errorbar(x, mean, bars, fmt=styles[algo], color=of_line, capsize=2, label=label)
        if alone:
            panel.set_xticks(range(len(values)), list(map(str, values)))
            panel.set_xlim(-0.5, len(values) - 0.5)
        elif all(isinstance(value, int) for value in values):
            panel.set_xticks(values)
        panel.set_title(f"after {so_many(step, point_of(runs))}")
        panel.set_xlabel(x_name)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel(f"{score.axis}\ntest tasks (95% intervals)")
    # Outside: points may lie anywhere inside.
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize="small", loc="outside right center")
    figure.suptitle(f"{entry.env}, {score.amount(entry.n_timesteps)} a run, {checkpoint} checkpoints")
    return figure


def _score(runs: Sequence[Trained]) -> Score:
    """Return how the returns of runs are shown together."""
    return common_score(report.score for item in runs for report in item.reports.values())


def _algos(runs: Sequence[Trained]) -> list[str]:
    return list(dict.fromkeys(item.job.algo for item in runs))
