"""What a run's log and its evaluations say of its course: curves, times, and the last evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np

from metarl.envs import Family, make_family
from metarl.envs.family import evaluation_score, score_of
from metarl.envs.score import RETURN, Score
from metarl.errors import CheckpointError, MetaRLError, shorten, unknown_name
from metarl.files.schema import convert
from metarl.files.untrusted import MAX_LOG, parse_csv, read_text
from metarl.meta.evaluation.report import Report
from metarl.meta.evaluation.tasks import evaluation_tasks
from metarl.meta.saving import ALGORITHMS
from metarl.zoo.algorithms import check_env
from metarl.zoo.config import merge
from metarl.zoo.runs.evaluations import TASK, read_meta
from metarl.zoo.runs.folder import Run


class Curve(NamedTuple):
    """One line of a figure."""

    x: np.ndarray
    y: np.ndarray


def read_curve(run: Run, x: str, y: str) -> Curve:
    """Return two columns of a run's progress.csv.

    Rows without ``y`` are left out. A row without ``x`` has that of the row before: an evaluation is written after its
    meta-iteration.

    :raises CheckpointError: there is no such file, or nothing in it.
    :raises UnknownNameError: there is no such column.
    """
    path = run.folder / "progress.csv"
    if not path.exists():
        raise CheckpointError(f"{path} is missing: the run has logged nothing")
    header, *rows = parse_csv(read_text(path, MAX_LOG), str(path)) or [[]]
    if not rows:
        raise CheckpointError(f"{path} holds no rows yet")
    for name in (x, y):
        if name not in header:
            if "time/iterations" not in header and not name.startswith("eval/"):
                raise CheckpointError(
                    f"{path} has no {shorten(name, quote=False)}: no meta-iteration was logged, only evaluations "
                    "(train's --log-interval is longer than the run)"
                )
            raise unknown_name(f"column of {path}", name, header)
    columns = header.index(x), header.index(y)
    pairs: list[tuple[float, float]] = []
    place = ""
    try:
        for row in rows:
            # A row that was cut off has fewer cells.
            now, value = (row[column] if column < len(row) else "" for column in columns)
            place = now or place
            if place and value:
                pairs.append((float(place), float(value)))
    except ValueError as error:
        raise CheckpointError(f"{path}: {shorten(error, quote=False)}") from None
    if not all(math.isfinite(at) for at, _ in pairs):
        raise CheckpointError(f"{path} is damaged: {x} holds NaN or infinity")
    points = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return Curve(points[:, 0], points[:, 1])


def run_on(elapsed: np.ndarray) -> np.ndarray:
    """Return the seconds of a run from those of its processes. A clock starts anew whenever a run goes on."""
    falls = np.flatnonzero(np.diff(elapsed) < 0)
    offsets = np.zeros(len(elapsed))
    np.add.at(offsets, falls + 1, elapsed[falls])
    return elapsed + np.cumsum(offsets)


def training_seconds(run: Run) -> float | None:
    """Return how long a run has trained, over all its processes; None where its log does not say."""
    try:
        elapsed = read_curve(run, "time/iterations", "time/time_elapsed").y
    except MetaRLError:
        return None
    return float(run_on(elapsed)[-1]) if len(elapsed) else 0.0


def last_evaluation(run: Run, label: str) -> Report:
    """Return a run's last evaluation on validation tasks, from meta_evaluations.npz.

    :raises CheckpointError: it has none.
    """
    path = run.folder / "meta_evaluations.npz"
    if not path.is_file():
        raise CheckpointError(f"{run.folder} has no meta_evaluations.npz: train with --eval-freq")
    arrays = read_meta(path)
    if not len(arrays["timesteps"]):
        raise CheckpointError(f"{path} holds no evaluations yet")
    returns = np.concatenate([arrays["pre"][-1][:, None], arrays["post"][-1].T], axis=1)
    tasks = {name.removeprefix(TASK): value for name, value in arrays.items() if name.startswith(TASK)}
    steps = arrays["env_steps"][-1]
    family = validation_family(run)
    _, strata, n_family = evaluation_tasks(family, "validation", len(returns))
    family.close()
    return Report(
        run.algo,
        run.env_id,
        "validation",
        returns[None],
        steps,
        tasks,
        [0],
        None if strata is None else np.array(strata),
        label,
        {"family_tasks": n_family, "point": getattr(ALGORITHMS.get(run.algo), "point", "step")},
        score=evaluation_score(family),
    )


def column_scores(run: Run, keys: Sequence[str]) -> list[Score | None]:
    """Return how columns of a run's log are shown; None for those that hold no returns."""
    try:
        family = validation_family(run)
    except MetaRLError:
        # A log can be drawn where its family is not registered: what it holds are returns.
        learning = evaluation = RETURN
    else:
        learning, evaluation = score_of(family), evaluation_score(family)
        family.close()
    found: list[Score | None] = []
    for key in keys:
        is_return = "rew" in key or "return" in key
        evaluated = key.startswith("eval/") and "learning" not in key
        found.append((evaluation if evaluated else learning) if is_return else None)
    return found


def budget_of(run: Run) -> str:
    """Return what a run's training spends, in words: env steps, or examples."""
    try:
        family = validation_family(run)
    except MetaRLError:  # its log can be drawn all the same
        return RETURN.budget
    with closing(family):
        return score_of(family).budget


def validation_family(run: Run) -> Family:
    """Return the family of a run's evaluations.

    :raises MetaRLError: there is none of that name, or not with these arguments.
    """
    hint = dict[str, Any] | None
    own = convert("env_kwargs", run.config().get("env_kwargs"), hint) or {}
    changed = convert("eval_env_kwargs", run.args().get("eval_env_kwargs"), hint) or {}
    check_env(run.env_id, run.folder)
    return make_family(run.env_id, **merge(own, changed))
