"""What the finished runs of an experiment hold: returns on test tasks, learning curves, and times."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from metarl.agents.parallel import single_threaded_torch
from metarl.errors import CheckpointError, MetaRLError, NonFiniteError
from metarl.files.checkpoint import write_text_atomic
from metarl.files.schema import read_as
from metarl.files.untrusted import parse_json, read_bytes, read_text
from metarl.meta.adaptive import AdaptiveAlgorithm
from metarl.meta.base import MetaAlgorithm, load
from metarl.meta.evaluation.report import STREAM_KEYS, Report
from metarl.meta.evaluation.statistics import Bands, bootstrap_bands
from metarl.zoo.algorithms import algorithm, load_model
from metarl.zoo.console import say
from metarl.zoo.experiments.jobs import Entry, Experiment, Job
from metarl.zoo.runs.curves import read_curve
from metarl.zoo.runs.evaluations import read_meta
from metarl.zoo.runs.folder import Run
from metarl.zoo.runs.outputs import write_record
from metarl.zoo.runs.provenance import commit

CHECKPOINTS = ("last", "best")
"""A run's final model, adapted at the rates of the experiment's ``evaluation``; and what validation tasks choose: of
that model and the one that was best on them in training, each at the rates best for it, the better one."""
PHASES = ("sampling", "inner", "outer")
ROUNDS = 3
"""Meta-optimisation steps that are timed of each order."""


@dataclass(frozen=True)
class Trained:
    """One finished run of an experiment.

    :param job: what it was for.
    :param run: its folder; None where only a record is left of it.
    :param reports: by checkpoint.
    :param facts: what the record says of a run without a folder.
    """

    job: Job
    run: Run | None
    reports: Mapping[str, Report]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Tested:
    """One algorithm's checkpoints of one kind, all seeds together, on test tasks.

    :param algo: the algorithm.
    :param checkpoint: one of :data:`CHECKPOINTS`.
    :param report: returns of all runs.
    :param num_timesteps: env steps of training of each.
    """

    algo: str
    checkpoint: str
    report: Report
    num_timesteps: Sequence[int]


@dataclass(frozen=True)
class Learning:
    """One algorithm's returns on validation tasks in the course of training.

    :param algo: the algorithm.
    :param timesteps: ``[point]``, env steps of training, a mean over runs.
    :param bands: mean returns after one inner step, of policies that do not adapt before it, with 95% intervals by
        task, then by run.
    :param n_runs: how many runs.
    """

    algo: str
    timesteps: np.ndarray
    bands: Bands
    n_runs: int


@dataclass(frozen=True)
class StepSeconds:
    """What :func:`step_seconds` keeps in a run's folder.

    :param subject: SHA-256 of the models.
    :param seconds: by algorithm, one number for each round.
    """

    subject: list[str]
    seconds: dict[str, list[float]]


def evaluation_of(job: Job) -> dict[str, Any]:
    """Return the arguments with which a job's run is evaluated on test tasks."""
    return {**job.entry.evaluation, "n_episodes": job.entry.episodes}


def evaluate_run(experiment: Experiment, job: Job, run: Run, n_threads: int | None) -> Trained:
    """Evaluate a finished run on test tasks, or read what it was evaluated to before; that is kept in its folder."""
    last = evaluation_of(job)
    if algorithm(job.algo).is_told_the_task:
        last["n_inner_steps"] = 0
    best = {**last, "rates": job.entry.rates} if last["n_inner_steps"] else last
    candidates = _candidates(experiment, job, run)
    reports = {}
    for checkpoint, paths, settings in (("last", [run.final], last), ("best", candidates, best)):
        subject = {"models": [hashlib.sha256(read_bytes(path)).hexdigest() for path in paths], "settings": settings}
        place = run.folder / "evaluations" / f"{experiment.name}_{checkpoint}.json"
        try:
            report = Report.load(place)
        except CheckpointError:
            report = None
        if report is None or report.meta.get("subject") != subject or not _is_whole(report, job):
            say(f"Evaluating {job}, {checkpoint}")
            report = _evaluate([load_model(path, n_threads) for path in paths], settings)
            report = dataclasses.replace(report, meta={**report.meta, "subject": subject, "commit": commit()})
            write_text_atomic(place, report.to_json(), run.folder)
        reports[checkpoint] = report
    return Trained(job, run, reports)


