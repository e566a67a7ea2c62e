"""What a record of ``metarl reproduce`` holds: runs that count where their folders are not, as on another machine."""

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
from metarl.files.checkpoint import write_bytes_atomic
from metarl.files.schema import LARGEST_SEED, Range, read_as
from metarl.files.untrusted import parse_json, read_bytes, read_text
from metarl.meta.evaluation.report import STREAM_KEYS, Number, Report
from metarl.meta.evaluation.statistics import Bands
from metarl.meta.saving import Count
from metarl.zoo.experiments.jobs import Experiment, Job, plain
from metarl.zoo.experiments.testing import CHECKPOINTS, Learning, Trained, evaluation_of
from metarl.zoo.runs.outputs import require_new

FORMAT, VERSION = "metarl-reproduction", 1
RECORD = "record.json"


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
    evaluated_at: str | None = None
    rest: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CurveDocument:
    """A learning curve of a record, as in :class:`~metarl.zoo.experiments.testing.Learning`."""

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


class Recorded:
    """The runs of a record.

    A run counts if it has returns, and hyperparameters and evaluation are those of its job today.

    :param document: what :meth:`~metarl.zoo.experiments.results.Results.write` wrote; empty where there is no record.
    :param experiment: what it is a record of.
    :raises CheckpointError: it is damaged.
    """

    def __init__(self, document: Mapping[str, Any], experiment: Experiment) -> None:
        self._experiment = experiment
        self._counted: dict[tuple[str, str, int, str], bool] = {}
        found = read_as(Document, document, "the record")
        self._commit = found.commit
        self.files = found.files
        """What was written beside the record: SHA-256 by name, of its newest form and of the one before."""
        self._runs: list[dict[str, Any]] = list(document.get("runs", []))
        self._learning = [(item.env, self._curve(item)) for item in found.learning]
        self._times = found.times
        self._step_seconds = found.step_seconds
        for algos in self._step_seconds.values():
            if len(algos) != 2 or len({len(seconds) for seconds in algos.values()} - {0}) != 1:
                raise CheckpointError(
                    "the record is damaged: step_seconds are not two algorithms' with equally many rounds"
                )
        self._reports = dict(map(_report, found.reports))

    @classmethod
    def read(cls, output: Path, experiment: Experiment, overwrite: bool = False) -> Recorded:
        """Read the record in a folder of results.

        :param overwrite: whether a file of its name that is something else counts as none.
        :raises ConfigError: what is there is something else, or damaged, or of another experiment, scale or version.
        """
        if output.exists() and not output.is_dir():
            raise ConfigError(f"-o {output} is a file: results are several files, name a folder")
        path = output / RECORD
        if not path.exists():
            return cls({}, experiment)
        try:
            document = parse_json(read_text(path), str(path))
            known = isinstance(document, dict) and document.get("format") == FORMAT
        except CheckpointError:
            known = False
        if not known and overwrite and path.is_file():
            return cls({}, experiment)
        if not known:
            raise ConfigError(f"{path} is no record of `metarl reproduce`: choose another folder")
        if document.get("version") != VERSION:
            raise ConfigError(
                f"{path} has record format {shorten(document.get('version'))}: this metarl reads {VERSION}"
            )
        found = (document.get("experiment"), document.get("scale"))
        if found != (experiment.name, experiment.scale):
            words = f"{experiment.name} at scale {experiment.scale}"
            other = " at scale ".join(shorten(value, quote=False) for value in found)
            raise ConfigError(f"{path} is of {other}, not of {words}: choose another folder")
        try:
            return cls(document, experiment)
        except CheckpointError as error:
            raise ConfigError(f"{path}: {error}") from None

    # ----------------------------------------------------------------------------------------------------------- runs
    def trained(self, job: Job) -> Trained | None:
        """Return the run of a job with its evaluations, None where there is none that counts.

        :raises MetaRLError: the job's hyperparameters do not fit its algorithm.
        """
        wanted = {"hyperparams": plain(job.config()), "evaluation": plain(evaluation_of(job))}
        for facts in self._facts(job):
            if {name: facts[name] for name in wanted} != wanted:
                continue
            # Records had no rates once.
            if facts.get("rates", dict(job.entry.rates)) != plain(dict(job.entry.rates)):
                continue
            reports = {kind: self._returns(job, kind) for kind in CHECKPOINTS}
            found = {kind: report for kind, report in reports.items() if report is not None}
            if len(found) == len(CHECKPOINTS):
                return Trained(job, None, found, {"evaluated_at": self._commit, **facts, "from_record": True})
        return None

    def reason(self, job: Job) -> str:
        """Return why the record's run of a job does not count, empty if it has none."""
        if not self._facts(job):
            return ""
        return "in the record with other hyperparameters, another evaluation or no returns"

    def jobs(self) -> list[Job]:
        """Return the jobs of the runs that count; their seeds may be others than the experiment's."""
        found = (self._job(facts) for facts in self._runs)
        return [job for job in found if job is not None and self._counts(job)]

    def keep_former(self, output: Path) -> Path | None:
        """Copy the record beside itself if a run of it does not count, before it is replaced; return where to."""
        found = (self._job(facts) for facts in self._runs)
        if all(job is not None and self._counts(job) for job in found):
            return None
        i = 1
        while (path := output / f"former_record_{i}.json").exists():
            i += 1
        write_bytes_atomic(path, read_bytes(output / RECORD))
        return path

    def _counts(self, job: Job) -> bool:
        if job.key not in self._counted:
            try:
                self._counted[job.key] = self.trained(job) is not None
            except MetaRLError:
                self._counted[job.key] = False
        return self._counted[job.key]

    def _job(self, facts: Mapping[str, Any]) -> Job | None:
        for entry in self._experiment.entries:
            if entry.env == facts["env"] and facts["algo"] in entry.algos and facts["cell"] in entry.cells():
                return Job(entry, facts["algo"], facts["seed"], facts["cell"])
        return None

    def _facts(self, job: Job) -> list[dict[str, Any]]:
        wanted = (job.entry.env, job.algo, job.seed, dict(job.cell))
        return [each for each in self._runs if (each["env"], each["algo"], each["seed"], each["cell"]) == wanted]

    def _returns(self, job: Job, kind: str) -> Report | None:
        """Return the report of one run, of those that hold all runs of an algorithm."""
        merged = self._reports.get((job.entry.env, f"{job.algo}, {kind}", _key(job.cell)))
        if merged is None or job.seed not in merged.seeds:
            return None
        place = merged.seeds.index(job.seed)
        meta = {**merged.meta, "num_timesteps": merged.meta["num_timesteps"][place]}
        return dataclasses.replace(merged, returns=merged.returns[place : place + 1], seeds=(job.seed,), meta=meta)

    # --------------------------------------------------------------------------------- what is said of all runs at once
    def seeds(self, env: str, algo: str) -> set[int]:
        """Return the seeds of a comparison's runs that its curves and times are of; none if one does not count."""
        jobs = [self._job(facts) for facts in self._runs if _of(facts, env, algo)]
        counting = [job for job in jobs if job is not None and self._counts(job)]
        return {job.seed for job in counting} if len(counting) == len(jobs) else set()

    def learning(self, env: str) -> list[Learning]:
        """Return the learning curves on an environment, of algorithms whose runs all count."""
        return [curve for place, curve in self._learning if place == env and self.seeds(env, curve.algo)]

    def times(self, env: str) -> dict[str, dict[str, float]]:
        """Return the seconds of the phases of a meta-iteration, of algorithms whose runs all count."""
        return {algo: own for algo, own in self._times.get(env, {}).items() if self.seeds(env, algo)}

    def step_seconds(self, env: str) -> dict[str, list[float]]:
        """Return the seconds of the meta-optimisation step by algorithm, empty if a run of these does not count."""
        found = self._step_seconds.get(env, {})
        return dict(found) if all(self.seeds(env, algo) for algo in found) else {}

    def _curve(self, item: CurveDocument) -> Learning:
        bands = Bands(*(np.array(getattr(item, name)) for name in Bands._fields))
        n_runs = item.n_runs
        if n_runs is None:
            n_runs = sum(_of(facts, item.env, item.algo) for facts in self._runs)
        return Learning(item.algo, np.array(item.timesteps), bands, n_runs)


