"""What a record of ``metarl reproduce`` holds: runs that count where their folders are not, as on another machine."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metarl.checkpoint import write_text_atomic
from metarl.errors import CheckpointError, ConfigError, MetaRLError, shorten
from metarl.meta.report import Report
from metarl.meta.statistics import Bands
from metarl.zoo.experiment import Experiment, Job, plain
from metarl.zoo.finished import CHECKPOINTS, Learning, Trained, evaluation_of
from metarl.zoo.outputs import require_new

FORMAT, VERSION = "metarl-reproduction", 1
RECORD = "record.json"
_RUN = ("env", "algo", "seed", "cell", "num_timesteps", "inner_lr", "evaluation", "training_seconds", "hyperparams")
_DAMAGE = (KeyError, TypeError, ValueError, AttributeError, IndexError)


class Recorded:
    """The runs of a record.

    A run counts if it has returns, and hyperparameters and evaluation are those of its job today.

    :param document: what :meth:`~metarl.zoo.results.Results.write` wrote; empty where there is no record.
    :param experiment: what it is a record of.
    :raises CheckpointError: it is damaged.
    """

    def __init__(self, document: Mapping[str, Any], experiment: Experiment) -> None:
        self._experiment = experiment
        self._counted: dict[tuple[str, str, int, str], bool] = {}
        try:
            self._commit = document.get("commit")
            self.files = {str(name): list(sums) for name, sums in document.get("files", {}).items()}
            """What was written beside the record: SHA-256 by name, of its newest form and of the one before."""
            self._runs = [_run(item) for item in document.get("runs", [])]
            self._learning = [(item["env"], self._curve(item)) for item in document.get("learning", [])]
            self._times = {
                env: {algo: {phase: float(value) for phase, value in own.items()} for algo, own in algos.items()}
                for env, algos in document.get("times", {}).items()
            }
            self._step_seconds = {env: _steps(algos) for env, algos in document.get("step_seconds", {}).items()}
            self._reports = dict(map(_report, document.get("reports", [])))
        except CheckpointError:
            raise
        except _DAMAGE as error:
            raise CheckpointError(f"the record is damaged: {shorten(error)}") from None

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
            document = json.loads(path.read_text(encoding="utf-8"))
            known = document.get("format") == FORMAT
        except (OSError, ValueError, AttributeError):
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
            raise ConfigError(f"{path} is of {found[0]} at scale {found[1]}, not of {words}: choose another folder")
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
        write_text_atomic(path, (output / RECORD).read_text(encoding="utf-8"))
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

    def _curve(self, item: Mapping[str, Any]) -> Learning:
        bands = Bands(*(np.array(item[name], dtype=np.float64) for name in Bands._fields))
        timesteps = np.array(item["timesteps"], dtype=np.float64)
        if any(values.shape != timesteps.shape or values.ndim != 1 for values in bands):
            raise ValueError(f"the learning curve of {item['algo']} on {item['env']} has points without a value")
        n_runs = sum(_of(facts, item["env"], item["algo"]) for facts in self._runs)
        return Learning(item["algo"], timesteps, bands, int(item.get("n_runs", n_runs)))


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
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _of(facts: Mapping[str, Any], env: str, algo: str) -> bool:
    return (facts["env"], facts["algo"], facts["cell"]) == (env, algo, {})


def _key(cell: Mapping[str, Any]) -> str:
    return json.dumps(dict(cell), sort_keys=True)


def _run(item: Mapping[str, Any]) -> dict[str, Any]:
    facts = {**item, **{name: item[name] for name in _RUN}}
    for name in ("cell", "hyperparams", "evaluation", "num_timesteps", "inner_lr"):
        facts[name] = dict(facts[name])
    return facts


def _steps(algos: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    found = {algo: [float(value) for value in seconds] for algo, seconds in algos.items()}
    if len(found) != 2 or len({len(seconds) for seconds in found.values()} - {0}) != 1:
        raise ValueError("step_seconds are not two algorithms' with equally many rounds")
    return found


def _report(item: Mapping[str, Any]) -> tuple[tuple[str, str, str], Report]:
    report = Report.from_json(json.dumps(item), "the record")
    if len(report.meta["num_timesteps"]) != report.n_runs:
        raise ValueError(f"num_timesteps of {report.label} on {report.env} are not one for each run")
    return (report.env, report.label, _key(report.meta.get("cell", {}))), report
