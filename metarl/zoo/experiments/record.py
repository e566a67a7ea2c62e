"""The record of an experiment's results: its one format, how it is read and written, and how it is merged with runs.

A record stands for run folders that are elsewhere, as on another machine. A run of it counts if it has returns, and its
hyperparameters and evaluation are those of its job today; a run that is here counts before it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from metarl.errors import CheckpointError, ConfigError, MetaRLError, shorten
from metarl.files.schema import LARGEST_SEED, Range, read_as
from metarl.files.untrusted import parse_json, read_bytes, read_text
from metarl.files.writing import write_bytes_atomic
from metarl.meta.documents import Count
from metarl.meta.evaluation.report import STREAM_KEYS, Number, Report
from metarl.meta.evaluation.statistics import Bands
from metarl.zoo.experiments.jobs import CHECKPOINTS, Experiment, Job, Key, State, plain
from metarl.zoo.experiments.measuring import Learning, Results
from metarl.zoo.experiments.testing import (
    Missing,
    Tested,
    Trained,
    by_cell,
    by_entry,
    evaluation_of,
    kinds,
    tested,
)
from metarl.zoo.runs.curves import training_seconds
from metarl.zoo.runs.outputs import require_new, write_record
from metarl.zoo.runs.provenance import provenance

FORMAT, VERSION = "metarl-reproduction", 1
SHOWN = ("family_tasks", "point", "few_tasks", "moved", "last_met")
"""What a report's ``meta`` says besides that tables and sentences show, and that intervals depend on."""
RECORD = "record.json"
"""The name of a record in a folder of results."""


@dataclass(frozen=True)
class RunDocument:
    """A run of a record: those of its entries that are read again."""

    env: str
    algo: str
    seed: Annotated[int, Range(0, LARGEST_SEED)]
    cell: dict[str, Any]
    num_timesteps: dict[str, Count]
    inner_lr: dict[str, float | list[float] | None]
    evaluation: dict[str, Any]
    training_seconds: float | None
    hyperparams: dict[str, Any]
    rates: dict[str, Any] | None = None
    conditions: dict[str, dict[str, Any]] = field(default_factory=dict)
    tunings: dict[str, dict[str, Any]] = field(default_factory=dict)
    diverged: dict[str, str] = field(default_factory=dict)
    evaluated_at: str | None = None
    rest: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CurveDocument:
    """A learning curve of a record, as in :class:`~metarl.zoo.experiments.measuring.Learning`."""

    env: str
    algo: str
    timesteps: list[Number]
    mean: list[Number]
    low: list[Number]
    high: list[Number]
    n_runs: Count | None = None

    def __post_init__(self) -> None:
        """Look for a value at each point."""
        if len({len(values) for values in (self.timesteps, self.mean, self.low, self.high)}) != 1:
            raise ConfigError(f"the learning curve of {self.algo} on {self.env} has points without a value")


@dataclass(frozen=True)
class Document:
    """A record: those of its entries that are read again. Where there is no record, all of it is empty."""

    commit: str | None = None
    files: dict[str, list[str]] = field(default_factory=dict)
    runs: list[RunDocument] = field(default_factory=list)
    learning: list[CurveDocument] = field(default_factory=list)
    times: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    step_seconds: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    reports: list[Any] = field(default_factory=list)
    rest: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recorded:
    """What a record says that counts today; empty where there is no record.

    :param files: what was written beside the record: SHA-256 by name, of its newest form and of the one before.
    :param trained: the runs that count, by :attr:`~metarl.zoo.experiments.jobs.Job.key`.
    :param known: the keys of all its runs of the experiment, whether or not they count.
    :param whole: whether every run counts.
    :param seeds: the seeds of a comparison's runs, by environment and algorithm; none where one does not count.
    :param learning: learning curves, by environment and algorithm.
    :param times: as in :class:`~metarl.zoo.experiments.measuring.Results`.
    :param step_seconds: the same.
    """

    files: Mapping[str, Sequence[str]] = field(default_factory=dict)
    trained: Mapping[Key, Trained] = field(default_factory=dict)
    known: frozenset[Key] = frozenset()
    whole: bool = True
    seeds: Mapping[tuple[str, str], frozenset[int]] = field(default_factory=dict)
    learning: Mapping[tuple[str, str], Learning] = field(default_factory=dict)
    times: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    step_seconds: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)

    @property
    def jobs(self) -> list[Job]:
        """The jobs of the runs that count; their seeds may be others than the experiment's."""
        return [item.job for item in self.trained.values()]

    def reason(self, job: Job) -> str:
        """Return why the record's run of a job does not count, empty if it has none."""
        if job.key not in self.known:
            return ""
        return "in the record with other hyperparameters, another evaluation or no returns"


