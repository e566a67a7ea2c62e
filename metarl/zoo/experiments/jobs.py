"""What an experiment runs: a list of jobs, and what there is of each.

A job is one ordinary training run. Its run folder is known again by its algorithm, environment, seed and
hyperparameters, whoever trained it and whatever its number is.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import metarl
from metarl.envs.family import score_of
from metarl.envs.registry import make_family
from metarl.envs.score import Score
from metarl.errors import ConfigError, MetaRLError, shorten, unknown_name
from metarl.files.schema import LARGEST, LARGEST_SEED, Range, convert, read_as
from metarl.files.untrusted import MAX_YAML, dump_yaml, read_text
from metarl.meta.adaptation.learners import merge_arguments
from metarl.meta.adaptation.tuning import Tuning
from metarl.zoo import experiments
from metarl.zoo.algorithms import algorithm
from metarl.zoo.config import HYPERPARAMS, check_hyperparameters, load_hyperparameters, load_yaml
from metarl.zoo.runs.folder import Run, open_run, run_number

PARTS = ("comparison", "ablation")
"""Entries of an experiment without a grid, and with one."""
CHECKPOINTS = ("last", "best")
"""A run's final model, adapted at the rates of the experiment's ``evaluation``; and what validation tasks choose: of
that model and the one that was best on them in training, each at the rates best for it, the better one."""
ABLATION = "ablation"
"""The folder of an ablation's runs, below the folder of all runs."""

Key = tuple[str, str, int, str]
"""What tells a job from every other one of its experiment: environment, algorithm, seed, and the cell as JSON."""

_Count = Annotated[int, Range(1, LARGEST)]
SPLIT, N_TASKS = "split", "n_tasks"
"""What a condition may name beside arguments of the family: see :class:`Entry`."""


@dataclass(frozen=True)
class _Scale:
    n_evaluations: _Count
    evaluation: dict[str, Any]
    rates: dict[str, Any]
    entries: list[dict[str, Any]]


@dataclass(frozen=True)
class _Document:
    """What ``<name>.yml`` holds."""

    algos: list[str]
    scales: dict[str, _Scale]
    timed: list[str] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Look for a pair, and for names that are no algorithm of the experiment."""
        if len(self.timed) not in (0, 2) or not {*self.timed} <= {*self.algos}:
            raise ConfigError(f"timed={shorten(self.timed)} is not a pair of the experiment's algorithms")


@dataclass(frozen=True)
class _Evaluation:
    n_tasks: _Count
    n_inner_steps: Annotated[int, Range(0, LARGEST)]
    rest: dict[str, Any]


@dataclass(frozen=True)
class _Rates:
    first: list[float]
    later: list[float]
    n_tasks: _Count


@dataclass(frozen=True, eq=False)
class Entry:
    """Runs of several algorithms on one environment, equally long.

    :param env: the environment.
    :param algos: the algorithms.
    :param n_timesteps: env steps of a run, of supervised families examples, support and query together.
    :param seeds: training seeds.
    :param episodes: for each inner step and task of an evaluation on test tasks.
    :param evaluation: arguments of ``evaluate`` on test tasks: the experiment's, with the entry's own on top.
    :param rates: what :func:`~metarl.zoo.experiments.testing.choose_rates` chooses test rates from, made the same way.
    :param hyperparams: what overrules the algorithms' YAML; dotted keys reach into mappings.
    :param grid: hyperparameters of which every combination is run; an entry without any is no ablation.
    :param conditions: what else the end of training is tested under, by a name: arguments of the family on top of those
        of training, such as noise on what is seen of a task; and, as ``split``, other tasks than those for testing, as
        ``n_tasks`` another number of them.
    :param tunings: how the end of training is fine-tuned too, at the rates that validation tasks choose: by algorithm
        and a name, fields of :class:`~metarl.meta.adaptation.tuning.Tuning`.
    """

    env: str
    algos: Sequence[str]
    n_timesteps: _Count
    seeds: Sequence[Annotated[int, Range(0, LARGEST_SEED)]]
    episodes: _Count
    evaluation: Mapping[str, Any]
    rates: Mapping[str, Any]
    hyperparams: Mapping[str, Any] = field(default_factory=dict)
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    conditions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tunings: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Look for conditions and tunings with the name of something else, and for tunings that there are not."""
        if taken := [name for name in self.conditions if name in CHECKPOINTS]:
            raise ConfigError(f"conditions {shorten(taken)}: these are names of checkpoints")
        for algo, ways in self.tunings.items():
            if algo not in self.algos:
                raise unknown_name("algorithm of tunings", algo, self.algos)
            if taken := [name for name in ways if name in (*CHECKPOINTS, *self.conditions)]:
                raise ConfigError(f"tunings {shorten(taken)}: these are names of checkpoints or conditions")
            for way in ways.values():
                Tuning.of(way)

    @property
    def part(self) -> str:
        """Which of :data:`PARTS` it belongs to."""
        return "ablation" if self.grid else "comparison"

    def cells(self) -> list[dict[str, Any]]:
        """Return the combinations of the grid, one empty one if there is none."""
        return [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]


