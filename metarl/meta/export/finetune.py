"""Learning single tasks with plain Stable-Baselines3, from an export or from scratch: does the initialisation pay?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from metarl.agents.generators import sb3_generators
from metarl.agents.parallel import library_torch
from metarl.checks import COUNT, COUNT_OR_ZERO, NONE, SEED, plain_tree
from metarl.envs.family import Family, score_of
from metarl.envs.score import RETURN, Score, fixed
from metarl.envs.tasks import Tasks, n_tasks, take_tasks
from metarl.envs.views.vec_env import FamilyVecEnv
from metarl.errors import ConfigError
from metarl.meta.adaptation.tuning import Tuning
from metarl.meta.evaluation.statistics import (
    Bands,
    Interval,
    bootstrap_bands,
    bootstrap_interval,
    by_task,
    paired_bands,
    paired_interval,
)
from metarl.meta.evaluation.tables import Table
from metarl.meta.evaluation.tasks import evaluation_tasks
from metarl.meta.export.sb3 import export_sb3
from metarl.meta.export.settings import KINDS, OWN, require_learnable, usual_kind, usual_optimizers
from metarl.meta.export.start import reach_of, start_at
from metarl.meta.export.tuned import tuned
from metarl.meta.model import Model
from metarl.meta.progress import Progress
from metarl.streams import seed_sequence

if TYPE_CHECKING:
    from matplotlib.figure import Figure


MakeModel = Callable[[VecEnv, int], BaseAlgorithm]
"""Builds a stock model on an environment from a seed: :meth:`Exported.on` and :meth:`Exported.scratch` are such."""

TABLE_ROWS = 12
"""Points of a table, at most."""


@dataclass(frozen=True, eq=False)
class LearningCurves:
    """How fast single tasks were learnt.

    :param label: the method.
    :param env_steps: ``[point]``: env steps that learning had taken when the episodes of a point began.
    :param returns: ``[task, point]``: mean undiscounted return of the episodes of one rollout, drawn from the policy.
    :param tasks: their parameters, each ``[task, …]``.
    :param seed: of the streams; curves with equal seeds and tasks are paired.
    :param strata: ``[task]``, only where the split has fewer tasks than entries: which task each entry is. Entries are
        then independent runs.
    :param is_sample: whether these tasks stand for others of the family: then they are the unit of an interval, and
        else the independent run.
    :param score: how tables and figures show the returns, which stay returns here and in files.
    """

    label: str
    env_steps: np.ndarray
    returns: np.ndarray
    tasks: Tasks
    seed: int
    strata: np.ndarray | None = None
    is_sample: bool = False
    score: Score = RETURN

    def units(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Return what intervals are over, ``[1, unit, …]``, and the strata of the units.

        :param values: ``[task, …]``, numbers for each entry.
        """
        if self.is_sample and self.strata is not None:
            return by_task(values[None], self.strata), None
        return values[None], self.strata

    def bands(self, level: float = 0.95) -> Bands:
        """Return the mean curve with its intervals by task."""
        returns, strata = self.units(self.returns)
        return bootstrap_bands(returns, level, strata=strata)

    def to_dict(self) -> dict[str, Any]:
        """Return values for JSON."""
        return {
            "label": self.label,
            "env_steps": self.env_steps.tolist(),
            "returns": self.returns.tolist(),
            "tasks": {name: value.tolist() for name, value in self.tasks.items()},
            "strata": None if self.strata is None else self.strata.tolist(),
            "seed": self.seed,
            "score": asdict(self.score),
        }


