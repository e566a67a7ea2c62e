"""What a record of ``metarl reproduce`` holds: runs that count where their folders are not, as on another machine."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from metarl.errors import CheckpointError, ConfigError
from metarl.meta.report import Report
from metarl.meta.statistics import Bands
from metarl.zoo.experiment import Experiment, Job, plain
from metarl.zoo.finished import CHECKPOINTS, Learning, Trained, evaluation_of

FORMAT, VERSION = "metarl-reproduction", 1
RECORD = "record.json"


class Recorded:
    """The runs of a record.

    :param document: what :meth:`~metarl.zoo.results.Results.write` wrote; empty where there is no record yet.
    :raises CheckpointError: it is damaged.
    """

    def __init__(self, document: Mapping[str, Any]) -> None:
        try:
            self._commit = document.get("commit")
            self._runs = [dict(item) for item in document.get("runs", [])]
            self._learning = [_learning(item, self._runs) for item in document.get("learning", [])]
            self._seconds = {name: dict(document.get(name, {})) for name in ("times", "step_seconds")}
            self._reports = {}
            for item in document.get("reports", []):
                report = Report.from_json(json.dumps(item), "the record")
                self._reports[report.env, report.label, _key(report.meta.get("cell", {}))] = report
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"the record is damaged: {error!r}") from None

    @classmethod
    def read(cls, output: Path, experiment: Experiment) -> Recorded:
        """Read the record in a folder of results.

        :raises ConfigError: what is there is something else, or of another experiment, scale or version.
        """
        if output.exists() and not output.is_dir():
            raise ConfigError(f"-o {output} is a file: results are several files, name a folder")
        path = output / RECORD
        if not path.exists():
            return cls({})
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            known = document.get("format") == FORMAT
        except (OSError, ValueError, AttributeError):
            known = False
        if not known:
            raise ConfigError(f"{path} is no record of `metarl reproduce`: choose another folder")
        if document.get("version") != VERSION:
            raise ConfigError(f"{path} has record format {document.get('version')!r}: this metarl reads {VERSION}")
        found = (document.get("experiment"), document.get("scale"))
        if found != (experiment.name, experiment.scale):
            words = f"{experiment.name} at scale {experiment.scale}"
            raise ConfigError(f"{path} is of {found[0]} at scale {found[1]}, not of {words}: choose another folder")
        try:
            return cls(document)
        except CheckpointError as error:
            raise ConfigError(f"{path}: {error}") from None

    def trained(self, job: Job) -> Trained | None:
        """Return the run of a job with its evaluations, None where there is none with its hyperparameters."""
        for facts in self._facts(job):
            if facts["hyperparams"] != plain(job.config()) or facts["evaluation"] != plain(evaluation_of(job)):
                continue
            reports = {kind: self._report(job, kind) for kind in CHECKPOINTS}
            found = {kind: report for kind, report in reports.items() if report is not None}
            if len(found) == len(CHECKPOINTS):
                return Trained(job, None, found, {"evaluated_at": self._commit, **facts})
        return None

    def reason(self, job: Job) -> str:
        """Return why the record's run of a job does not count, empty if it has none."""
        if not self._facts(job):
            return ""
        return "in the record with other hyperparameters, another evaluation or no returns"

    def _facts(self, job: Job) -> list[dict[str, Any]]:
        wanted = (job.entry.env, job.algo, job.seed, dict(job.cell))
        return [each for each in self._runs if (each["env"], each["algo"], each["seed"], each["cell"]) == wanted]

    def _report(self, job: Job, kind: str) -> Report | None:
        """Return the report of one run, of those that hold all runs of an algorithm."""
        merged = self._reports.get((job.entry.env, f"{job.algo}, {kind}", _key(job.cell)))
        if merged is None or job.seed not in merged.seeds:
            return None
        place = merged.seeds.index(job.seed)
        meta = {**merged.meta, "num_timesteps": merged.meta["num_timesteps"][place]}
        return dataclasses.replace(merged, returns=merged.returns[place : place + 1], seeds=(job.seed,), meta=meta)

    def learning(self, env: str) -> list[Learning]:
        """Return the learning curves on an environment."""
        return [curve for place, curve in self._learning if place == env]

    def times(self, env: str) -> dict[str, dict[str, float]]:
        """Return the seconds of the phases of a meta-iteration on an environment, by algorithm."""
        return dict(self._seconds["times"].get(env, {}))

    def step_seconds(self, env: str) -> dict[str, list[float]]:
        """Return the seconds of the meta-optimisation step on an environment, by algorithm."""
        return dict(self._seconds["step_seconds"].get(env, {}))


def _key(cell: Mapping[str, Any]) -> str:
    return json.dumps(cell, sort_keys=True)


def _learning(item: Mapping[str, Any], runs: list[dict[str, Any]]) -> tuple[str, Learning]:
    bands = Bands(*(np.array(item[name], dtype=np.float64) for name in Bands._fields))
    own = [run for run in runs if (run["env"], run["algo"], run["cell"]) == (item["env"], item["algo"], {})]
    return item["env"], Learning(item["algo"], np.array(item["timesteps"]), bands, item.get("n_runs", len(own)))
