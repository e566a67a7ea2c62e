"""The report of ``meta-transfer-*.yml``: encoders beside each other, under noise on the support."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import fill
from typing import Annotated, Any, ClassVar

import numpy as np
from matplotlib.figure import Figure

from metarl.envs.score import fixed
from metarl.files.schema import Range
from metarl.meta.evaluation.comparison import compare
from metarl.meta.evaluation.figures import nth_colour, spread_out
from metarl.meta.evaluation.report import Report
from metarl.meta.evaluation.tables import Table
from metarl.zoo.experiments.comparison import Verdict
from metarl.zoo.experiments.jobs import SPLIT, Entry
from metarl.zoo.experiments.report import PaperReport, Section, register_report
from metarl.zoo.experiments.reports.transfer_figures import (
    N_DRAWS,
    Pictures,
    cell_name,
    episodes,
    models,
    sinusoids,
)
from metarl.zoo.experiments.testing import Tested, Trained, by_cell, tested

ENCODER = "encoder"
"""The hyperparameter that an entry's grid runs over; each further one makes a column for each of its values."""
NOISE = "support_noise"
"""The argument of the family that an entry's conditions may set."""
_TASKS = {"train": "training tasks", "validation": "validation tasks", "test": "test tasks", "shifted": "shifted tasks"}
"""What the tasks of a split are called."""


@dataclass(frozen=True)
class Settings:
    """What the YAML says for this report.

    :param source: the table or figure of the paper.
    :param gradient: the encoders that take a gradient.
    :param pooling: those that they are compared with.
    :param published: by encoder, the mean and the standard deviation over seeds, for each column.
    :param n_entries: numbers of a prediction: our errors are sums over them, and the paper's are means.
    :param pictures: which tasks are drawn with what decoded policies do in them; None: none.
    """

    source: str
    gradient: list[str]
    pooling: list[str]
    published: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    n_entries: Annotated[int, Range(1, 1000)] = 1
    pictures: Pictures | None = None


@dataclass(frozen=True)
class Column:
    """One setting that all encoders are tested in.

    :param words: what it is called.
    :param noise: the standard deviation of the noise on the support.
    :param split: the tasks.
    :param reports: by encoder, in the order of the grid.
    """

    words: str
    noise: float
    split: str
    reports: Mapping[str, Report]

    @property
    def place(self) -> str:
        """What it is called beside columns of other splits."""
        return self.words if self.split == "test" else f"{_TASKS[self.split]}, {self.words}"


@register_report("meta-transfer-ant")
@register_report("meta-transfer-maze")
@register_report("meta-transfer-parameters")
@register_report("meta-transfer-pendulum")
class MetaTransfer(PaperReport):
    """A row for each encoder, a column for each amount of noise, with the published numbers below."""

    about: ClassVar[str] = (
        "Scores on held-out tasks, once the support of a task was decoded to a network. Cells are the mean over "
        "training seeds with the standard deviation over them, as the paper prints it; pairs of encoders are compared "
        "on the same tasks and streams by 95% bootstrap intervals by task, then by seed. Noise is added to the targets "
        "of the support when it is tested, and not in training, unless the settings say so. A second table is of tasks "
        "that were trained on, where the settings have it."
    )

    @property
    def settings(self) -> Settings:
        """What the YAML says for this report."""
        return self.read_settings(Settings)

    def file_names(self) -> list[str]:
        """Return the names of what the results may be written to beside the record."""
        entries = [entry for entry in self.experiment.entries if entry.grid]
        drawn = [name for entry in entries for name in (_figure_name(entry), *self.drawn(entry))]
        return [*super().file_names(), *(f"{name}.png" for name in dict.fromkeys(drawn))]

    def drawn(self, entry: Entry) -> list[str]:
        """Return the names of the figures that :meth:`show` may draw."""
        if self.settings.pictures is None:
            return []
        return list(dict.fromkeys(cell_name(entry.env, _others(cell)) for cell in entry.cells()))

    def show(self, entry: Entry, runs: Sequence[Trained]) -> Section:
        """Return pictures of what the models do in test tasks, of one training seed."""
        pictures, lines, figures = self.settings.pictures, list[str](), dict[str, Figure]()
        if pictures is None:
            return Section()
        groups: dict[str, list[Trained]] = {}
        for item in runs:
            groups.setdefault(cell_name(entry.env, _others(item.job.cell)), []).append(item)
        for name, own in groups.items():
            seed, found = models(own, ENCODER)
            if seed is None:
                lines.append(f"Pictures of {entry.env} need run folders, which are not here.")
                continue
            figure, why = episodes(entry, found, pictures)
            lines += why
            if figure is not None:
                figures[name] = figure
                lines.append(
                    f"{name}: test tasks that differ most, policies decoded from {entry.episodes} examples, training "
                    f"seed {seed}."
                )
        return Section((), list(dict.fromkeys(lines)), figures)

    def ablation(self, entry: Entry, runs: Sequence[Trained]) -> Section:
        """Return how the encoders compare."""
        settings, found = self.settings, columns(entry, runs)
        splits = {split: [item for item in found if item.split == split] for split in _splits(entry)}
        verdicts = [item for column in found for item in _verdicts(column, settings)]
        shown = self.show(entry, runs)
        return Section(
            [_table(own, settings, entry.env) for own in splits.values() if own],
            [*(line for column in found for line in _sentences(column, settings)), *shown.sentences],
            {_figure_name(entry): _figure(found, entry.env, settings.n_entries), **shown.figures},
            [{"env": entry.env, "cell": {}, **item.to_dict()} for item in verdicts],
        )


