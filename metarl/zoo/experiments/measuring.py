"""What the course of finished runs shows: learning curves, the times of phases, and steps that are timed in turn."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

import metarl
from metarl.agents.parallel import single_threaded_torch
from metarl.envs.score import RETURN, Score, common_score
from metarl.errors import CheckpointError, MetaRLError
from metarl.files.schema import read_as
from metarl.files.untrusted import parse_json, read_bytes, read_text
from metarl.meta.base import load
from metarl.meta.evaluation.figures import nth_colour
from metarl.meta.evaluation.statistics import Bands, bootstrap_bands
from metarl.meta.evaluation.tables import Table
from metarl.zoo.algorithms import algorithm, load_model
from metarl.zoo.console import say
from metarl.zoo.experiments.jobs import Experiment
from metarl.zoo.experiments.testing import Missing, Trained, by_entry
from metarl.zoo.runs.curves import read_curve
from metarl.zoo.runs.evaluations import read_meta
from metarl.zoo.runs.outputs import write_record

PHASES = ("sampling", "inner", "outer")
"""The phases of a meta-iteration, as the log calls them."""
ROUNDS = 3
"""Meta-optimisation steps that are timed of each algorithm of a pair."""


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
class Results:
    """All that is known of an experiment's runs, from their folders or from a record.

    :param jobs: every planned run, in the order of the plan, tested or missing.
    :param learning: learning curves of comparisons, by environment.
    :param times: median seconds of each phase of a meta-iteration, by environment, algorithm and phase.
    :param step_seconds: what :func:`step_seconds` measured, by environment.
    """

    jobs: Sequence[Trained | Missing]
    learning: Mapping[str, Sequence[Learning]] = field(default_factory=dict)
    times: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    step_seconds: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)

    @property
    def runs(self) -> list[Trained]:
        """The runs that were tested."""
        return [item for item in self.jobs if isinstance(item, Trained)]

    @property
    def missing(self) -> list[Missing]:
        """The others."""
        return [item for item in self.jobs if isinstance(item, Missing)]


@dataclass(frozen=True)
class StepSeconds:
    """What :func:`step_seconds` keeps in a run's folder.

    :param subject: SHA-256 of the models.
    :param seconds: by algorithm, one number for each round.
    """

    subject: list[str]
    seconds: dict[str, list[float]]


def measure(experiment: Experiment, jobs: Sequence[Trained | Missing], n_threads: int | None) -> Results:
    """Return what the run folders show: beside the tests the learning curves and times of comparisons.

    :param jobs: what :func:`~metarl.zoo.experiments.testing.collect` returned.
    :param n_threads: to time with, None for all.
    """
    results = Results(jobs)
    own = {entry.env: runs for entry, runs in by_entry(results.runs) if not entry.grid}
    timed = {env: step_seconds(experiment, runs, n_threads) for env, runs in own.items()}
    return replace(
        results,
        learning={env: learning(runs) for env, runs in own.items()},
        times={env: times(runs) for env, runs in own.items()},
        step_seconds={env: seconds for env, seconds in timed.items() if seconds},
    )


def learning(runs: Sequence[Trained]) -> list[Learning]:
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
        units, strata = next(iter(own[0].reports.values())).units(values)
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
    """Return the seconds of the meta-optimisation steps of the experiment's ``timed`` pair.

    They take turns, on the same batches, and both start from the parameters of the first one's run. What was measured
    is kept in the folder of that run. Logged times do not compare: the machine may have had other work during one of
    the runs.

    :return: by algorithm, one number for each round; empty where one of the two has no finished run.
    """
    pair = experiment.timed
    folders = [(item.job.algo, item.run) for item in runs if item.run is not None]
    first_runs = {algo: next((run for name, run in folders if name == algo), None) for algo in pair}
    paths = [run.final for run in first_runs.values() if run is not None]
    if not paths or len(paths) < len(pair):
        return {}
    subject = [hashlib.sha256(read_bytes(path)).hexdigest() for path in paths]
    place = paths[0].parent / "evaluations" / f"{experiment.name}_step_seconds.json"
    try:
        kept = read_as(StepSeconds, parse_json(read_text(place), str(place)), str(place))
        if kept.subject == subject and kept.seconds.keys() == set(pair):
            return kept.seconds
    except CheckpointError:  # not measured yet, or not by us
        pass
    say(f"Timing the meta-optimisation steps of {' and '.join(pair)} on {runs[0].job.entry.env}")
    first = load_model(paths[0], n_threads)
    models = [first, *(load(path, n_threads=n_threads, seed=first.seed) for path in paths[1:])]
    seconds: dict[str, list[float]] = {algo: [] for algo in pair}
    params = first.params
    with single_threaded_torch():
        for _ in range(ROUNDS):
            for algo, model in zip(pair, models, strict=True):
                # Streams are addressed by seed and meta-iteration: both collect the same batches each time.
                model.n_iterations, model.params = first.n_iterations, params
                seconds[algo].append(model.train()["time/outer"])
    write_record(place, {"subject": subject, "seconds": seconds}, paths[0].parent)
    return seconds


# ------------------------------------------------------------------------------------------------------------- showing
def learning_figure(
    curves: Mapping[str, Sequence[Learning]], algos: Sequence[str], scores: Mapping[str, Score] | None = None
) -> Figure:
    """Draw the returns on validation tasks against env steps of training, one panel for each environment.

    :param algos: all algorithms of the experiment; an algorithm has its colour by its place there.
    :param scores: how the returns of an environment are called and shown; all are on one axis of one name, returns
        where they differ, but each panel says what training spends there.
    """
    spent = {env: (scores or {}).get(env, RETURN) for env in curves}
    score = common_score(replace(each, budget=RETURN.budget) for each in spent.values())
    told = [algo for algo in algos if algo in metarl.ALGORITHMS and algorithm(algo).is_told_the_task]
    figure = Figure(figsize=(5.0 * len(curves) + 1.5, 4.0), layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    lines: dict[str, Line2D] = {}
    for panel, (env, own) in zip(panels, curves.items(), strict=True):
        for curve in own:
            bands, colour = curve.bands.signed(score.sign), nth_colour(algos.index(curve.algo))
            x = curve.timesteps
            (lines[curve.algo],) = panel.plot(x, bands.mean, marker="o", markersize=3, color=colour)
            panel.fill_between(x, bands.low, bands.high, color=colour, alpha=0.15, linewidth=0)
        panel.set_title(env)
        panel.set_xlabel(f"{spent[env].budget}, support and query together")
        panel.xaxis.set_major_locator(MaxNLocator(nbins=6))
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        panel.grid(alpha=0.3)
    # Outside: curves may lie anywhere inside.
    figure.legend(list(lines.values()), list(lines), fontsize="small", loc="outside right center")
    before = f"\n({' and '.join(told)}: before it)" if told else ""
    panels[0].set_ylabel(f"{score.axis}\nvalidation tasks, after 1 step (95%){before}")
    return figure


def times_table(seconds: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Table:
    """Return the seconds that each phase of a meta-iteration took.

    :param seconds: by environment, algorithm and phase.
    """
    rows = [
        [f"{env}, {algo}", *(f"{own[phase]:.3f}" if phase in own else "" for phase in PHASES)]
        for env, algos in seconds.items()
        for algo, own in algos.items()
    ]
    notes = ("medians over the meta-iterations of all runs, with whatever else the machine did meanwhile",)
    return Table(["", *(f"{phase}, s" for phase in PHASES)], rows, "Time of a meta-iteration", notes)