# ------------------------------------------------------------------------------------------------------------- reading
def read_record(output: Path, experiment: Experiment, overwrite: bool = False) -> Recorded:
    """Read the record in a folder of results.

    :param overwrite: whether a file of its name that is something else counts as none.
    :raises ConfigError: what is there is something else, or damaged, or of another experiment, scale or version.
    """
    if output.exists() and not output.is_dir():
        raise ConfigError(f"-o {output} is a file: results are several files, name a folder")
    path = output / RECORD
    if not path.exists():
        return Recorded()
    try:
        document = parse_json(read_text(path), str(path))
        known = isinstance(document, dict) and document.get("format") == FORMAT
    except CheckpointError:
        known = False
    if not known and overwrite and path.is_file():
        return Recorded()
    if not known:
        raise ConfigError(f"{path} is no record of `metarl reproduce`: choose another folder")
    if document.get("version") != VERSION:
        raise ConfigError(f"{path} has record format {shorten(document.get('version'))}: this metarl reads {VERSION}")
    found = (document.get("experiment"), document.get("scale"))
    if found != (experiment.name, experiment.scale):
        words = f"{experiment.name} at scale {experiment.scale}"
        other = " at scale ".join(shorten(value, quote=False) for value in found)
        raise ConfigError(f"{path} is of {other}, not of {words}: choose another folder")
    try:
        return _recorded(document, experiment)
    except CheckpointError as error:
        raise ConfigError(f"{path}: {error}") from None


def _recorded(document: Mapping[str, Any], experiment: Experiment) -> Recorded:
    found = read_as(Document, document, "the record")
    for algos in found.step_seconds.values():
        if len(algos) != 2 or len({len(seconds) for seconds in algos.values()} - {0}) != 1:
            raise CheckpointError(
                "the record is damaged: step_seconds are not two algorithms' with equally many rounds"
            )
    reports = dict(map(_returns_of, found.reports))
    # As they were written: what a record has beside the schema is kept when it is written again.
    runs = [(facts, _job(facts, experiment)) for facts in document.get("runs", [])]
    trained: dict[Key, Trained] = {}
    for facts, job in runs:
        if job is not None and job.key not in trained:
            kept = _trained(job, {"evaluated_at": found.commit, **facts, "from_record": True}, reports)
            trained |= {} if kept is None else {job.key: kept}
    compared: dict[tuple[str, str], list[Job | None]] = {}
    for facts, job in runs:
        if not facts["cell"]:
            compared.setdefault((facts["env"], facts["algo"]), []).append(job)
    seeds = {
        place: frozenset(job.seed for job in jobs if job is not None)
        for place, jobs in compared.items()
        if all(job is not None and job.key in trained for job in jobs)
    }
    return Recorded(
        files=found.files,
        trained=trained,
        known=frozenset(job.key for _, job in runs if job is not None),
        whole=all(job is not None and job.key in trained for _, job in runs),
        seeds=seeds,
        learning={
            (item.env, item.algo): _curve(item, len(compared.get((item.env, item.algo), ()))) for item in found.learning
        },
        times=found.times,
        step_seconds=found.step_seconds,
    )


def _job(facts: Mapping[str, Any], experiment: Experiment) -> Job | None:
    """Return the job that a recorded run is of, None where the experiment has none any more."""
    for entry in experiment.entries:
        if entry.env == facts["env"] and facts["algo"] in entry.algos:
            for cell in entry.cells():
                if cell == facts["cell"]:
                    return Job(entry, facts["algo"], facts["seed"], cell)
    return None


def _trained(job: Job, facts: Mapping[str, Any], reports: Mapping[tuple[str, str, str], Report]) -> Trained | None:
    """Return a recorded run with its evaluations, None if it does not count."""
    try:
        wanted = {"hyperparams": plain(job.config()), "evaluation": plain(evaluation_of(job))}
    except MetaRLError:  # said when the turn of its job comes
        return None
    if {name: facts[name] for name in wanted} != wanted:
        return None
    # Records had no rates once.
    if facts.get("rates", dict(job.entry.rates)) != plain(dict(job.entry.rates)):
        return None
    if facts.get("conditions", {}) != plain(dict(job.entry.conditions)):
        return None
    found = {}
    # A way of fine-tuning that came later is one that the record does not know yet.
    known = {name for name, way in job.tunings.items() if facts.get("tunings", {}).get(name) == plain(dict(way))}
    for kind in (*kinds(job.entry), *job.tunings):
        merged = reports.get((job.entry.env, f"{job.algo}, {kind}", _cell_key(job.cell)))
        is_there = merged is not None and job.seed in merged.seeds
        if kind in facts.get("diverged", {}) or (kind in job.tunings and not (is_there and kind in known)):
            continue
        if merged is None or not is_there:
            return None
        place = merged.seeds.index(job.seed)
        meta = {**merged.meta, "num_timesteps": merged.meta["num_timesteps"][place]}
        own, learning = slice(place, place + 1), merged.learning_returns
        found[kind] = dataclasses.replace(
            merged,
            returns=merged.returns[own],
            learning_returns=None if learning is None else learning[own],
            seeds=(job.seed,),
            meta=meta,
        )
    return Trained(job, None, found, facts, facts.get("diverged", {}))


