"""``metarl reproduce``: trains the runs of an experiment that are not there yet, and shows what all of them show."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from metarl.errors import ConfigError, MetaRLError, shorten
from metarl.zoo.algorithms import algorithm
from metarl.zoo.cli import parse
from metarl.zoo.commands import train
from metarl.zoo.console import format_duration, is_terminal, say
from metarl.zoo.experiments.jobs import ABLATION, Experiment, Job, State, find, jobs, load_experiment, scales
from metarl.zoo.experiments.measuring import measure
from metarl.zoo.experiments.record import (
    RECORD,
    Recorded,
    document_of,
    keep_former,
    merge,
    read_record,
    require_own,
    write,
)
from metarl.zoo.experiments.report import TEXT, files, missing_lines, parts, show
from metarl.zoo.experiments.reports import report_of
from metarl.zoo.experiments.testing import Missing, collect, evaluate_run
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
    recorded = read_record(output, experiment, args.overwrite)
    report = report_of(experiment)
    own = recorded.files
    require_own(output, report.file_names(), own, args.overwrite)
    if not args.output:  # results that belong to the run folders beside them stand for none of these
        recorded = Recorded()
    work = Work(experiment, chosen, folder, recorded, args)
    if args.train:
        interrupted = work.train()
        if interrupted:
            print(f"metarl: or go on with all of it: {command_line(args.argv)}", file=sys.stderr)
            return interrupted
    extra = [job for job in (*chosen, *recorded.jobs) if job.seed not in job.entry.seeds]
    planned = {job.key: job for job in (*jobs(experiment), *extra)}
    here = collect(experiment, list(planned.values()), folder, args.num_threads, work.failed)
    results = merge(measure(experiment, here, args.num_threads), recorded)
    if results.runs:
        sections = report.sections(results)
        show(sections)
        if not recorded.whole:
            say(f"Runs of the former record do not count any more: it is {keep_former(output)} now")
        command, seconds = command_line(args.argv), time.monotonic() - began
        document = document_of(experiment, results, folder, command, seconds, parts(sections))
        contents = files(sections, report.about, document, results)
        require_own(output, contents, own, args.overwrite)
        write(output, document, contents)
        figures = f"{len(contents) - 1} figure" + "s" * (len(contents) != 2)
        say(f"Saved {output / RECORD}, {output / TEXT} and {figures}")
    for line in missing_lines(results.missing):
        say(f"Missing: {line}")
    _next(args, experiment, results.missing, output)
    return 1 if work.failed else 0


@dataclass
class Work:
    """Starts the runs of an experiment, goes on with those that were stopped, and leaves finished ones alone.

    :param experiment: what is to be done.
    :param chosen: the jobs of this command.
    :param folder: where the run folders are.
    :param recorded: runs that count without a folder.
    :param args: the command's arguments.
    :param failed: why a run failed, by its job in words.
    """

    experiment: Experiment
    chosen: Sequence[Job]
    folder: Path
    recorded: Recorded
    args: argparse.Namespace
    failed: dict[str, str] = field(default_factory=dict)

    def train(self) -> int:
        """Do what is left of the chosen jobs; returns the exit code of one that was interrupted, else 0."""
        possible = [job for job in self.chosen if not job.unavailable()]
        left = [job for job in possible if not self._finished(job)]
        todo = [job for job in left if job.key not in self.recorded.trained]
        away, kept = len(self.chosen) - len(possible), len(left) - len(todo)
        say(
            f"{self.experiment.name}, {self.experiment.scale}: {len(self.chosen)} runs under {self.folder}, "
            f"{len(possible) - len(left)} finished, "
            + (f"{kept} only in the record of these results, " if kept else "")
            + f"{len(todo)} to do"
            + (f", {away} not possible yet" if away else "")
        )
        for i, job in enumerate(todo):
            left_over = time_left(todo[i:], self.folder)
            try:
                say(f"Run {i + 1} of {len(todo)}: {job}, {job.score().amount(job.entry.n_timesteps)}; {left_over}")
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
        return found.state is State.FINISHED

    def _train(self, job: Job) -> int:
        found = find(job, self.folder)
        words = ["train", "-i", str(found.run.folder)] if found.run else job.command(self.folder, self.experiment)
        words += ["--num-threads", str(self.args.num_threads or -1), "--verbose", "0"]
        args = parse([*words, "--progress" if is_terminal() else "--no-progress"])
        assert args is not None
        code = train.run(args)
        if code == 0:
            trained = find(job, self.folder).run
            assert trained is not None
            evaluate_run(self.experiment, job, trained, self.args.num_threads)
        return code


def time_left(todo: Sequence[Job], folder: Path) -> str:
    """Return how long jobs will take, in words, from the runs that are finished.

    :param folder: where the runs are.
    """
    rates = _seconds_of_a_step(folder)
    seconds, unknown = 0.0, 0
    for job in todo:
        if not algorithm(job.algo).learns:
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


def _seconds_of_a_step(folder: Path) -> dict[tuple[str, str], float]:
    """Return the mean seconds of an env step by environment and algorithm, and by environment alone."""
    found: dict[tuple[str, str], list[float]] = {}
    for place in (folder, folder / ABLATION):
        for item in list_runs(place):
            seconds = training_seconds(item) if item.final.is_file() else None
            if seconds:
                rate = seconds / int(item.config()["n_timesteps"])
                for key in ((item.env_id, item.algo), (item.env_id, "")):
                    found.setdefault(key, []).append(rate)
    return {key: sum(rates) / len(rates) for key, rates in found.items()}


def _next(args: argparse.Namespace, experiment: Experiment, missing: Sequence[Missing], output: Path) -> None:
    """Print what to do next: go on, or the next scale, or look."""
    folders = ["-f", args.log_folder] if args.log_folder else []
    folders += ["-o", args.output] if args.output else []
    words = ["reproduce", experiment.name, "--scale"]
    larger = scales(experiment.name)[scales(experiment.name).index(experiment.scale) + 1 :]
    if any(item.possible for item in missing):
        say(f"Next: {command_line([*words, experiment.scale, *folders])} does what is missing")
    elif larger:
        say(f"Next: read {output / TEXT}; larger: {command_line([*words, larger[0]])}")
    else:
        say(f"Next: read {output / TEXT}")