@dataclass(frozen=True)
class Experiment:
    """An experiment at one scale; ``first-order-rl.yml`` is an example.

    :param name: of the experiment.
    :param scale: how large.
    :param algos: its algorithms; figures give each the colour of its place here.
    :param entries: its runs, in the order in which they are started.
    :param n_inner_steps: inner steps of evaluations on test tasks.
    :param n_evaluations: evaluations on validation tasks in a run.
    :param timed: two algorithms whose meta-optimisation steps are timed against each other; none where it is empty.
    :param settings: what the experiment's report reads beside the results.
    """

    name: str
    scale: str
    algos: Sequence[str]
    entries: Sequence[Entry]
    n_inner_steps: int
    n_evaluations: int
    timed: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Job:
    """One run of an experiment.

    :param entry: what it belongs to.
    :param algo: the algorithm.
    :param seed: the training seed.
    :param cell: the values of the entry's grid.
    """

    entry: Entry
    algo: str
    seed: int
    cell: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return a few words."""
        cell = "".join(f", {name} {value}" for name, value in self.cell.items())
        return f"{self.algo} on {self.entry.env}, seed {self.seed}{cell}"

    @property
    def key(self) -> Key:
        """What tells it from every other job of its experiment."""
        return self.entry.env, self.algo, self.seed, json.dumps(dict(self.cell), sort_keys=True)

    @property
    def tunings(self) -> Mapping[str, Mapping[str, Any]]:
        """How its run is fine-tuned, by name."""
        return self.entry.tunings.get(self.algo, {})

    @property
    def hyperparams(self) -> dict[str, Any]:
        """What overrules the YAML."""
        return {**self.entry.hyperparams, **self.cell}

    def log_folder(self, folder: Path) -> Path:
        """Return the log folder of its run; an ablation's are apart, where nobody takes them for the comparison's."""
        return folder / ABLATION if self.cell else folder

    def unavailable(self) -> str:
        """Return why it cannot be run by this version, empty if it can."""
        if self.algo not in metarl.ALGORITHMS:
            return "not part of this version"
        if not (HYPERPARAMS / f"{self.algo}.yml").is_file():
            return f"no hyperparameters yet (hyperparams/{self.algo}.yml)"
        return ""

    def config(self) -> dict[str, Any]:
        """Return the hyperparameters that its run has, ``n_timesteps`` included.

        :raises MetaRLError: the YAML and the algorithm do not fit each other.
        """
        config = merge_arguments(load_hyperparameters(self.algo, self.entry.env), self.hyperparams)
        return check_hyperparameters({**config, "n_timesteps": self.entry.n_timesteps}, algorithm(self.algo))

    def score(self) -> Score:
        """Return how its environment counts what training spends, and what it calls returns.

        :raises MetaRLError: there is no such environment, or not with these arguments.
        """
        with closing(make_family(self.entry.env, **self.config().get("env_kwargs", {}))) as family:
            return score_of(family)

    def command(self, folder: Path, experiment: Experiment) -> list[str]:
        """Return the words that start its run."""
        words = ["train", "--algo", self.algo, "--env", self.entry.env, "--seed", str(self.seed)]
        words += ["-n", str(self.entry.n_timesteps), "-f", str(self.log_folder(folder))]
        words += ["--eval-freq", str(max(1, self.entry.n_timesteps // experiment.n_evaluations))]
        words += ["--n-eval-tasks", str(self.entry.evaluation["n_tasks"])]
        pairs = [f"{name}:{json.dumps(value)}" for name, value in self.hyperparams.items()]
        return words + (["-params", *pairs] if pairs else [])


class State(Enum):
    """How far the run of a job is."""

    MISSING = "not started"
    UNFINISHED = "not finished"
    FINISHED = "finished"


@dataclass(frozen=True)
class Found:
    """What there is of a job.

    :param run: its run, None where it was not started.
    :param others: runs of the same algorithm, environment and seed that have other hyperparameters, and which.
    """

    run: Run | None
    others: Mapping[str, str] = field(default_factory=dict)

    @property
    def state(self) -> State:
        """How far the run is."""
        if self.run is None:
            return State.MISSING
        return State.FINISHED if self.run.final.is_file() else State.UNFINISHED


def scales(name: str) -> list[str]:
    """Return the scales of an experiment, from small to large."""
    return list(_read(name).scales)


def load_experiment(name: str, scale: str) -> Experiment:
    """Read an experiment.

    :raises UnknownNameError: no such experiment or scale.
    :raises ConfigError: its file is damaged.
    """
    document = _read(name)
    if scale not in document.scales:
        raise unknown_name("scale", scale, document.scales)
    found = document.scales[scale]
    source = f"{_path(name)}, {scale},"
    entries = []
    for item in found.entries:
        own = {key: convert(key, item.get(key, {}), dict[str, Any]) for key in ("evaluation", "rates")}
        whole = {key: {**getattr(found, key), **own[key]} for key in own}
        read_as(_Evaluation, whole["evaluation"], source, ConfigError)
        read_as(_Rates, whole["rates"], source, ConfigError)
        entries.append(read_as(Entry, {"algos": document.algos, **item, **whole}, source, ConfigError))
    n_inner_steps = read_as(_Evaluation, found.evaluation, source, ConfigError).n_inner_steps
    return Experiment(
        name, scale, document.algos, entries, n_inner_steps, found.n_evaluations, document.timed, document.report
    )


def _read(name: str) -> _Document:
    if name not in experiments.names():
        raise unknown_name("experiment", name, experiments.names())
    path = _path(name)
    return read_as(_Document, load_yaml(read_text(path, MAX_YAML, ConfigError), str(path)), str(path), ConfigError)


def _path(name: str) -> Path:
    return experiments.EXPERIMENTS / f"{name}.yml"


def jobs(
    experiment: Experiment,
    envs: Sequence[str] = (),
    algos: Sequence[str] = (),
    seeds: Sequence[int] = (),
    parts: Sequence[str] = (),
) -> list[Job]:
    """Return the runs of an experiment, in the order in which they are started: all algorithms of a seed together.

    :param envs: only these; all by default.
    :param algos: only these.
    :param seeds: these instead of the experiment's.
    :param parts: only these of :data:`PARTS`.
    :raises UnknownNameError: a name that the experiment does not hold.
    :raises ConfigError: a negative seed, or nothing is left.
    """
    entries = experiment.entries
    for kind, wanted, known in (
        ("environment", envs, {entry.env for entry in entries}),
        ("algorithm", algos, {algo for entry in entries for algo in entry.algos}),
        ("part", parts, set(PARTS)),
    ):
        for name in wanted:
            if name not in known:
                raise unknown_name(f"{kind} of {experiment.name}", name, known)
    for seed in seeds:
        if seed < 0:
            raise ConfigError(f"--seeds {seed}: a seed is 0 or more")
    found = [
        Job(entry, algo, seed, cell)
        for entry in entries
        if entry.env in (envs or [entry.env]) and entry.part in (parts or PARTS)
        for seed in dict.fromkeys(seeds or entry.seeds)
        for cell in entry.cells()
        for algo in entry.algos
        if algo in (algos or [algo])
    ]
    if not found:
        raise ConfigError(f"{experiment.name} at scale {experiment.scale} has no such runs")
    return found


def find(job: Job, folder: Path) -> Found:
    """Return what there is of a job in a log folder.

    :raises MetaRLError: its hyperparameters do not fit the algorithm.
    """
    wanted = plain(job.config())
    best: Run | None = None
    others: dict[str, str] = {}
    places = sorted(
        (path for path in (job.log_folder(folder) / job.algo).glob(f"{job.entry.env}_*") if path.is_dir()),
        key=lambda path: (run_number(path.name, job.entry.env) or 0, path.name),
    )
    for path in places:
        try:
            run = open_run(path)
            config, args = run.config(), run.args()
        except MetaRLError:  # killed before its records were whole: there is nothing to go on from
            continue
        if (run.algo, run.env_id, args.get("seed")) != (job.algo, job.entry.env, job.seed):
            continue
        if config != wanted or args.get("eval_env_kwargs") or args.get("started_from") is not None:
            others[str(path)] = _difference(config, wanted)
        elif run.final.is_file() or (best is None and run.checkpoint.is_file()):
            best = run
            if run.final.is_file():
                break
    return Found(best, others)


def plain(config: Mapping[str, Any]) -> Any:
    """Return what settings are once they were written and read."""
    return load_yaml(dump_yaml(dict(config)), "hyperparameters")


def _difference(config: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Return the hyperparameters that differ, in words."""
    keys = [key for key in {**config, **wanted} if config.get(key) != wanted.get(key)]
    return ", ".join(f"{key} {config.get(key)}, here {wanted.get(key)}" for key in keys) or "another start"