def _is_whole(report: Report, job: Job) -> bool:
    """Whether a report that was kept is of a job, and says all that is read of it."""
    of_job = (report.algo, report.env, report.split, report.seeds) == (job.algo, job.entry.env, "test", (job.seed,))
    one_run = isinstance(report.meta.get("num_timesteps"), int)
    return of_job and one_run and {"inner_lr", "versions", *STREAM_KEYS} <= report.meta.keys()


def _candidates(experiment: Experiment, job: Job, run: Run) -> list[Path]:
    """Return the checkpoints that the best one is chosen from."""
    # No checkpoint of what learns nothing is better than another, and a run without evaluations has only one.
    if experiment.is_one_of("untrained", job.algo) or not run.best.is_file():
        return [run.final]
    return [run.best, run.final]


def _evaluate(models: Sequence[MetaAlgorithm], settings: Mapping[str, Any]) -> Report:
    """Evaluate on test tasks: the model, at the rates, that validation tasks choose where there is a choice."""
    settings = dict(settings)
    rates = settings.pop("rates", None)

    def choose(model: MetaAlgorithm) -> tuple[float, dict[str, Any]]:
        if rates is not None and isinstance(model, AdaptiveAlgorithm):
            inner_lr, reached = choose_rates(model, settings, **rates)
            return reached, {**settings, "inner_lr": inner_lr}
        if len(models) == 1:
            return 0.0, settings
        return float(model.evaluate("validation", **settings).returns[..., -1].mean()), settings

    choices = [(model, *choose(model)) for model in models]
    model, _, chosen = max(choices, key=lambda choice: choice[1])
    return model.evaluate("test", **chosen)


def choose_rates(
    model: AdaptiveAlgorithm, settings: Mapping[str, Any], first: Sequence[float], later: Sequence[float], n_tasks: int
) -> tuple[list[float], float]:
    """Return the inner rates that are best on validation tasks, and the return there, a mean over all steps.

    The first step's rate is the one with the highest return after that step, the rate of all later ones then the one
    with the highest mean return.

    :param model: it adapts.
    :param settings: of its evaluation; ``n_inner_steps`` is at least 1.
    :param first: factors of its first training rate, to choose the first step's rate from.
    :param later: factors of the rate chosen, to choose the rate of all later steps from.
    :param n_tasks: validation tasks.
    """

    def score(rates: list[float]) -> float:
        changed = {"n_tasks": n_tasks, "n_inner_steps": len(rates), "inner_lr": rates}
        try:
            report = model.evaluate("validation", **{**settings, **changed})
        except NonFiniteError:
            return -np.inf
        return float(report.returns[..., 1:].mean())

    def best(candidates: list[list[float]]) -> tuple[list[float], float]:
        scores = [score(rates) for rates in candidates]
        return candidates[int(np.argmax(scores))], max(scores)

    n_later = int(settings["n_inner_steps"]) - 1
    trained = model.test_rates(1)[0]
    (start,), reached = best([[factor * trained] for factor in first])
    return best([[start, *[factor * start] * n_later] for factor in later]) if n_later else ([start], reached)


def tested(runs: Sequence[Trained]) -> list[Tested]:
    """Return what the runs of one environment and cell came to: each algorithm's checkpoints, last ones first."""
    found = []
    for algo in dict.fromkeys(item.job.algo for item in runs):
        own = [item for item in runs if item.job.algo == algo]
        for kind in CHECKPOINTS:
            reports = [item.reports[kind] for item in own]
            steps = [int(report.meta["num_timesteps"]) for report in reports]
            found.append(Tested(algo, kind, Report.merge(reports, f"{algo}, {kind}"), steps))
    return found


def of_checkpoint(items: Sequence[Tested], kind: str) -> list[Tested]:
    """Return those of one kind of checkpoint."""
    return [item for item in items if item.checkpoint == kind]


