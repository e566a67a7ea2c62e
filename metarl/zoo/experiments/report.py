"""What the results of an experiment are shown as: parts of tables, sentences and figures, a report for each paper.

A paper's report is a class in a module of ``reports``, registered under the experiment's name. It inherits the parts
that every experiment has, and says what is the paper's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from matplotlib.figure import Figure

from metarl.errors import ConfigError
from metarl.files.schema import read_as
from metarl.meta.evaluation.tables import Table
from metarl.registry import Registry
from metarl.zoo.console import console, say
from metarl.zoo.experiments import comparison
from metarl.zoo.experiments.jobs import CHECKPOINTS, Entry, Experiment
from metarl.zoo.experiments.measuring import Results, learning_figure, times_table
from metarl.zoo.experiments.testing import Missing, Trained, by_entry, divergences, tested
from metarl.zoo.runs.held_out import published
from metarl.zoo.runs.outputs import figure_bytes

_Settings = TypeVar("_Settings")
TEXT = "results.md"
"""The name of the text in a folder of results."""


@dataclass(frozen=True)
class Section:
    """A part of the results.

    :param tables: its tables.
    :param sentences: what they say.
    :param figures: its figures, by the name of their file without suffix.
    :param verdicts: how algorithms compare, as a record holds it.
    """

    tables: Sequence[Table] = ()
    sentences: Sequence[str] = ()
    figures: Mapping[str, Figure] = field(default_factory=dict)
    verdicts: Sequence[Mapping[str, Any]] = ()


class PaperReport:
    """What the results of any experiment show: comparisons, ablations, training, and time.

    A paper's own report overrules :attr:`about` and, as far as it has more to say, the methods. A module of ``reports``
    that holds one is all that ``metarl reproduce my-paper`` needs beside ``my-paper.yml``::

        @register_report("my-paper")
        class MyPaper(PaperReport):
            about = "Returns on held-out tasks, as in table 2 of the paper."

            def training(self, results: Results) -> Section:
                section = super().training(results)
                return replace(section, sentences=[*section.sentences, "The paper trained for three times as long."])

    :param experiment: what the results are of.
    """

    about: ClassVar[str] = (
        "Returns on held-out tasks before and after inner steps, with equally many env steps or examples of training, "
        "support and query together. Intervals are 95% bootstrap intervals by task, then by training seed; algorithms "
        "are compared on the same tasks and streams, and one wins where the interval of the difference excludes zero. "
        "last: the end of training, at the rates of the experiment. best: chosen on validation tasks. Other ways of "
        "fine-tuning the end of training have rows of their own, at rates chosen on validation tasks."
    )
    """How the results are to be read; the first paragraph of the text."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment

    def read_settings(self, schema: type[_Settings]) -> _Settings:
        """Return what the YAML says for this report, checked by a dataclass.

        :raises ConfigError: it says something else; names the file.
        """
        return read_as(schema, self.experiment.settings, f"report of {self.experiment.name}.yml", ConfigError)

    def file_names(self) -> list[str]:
        """Return the names of what the results may be written to beside the record."""
        places = [self.place(entry) for entry in self.experiment.entries]
        figures = [f"{place}_{kind}" for place in places for kind in CHECKPOINTS]
        return [TEXT, *(f"{name}.png" for name in [*figures, "learning"])]

    def place(self, entry: Entry) -> str:
        """Return how the names of an entry's figures begin."""
        number = self._number(entry)
        name = f"ablation_{entry.env}" if entry.grid else entry.env
        return f"{name}_{number}" if number > 1 else name

    def _number(self, entry: Entry) -> int:
        """Return which of the entries of its kind on its environment an entry is, counted from 1."""
        alike = [each for each in self.experiment.entries if _kind(each) == _kind(entry)]
        return alike.index(entry) + 1 if entry in alike else 1

    def sections(self, results: Results) -> dict[str, Section]:
        """Return the parts of the results, by title."""
        parts = {}
        for entry, runs in by_entry(results.runs):
            number = self._number(entry)
            title = (f"Ablation on {entry.env}" if entry.grid else entry.env) + (f", {number}" if number > 1 else "")
            parts[title] = self.ablation(entry, runs) if entry.grid else self.comparison(entry, runs)
        if results.learning:
            parts["Training"] = self.training(results)
        if any(results.times.values()):
            parts["Time"] = self.time(results)
        return parts

    def comparison(self, entry: Entry, runs: Sequence[Trained]) -> Section:
        """Return how the algorithms compare on one environment."""
        items = tested(runs)
        if not items:
            return Section(sentences=divergences(runs))
        rows = published(items[0].report)
        found = comparison.verdicts(items, self.experiment.n_inner_steps)
        return Section(
            [comparison.returns_table(items, rows, f"{entry.env}, test tasks")],
            [
                *comparison.sentences(found, items[0].report.score, comparison.point_of(runs)),
                *comparison.tuned_sentences(runs, self.experiment.n_inner_steps),
                *divergences(runs),
            ],
            comparison.adaptation_figures(items, rows, self.place(entry), self.experiment.algos),
            [{"env": entry.env, "cell": {}, **item.to_dict()} for item in found],
        )

    def ablation(self, entry: Entry, runs: Sequence[Trained]) -> Section:
        """Return how the algorithms compare in each cell of a grid of hyperparameters."""
        last = self.experiment.n_inner_steps
        found = comparison.ablation_verdicts(runs, last)
        return Section(
            [comparison.ablation_table(runs, kind, last) for kind in CHECKPOINTS],
            [*comparison.ablation_sentences(found, comparison.point_of(runs)), *divergences(runs)],
            {f"{self.place(entry)}_{kind}": comparison.ablation_figure(runs, kind, last) for kind in CHECKPOINTS},
            [{"env": entry.env, "cell": dict(cell), **item.to_dict()} for cell, item in found],
        )

    def training(self, results: Results) -> Section:
        """Return the learning curves, and of which of them runs are missing."""
        partial = []
        for env, curves in results.learning.items():
            for curve in curves:
                whole = sum(
                    (item.job.entry.env, item.job.algo, bool(item.job.entry.grid)) == (env, curve.algo, False)
                    for item in results.runs
                )
                if curve.n_runs < whole:
                    partial.append(f"The learning curve of {curve.algo} on {env} is of {curve.n_runs} of {whole} runs.")
        scores = {item.job.entry.env: report.score for item in results.runs for report in item.reports.values()}
        return Section((), partial, {"learning": learning_figure(results.learning, self.experiment.algos, scores)})

    def time(self, results: Results) -> Section:
        """Return how long a meta-iteration takes."""
        return Section([times_table(results.times)])