@register_report("meta-transfer-cosine")
class CosineReport(MetaTransfer):
    """The same, with figure 2: what networks predict under noise on what they are decoded from."""

    def drawn(self, entry: Entry) -> list[str]:
        return [f"{entry.env}_sines"]

    def show(self, entry: Entry, runs: Sequence[Trained]) -> Section:
        seed, found = models(runs, ENCODER)
        if seed is None:
            return Section((), [f"Figure 2 of {entry.env} needs run folders, which are not here."])
        figure = sinusoids(entry, found, list(noise_of(entry).values()))
        line = (
            f"{entry.env}_sines is the paper's figure 2, of one test task and training seed {seed}: predictions as "
            f"mean and standard deviation over {N_DRAWS} samples of noise on the same {entry.episodes} inputs."
        )
        return Section((), [line], {f"{entry.env}_sines": figure})


def noise_of(entry: Entry) -> dict[str, float]:
    """Return the noise on the support that runs are tested with: that of training, and each condition's, by name."""
    plain = float(dict(entry.hyperparams).get(f"env_kwargs.{NOISE}", 0.0))
    return {"last": plain} | {name: float(how.get(NOISE, plain)) for name, how in entry.conditions.items()}


def _splits(entry: Entry) -> dict[str, list[str]]:
    """Return what runs are tested as, ``"last"`` or the name of a condition, by the split of the tasks; test first."""
    found = {"test": ["last"]}
    for name, how in entry.conditions.items():
        found.setdefault(str(how.get(SPLIT, "test")), []).append(name)
    return found


