"""Everything that the finished runs of an experiment show: on the screen, as Markdown, figures and one JSON record."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from metarl.files.checkpoint import write_bytes_atomic
from metarl.meta.evaluation.published import Published, published_for
from metarl.meta.evaluation.report import STREAM_KEYS, Report
from metarl.meta.evaluation.tables import Table
from metarl.zoo.console import console, say
from metarl.zoo.experiments import findings
from metarl.zoo.experiments.jobs import Entry, Experiment
from metarl.zoo.experiments.record import FORMAT, RECORD, VERSION, Recorded, sha256
from metarl.zoo.experiments.testing import (
    CHECKPOINTS,
    Learning,
    Tested,
    Trained,
    by_cell,
    by_entry,
    evaluation_of,
    learning,
    step_seconds,
    tested,
    times,
)
from metarl.zoo.runs.curves import training_seconds
from metarl.zoo.runs.outputs import figure_bytes, write_record
from metarl.zoo.runs.provenance import provenance

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEXT = "results.md"
ABOUT = (
    "Returns on held-out tasks before and after inner steps, with equal env steps of training, support and query "
    "together. Intervals are 95% bootstrap intervals by task, then by training seed; algorithms are compared on the "
    "same tasks and streams, and one wins where the interval of the difference excludes zero. last: the end of "
    "training, adapted as in the reference, with half the inner rate after the first step, on AntDir a hundredth. "
    "best: chosen on validation tasks, of the end of training and the checkpoint that adapted best in its course "
    "(after as many inner steps as it was trained with), each at the inner rates that are best for it, the one with "
    "the higher return over all steps. The oracle sees the task and stays as it is. Intervals from few training seeds "
    "are too narrow: where nothing differs, up to 13 of 100 exclude zero with 3 seeds and 32 with 2 "
    "(benchmarks/coverage.py); with one they say nothing about other seeds. No clear difference is not equality."
)


@dataclasses.dataclass
class Section:
    """A part of the results.

    :param tables: its tables.
    :param sentences: what they say.
    :param figures: names of its figures.
    """

    tables: Sequence[Table]
    sentences: Sequence[str] = ()
    figures: Sequence[str] = ()


def file_names(experiment: Experiment) -> list[str]:
    """Return the names of what the results of an experiment may be written to beside the record."""
    places = [f"ablation_{entry.env}" if entry.grid else entry.env for entry in experiment.entries]
    figures = [f"{place}_{kind}" for place in dict.fromkeys(places) for kind in CHECKPOINTS]
    return [TEXT, *(f"{name}.png" for name in [*figures, "learning"])]


class Results:
    """What the finished runs of an experiment show.

    :param experiment: what they are runs of.
    :param runs: at least one.
    :param n_threads: to measure with, None for all.
    :param recorded: has the learning curves and times of runs without a folder.
    """

    def __init__(
        self, experiment: Experiment, runs: Sequence[Trained], n_threads: int | None, recorded: Recorded
    ) -> None:
        self.experiment, self.runs, self._n_threads, self._recorded = experiment, runs, n_threads, recorded
        self.sections: dict[str, Section] = {}
        self.figures: dict[str, Figure] = {}
        self.verdicts: list[dict[str, Any]] = []
        self.tested: list[tuple[Mapping[str, Any], Tested]] = []
        self.curves: dict[str, list[Learning]] = {}
        self._partial: list[str] = []
        self.seconds: dict[str, dict[str, dict[str, float]]] = {}
        self.measured: dict[str, dict[str, list[float]]] = {}
        self._last = experiment.n_inner_steps
        for entry, own in by_entry(runs):
            if entry.grid:
                self._ablation(entry, own)
            else:
                self._comparison(entry, own)
        self._training()

    def _comparison(self, entry: Entry, runs: Sequence[Trained]) -> None:
        items = tested(runs)
        published = _published(items[0].report)
        table = findings.returns_table(items, published, f"{entry.env}, test tasks")
        found = findings.verdicts(items, self._last)
        figures = findings.adaptation_figures(items, published, entry.env, self.experiment.settings["algos"])
        self._add(entry.env, [table], findings.sentences(found), figures)
        self.verdicts += [{"env": entry.env, "cell": {}, **item.to_dict()} for item in found]
        self.tested += [({}, item) for item in items]
        algos = dict.fromkeys(item.job.algo for item in runs)
        here = {
            algo: {item.job.seed for item in runs if item.job.algo == algo and item.run is not None} for algo in algos
        }
        # What a record says of runs together holds only while none of them has made room for a run folder.
        former = {algo: self._recorded.seeds(entry.env, algo) for algo in algos}
        former = {
            algo: seeds for algo, seeds in former.items() if len(seeds) > len(here[algo]) and not seeds & here[algo]
        }
        seconds = times(runs) | {algo: s for algo, s in self._recorded.times(entry.env).items() if algo in former}
        self.seconds[entry.env] = {algo: seconds[algo] for algo in algos if algo in seconds}
        recorded = self._recorded.step_seconds(entry.env)
        measured = step_seconds(self.experiment, runs, self._n_threads) or (
            recorded if recorded.keys() <= former.keys() else {}
        )
        if measured:
            self.measured[entry.env] = measured
        curves = {curve.algo: curve for curve in learning(self.experiment, runs)}
        curves |= {curve.algo: curve for curve in self._recorded.learning(entry.env) if curve.algo in former}
        if curves:
            self.curves[entry.env] = [curves[algo] for algo in algos if algo in curves]
            whole = {algo: sum(item.job.algo == algo for item in runs) for algo in algos}
            self._partial += [
                f"The learning curve of {curve.algo} on {entry.env} is of {curve.n_runs} of {whole[curve.algo]} runs."
                for curve in self.curves[entry.env]
                if curve.n_runs < whole[curve.algo]
            ]

    def _ablation(self, entry: Entry, runs: Sequence[Trained]) -> None:
        tables = [findings.ablation_table(runs, kind, self._last) for kind in CHECKPOINTS]
        found = findings.ablation_verdicts(runs, self._last)
        name = f"ablation_{entry.env}"
        figures = {f"{name}_{kind}": findings.ablation_figure(runs, kind, self._last) for kind in CHECKPOINTS}
        self._add(f"Ablation on {entry.env}", tables, findings.ablation_sentences(found), figures)
        self.verdicts += [{"env": entry.env, "cell": dict(cell), **item.to_dict()} for cell, item in found]
        self.tested += [(cell, item) for cell, own in by_cell(runs) for item in tested(own)]

    def _training(self) -> None:
        settings = self.experiment.settings
        if self.curves:
            figure = findings.learning_figure(self.curves, settings["algos"])
            self._add("Training", [], self._partial, {"learning": figure})
        if any(self.seconds.values()):
            lines = findings.speed_sentences(self.measured, settings["published_ratio"])
            self._add("Time", [findings.times_table(self.seconds)], lines, {})

    def _add(self, name: str, tables: Sequence[Table], sentences: Sequence[str], figures: Mapping[str, Figure]) -> None:
        self.sections[name] = Section(tables, sentences, list(figures))
        self.figures |= figures

    @property
    def files(self) -> list[str]:
        """The names of what is written beside the record."""
        return [TEXT, *(f"{name}.png" for name in self.figures)]

    def show(self) -> None:
        """Print tables and sentences."""
        for section in self.sections.values():
            for table in section.tables:
                console().print(table)
            for line in section.sentences:
                say(line)

    def write(
        self, output: Path, folder: Path, command: str, seconds: float, missing: Sequence[Mapping[str, Any]]
    ) -> None:
        """Write the figures, the text and the record.

        :param output: the folder of all of them.
        :param folder: where the runs are.
        :param command: what was typed.
        :param seconds: how long the command took.
        :param missing: the runs that are not finished, with the reason.
        """
        document = {
            "format": FORMAT,
            "version": VERSION,
            "experiment": self.experiment.name,
            "scale": self.experiment.scale,
            "command": command,
            **provenance(),
            "seconds": seconds,
            "runs": [_run(item, folder) for item in self.runs],
            "missing": list(missing),
            "tables": {name: [str(table) for table in section.tables] for name, section in self.sections.items()},
            "sentences": {name: list(section.sentences) for name, section in self.sections.items()},
            "verdicts": self.verdicts,
            "times": self.seconds,
            "step_seconds": self.measured,
            "learning": [_curve(env, curve) for env, own in self.curves.items() for curve in own],
            "reports": [_report(cell, item) for cell, item in self.tested],
        }
        contents = {f"{name}.png": figure_bytes(figure, "png") for name, figure in self.figures.items()}
        contents[TEXT] = self._text(document).encode()
        # The record comes first, and knows what is replaced as well: so it knows its files whenever this is killed.
        document["files"] = {
            name: [hashlib.sha256(data).hexdigest(), *filter(None, [sha256(output / name)])]
            for name, data in contents.items()
        }
        write_record(output / RECORD, document)
        for name, data in contents.items():
            write_bytes_atomic(output / name, data)

    def _text(self, document: Mapping[str, Any]) -> str:
        hours = sum(item["training_seconds"] or 0.0 for item in document["runs"]) / 3600
        commits = dict.fromkeys(item["evaluated_at"] or "unknown" for item in document["runs"])
        versions = ", ".join(f"{name} {value}" for name, value in document["versions"].items())
        seeds = sorted({item.job.seed for item in self.runs})
        n_former = sum(item.run is None for item in self.runs)
        former = f" ({n_former} of them from an earlier record, which has their versions)" if n_former else ""
        lines = [
            f"# {self.experiment.name}, {self.experiment.scale}",
            ABOUT,
            "```\n" + document["command"] + "\n```",
            f"{len(self.runs)} runs{former}, training seeds {', '.join(map(str, seeds))}, {hours:.1f} h of training on "
            f"{_cores(document['machine']['cores'])}; evaluated at commit {', '.join(commits)}; {versions}.",
        ]
        for name, section in self.sections.items():
            lines += [f"## {name}", *(table.markdown() for table in section.tables)]
            lines += ["\n".join(f"- {line}" for line in section.sentences)] if section.sentences else []
            lines += [f"![{figure}]({figure}.png)" for figure in section.figures]
        if document["missing"]:
            lines.append("## Missing")
            lines.append("\n".join(f"- {line}" for line in missing_lines(document["missing"])))
        return "\n\n".join(lines) + "\n"


def _published(report: Report) -> tuple[Published, ...]:
    """Return the published rows of an environment as it is by default, none for any other."""
    return () if set(report.meta["env_kwargs"] or {}) - {"oracle"} else published_for(report.env)


def _cores(n: int) -> str:
    return f"{n} core" if n == 1 else f"{n} cores"


def missing_lines(missing: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each algorithm and reason why runs are missing."""
    groups: dict[tuple[str, str], dict[str, list[int]]] = {}
    for item in missing:
        place = f"ablation on {item['env']}" if item["cell"] else item["env"]
        groups.setdefault((item["algo"], item["reason"]), {}).setdefault(place, []).append(item["seed"])
    lines = []
    for (algo, reason), places in groups.items():
        words = (f"{place} (seed {', '.join(map(str, dict.fromkeys(seeds)))})" for place, seeds in places.items())
        lines.append(f"{algo}, {reason}: {', '.join(words)}")
    return lines


