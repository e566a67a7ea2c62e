"""``metarl reproduce``: the runs of an experiment, as many as are not there yet, and what all of them show."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metarl.errors import ConfigError, MetaRLError, shorten
from metarl.zoo.cli import parse
from metarl.zoo.commands.train import run as train
from metarl.zoo.console import format_duration, is_terminal, say
from metarl.zoo.experiments.jobs import Experiment, Job, find, jobs, load_experiment, scales
from metarl.zoo.experiments.record import RECORD, Recorded, require_own
from metarl.zoo.experiments.results import TEXT, Results, file_names, missing_lines
from metarl.zoo.experiments.testing import Trained, evaluate_run
from metarl.zoo.runs.curves import training_seconds
from metarl.zoo.runs.folder import command_line, list_runs
from metarl.zoo.runs.outputs import require_writable
from metarl.zoo.values import similar


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code: 1 if a run failed."""
    began = time.monotonic()
    experiment = load_experiment(args.experiment, args.scale)
    chosen = jobs(experiment, args.only_env, args.only_algo, args.seeds, args.only_part)
    folder = Path(args.log_folder or Path("logs") / experiment.name / experiment.scale)
    output = Path(args.output or folder / "results")
    if args.log_folder and not (args.train or args.output or folder.is_dir()):  # a record in -o stands for the runs
        raise ConfigError(f"there is no folder {shorten(folder, quote=False)}{similar(folder)}")
    for place in (folder, output):
        require_writable(place)
    recorded = Recorded.read(output, experiment, args.overwrite)
    files = recorded.files
    require_own(output, file_names(experiment), files, args.overwrite)
    if not args.output:  # results that belong to the run folders beside them stand for none of these
        recorded = Recorded({}, experiment)
    work = Work(experiment, chosen, folder, recorded, args)
    if args.train:
        interrupted = work.train()
        if interrupted:
            print(f"metarl: or go on with all of it: {command_line(args.argv)}", file=sys.stderr)
            return interrupted
    extra = [job for job in (*chosen, *recorded.jobs()) if job.seed not in job.entry.seeds]
    planned = {job.key: job for job in (*jobs(experiment), *extra)}
    runs, missing = work.collect(list(planned.values()), args.num_threads)
    if runs:
        results = Results(experiment, runs, args.num_threads, recorded)
        results.show()
        former = recorded.keep_former(output)
        if former is not None:
            say(f"Runs of the former record do not count any more: it is {former} now")
        require_own(output, results.files, files, args.overwrite)
        results.write(output, folder, command_line(args.argv), time.monotonic() - began, missing)
        say(f"Saved {output / RECORD}, {output / TEXT} and {len(results.figures)} figures")
    _say_missing(missing)
    _next(args, experiment, missing, output)
    return 1 if work.failed else 0