def _curve(item: CurveDocument, n_runs: int) -> Learning:
    """Return a learning curve.

    :param n_runs: of how many runs, where the record does not say.
    """
    bands = Bands(*(np.array(getattr(item, name)) for name in Bands._fields))
    return Learning(item.algo, np.array(item.timesteps), bands, n_runs if item.n_runs is None else item.n_runs)


def _returns_of(item: Any) -> tuple[tuple[str, str, str], Report]:
    report = Report.from_document(item, "the record")
    for name in (*STREAM_KEYS, "num_timesteps"):
        if name not in report.meta:
            raise CheckpointError(f"the record is damaged: {name} of {report.label} on {report.env} is missing")
    steps = report.meta["num_timesteps"]
    if not isinstance(steps, list) or len(steps) != report.n_runs:
        raise CheckpointError(
            f"the record is damaged: num_timesteps of {report.label} on {report.env} are not one for each run"
        )
    return (report.env, report.label, _cell_key(report.meta.get("cell", {}))), report


def _cell_key(cell: Mapping[str, Any]) -> str:
    return json.dumps(dict(cell), sort_keys=True)


# ------------------------------------------------------------------------------------------------------------- merging
def merge(here: Results, recorded: Recorded) -> Results:
    """Return what the run folders here and a record show together; a run that is here counts before the record's.

    What a record says of several runs at once, such as their learning curve, holds only while none of them has made
    room for a run folder.
    """
    both = dataclasses.replace(here, jobs=[_instead(item, recorded) for item in here.jobs])
    learning: dict[str, list[Learning]] = {}
    times: dict[str, dict[str, Mapping[str, float]]] = {}
    seconds: dict[str, Mapping[str, Sequence[float]]] = {}
    for entry, runs in by_entry(both.runs):
        if entry.grid:
            continue
        env = entry.env
        algos = list(dict.fromkeys(item.job.algo for item in runs))
        former = {algo for algo in algos if _stands(recorded.seeds.get((env, algo), frozenset()), runs, algo)}
        kept = {algo: curve for algo in former if (curve := recorded.learning.get((env, algo))) is not None}
        curves = {curve.algo: curve for curve in here.learning.get(env, ())} | kept
        own = {**here.times.get(env, {}), **{a: s for a, s in recorded.times.get(env, {}).items() if a in former}}
        times[env] = {algo: own[algo] for algo in algos if algo in own}
        if curves:
            learning[env] = [curves[algo] for algo in algos if algo in curves]
        of_record = recorded.step_seconds.get(env, {})
        measured = here.step_seconds.get(env) or (of_record if of_record.keys() <= former else {})
        if measured:
            seconds[env] = measured
    return dataclasses.replace(both, learning=learning, times=times, step_seconds=seconds)


def _instead(item: Trained | Missing, recorded: Recorded) -> Trained | Missing:
    if isinstance(item, Trained) or not item.replaceable:
        return item
    if item.job.key in recorded.trained:
        return recorded.trained[item.job.key]
    if item.reason == State.MISSING.value:
        return dataclasses.replace(item, reason=recorded.reason(item.job) or item.reason)
    return item


def _stands(recorded: frozenset[int], runs: Sequence[Trained], algo: str) -> bool:
    """Whether what a record says of an algorithm's runs together still holds.

    :param recorded: their seeds.
    """
    here = {item.job.seed for item in runs if item.job.algo == algo and item.run is not None}
    return len(recorded) > len(here) and not recorded & here