def _run(item: Trained, folder: Path) -> dict[str, Any]:
    if item.run is None:
        return dict(item.facts)
    return {
        "env": item.job.entry.env,
        "algo": item.job.algo,
        "seed": item.job.seed,
        "cell": dict(item.job.cell),
        "run": item.run.folder.relative_to(folder).as_posix(),
        "num_timesteps": {kind: report.meta["num_timesteps"] for kind, report in item.reports.items()},
        "inner_lr": {kind: report.meta["inner_lr"] for kind, report in item.reports.items()},
        "evaluation": evaluation_of(item.job),
        "rates": dict(item.job.entry.rates),
        "evaluated_at": item.reports["best"].meta.get("commit"),
        "training_seconds": training_seconds(item.run),
        "commits": item.run.args().get("commits", []),
        "commands": item.run.commands(),
        "versions": item.reports["last"].meta["versions"],
        "hyperparams": item.run.config(),
    }


def _curve(env: str, curve: Learning) -> dict[str, Any]:
    points = {"timesteps": curve.timesteps, **curve.bands._asdict()}
    numbers = {name: np.round(value, 3).tolist() for name, value in points.items()}
    return {"env": env, "algo": curve.algo, "n_runs": curve.n_runs, **numbers}


def _report(cell: Mapping[str, Any], item: Tested) -> dict[str, Any]:
    """Return a report that :class:`~metarl.meta.evaluation.report.Report` reads, with what it needs to be paired."""
    meta = {name: item.report.meta[name] for name in STREAM_KEYS} | {"num_timesteps": list(item.num_timesteps)}
    meta |= {"cell": dict(cell)} if cell else {}
    short = dataclasses.replace(item.report, returns=np.round(item.report.returns, 3), meta=meta)
    document: dict[str, Any] = json.loads(short.to_json())
    return document
