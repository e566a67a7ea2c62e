"""The report of ``sinusoid.yml`` and ``omniglot-few-shot.yml``: the classic few-shot tasks beside published numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from metarl.meta.evaluation.points import so_many
from metarl.meta.evaluation.report import Report
from metarl.meta.evaluation.tables import Table
from metarl.zoo.experiments.comparison import tuned_sentences
from metarl.zoo.experiments.measuring import Results
from metarl.zoo.experiments.report import PaperReport, Section, register_report
from metarl.zoo.experiments.testing import Trained, by_cell, by_entry, of_checkpoint, tested, tuned

Cell = Mapping[str, Any]


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
        parts = [(entry, cell, own) for entry, runs in by_entry(results.runs) for cell, own in by_cell(runs)]
        places: dict[str, list[tuple[Cell, Sequence[Trained]]]] = {}
        for entry, cell, runs in parts:
            places.setdefault(", ".join([entry.env, *_words(self._setting(cell))]), []).append((cell, runs))
        tables = [table for place, own in places.items() for table in self._tables(place, own)]
        last = self.experiment.n_inner_steps
        lines = [
            f"{', '.join(_words(cell))}: {line}"
            for entry, cell, runs in parts
            if entry.grid
            for line in tuned_sentences(runs, last)
        ]
        return {"Beside what is published": Section(tables, lines), **super().sections(results)}

    def _setting(self, cell: Cell) -> dict[str, Any]:
        """Return what papers tell apart in a cell of a grid; of the rest of it a row tells."""
        told = {name for row in self.settings.published for name in row.cell}
        return {name: value for name, value in cell.items() if name in told}

    def _tables(self, place: str, parts: Sequence[tuple[Cell, Sequence[Trained]]]) -> list[Table]:
        """Return the table of one setting, whichever entries its runs are of; none where all of them diverged."""
        settings, setting = self.settings, self._setting(parts[0][0])
        ends: dict[str, Report] = {}
        ways: dict[str, Report] = {}
        for cell, runs in parts:
            everything, others = tested(runs), _words({name: cell[name] for name in cell if name not in setting})
            for item in of_checkpoint(everything, "last"):
                ends[", ".join([item.algo, *others])] = item.report
            for job in {item.job.algo: item.job for item in runs}.values():
                ways |= {", ".join([item.report.label, *others]): item.report for item in tuned(everything, job)}
        if not ends:
            return []
        rows = []
        for name, report in (ends | ways).items():
            bands = report.bands().signed(report.score.sign)
            shown = [str(bands.at(step)) if step <= report.n_inner_steps else "" for step in settings.steps]
            rows.append([name, *shown, settings.ours])
        first = next(iter(ends.values()))
        percent = 1.0 if first.score.lower_is_better else 100.0
        quoted = [row for row in settings.published if row.cell == setting]
        for row in quoted:
            known = dict(zip(row.steps, row.scores, strict=True))
            shown = [f"{known[step] / percent:.3g}" if step in known else "" for step in settings.steps]
            rows.append([f"{row.algo}, published", *shown, row.note])
        notes = [first.describe_intervals(), *([f"published: {settings.source}"] if quoted else [])]
        columns = ["", *map(so_many, settings.steps), "note"]
        if not any(row[-1] for row in rows):
            columns, rows = columns[:-1], [row[:-1] for row in rows]
        return [Table(columns, rows, f"{first.score.name} on {place}, test tasks", notes)]


def _words(cell: Cell) -> list[str]:
    return [f"{name.split('.')[-1]} {value}" for name, value in cell.items()]
