"""The report of ``sinusoid.yml`` and ``omniglot-few-shot.yml``: the classic few-shot tasks beside published numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from metarl.meta.evaluation.tables import Table
from metarl.zoo.experiments.comparison import steps, tuned_sentences
from metarl.zoo.experiments.jobs import Entry
from metarl.zoo.experiments.measuring import Results
from metarl.zoo.experiments.report import PaperReport, Section, register_report
from metarl.zoo.experiments.testing import Trained, by_cell, by_entry, of_checkpoint, tested, tuned


@dataclass(frozen=True)
class Row:
    """A row of a paper's table.

    :param algo: the algorithm.
    :param steps: after so many inner steps.
    :param scores: the mean squared error there, or the accuracy in %.
    :param cell: in which cell of the grid; empty: where there is none.
    :param note: what else is to be known of it, such as transduction.
    """

    algo: str
    steps: list[int]
    scores: list[float]
    cell: dict[str, int] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Settings:
    """What the YAML says for this report.

    :param source: the tables of the papers.
    :param ours: what is to be known of our rows.
    :param steps: the inner steps that are shown.
    :param published: the papers' rows.
    """

    source: str
    ours: str
    steps: list[int]
    published: list[Row]


@register_report("omniglot-few-shot")
@register_report("sinusoid")
class FewShot(PaperReport):
    """One table for each setting: a row for each algorithm, a column for inner steps, published rows below."""

    about: ClassVar[str] = (
        "Scores on further examples of held-out tasks before and after inner steps, with equal examples of training, "
        "support and query together. Intervals are 95% bootstrap intervals by task, then by training seed; algorithms "
        "are compared on the same tasks and streams. last: the end of training, at its inner rates. best: checkpoint "
        "and inner rates chosen on validation tasks. Other ways of fine-tuning the end of training have rows of their "
        "own, at rates chosen on validation tasks."
    )

    @property
    def settings(self) -> Settings:
        """What the YAML says for this report."""
        return self.read_settings(Settings)

    def sections(self, results: Results) -> dict[str, Section]:
        """Return the parts of the results, by title: what is published first."""
        tables = [
            self._table(entry, cell, cell_runs)
            for entry, runs in by_entry(results.runs)
            for cell, cell_runs in by_cell(runs)
        ]
        lines = [
            line
            for entry, runs in by_entry(results.runs)
            if entry.grid
            for _, cell_runs in by_cell(runs)
            for line in tuned_sentences(cell_runs, self.experiment.n_inner_steps)
        ]
        return {"Beside what is published": Section(tables, lines), **super().sections(results)}

    def _table(self, entry: Entry, cell: Mapping[str, Any], runs: Sequence[Trained]) -> Table:
        settings, everything = self.settings, tested(runs)
        items = of_checkpoint(everything, "last")
        score = items[0].report.score
        percent = 1.0 if score.lower_is_better else 100.0
        ways = [way for job in {item.job.algo: item.job for item in runs}.values() for way in tuned(everything, job)]
        rows = []
        for name, item in [*((item.algo, item) for item in items), *((item.report.label, item) for item in ways)]:
            bands = item.report.bands().signed(score.sign)
            points = [step for step in settings.steps if step <= item.report.n_inner_steps]
            cells = [str(bands.at(step)) for step in points]
            rows.append([name, *cells, *[""] * (len(settings.steps) - len(cells)), settings.ours])
        for row in settings.published:
            if row.cell == dict(cell):
                known = dict(zip(row.steps, row.scores, strict=True))
                shown = [f"{known[step] / percent:.3g}" if step in known else "" for step in settings.steps]
                rows.append([f"{row.algo}, published", *shown, row.note])
        where = ", ".join(f"{name.split('.')[-1]} {value}" for name, value in cell.items())
        title = f"{score.name} on {entry.env}{', ' if where else ''}{where}, test tasks"
        notes = [items[0].report.describe_intervals()]
        if any(row.cell == dict(cell) for row in settings.published):
            notes.append(f"published: {settings.source}")
        columns = ["", *map(steps, settings.steps), "note"]
        if not any(row[-1] for row in rows):
            columns, rows = columns[:-1], [row[:-1] for row in rows]
        return Table(columns, rows, title, notes)
