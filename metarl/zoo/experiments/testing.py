"""How the finished runs of an experiment are tested: on test tasks, at the reference's rates and at the best ones."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from metarl.errors import CheckpointError, DivergedError, MetaRLError, NonFiniteError
from metarl.files.untrusted import read_bytes
from metarl.files.writing import write_text_atomic
from metarl.meta.adaptive import AdaptiveAlgorithm
from metarl.meta.base import MetaAlgorithm
from metarl.meta.evaluation.report import STREAM_KEYS, Report
from metarl.zoo.algorithms import algorithm, load_model
from metarl.zoo.console import say
from metarl.zoo.experiments.jobs import CHECKPOINTS, N_TASKS, SPLIT, Entry, Experiment, Job, State, find
from metarl.zoo.runs.folder import Run
from metarl.zoo.runs.provenance import commit

FEW_TASKS, SEQUENCE = "few_tasks", "in_sequence"
"""What an entry's ``evaluation`` may hold beside arguments of ``evaluate``, see :func:`measured`."""
META_RATES = "meta_lrs"
"""What ``few_tasks`` may hold too: rates of meta-finetuning, of which validation families choose the best one."""
NO_TASKS = "no tasks"
"""What the end of training is tested as, too, where few tasks of a family are met: as if none were."""


@dataclass(frozen=True)
class Trained:
    """One finished run of an experiment.

    :param job: what it was for.
    :param run: its folder; None where only a record is left of it.
    :param reports: by checkpoint, and by the names of the entry's conditions and of the job's tunings.
    :param facts: what the record says of a run without a folder.
    :param diverged: what there is no report of, since adaptation went astray on a test task, and how.
    """

    job: Job
    run: Run | None
    reports: Mapping[str, Report]
    facts: Mapping[str, Any] = field(default_factory=dict)
    diverged: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Missing:
    """A run of an experiment that is not finished, or cannot be tested.

    :param job: what it would be for.
    :param reason: why, in words.
    :param possible: whether this version can run it.
    :param replaceable: whether a record's run of the job may count instead; not where a run is here and damaged.
    """

    job: Job
    reason: str
    possible: bool = True
    replaceable: bool = True


@dataclass(frozen=True)
class Tested:
    """One algorithm's checkpoints of one kind, all seeds together, on test tasks.

    :param algo: the algorithm.
    :param checkpoint: one of :data:`CHECKPOINTS`; or the name of a condition, which the last ones are tested under, or
        of a tuning, by which they are fine-tuned.
    :param report: returns of all runs.
    :param num_timesteps: env steps of training of each.
    """

    algo: str
    checkpoint: str
    report: Report
    num_timesteps: Sequence[int]


def collect(
    experiment: Experiment,
    planned: Sequence[Job],
    folder: Path,
    n_threads: int | None,
    failed: Mapping[str, str] = MappingProxyType({}),
) -> list[Trained | Missing]:
    """Test the finished runs of some jobs; say for each of the others why it is missing.

    :param folder: where the runs are.
    :param failed: why the run of a job has just failed, by job in words.
    """
    return [_collected(experiment, job, folder, n_threads, failed) for job in planned]


def _collected(
    experiment: Experiment, job: Job, folder: Path, n_threads: int | None, failed: Mapping[str, str]
) -> Trained | Missing:
    if reason := job.unavailable():
        return Missing(job, reason, possible=False, replaceable=False)
    try:
        found = find(job, folder)
        if found.run is not None and found.state is State.FINISHED:
            return evaluate_run(experiment, job, found.run, n_threads)
    except MetaRLError as error:
        return Missing(job, " ".join(str(error).split()), replaceable=False)
    return Missing(job, failed.get(str(job)) or found.state.value)


def evaluation_of(job: Job) -> dict[str, Any]:
    """Return the arguments with which a job's run is evaluated on test tasks."""
    return {**job.entry.evaluation, "n_episodes": job.entry.episodes}