class Work:
    """The runs of an experiment: started, gone on with, or left alone where they are finished.

    :param experiment: what is to be done.
    :param chosen: the jobs of this command.
    :param folder: where the run folders are.
    :param recorded: runs that count without a folder.
    :param args: the command's arguments.
    """

    def __init__(
        self, experiment: Experiment, chosen: Sequence[Job], folder: Path, recorded: Recorded, args: argparse.Namespace
    ) -> None:
        self.experiment, self.chosen, self.folder, self.args = experiment, chosen, folder, args
        self.recorded = recorded
        self.failed: dict[str, str] = {}
        """Why, by job in words."""

    def train(self) -> int:
        """Do what is left of the chosen jobs; returns the exit code of one that was interrupted, else 0."""
        possible = [job for job in self.chosen if not job.unavailable()]
        left = [job for job in possible if not self._finished(job)]
        todo = [job for job in left if not self._recorded(job)]
        away, kept = len(self.chosen) - len(possible), len(left) - len(todo)
        say(
            f"{self.experiment.name}, {self.experiment.scale}: {len(self.chosen)} runs under {self.folder}, "
            f"{len(possible) - len(left)} finished, "
            + (f"{kept} only in the record of these results, " if kept else "")
            + f"{len(todo)} to do"
            + (f", {away} not possible yet" if away else "")
        )
        clock = Clock(self.experiment, self.folder)
        for i, job in enumerate(todo):
            say(f"Run {i + 1} of {len(todo)}: {job}, {job.entry.n_timesteps:,} env steps; {clock.left(todo[i:])}")
            try:
                code = self._train(job)
            except MetaRLError as error:
                self.failed[str(job)] = " ".join(str(error).split())
                say(f"Run {i + 1} of {len(todo)} failed: {self.failed[str(job)]}")
                continue
            if code:
                return code
        return 0

    def _finished(self, job: Job) -> bool:
        try:
            found = find(job, self.folder)
        except MetaRLError:  # said when its turn comes
            return False
        for path, difference in found.others.items() if found.run is None else ():
            say(f"{path} does not count: {difference}")
        return found.finished

    def _recorded(self, job: Job) -> bool:
        try:
            return self.recorded.trained(job) is not None
        except MetaRLError:  # said when its turn comes
            return False

    def _train(self, job: Job) -> int:
        found = find(job, self.folder)
        words = ["train", "-i", str(found.run.folder)] if found.run else job.command(self.folder, self.experiment)
        words += ["--num-threads", str(self.args.num_threads or -1), "--verbose", "0"]
        args = parse([*words, "--progress" if is_terminal() else "--no-progress"])
        assert args is not None
        code = train(args)
        if code == 0:
            trained = find(job, self.folder).run
            assert trained is not None
            evaluate_run(self.experiment, job, trained, self.args.num_threads)
        return code

    def collect(self, planned: Sequence[Job], n_threads: int | None) -> tuple[list[Trained], list[dict[str, Any]]]:
        """Return the finished runs with their evaluations, and for each of the others why it is missing."""
        runs, missing = [], []
        for job in planned:
            reason = job.unavailable()
            possible = not reason
            if possible:
                try:
                    found = find(job, self.folder)
                    if found.finished and found.run is not None:
                        runs.append(evaluate_run(self.experiment, job, found.run, n_threads))
                        continue
                    if (kept := self.recorded.trained(job)) is not None:
                        runs.append(kept)
                        continue
                    state = self.recorded.reason(job) or "not started" if found.run is None else "not finished"
                    reason = self.failed.get(str(job)) or state
                except MetaRLError as error:
                    reason = " ".join(str(error).split())
            missing.append({**_describe(job), "reason": reason, "possible": possible})
        return runs, missing


class Clock:
    """Says how long runs will take, from those that are finished.

    :param experiment: what they are runs of.
    :param folder: where they are.
    """

    def __init__(self, experiment: Experiment, folder: Path) -> None:
        self._experiment, self._folder = experiment, folder

    def left(self, todo: Sequence[Job]) -> str:
        """Return the time left for these jobs, in words."""
        rates = self._rates()
        seconds, unknown = 0.0, 0
        for job in todo:
            if self._experiment.is_one_of("untrained", job.algo):
                continue
            env = job.entry.env
            rate = rates.get((env, job.algo)) or rates.get((env, ""))
            if rate is None:
                unknown += 1
            else:
                seconds += rate * job.entry.n_timesteps
        if not seconds:
            return "time left not known yet"
        return f"{format_duration(seconds)} left" + (f", and {unknown} runs of unknown length" if unknown else "")

    def _rates(self) -> dict[tuple[str, str], float]:
        """Return the mean seconds of an env step by environment and algorithm, and by environment alone."""
        found: dict[tuple[str, str], list[float]] = {}
        for place in (self._folder, self._folder / "ablation"):
            for item in list_runs(place):
                seconds = training_seconds(item) if item.final.is_file() else None
                if seconds:
                    rate = seconds / int(item.config()["n_timesteps"])
                    for key in ((item.env_id, item.algo), (item.env_id, "")):
                        found.setdefault(key, []).append(rate)
        return {key: sum(rates) / len(rates) for key, rates in found.items()}


def _describe(job: Job) -> dict[str, Any]:
    """Return what a record says of a job."""
    return {"env": job.entry.env, "algo": job.algo, "seed": job.seed, "cell": dict(job.cell)}


def _say_missing(missing: Sequence[Mapping[str, Any]]) -> None:
    """Print what is missing: a line for each reason and algorithm."""
    for line in missing_lines(missing):
        say(f"Missing: {line}")


def _next(args: argparse.Namespace, experiment: Experiment, missing: Sequence[Mapping[str, Any]], output: Path) -> None:
    """Print what to do next: go on, or the next scale, or look."""
    folders = ["-f", args.log_folder] if args.log_folder else []
    folders += ["-o", args.output] if args.output else []
    words = ["reproduce", experiment.name, "--scale"]
    larger = scales(experiment.name)[scales(experiment.name).index(experiment.scale) + 1 :]
    if any(item["possible"] for item in missing):
        say(f"Next: {command_line([*words, experiment.scale, *folders])} does what is missing")
    elif larger:
        say(f"Next: read {output / TEXT}; larger: {command_line([*words, larger[0]])}")
    else:
        say(f"Next: read {output / TEXT}")