def require_own(output: Path, names: Iterable[str], files: Mapping[str, Sequence[str]], overwrite: bool) -> None:
    """Refuse to replace files that `metarl reproduce` did not write, or that were changed since.

    :param output: the folder of results.
    :param names: what is to be written there.
    :param files: what the record there says of its files, see :attr:`Recorded.files`.
    :raises ConfigError: there is such a file, and it is not to be overwritten.
    """
    paths = [output / name for name in names]
    require_new([path for path in paths if sha256(path) not in files.get(path.name, ())], overwrite)


def sha256(path: Path) -> str | None:
    """Return the SHA-256 of a file, None where there is no regular file."""
    return hashlib.sha256(read_bytes(path)).hexdigest() if path.is_file() else None


def _of(facts: Mapping[str, Any], env: str, algo: str) -> bool:
    return (facts["env"], facts["algo"], facts["cell"]) == (env, algo, {})


def _key(cell: Mapping[str, Any]) -> str:
    return json.dumps(dict(cell), sort_keys=True)


def _report(item: Any) -> tuple[tuple[str, str, str], Report]:
    report = Report.from_document(item, "the record")
    for name in (*STREAM_KEYS, "num_timesteps"):
        if name not in report.meta:
            raise CheckpointError(f"the record is damaged: {name} of {report.label} on {report.env} is missing")
    steps = report.meta["num_timesteps"]
    if not isinstance(steps, list) or len(steps) != report.n_runs:
        raise CheckpointError(
            f"the record is damaged: num_timesteps of {report.label} on {report.env} are not one for each run"
        )
    return (report.env, report.label, _key(report.meta.get("cell", {}))), report
