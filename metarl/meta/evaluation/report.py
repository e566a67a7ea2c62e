"""What an evaluation found: the return of every held-out task after 0 to k inner steps, and what follows from it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from metarl.envs.score import RETURN, Score, common_score
from metarl.errors import CheckpointError, ConfigError, shorten
from metarl.files.schema import LARGEST, LARGEST_SEED, Range, read_as
from metarl.files.untrusted import parse_json, read_text
from metarl.files.writing import readable_json, write_text_atomic
from metarl.meta.documents import Count
from metarl.meta.evaluation.points import POINTS, Point
from metarl.meta.evaluation.statistics import MIN_UNITS, Bands, Interval, bootstrap_bands, by_task
from metarl.meta.evaluation.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = "metarl-report"
VERSION = 1
LARGEST_RETURN = 1e100
"""The largest return that is read, of either sign: sums of squares of larger ones overflow."""
Number = Annotated[float, Range(-LARGEST_RETURN, LARGEST_RETURN)]
TASKS, FAMILIES = "tasks", "families of tasks"
ONE = {TASKS: "task", FAMILIES: "family of tasks"}
"""What entries are called, and one of them."""
STREAM_KEYS = ("evaluation_seed", "n_episodes", "n_transitions", "env_kwargs")
"""Entries of a report's ``meta`` that must be equal for two reports to be paired. Of the family's arguments, ``oracle``
may differ: it changes what is observed, not the task."""


@dataclass(frozen=True, eq=False)
class Report:
    """The returns of one algorithm on a fixed list of tasks, for one or several runs (training seeds).

    :param algo: the algorithm, for instance ``"fomaml"``.
    :param env: the family's id.
    :param split: ``"validation"``, ``"test"``, ``"shifted"`` or ``"train"``.
    :param returns: ``[run, task, step]``: mean undiscounted return of the task's episodes after 0, 1, … inner steps.
    :param env_steps: ``[step]``: env steps that a task's adaptation spent before it got there; 0 at step 0. A mean over
        tasks where episodes end early.
    :param tasks: their parameters, each ``[task, …]``.
    :param seeds: the training seed of each run.
    :param strata: ``[task]``, only where the split has fewer tasks than entries: which task each entry is. Entries are
        then independent adaptations.
    :param label: how tables and figures name it; the algorithm by default.
    :param learning_returns: ``[run, task, step]``, only of families whose policies are scored in another one: the
        return in the family that they learn in. Of imitation it is minus the loss.
    :param score: how tables and figures show the returns, which stay returns here and in files.
    :param learning_score: how they show ``learning_returns``.
    :param meta: what else is worth knowing: command, versions, commit, hyperparameters. Anything strict JSON holds. The
        entries named in :data:`STREAM_KEYS` say which random streams the episodes came from, ``family_tasks`` how many
        tasks a finite family has in all, ``point`` what returns are after so many of (``points.py``).
    :raises ConfigError: shapes that do not fit each other, NaN or infinity.
    """

    algo: str
    env: str
    split: str
    returns: np.ndarray
    env_steps: np.ndarray
    tasks: dict[str, np.ndarray]
    seeds: Sequence[int]
    strata: np.ndarray | None = None
    label: str = ""
    meta: dict[str, Any] = field(default_factory=dict)
    learning_returns: np.ndarray | None = None
    score: Score = RETURN
    learning_score: Score = RETURN

    def __post_init__(self) -> None:
        """Bring everything into one shape and dtype."""
        fix = object.__setattr__
        fix(self, "returns", np.asarray(self.returns, dtype=np.float64))
        fix(self, "env_steps", np.asarray(self.env_steps, dtype=np.float64))
        fix(self, "seeds", tuple(int(seed) for seed in self.seeds))
        fix(self, "label", self.label or self.algo)
        fix(self, "tasks", {name: _number_array(value) for name, value in self.tasks.items()})
        if self.returns.ndim != 3 or 0 in self.returns.shape:
            raise ConfigError(f"returns has shape {self.returns.shape}: use [run, task, step], none of them empty")
        n_run, n_task, n_step = self.returns.shape
        if self.env_steps.shape != (n_step,):
            raise ConfigError(f"env_steps has shape {self.env_steps.shape}: use one for each of the {n_step} points")
        arrays = {"returns": self.returns, "env_steps": self.env_steps}
        if self.learning_returns is not None:
            fix(self, "learning_returns", np.asarray(self.learning_returns, dtype=np.float64))
            arrays["learning_returns"] = self.learning_returns
            if self.learning_returns.shape != self.returns.shape:
                raise ConfigError(f"learning_returns has shape {self.learning_returns.shape}: use that of returns")
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise ConfigError(f"{name} of the report on {self.env} holds NaN or infinity")
        if len(self.seeds) != n_run:
            raise ConfigError(f"{len(self.seeds)} seeds for {n_run} runs")
        for name, value in self.tasks.items():
            if len(value) != n_task:
                raise ConfigError(f"task parameter {shorten(name)} has {len(value)} values for {n_task} tasks")
        if self.strata is not None:
            fix(self, "strata", np.asarray(self.strata, dtype=np.int64))
            if self.strata.shape != (n_task,):
                raise ConfigError(f"strata has shape {self.strata.shape}: use one for each of the {n_task} tasks")

    # ----------------------------------------------------------------------------------------------------- statistics
    @property
    def n_runs(self) -> int:
        """How many runs there are."""
        return len(self.returns)

    @property
    def n_tasks(self) -> int:
        """How many tasks there are; with :attr:`strata`, how many adaptations."""
        return int(self.returns.shape[1])

    @property
    def n_inner_steps(self) -> int:
        """The most inner steps."""
        return int(self.returns.shape[2]) - 1

    @property
    def n_distinct(self) -> int:
        """How many distinct tasks there are."""
        return self.n_tasks if self.strata is None else len(np.unique(self.strata))

    @property
    def is_sample(self) -> bool:
        """Whether the tasks, adapted to several times, stand for others of the family."""
        in_all = self.meta.get("family_tasks")  # a file may say anything
        return self.strata is not None and isinstance(in_all, int) and in_all > self.n_distinct

    @property
    def n_units(self) -> int:
        """How many units the intervals are over: tasks, or adaptations to all tasks there are."""
        return self.n_distinct if self.is_sample else self.n_tasks

    def units(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Return what intervals are over, ``[run, unit, step]``, and the strata of the units.

        :param values: ``[run, task, step]``, a number for each entry.
        """
        if self.is_sample:
            assert self.strata is not None
            return by_task(values, self.strata), None
        return values, self.strata

    def bands(self, level: float = 0.95, n_resamples: int = 10_000) -> Bands:
        """Return the mean return after 0, 1, … inner steps with its interval: by task, then by run."""
        return self._bands(self.returns, level, n_resamples)

    def gains(self, level: float = 0.95, n_resamples: int = 10_000) -> Bands:
        """Return what adaptation adds: the return after 0, 1, … inner steps minus the return before, with intervals."""
        return self._bands(self.returns - self.returns[..., :1], level, n_resamples)

    def _bands(self, values: np.ndarray, level: float, n_resamples: int) -> Bands:
        values, strata = self.units(values)
        return bootstrap_bands(values, level, n_resamples, strata=strata)

    def interval(self, step: int, level: float = 0.95) -> Interval:
        """Return the mean return after ``step`` inner steps with its interval."""
        return self.bands(level).at(_checked(step, self.n_inner_steps))

    def gain(self, step: int, level: float = 0.95) -> Interval:
        """Return what ``step`` inner steps add, with its interval."""
        return self.gains(level).at(_checked(step, self.n_inner_steps))

    # --------------------------------------------------------------------------------------------------------- output
    def __str__(self) -> str:
        """Return the table as text."""
        return str(self.table())

    def table(self, level: float = 0.95) -> Table:
        """Return the table of returns, as the score shows them, and of gains."""
        score = self.score
        bands, gains = self.bands(level).signed(score.sign), self.gains(level)
        rows = [
            [str(step), f"{self.env_steps[step]:,.0f}", str(bands.at(step)), str(gains.at(step)) if step else ""]
            for step in range(self.n_inner_steps + 1)
        ]
        columns: tuple[str, ...] = (POINTS[self.point], score.budget, score.name, score.gain)
        if self.learning_returns is not None:
            columns = (*columns, f"{self.learning_score.name} where it learns")
            learning = self._bands(self.learning_returns, level, n_resamples=10_000).signed(self.learning_score.sign)
            rows = [[*row, str(learning.at(step))] for step, row in enumerate(rows)]
        return Table(
            columns,
            rows,
            f"{self.label} on {self.env}, {self.split} {self.entries}",
            (self.describe_intervals(level), *score.notes),
        )

    def describe_intervals(self, level: float = 0.95) -> str:
        """Return what the intervals are, for the note of a table."""
        if self.n_tasks == self.n_runs == 1:
            return "one task, one run: no intervals"
        few = f"; too narrow with fewer than {MIN_UNITS}" if self.n_units < MIN_UNITS else ""
        return f"{level:.0%} intervals {self.unit}{few}"

    @property
    def entries(self) -> str:
        """What its entries are called: of an evaluation on few tasks each is a family of tasks."""
        return FAMILIES if "few_tasks" in self.meta else TASKS

    @property
    def point(self) -> str:
        """One of what the returns are after 0, 1, … of: a step, an episode of a memory, a support or a task met."""
        return str(self.meta.get("point", "step"))

    @property
    def over(self) -> str:
        """The tasks and adaptations that the intervals are over, in words."""
        if self.strata is None:
            return f"over {self.n_tasks} {self.entries if self.n_tasks != 1 else ONE[self.entries]}"
        some = f" of {self.meta['family_tasks']}" if self.is_sample else ""
        return f"over {self.n_tasks} adaptations to {self.n_distinct}{some} tasks"

    @property
    def unit(self) -> str:
        """What the intervals are over, in words."""
        return f"{self.over} and {self.n_runs} runs" if self.n_runs > 1 else f"{self.over}, one run"

    def figure(self, task_parameter: str | None = None, level: float = 0.95) -> Figure:
        """Draw the return, as the score shows it, against inner steps and against env steps; where a scalar task
        parameter is named, a third panel shows every task against it.
        """
        from metarl.meta.evaluation.figures import adaptation_figure

        return adaptation_figure([self], task_parameter=task_parameter, level=level)

    # ----------------------------------------------------------------------------------------------------------- JSON
    def to_json(self) -> str:
        """Return strict JSON: no NaN, numbers that :meth:`from_json` reads back exactly."""
        document = _document_of(self)
        try:
            return readable_json(document)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"the report on {self.env} is not JSON: {error}") from None

    @classmethod
    def from_json(cls, text: str, source: str = "the text") -> Report:
        """Read what :meth:`to_json` wrote.

        :param source: where ``text`` is from, for the error message.
        :raises CheckpointError: it is damaged, foreign or of another version.
        """
        return cls.from_document(parse_json(text, f"{source} is truncated or damaged: it"), source)

    @classmethod
    def from_document(cls, document: Any, source: str) -> Report:
        """Read what :meth:`to_json` wrote, once it was parsed; parameters and errors as in :meth:`from_json`."""
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise CheckpointError(f"{source} is not a metarl report")
        if document.get("version") != VERSION:
            raise CheckpointError(
                f"{source} has report format {shorten(document.get('version'))}: this metarl reads {VERSION}"
            )
        found = read_as(_Document, document, source)
        read_as(_Meta, found.meta, f"meta of {source}")
        try:
            return cls(**{part.name: getattr(found, part.name) for part in fields(cls)})
        except (ConfigError, TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(f"{source} is damaged: {shorten(error, quote=False, limit=200)}") from None

    def save(self, path: str | Path) -> None:
        """Write JSON in one step: the file is whole or as it was before."""
        write_text_atomic(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """Read what :meth:`save` wrote.

        :raises CheckpointError: no such file, or one that is no report.
        """
        return cls.from_json(read_text(path), str(path))

    # ---------------------------------------------------------------------------------------------------------- merge
    @staticmethod
    def merge(reports: Sequence[Report], label: str | None = None) -> Report:
        """Join reports of several training seeds on the same tasks and streams: the first one's ``meta`` is kept, with
        the others' under ``"merged"``.

        :raises ConfigError: none given, a seed given twice, or reports of different algorithms, tasks or streams.
        """
        return _merged(reports, label)


@dataclass(frozen=True)
class _Document:
    """The JSON of a report: the fields of :class:`Report`, and what can be computed from them."""

    format: str
    version: int
    algo: str
    env: str
    split: str
    label: str
    seeds: list[Annotated[int, Range(0, LARGEST_SEED)]]
    env_steps: list[Number]
    returns: list[list[list[Number]]]
    tasks: dict[str, list[Any]]
    strata: list[Annotated[int, Range(0, LARGEST)]] | None
    meta: dict[str, Any]
    learning_returns: list[list[list[Number]]] | None = None
    score: Score = RETURN
    learning_score: Score = RETURN
    rest: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Meta:
    """Those entries of a report's ``meta`` that are read again; of several runs together there is a list of them."""

    num_timesteps: Count | list[Count] | None = None
    training_seconds: float | None = None
    inner_lr: float | list[float] | None = None
    env_kwargs: dict[str, Any] | None = None
    family_tasks: Count | None = None
    point: Point = "step"
    cell: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    commit: str | None = None
    rest: dict[str, Any] = field(default_factory=dict)


def _document_of(report: Report) -> dict[str, Any]:
    """Return the JSON of a report, with what can be computed from it."""
    bands, gains = report.bands(), report.gains()
    learning = {}
    if report.learning_returns is not None:
        learning = {
            "learning_returns": report.learning_returns.tolist(),
            "learning_score": asdict(report.learning_score),
        }
    return {
        "format": FORMAT,
        "version": VERSION,
        "algo": report.algo,
        "env": report.env,
        "split": report.split,
        "label": report.label,
        "seeds": list(report.seeds),
        "env_steps": report.env_steps.tolist(),
        "returns": report.returns.tolist(),
        "tasks": {name: value.tolist() for name, value in report.tasks.items()},
        "strata": None if report.strata is None else report.strata.tolist(),
        "score": asdict(report.score),
        **learning,
        "summary": {
            "return": [list(bands.at(step)) for step in range(report.n_inner_steps + 1)],
            "gain": [list(gains.at(step)) for step in range(report.n_inner_steps + 1)],
            "level": 0.95,
            "distinct_tasks": report.n_distinct,
        },
        "meta": report.meta,
    }


def _checked(step: int, most: int) -> int:
    if not 0 <= step <= most:
        raise ConfigError(f"step={shorten(step)} is outside 0 to {most}, the inner steps of this report")
    return step


def _number_array(value: Any) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise ConfigError(f"a task parameter holds {array.dtype}, not numbers")
    return array.astype(np.float64 if array.dtype.kind == "f" else np.int64)


def _merged(reports: Sequence[Report], label: str | None) -> Report:
    if not reports:
        raise ConfigError("no reports to merge")
    first = reports[0]
    seeds = [seed for report in reports for seed in report.seeds]
    if len(set(seeds)) < len(seeds):
        raise ConfigError(
            f"a training seed is given twice: {shorten(seeds)}: only runs of different seeds can be merged"
        )
    for other in reports[1:]:
        if other.algo != first.algo or other.n_inner_steps != first.n_inner_steps:
            raise ConfigError(
                f"cannot merge {first.algo} with {first.n_inner_steps} inner steps and {other.algo} with "
                f"{other.n_inner_steps}"
            )
        require_same_tasks(first, other)
    weights = [report.n_runs for report in reports]
    learning = [report.learning_returns for report in reports if report.learning_returns is not None]
    return Report(
        algo=first.algo,
        env=first.env,
        split=first.split,
        returns=np.concatenate([report.returns for report in reports]),
        env_steps=np.average([report.env_steps for report in reports], axis=0, weights=weights),
        tasks=first.tasks,
        seeds=tuple(seeds),
        strata=first.strata,
        label=label or first.label,
        meta={**first.meta, "merged": [report.meta for report in reports[1:]]},
        learning_returns=np.concatenate(learning) if len(learning) == len(reports) else None,
        score=common_score(report.score for report in reports),
        learning_score=common_score(report.learning_score for report in reports),
    )


def common_point(reports: Iterable[Report]) -> str:
    """Return what several reports count together: ``"step"`` where they do not count the same."""
    found = {report.point for report in reports}
    return found.pop() if len(found) == 1 else "step"


def same_tasks(a: Report, b: Report) -> bool:
    """Return whether two reports are on the same tasks and streams."""
    try:
        require_same_tasks(a, b)
    except ConfigError:
        return False
    return True


def require_same_tasks(a: Report, b: Report) -> None:
    """Check that two reports are on the same tasks and streams.

    :raises ConfigError: they differ; the message says in what.
    """
    pair = f"{a.label} and {b.label} cannot be paired"
    found_a, found_b = _address(a), _address(b)
    for name, value in found_a.items():
        if value != found_b[name]:
            raise ConfigError(f"{pair}: {name} is {shorten(value)} and {shorten(found_b[name])}")
    if a.n_tasks != b.n_tasks or a.tasks.keys() != b.tasks.keys():
        raise ConfigError(f"{pair}: {a.n_tasks} tasks {list(a.tasks)}, {b.n_tasks} {list(b.tasks)}")
    for name, value in a.tasks.items():
        if not np.array_equal(value, b.tasks[name]):
            raise ConfigError(f"{pair}: the tasks differ in {name}")


def _address(report: Report) -> dict[str, Any]:
    """Return what two reports must share before their tasks are looked at."""
    streams = {name: report.meta.get(name) for name in STREAM_KEYS}
    if isinstance(streams["env_kwargs"], dict):
        env_kwargs = dict(streams["env_kwargs"])
        env_kwargs.pop("oracle", None)
        streams["env_kwargs"] = env_kwargs
    return {"env": report.env, "split": report.split, **streams}