def learning(experiment: Experiment, runs: Sequence[Trained]) -> list[Learning]:
    """Return the learning curves of the run folders of one environment; runs that were never evaluated have none."""
    found = []
    for algo in dict.fromkeys(item.job.algo for item in runs):
        own = [item for item in runs if item.job.algo == algo]
        folders = [item.run.folder for item in own if item.run is not None]
        arrays = [read_meta(path) for folder in folders if (path := folder / "meta_evaluations.npz").is_file()]
        arrays = [each for each in arrays if len(each["timesteps"])]
        if not arrays:
            continue
        # The run with the fewest evaluations says where the points are; of each other run the nearest ones are taken.
        grid = min((each["timesteps"] for each in arrays), key=len)
        nearest = [np.abs(each["timesteps"][:, None] - grid).argmin(0) for each in arrays]
        adapts = not algorithm(algo).is_told_the_task
        returns = [each["post"][:, 0] if adapts else each["pre"] for each in arrays]
        values = np.stack([each[points].T for each, points in zip(returns, nearest, strict=True)])
        steps = [each["timesteps"][points] for each, points in zip(arrays, nearest, strict=True)]
        # Where tasks are adapted to several times validation and test tasks are the same ones, or as many.
        units, strata = own[0].reports["last"].units(values)
        found.append(Learning(algo, np.mean(steps, axis=0), bootstrap_bands(units, strata=strata), len(values)))
    return found


def times(runs: Sequence[Trained]) -> dict[str, dict[str, float]]:
    """Return the median seconds of each phase of a meta-iteration, by algorithm, over all its runs' logs."""
    found: dict[str, dict[str, float]] = {}
    for algo in dict.fromkeys(item.job.algo for item in runs):
        seconds: dict[str, list[np.ndarray]] = {phase: [] for phase in PHASES}
        for run in [item.run for item in runs if item.job.algo == algo and item.run is not None]:
            for phase in PHASES:
                try:
                    seconds[phase].append(read_curve(run, "time/iterations", f"time/{phase}").y)
                except MetaRLError:  # it logged nothing, or has no such phase
                    continue
        medians = {phase: float(np.median(np.concatenate(parts))) for phase, parts in seconds.items() if parts}
        if medians:
            found[algo] = medians
    return found


def step_seconds(experiment: Experiment, runs: Sequence[Trained], n_threads: int | None) -> dict[str, list[float]]:
    """Return the seconds of the meta-optimisation step at second and at first order, on the same batches and in turn.

    Both start from the second-order run's parameters. What was measured is kept in the folder of that run. Logged times
    do not compare: the machine may have had other work during one of the runs.

    :return: by algorithm, one number for each round; empty where one of the two has no finished run.
    """
    orders = experiment.settings["orders"]
    folders = [(item.job.algo, item.run) for item in runs if item.run is not None]
    first_runs = {algo: next((run for name, run in folders if name == algo), None) for algo in orders}
    paths = [run.final for run in first_runs.values() if run is not None]
    if len(paths) < len(orders):
        return {}
    subject = [hashlib.sha256(read_bytes(path)).hexdigest() for path in paths]
    place = paths[0].parent / "evaluations" / f"{experiment.name}_step_seconds.json"
    try:
        kept = read_as(StepSeconds, parse_json(read_text(place), str(place)), str(place))
        if kept.subject == subject and kept.seconds.keys() == set(orders):
            return kept.seconds
    except CheckpointError:  # not measured yet, or not by us
        pass
    say(f"Timing the meta-optimisation steps of {' and '.join(orders)} on {runs[0].job.entry.env}")
    first = load_model(paths[0], n_threads)
    models = [first, *(load(path, n_threads=n_threads, seed=first.seed) for path in paths[1:])]
    seconds: dict[str, list[float]] = {algo: [] for algo in orders}
    params = first.params
    with single_threaded_torch():
        for _ in range(ROUNDS):
            for algo, model in zip(orders, models, strict=True):
                # Streams are addressed by seed and meta-iteration: both collect the same batches each time.
                model.n_iterations, model.params = first.n_iterations, params
                seconds[algo].append(model.train()["time/outer"])
    write_record(place, {"subject": subject, "seconds": seconds}, paths[0].parent)
    return seconds


def by_entry(runs: Sequence[Trained]) -> list[tuple[Entry, list[Trained]]]:
    """Return the runs of each entry of the experiment that has any."""
    entries = dict.fromkeys(item.job.entry for item in runs)
    return [(entry, [item for item in runs if item.job.entry is entry]) for entry in entries]


def by_cell(runs: Sequence[Trained]) -> list[tuple[Mapping[str, Any], list[Trained]]]:
    """Return the runs of each combination of an entry's grid that has any."""
    cells = [cell for cell in runs[0].job.entry.cells() if any(item.job.cell == cell for item in runs)]
    return [(cell, [item for item in runs if item.job.cell == cell]) for cell in cells]