def evaluate_run(experiment: Experiment, job: Job, run: Run, n_threads: int | None) -> Trained:
    """Evaluate a finished run on test tasks, or read what it was evaluated to before; that is kept in its folder.

    :raises DivergedError: adaptation goes astray whichever checkpoint and rates it is tested with.
    """
    last = evaluation_of(job)
    if algorithm(job.algo).is_told_the_task:  # there is nothing to find out about it
        last["n_inner_steps"] = 0
        if FEW_TASKS in last:
            last[FEW_TASKS] = {**last[FEW_TASKS], "n_tasks": 0}
    best = {**last, "rates": job.entry.rates} if last["n_inner_steps"] and SEQUENCE not in last else last
    candidates = _candidates(job, run)
    plan: list[tuple[str, list[Path], dict[str, Any], dict[str, Any]]]
    plan = [("last", [run.final], last, {}), ("best", candidates, best, {})]
    if FEW_TASKS in last:
        plan.append((NO_TASKS, [run.final], {**last, FEW_TASKS: {**last[FEW_TASKS], "n_tasks": 0}}, {}))
    plan += [(name, [run.final], last, dict(condition)) for name, condition in job.entry.conditions.items()]
    plan += [(name, [run.final], {**best, "tuning": dict(tuning)}, {}) for name, tuning in job.tunings.items()]
    reports: dict[str, Report] = {}
    diverged: dict[str, DivergedError] = {}
    for checkpoint, paths, settings, env_kwargs in plan:
        split, n = env_kwargs.pop(SPLIT, "test"), env_kwargs.pop(N_TASKS, settings[N_TASKS])
        settings = {**settings, N_TASKS: n}
        subject = {"models": [hashlib.sha256(read_bytes(path)).hexdigest() for path in paths], "settings": settings}
        subject |= {"env_kwargs": env_kwargs} if env_kwargs else {}
        place = run.folder / "evaluations" / f"{experiment.name}_{checkpoint}.json"
        try:
            report = Report.load(place)
        except CheckpointError:
            report = None
        if report is None or report.meta.get("subject") != subject or not _is_whole(report, job, split):
            say(f"Evaluating {job}, {checkpoint}")
            try:
                report = _evaluate([load_model(path, n_threads, env_kwargs or None) for path in paths], settings, split)
            except DivergedError as error:
                diverged[checkpoint] = error
                continue
            report = dataclasses.replace(report, meta={**report.meta, "subject": subject, "commit": commit()})
            write_text_atomic(place, report.to_json(), run.folder)
        reports[checkpoint] = report
    if not any(kind in reports for kind in CHECKPOINTS):
        raise diverged[CHECKPOINTS[-1]]
    return Trained(job, run, reports, diverged={kind: " ".join(str(error).split()) for kind, error in diverged.items()})


def _is_whole(report: Report, job: Job, split: str) -> bool:
    """Whether a report that was kept is of a job, and says all that is read of it."""
    of_job = (report.algo, report.env, report.split, report.seeds) == (job.algo, job.entry.env, split, (job.seed,))
    one_run = isinstance(report.meta.get("num_timesteps"), int)
    return of_job and one_run and {"inner_lr", "versions", *STREAM_KEYS} <= report.meta.keys()


def _candidates(job: Job, run: Run) -> list[Path]:
    """Return the checkpoints that the best one is chosen from."""
    # No checkpoint of what learns nothing is better than another, and a run without evaluations has only one.
    if not algorithm(job.algo).learns or not run.best.is_file():
        return [run.final]
    return [run.best, run.final]


def _evaluate(models: Sequence[MetaAlgorithm], settings: Mapping[str, Any], split: str) -> Report:
    """Evaluate on a split: the model, at the rates, that validation tasks choose where there is a choice."""
    settings = dict(settings)
    rates = settings.pop("rates", None)

    def choose(model: MetaAlgorithm) -> tuple[float, dict[str, Any]]:
        if rates is not None and isinstance(model, AdaptiveAlgorithm):
            found = []
            for how in _meta_rates(settings):
                inner_lr, reached = choose_rates(model, how, **rates)
                found.append((reached, {**how, "inner_lr": inner_lr}))
            return max(found, key=lambda each: each[0])
        if len(models) == 1:
            return 0.0, settings
        return float(measured(model, "validation", settings).returns[..., -1].mean()), settings

    choices = [(model, *choose(model)) for model in models]
    model, _, chosen = max(choices, key=lambda choice: choice[1])
    return measured(model, split, chosen)