def finetune_sb3(
    make_model: MakeModel,
    family: Family,
    tasks: Tasks,
    total_timesteps: int,
    n_envs: int = 20,
    seed: int = 0,
    label: str = "",
    progress: Progress | None = None,
    n_rollouts: int = 1,
) -> LearningCurves:
    """Learn every task on its own with plain SB3.

    A point is one rollout, or ``n_rollouts`` of them: the returns of the episodes that ended in it, so the first point
    of one rollout is the policy before any update. SB3's global generators are seeded for each task and put back
    afterwards.

    :param make_model: builds the model for a task.
    :param family: the family.
    :param tasks: which tasks.
    :param total_timesteps: env steps for each task, rounded up to whole rollouts.
    :param n_envs: copies of the task that step together.
    :param seed: task ``i`` has the same streams whatever the model.
    :param label: names the curves.
    :param progress: called with (tasks done, tasks in all).
    :param n_rollouts: of a point; at the end, what is no whole point is left out.
    :raises ConfigError: no episode ends in a point.
    """
    rows: list[list[float]] = []
    env_steps: list[int] = []
    count = n_tasks(tasks)
    for task in range(count):
        task_seed = int(seed_sequence(seed, "finetune", task).generate_state(1)[0])
        env = FamilyVecEnv(family, take_tasks(tasks, slice(task, task + 1)), n_envs=n_envs, seed=task_seed)
        callback = _EpisodeReturns(n_rollouts)
        with sb3_generators(), library_torch():
            model = make_model(env, task_seed)
            model.set_random_seed(task_seed)
            model.learn(total_timesteps, callback=callback)
        rows.append(callback.returns)
        env_steps = callback.env_steps[: len(callback.returns)]
        if progress is not None:
            progress(task + 1, count)
    return LearningCurves(label, np.array(env_steps), np.array(rows), tasks, seed, score=score_of(family))