REPORTS: Registry[type[PaperReport]] = Registry("report")
"""The papers' own reports, by the name of their experiment."""

_Report = TypeVar("_Report", bound=type[PaperReport])


def register_report(experiment: str) -> Callable[[_Report], _Report]:
    """Return a decorator that makes a class the report of an experiment.

    :param experiment: the name of its YAML file, without suffix.
    :raises ConfigError: a name that cannot be typed, or one that another report has.
    """

    def register(cls: _Report) -> _Report:
        REPORTS.add(experiment, cls)
        return cls

    return register


def _kind(entry: Entry) -> tuple[str, bool]:
    return entry.env, bool(entry.grid)


# ----------------------------------------------------------------------------------------------------- screen and files
def show(sections: Mapping[str, Section]) -> None:
    """Print tables and sentences."""
    for section in sections.values():
        for table in section.tables:
            console().print(table)
        for line in section.sentences:
            say(line)


def parts(sections: Mapping[str, Section]) -> dict[str, Any]:
    """Return what a record holds of the parts of the results."""
    return {
        "tables": {name: [str(table) for table in section.tables] for name, section in sections.items()},
        "sentences": {name: list(section.sentences) for name, section in sections.items()},
        "verdicts": [verdict for section in sections.values() for verdict in section.verdicts],
    }


def files(
    sections: Mapping[str, Section], about: str, document: Mapping[str, Any], results: Results
) -> dict[str, bytes]:
    """Return the figures and the text that are written beside a record, by name.

    :param about: how the results are to be read.
    :param document: the record.
    """
    figures = {name: figure for section in sections.values() for name, figure in section.figures.items()}
    contents = {f"{name}.png": figure_bytes(figure, "png") for name, figure in figures.items()}
    return {**contents, TEXT: _text(sections, about, document, results).encode()}


def _text(sections: Mapping[str, Section], about: str, document: Mapping[str, Any], results: Results) -> str:
    hours = sum(item["training_seconds"] or 0.0 for item in document["runs"]) / 3600
    commits = dict.fromkeys(item["evaluated_at"] or "unknown" for item in document["runs"])
    versions = ", ".join(f"{name} {value}" for name, value in document["versions"].items())
    runs = results.runs
    seeds = sorted({item.job.seed for item in runs})
    n_former = sum(item.run is None for item in runs)
    former = f" ({n_former} of them from an earlier record, which has their versions)" if n_former else ""
    lines = [
        f"# {document['experiment']}, {document['scale']}",
        about,
        "```\n" + document["command"] + "\n```",
        f"{len(runs)} runs{former}, training seeds {', '.join(map(str, seeds))}, {hours:.1f} h of training on "
        f"{_cores(document['machine']['cores'])}; evaluated at commit {', '.join(commits)}; {versions}.",
    ]
    for name, section in sections.items():
        lines += [f"## {name}", *(table.markdown() for table in section.tables)]
        lines += ["\n".join(f"- {line}" for line in section.sentences)] if section.sentences else []
        lines += [f"![{figure}]({figure}.png)" for figure in section.figures]
    if results.missing:
        lines.append("## Missing")
        lines.append("\n".join(f"- {line}" for line in missing_lines(results.missing)))
    return "\n\n".join(lines) + "\n"


def _cores(n: int) -> str:
    return f"{n} core" if n == 1 else f"{n} cores"


def missing_lines(missing: Sequence[Missing]) -> list[str]:
    """Return a line for each algorithm and reason why runs are missing."""
    groups: dict[tuple[str, str], dict[str, list[int]]] = {}
    for item in missing:
        env = item.job.entry.env
        place = f"ablation on {env}" if item.job.cell else env
        groups.setdefault((item.job.algo, item.reason), {}).setdefault(place, []).append(item.job.seed)
    lines = []
    for (algo, reason), places in groups.items():
        words = (f"{place} (seed {', '.join(map(str, dict.fromkeys(seeds)))})" for place, seeds in places.items())
        lines.append(f"{algo}, {reason}: {', '.join(words)}")
    return lines