def _meta_rates(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the settings with each rate of meta-finetuning that validation tasks choose from; one where none are."""
    few = settings.get(FEW_TASKS, {})
    return (
        [{**settings, FEW_TASKS: {**few, "meta_lr": rate}} for rate in few[META_RATES]]
        if META_RATES in few
        else [dict(settings)]
    )


def measured(model: MetaAlgorithm, split: str, settings: Mapping[str, Any]) -> Report:
    """Return how a model does on held-out tasks or, where the settings say so, on families of them.

    :param settings: arguments of ``evaluate``. With ``few_tasks`` the entries are families, and what it holds are
        arguments of ``evaluate_few_tasks``; with ``in_sequence`` of ``evaluate_in_sequence``, and ``n_inner_steps`` are
        the tasks of a sequence.
    """
    rest = dict(settings)
    few_tasks, in_sequence = rest.pop(FEW_TASKS, None), rest.pop(SEQUENCE, None)
    if few_tasks is None and in_sequence is None:
        return model.evaluate(split, **rest)
    assert isinstance(model, AdaptiveAlgorithm)
    n_families, n = rest.pop("n_tasks"), rest.pop("n_inner_steps")
    if few_tasks is not None:
        how = {name: value for name, value in few_tasks.items() if name != META_RATES}
        return model.evaluate_few_tasks(split, n, n_families=n_families, **how, **rest)
    return model.evaluate_in_sequence(split, n_families=n_families, n_tasks=n, **in_sequence, **rest)


def choose_rates(
    model: AdaptiveAlgorithm, settings: Mapping[str, Any], first: Sequence[float], later: Sequence[float], n_tasks: int
) -> tuple[list[float], float]:
    """Return the inner rates that are best on validation tasks, and the return there, a mean over all steps.

    The first step's rate is the one with the highest return after that step, the rate of all later ones then the one
    with the highest mean return. A stock algorithm learns a task with one rate, so that no later rate is chosen.

    :param model: it adapts.
    :param settings: of its evaluation; ``n_inner_steps`` is at least 1.
    :param first: factors of its first training rate, to choose the first step's rate from.
    :param later: factors of the rate chosen, to choose the rate of all later steps from.
    :param n_tasks: validation tasks.
    """

    def score(rates: list[float]) -> float:
        changed = {"n_tasks": n_tasks, "n_inner_steps": len(rates), "inner_lr": rates}
        try:
            report = measured(model, "validation", {**settings, **changed})
        except NonFiniteError:
            return -np.inf
        return float(report.returns[..., 1:].mean())

    def best(candidates: list[list[float]]) -> tuple[list[float], float]:
        scores = [score(rates) for rates in candidates]
        return candidates[int(np.argmax(scores))], max(scores)

    n_later = int(settings["n_inner_steps"]) - 1
    trained = model.test_rates(1)[0]
    (start,), reached = best([[factor * trained] for factor in first])
    if not n_later:
        return [start], reached
    later = later if model.adaptation.has_rates else [1.0]
    return best([[start, *[factor * start] * n_later] for factor in later])


def kinds(entry: Entry) -> tuple[str, ...]:
    """Return what a run of an entry is tested as: its checkpoints, without few tasks of a family, and under its
    conditions.
    """
    return (*CHECKPOINTS, *([NO_TASKS] if FEW_TASKS in entry.evaluation else []), *entry.conditions)


def tested(runs: Sequence[Trained]) -> list[Tested]:
    """Return what the runs of one environment and cell came to: each algorithm's checkpoints, last ones first, and then
    what they are under the entry's conditions, and fine-tuned in other ways, as far as all of them were.
    """
    found = []
    for algo in dict.fromkeys(item.job.algo for item in runs):
        own = [item for item in runs if item.job.algo == algo]
        for kind in (*kinds(own[0].job.entry), *own[0].job.tunings):
            reports = [item.reports[kind] for item in with_report(own, kind)]
            if len(reports) < len(own):
                continue
            steps = [int(report.meta["num_timesteps"]) for report in reports]
            found.append(Tested(algo, kind, Report.merge(reports, f"{algo}, {kind}"), steps))
    return found


def tuned(items: Sequence[Tested], job: Job) -> list[Tested]:
    """Return those of a job's algorithm that were fine-tuned in ways of its entry."""
    return [item for item in items if item.algo == job.algo and item.checkpoint in job.tunings]


def with_report(runs: Sequence[Trained], kind: str) -> list[Trained]:
    """Return those that were tested as one kind of checkpoint, and did not diverge."""
    return [item for item in runs if kind in item.reports]


def divergences(runs: Sequence[Trained]) -> list[str]:
    """Return a sentence for each evaluation in which adaptation went astray."""
    return [f"{item.job}: {kind} has no row: {how}." for item in runs for kind, how in item.diverged.items()]


def of_checkpoint(items: Sequence[Tested], kind: str) -> list[Tested]:
    """Return those of one kind of checkpoint."""
    return [item for item in items if item.checkpoint == kind]


def by_entry(runs: Sequence[Trained]) -> list[tuple[Entry, list[Trained]]]:
    """Return the runs of each entry of the experiment that has any."""
    entries = dict.fromkeys(item.job.entry for item in runs)
    return [(entry, [item for item in runs if item.job.entry is entry]) for entry in entries]


def by_cell(runs: Sequence[Trained]) -> list[tuple[Mapping[str, Any], list[Trained]]]:
    """Return the runs of each combination of an entry's grid that has any."""
    cells = [cell for cell in runs[0].job.entry.cells() if any(item.job.cell == cell for item in runs)]
    return [(cell, [item for item in runs if item.job.cell == cell]) for cell in cells]