class _EpisodeReturns(BaseCallback):
    """Records the mean return of the episodes that end in each point.

    :param n_rollouts: of a point.
    """

    def __init__(self, n_rollouts: int) -> None:
        super().__init__()
        self.returns: list[float] = []
        self.env_steps: list[int] = []
        self._ended: list[float] = []
        self._n_rollouts, self._n_done = n_rollouts, 0

    def _on_rollout_start(self) -> None:
        if self._n_done % self._n_rollouts == 0:
            self.env_steps.append(self.model.num_timesteps)
            self._ended = []

    def _on_step(self) -> bool:
        if self.locals["dones"].any():
            self._ended += [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
        return True

    def _on_rollout_end(self) -> None:
        self._n_done += 1
        if self._n_done % self._n_rollouts:
            return
        if not self._ended:
            n_steps = self._n_rollouts * getattr(self.model, "n_steps", 1)
            raise ConfigError(f"no episode ends in {n_steps} env steps of a copy: take more, for inner steps too")
        self.returns.append(float(np.mean(self._ended)))


# ---------------------------------------------------------------------------------------------------------- comparisons
@dataclass(frozen=True, eq=False)
class StepsSaved:
    """Env steps that one method saves over another.

    :param by_task: ``[task]``: env steps that ``b`` takes to its own final return, minus those that ``a`` takes to it.
    :param interval: their mean, with its interval by task.
    :param not_reached: tasks where ``a`` never gets there; it is then counted with the whole budget, which flatters it.
    :param budget: env steps that each task was learnt for.
    """

    by_task: np.ndarray
    interval: Interval
    not_reached: int
    budget: int


def steps_saved(a: LearningCurves, b: LearningCurves, level: float = 0.95, tail: float = 0.1) -> StepsSaved:
    """Return how many env steps ``a`` needs less than ``b`` to get where ``b`` gets.

    For each task the target is the mean return of ``b`` over the last ``tail`` of its points; both methods are timed
    to the first point at which they reach it.

    :raises ConfigError: curves on different tasks, seeds or env steps.
    """
    _require_paired(a, b)
    points = len(a.env_steps)
    budget = int(a.env_steps[-1])
    target = b.returns[:, -max(1, round(tail * points)) :].mean(1, keepdims=True)
    first = [_first(curves.returns >= target, curves.env_steps, budget) for curves in (a, b)]
    saved = first[1] - first[0]
    never = int((~(a.returns >= target).any(1)).sum())
    units, strata = a.units(saved)
    return StepsSaved(saved, bootstrap_interval(units, level, strata=strata), never, budget)


def _first(reached: np.ndarray, env_steps: np.ndarray, budget: int) -> np.ndarray:
    """Return the env steps at the first True of each row, the budget where there is none."""
    steps: np.ndarray = np.where(reached.any(1), env_steps[reached.argmax(1)], budget)
    return steps


@dataclass(frozen=True, eq=False)
class CurveComparison:
    """Paired differences between two methods' curves, at equal env steps.

    :param a: the first method's curves.
    :param b: the second's.
    :param points: difference of the returns at each point.
    :param mean: difference of the returns averaged over all points: the area between the curves.
    :param saved: env steps that ``a`` saves.
    :param level: of the intervals.
    """

    a: LearningCurves
    b: LearningCurves
    points: Bands
    mean: Interval
    saved: StepsSaved
    level: float

    def table(self, n_rows: int = TABLE_ROWS) -> Table:
        """Return a table with some of the points, the last one included."""
        table = learning_table([self.a, self.b], self.level, n_rows)
        differences = [*map(str, map(self.points.at, _marks(self.points.n_points, n_rows))), str(self.mean)]
        saved, score = self.saved, self.a.score
        return Table(
            (*table.columns, "lower by" if score.lower_is_better else "difference"),
            [[*row, difference] for row, difference in zip(table.rows, differences, strict=True)],
            f"{self.a.label} against {self.b.label}, {len(self.a.returns)} tasks",
            (
                f"paired {self.level:.0%} intervals by task, one seed a task; a point is the rollout that starts there",
                *_left_out(self.points.n_points, n_rows),
                f"{score.budget} saved on the way to the final {score.name} of {self.b.label}: {saved.interval} of "
                f"{saved.budget:,} (below 0: it took more; {saved.not_reached} of "
                f"{len(self.a.returns)} tasks never got there)",
                *score.notes,
            ),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return values for JSON: what :meth:`table` says without rounding; the points are in the curves."""
        saved = self.saved
        return {
            "a": self.a.label,
            "b": self.b.label,
            "level": self.level,
            "points": [list(self.points.at(i)) for i in range(self.points.n_points)],
            "mean": list(self.mean),
            "steps_saved": {
                "interval": list(saved.interval),
                "by_task": saved.by_task.tolist(),
                "not_reached": saved.not_reached,
                "budget": saved.budget,
            },
        }


def compare_curves(a: LearningCurves, b: LearningCurves, level: float = 0.95) -> CurveComparison:
    """Compare two methods task by task at equal env steps.

    :raises ConfigError: curves on different tasks, seeds or env steps.
    """
    _require_paired(a, b)
    (ours, strata), (theirs, _) = a.units(a.returns), b.units(b.returns)
    return CurveComparison(
        a,
        b,
        paired_bands(ours, theirs, level, strata=strata),
        paired_interval(ours.mean(2), theirs.mean(2), level, strata=strata),
        steps_saved(a, b, level),
        level,
    )


def _require_paired(a: LearningCurves, b: LearningCurves) -> None:
    same_tasks = a.tasks.keys() == b.tasks.keys() and all(np.array_equal(a.tasks[k], b.tasks[k]) for k in a.tasks)
    if not same_tasks or a.seed != b.seed:
        raise ConfigError(f"{a.label} and {b.label} cannot be paired: their tasks or seeds differ")
    if not np.array_equal(a.env_steps, b.env_steps):
        raise ConfigError(f"{a.label} and {b.label} cannot be paired: their points are at different env steps")


def learning_table(curves: Sequence[LearningCurves], level: float = 0.95, n_rows: int = TABLE_ROWS) -> Table:
    """Return a table with a column for each method and a row for some of the points, the last one included.

    :param curves: on the same tasks, with points at the same env steps.
    """
    score = curves[0].score
    bands = [curve.bands(level).signed(score.sign) for curve in curves]
    rows = [
        [f"{curves[0].env_steps[i]:,}", *(str(band.at(i)) for band in bands)] for i in _marks(bands[0].n_points, n_rows)
    ]
    rows.append(["mean of all", *(fixed(score.sign * curve.returns.mean()) for curve in curves)])
    return Table(
        (score.budget, *(curve.label for curve in curves)),
        rows,
        f"{score.name[:1].upper()}{score.name[1:]} while a task is learnt, {len(curves[0].returns)} tasks",
        (
            f"{level:.0%} intervals by task, one seed a task; a point is the rollout that starts there",
            *_left_out(bands[0].n_points, n_rows),
            *score.notes,
        ),
    )


def _marks(n_points: int, n_rows: int) -> list[int]:
    """Return at most ``n_rows`` of the points, evenly spaced, the first and the last one included."""
    return [int(i) for i in np.unique(np.linspace(0, n_points - 1, n_rows).round())]


def _left_out(n_points: int, n_rows: int) -> list[str]:
    """Return a line that says so where a table does not have all points."""
    shown = len(_marks(n_points, n_rows))
    return [f"{shown} of {n_points} points; the figure and the record have all"] if shown < n_points else []


def learning_figure(curves: Sequence[LearningCurves], title: str = "", level: float = 0.95) -> Figure:
    """Draw curves against env steps, with bands."""
    from matplotlib.figure import Figure

    from metarl.meta.evaluation.figures import nth_colour

    figure = Figure(figsize=(8.0, 4.0), layout="constrained")
    axis = figure.subplots()
    score = curves[0].score
    for i, curve in enumerate(curves):
        bands = curve.bands(level).signed(score.sign)
        axis.plot(curve.env_steps, bands.mean, color=nth_colour(i), label=curve.label)
        axis.fill_between(curve.env_steps, bands.low, bands.high, color=nth_colour(i), alpha=0.2, linewidth=0)
    axis.set_title(title)
    axis.set_xlabel(f"{score.budget} of learning, per task")
    axis.set_ylabel(f"{score.axis}\n({level:.0%} intervals by task)")
    axis.grid(alpha=0.3)
    # Outside: bands may lie anywhere inside.
    figure.legend(fontsize="small", loc="outside right center")
    return figure


# ------------------------------------------------------------------------------------------------ the whole experiment
@dataclass(frozen=True, eq=False)
class Finetuning:
    """Held-out tasks learnt with plain SB3.

    :param exports: the curves from the export, one for each optimiser, and for each way to tune it; none where only
        scratch was asked for.
    :param scratch: the curves from scratch, likewise.
    """

    exports: Sequence[LearningCurves]
    scratch: Sequence[LearningCurves]

    @property
    def curves(self) -> list[LearningCurves]:
        """Every curve, the exports' first."""
        return [*self.exports, *self.scratch]

    @property
    def baseline(self) -> LearningCurves:
        """The curves from scratch that end best. They are chosen on the tasks that are compared, which favours them."""
        return max(self.scratch, key=lambda curves: float(curves.returns[:, -1].mean()))

    def comparisons(self, level: float = 0.95) -> list[CurveComparison]:
        """Return each export against the best from scratch."""
        return [compare_curves(export, self.baseline, level) for export in self.exports]

    def tables(self, level: float = 0.95) -> list[Table]:
        """Return the table of all curves where there is more than a pair, and that of each comparison."""
        whole = [] if len(self.exports) == len(self.scratch) == 1 else [learning_table(self.curves, level)]
        return whole + [comparison.table() for comparison in self.comparisons(level)]


def finetune(
    model: Model,
    total_timesteps: int,
    *,
    kind: str | None = None,
    optimizers: Sequence[str] | None = None,
    n_inner_steps: int = 0,
    n_episodes: int | None = None,
    from_export: bool = True,
    split: str = "test",
    n_tasks: int = 20,
    n_envs: int | None = None,
    seed: int = 0,
    tunings: Sequence[Tuning | Mapping[str, Any]] = (),
    progress: Callable[[str, int, int], None] | None = None,
    **hyperparameters: Any,
) -> Finetuning:
    """Learn held-out tasks with plain SB3, from the export and from scratch with equal hyperparameters.

    A rollout is as many env steps as an inner step of ``model`` collects; around a learner that takes many updates in
    one it is that of an update, and a point of the curves as many as an inner step has. With SGD the other
    hyperparameters are those that make an update an inner step, see :mod:`metarl.meta.export.sb3`; with Adam they are
    SB3's defaults, but for the discount factor and, for PPO, minibatches of a quarter of a rollout.

    :param model: a meta-algorithm: its initialisation, its family, and its network also from scratch.
    :param total_timesteps: env steps for each task, start and optimiser, more than a point of the curves has; rounded
        up to whole rollouts.
    :param kind: ``"ppo"``, ``"a2c"`` or ``"trpo"``; of a policy with a memory ``"ppo_lstm"``, with curves of trials.
        None: what the initialisation was learnt for, else PPO.
    :param optimizers: ``"sgd"``, ``"adam"`` or both; TRPO and policies with a memory take ``"adam"`` only, and what was
        learnt around a stock algorithm ``"own"``, that algorithm's. None: all that there are.
    :param n_inner_steps: exports start at what so many inner steps in a task come to, or is decoded of what they see.
        What they collect comes before the curves; the value network is fitted to such policies of training tasks.
    :param n_episodes: episodes of each of these steps; as in training if None.
    :param from_export: False learns from scratch only.
    :param split: ``"validation"``, ``"test"`` or ``"shifted"``.
    :param n_tasks: tasks; where the family has fewer, each is learnt several times with its own streams.
    :param n_envs: copies of a task that step together; None: as an inner step has episodes, or an update copies.
    :param seed: of the streams.
    :param tunings: further ways to learn from the export, beside the one with equal rates for all layers: each a
        :class:`~metarl.meta.adaptation.tuning.Tuning`, or a mapping with its fields.
    :param progress: called with (label of the curves, tasks done, tasks in all).
    :param hyperparameters: of the stock class, for all.
    :raises ConfigError: fewer env steps than two rollouts, and whatever :func:`~metarl.meta.export.sb3.export_sb3`
        raises.
    """
    total_timesteps, n_tasks = COUNT("total_timesteps", total_timesteps), COUNT("n_tasks", n_tasks)
    n_envs, seed = (COUNT | NONE)("n_envs", n_envs), SEED("seed", seed)
    kind = usual_kind(model) if kind is None else kind
    optimizers = usual_optimizers(model, kind) if optimizers is None else optimizers
    hyperparameters, ways = plain_tree(hyperparameters), [Tuning.of(tuning) for tuning in tunings]
    tasks, strata, n_family = evaluation_tasks(model.family, split, n_tasks)
    is_sample = strata is not None and (n_family or 0) > len(set(strata))
    n_envs, n_steps, n_rollouts = require_learnable(
        model, total_timesteps, n_envs, (COUNT | NONE)("n_steps", hyperparameters.pop("n_steps", None))
    )
    family, rollout = model.family.acts_in, n_steps * n_envs
    reach = reach_of(model, COUNT_OR_ZERO("n_inner_steps", n_inner_steps), n_episodes)
    exports = {}
    named_optimizers = {name: None if name == OWN else name for name in optimizers}
    for name, optimizer in named_optimizers.items():
        arguments = {"n_steps": n_steps, **hyperparameters}
        if KINDS.get(kind) is PPO and optimizer is not None:
            quarters = name == "adam" and rollout % 4 == 0 and rollout > 4
            arguments.setdefault("batch_size", rollout // 4 if quarters else rollout)
        exports[name] = export_sb3(model, kind, optimizer=optimizer, n_envs=n_envs, value_tasks=0, **arguments)
    starts: list[tuple[str, MakeModel]] = []
    if from_export:
        # The actor and the value network do not depend on the optimiser.
        first = next(iter(named_optimizers.values()))
        tensors = export_sb3(model, kind, optimizer=first, n_envs=n_envs, value_actors=reach).tensors
        exports = {name: replace(exported, tensors=tensors) for name, exported in exports.items()}
        after = "" if reach is None else f" after {n_inner_steps} step{'s' * (n_inner_steps > 1)}"
        named = {f"{kind.upper()} from {model.name}{after}, {name}": export for name, export in exports.items()}
        at = partial(start_at, model, reach)
        starts += [(label, at(export, lambda export: export.on)) for label, export in named.items()]
        for way in ways:
            build = partial(tuned, tuning=way)
            starts += [(f"{label}, {way}", at(export, build)) for label, export in named.items()]
    starts += [(f"{kind.upper()} from scratch, {name}", export.scratch) for name, export in exports.items()]
    curves = []
    for label, make in starts:
        report = None if progress is None else partial(progress, label)
        curve = finetune_sb3(make, family, tasks, total_timesteps, n_envs, seed, label, report, n_rollouts)
        curves.append(replace(curve, strata=None if strata is None else np.array(strata), is_sample=is_sample))
    return Finetuning(curves[: -len(exports)], curves[-len(exports) :])