# ------------------------------------------------------------------------------------------------------------- writing
def document_of(
    experiment: Experiment, results: Results, folder: Path, command: str, seconds: float, parts: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the record of an experiment's results.

    :param folder: where the runs are.
    :param command: what was typed.
    :param seconds: how long the command took.
    :param parts: what was said of the results: its ``tables``, ``sentences`` and ``verdicts``.
    """
    runs = results.runs
    cells = [(cell, own) for _, of_entry in by_entry(runs) for cell, own in by_cell(of_entry)]
    return {
        "format": FORMAT,
        "version": VERSION,
        "experiment": experiment.name,
        "scale": experiment.scale,
        "command": command,
        **provenance(),
        "seconds": seconds,
        "runs": [_run_document(item, folder) for item in runs],
        "missing": [_missing_document(item) for item in results.missing],
        **parts,
        "times": results.times,
        "step_seconds": results.step_seconds,
        "learning": [_curve_document(env, curve) for env, own in results.learning.items() for curve in own],
        "reports": [_report_document(cell, item) for cell, own in cells for item in tested(own)],
    }


def write(output: Path, document: dict[str, Any], contents: Mapping[str, bytes]) -> None:
    """Write a record and the files beside it.

    :param contents: the files by name.
    """
    # The record comes first, and knows what is replaced as well: so it knows its files whenever this is killed.
    files = {
        name: [hashlib.sha256(data).hexdigest(), *filter(None, [sha256(output / name)])]
        for name, data in contents.items()
    }
    write_record(output / RECORD, {**document, "files": files})
    for name, data in contents.items():
        write_bytes_atomic(output / name, data)


def _run_document(item: Trained, folder: Path) -> dict[str, Any]:
    if item.run is None:
        return dict(item.facts)
    tested_last = next(item.reports[kind] for kind in reversed(CHECKPOINTS) if kind in item.reports)
    return {
        **_job_document(item.job),
        "run": item.run.folder.relative_to(folder).as_posix(),
        "num_timesteps": {kind: report.meta["num_timesteps"] for kind, report in item.reports.items()},
        "inner_lr": {kind: report.meta["inner_lr"] for kind, report in item.reports.items()},
        "evaluation": evaluation_of(item.job),
        "rates": dict(item.job.entry.rates),
        **({"conditions": dict(item.job.entry.conditions)} if item.job.entry.conditions else {}),
        **({"tunings": dict(item.job.tunings)} if item.job.tunings else {}),
        **({"diverged": dict(item.diverged)} if item.diverged else {}),
        "evaluated_at": tested_last.meta.get("commit"),
        "training_seconds": training_seconds(item.run),
        "commits": item.run.args().get("commits", []),
        "commands": item.run.commands(),
        "versions": tested_last.meta["versions"],
        "hyperparams": item.run.config(),
    }


def _missing_document(item: Missing) -> dict[str, Any]:
    return {**_job_document(item.job), "reason": item.reason, "possible": item.possible}


def _job_document(job: Job) -> dict[str, Any]:
    return {"env": job.entry.env, "algo": job.algo, "seed": job.seed, "cell": dict(job.cell)}


def _curve_document(env: str, curve: Learning) -> dict[str, Any]:
    points = {"timesteps": curve.timesteps, **curve.bands._asdict()}
    numbers = {name: np.round(value, 3).tolist() for name, value in points.items()}
    return {"env": env, "algo": curve.algo, "n_runs": curve.n_runs, **numbers}


def _report_document(cell: Mapping[str, Any], item: Tested) -> dict[str, Any]:
    """Return a report that :class:`~metarl.meta.evaluation.report.Report` reads, with what it needs to be paired."""
    meta = {name: item.report.meta[name] for name in STREAM_KEYS} | {"num_timesteps": list(item.num_timesteps)}
    meta |= {name: item.report.meta[name] for name in SHOWN if item.report.meta.get(name) is not None}
    meta |= {"cell": dict(cell)} if cell else {}
    short = dataclasses.replace(item.report, returns=np.round(item.report.returns, 3), meta=meta)
    document: dict[str, Any] = json.loads(short.to_json())
    return document


# ------------------------------------------------------------------------------------------------ files beside a record
def keep_former(output: Path) -> Path:
    """Copy a record beside itself, before it is replaced; return where to."""
    i = 1
    while (path := output / f"former_record_{i}.json").exists():
        i += 1
    write_bytes_atomic(path, read_bytes(output / RECORD))
    return path


def require_own(output: Path, names: Iterable[str], files: Mapping[str, Sequence[str]], overwrite: bool) -> None:
    """Refuse to replace files that `metarl reproduce` did not write, or that were changed since.

    :param output: the folder of results.
    :param names: what is to be written there.
    :param files: what the record there says of its files, see :class:`Recorded`.
    :raises ConfigError: there is such a file, and it is not to be overwritten.
    """
    paths = [output / name for name in names]
    require_new([path for path in paths if sha256(path) not in files.get(path.name, ())], overwrite)


def sha256(path: Path) -> str | None:
    """Return the SHA-256 of a file, None where there is no regular file."""
    return hashlib.sha256(read_bytes(path)).hexdigest() if path.is_file() else None