def _others(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a grid, or a cell of it, without the encoder."""
    return {name: value for name, value in settings.items() if name != ENCODER}


def columns(entry: Entry, runs: Sequence[Trained]) -> list[Column]:
    """Return what the runs of one environment came to: on test tasks first, there without noise first, for each of the
    grid's other settings.
    """
    others = _others(entry.grid)
    trained: dict[tuple[Any, ...], dict[str, list[Tested]]] = {}
    for cell, own in by_cell(runs):
        trained.setdefault(tuple(cell[name] for name in others), {})[str(cell[ENCODER])] = tested(own)
    noise = noise_of(entry)
    found = []
    for split, same in _splits(entry).items():
        for values, kind in itertools.product(itertools.product(*others.values()), same):
            cell = trained.get(values, {})
            reports = {name: item.report for name, items in cell.items() for item in items if item.checkpoint == kind}
            words = [f"{name.rsplit('.', 1)[-1]} {value}" for name, value in zip(others, values, strict=True)]
            words += [f"σ = {noise[kind]:g}"] if len(set(noise.values())) > 1 else []
            if reports:
                found.append(Column(", ".join(words) or "score", noise[kind], split, reports))
    return found


def scores(report: Report, n_entries: int = 1) -> np.ndarray:
    """Return ``[run]``, each training seed's mean score over tasks, once the whole support was seen.

    :param n_entries: what a score is divided by.
    """
    means: np.ndarray = report.score.sign * report.returns[..., -1].mean(1) / n_entries
    return means


def _spread(values: np.ndarray) -> str:
    mean = fixed(values.mean(), 3)
    return f"{mean} ±{values.std():.3f}" if len(values) > 1 else mean


def _table(found: Sequence[Column], settings: Settings, env: str) -> Table:
    encoders = dict.fromkeys(name for column in found for name in column.reports)
    rows = [
        [name, *(_spread(scores(c.reports[name], settings.n_entries)) if name in c.reports else "" for c in found)]
        for name in encoders
    ]
    for name, values in settings.published.items():
        cells = [f"{mean:.3f} ±{spread:.3f}" for mean, spread in values][: len(found)]
        rows.append([f"{name}, published", *cells, *[""] * (len(found) - len(cells))])
    first, tasks = next(iter(found[0].reports.values())), _TASKS[found[0].split]
    n_runs = max(report.n_runs for column in found for report in column.reports.values())
    seeds = f"mean ± standard deviation over {n_runs} training seeds" if n_runs > 1 else "one training seed"
    mean = f", a mean over the {settings.n_entries} numbers of a prediction" if settings.n_entries > 1 else ""
    notes = [f"{seeds}, {first.n_tasks} {tasks}; {first.score.axis}{mean}", f"published: {settings.source}"]
    return Table(["", *(column.words for column in found)], rows, f"{env}, {tasks}", notes)


def _verdicts(column: Column, settings: Settings) -> list[Verdict]:
    """Compare each encoder that takes a gradient with each other one, by the scores that the table has."""
    reports = {
        name: dataclasses.replace(report, returns=report.returns / settings.n_entries)
        for name, report in column.reports.items()
    }
    found = []
    for a, b in itertools.product(settings.gradient, settings.pooling):
        if a in reports and b in reports:
            pair = compare(reports[a], reports[b])
            last = pair.returns.n_points - 1
            found.append(Verdict(a, b, column.place, last, pair.returns.at(last), pair.is_supported))
    return found


def _sentences(column: Column, settings: Settings) -> list[str]:
    """Say of each encoder that takes a gradient whom it beats, and who beats it."""
    lines = []
    found = _verdicts(column, settings)
    for encoder in dict.fromkeys(item.a for item in found):
        own = [item for item in found if item.a == encoder]
        groups = {
            "is ahead of": [item for item in own if item.winner == item.a],
            "is behind": [item for item in own if item.winner == item.b],
            "is not clearly different from": [item for item in own if item.winner is None],
        }
        clauses = [
            f"{words} {', '.join(f'{item.b} ({item.interval})' for item in items)}"
            for words, items in groups.items()
            if items
        ]
        lines.append(
            f"{column.place}: {encoder} {'; '.join(clauses)}. Differences of scores, above 0 where it is ahead."
        )
    return lines


def _figure_name(entry: Entry) -> str:
    return f"{entry.env}_{'noise' if len(set(noise_of(entry).values())) > 1 else 'scores'}"


def _figure(found: Sequence[Column], env: str, n_entries: int) -> Figure:
    """Draw each encoder's score, with the standard deviation over seeds.

    A panel for each of the grid's other settings shows it against the noise on the support; where there is one amount
    of it only, one panel has all settings beside each other.
    """
    noisy = len({column.noise for column in found}) > 1
    panels: dict[str, list[Column]] = {}
    for column in found:
        panels.setdefault(column.place.rpartition("σ")[0].rstrip(", ") if noisy else "", []).append(column)
    figure = Figure(figsize=(5.0 * len(panels) + 2.0, 4.0), layout="constrained")
    encoders = list(dict.fromkeys(name for column in found for name in column.reports))
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, own) in zip(axes, panels.items(), strict=True):
        drawn: list[float] = []
        for index, name in enumerate(encoders):
            columns = [column for column in own if name in column.reports]
            if not columns:
                continue
            beside = 0.6 * (index - (len(encoders) - 1) / 2) / len(encoders)
            x = [column.noise if noisy else own.index(column) + beside for column in columns]
            values = [scores(column.reports[name], n_entries) for column in columns]
            mean, spread = [each.mean() for each in values], [each.std() for each in values]
            fmt = "o-" if noisy else "o"
            axis.errorbar(x, mean, spread, fmt=fmt, capsize=2, label=name, color=nth_colour(index))
            drawn += mean
        spread_out(axis, drawn)
        axis.set_title(title or env)
        if noisy:
            axis.set_xlabel("σ of the noise on the support")
        else:
            axis.set_xticks(range(len(own)), [fill(column.place.replace(",", ""), 10) for column in own])
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(next(iter(found[0].reports.values())).score.axis)
    # Outside: points may lie anywhere inside.
    lines = {label: line for axis in axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(list(lines.values()), list(lines), fontsize="small", loc="outside right center")
    return figure
