"""``metarl plot``: training curves and adaptation curves of one or several runs."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from metarl.errors import CheckpointError, ConfigError, shorten, unknown_name
from metarl.files.untrusted import MAX_LOG, parse_csv, read_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from metarl.meta.evaluation.report import Report
    from metarl.zoo.runs.folder import Run

AXES = {
    "steps": ("time/total_timesteps", "env steps, support and query together"),
    "iterations": ("time/iterations", "meta-iterations"),
    "time": ("time/time_elapsed", "seconds"),
}
"""The column of progress.csv and the caption of each horizontal axis."""


class Curve(NamedTuple):
    """One line of a figure."""

    x: np.ndarray
    y: np.ndarray


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from metarl.zoo.console import say
    from metarl.zoo.runs.outputs import Outputs, figure_bytes, figure_format, free_name
    from metarl.zoo.runs.sources import find_runs

    unused = args.given & {"x", "y", "window"} if args.kind == "adaptation" else ()
    if unused:
        raise ConfigError(f"{', '.join(sorted(unused))}: for training curves only, not with --kind adaptation")
    runs = find_runs(args)
    folder = runs[0].folder if len(runs) == 1 else Path(args.log_folder)
    path = Path(args.output) if args.output else free_name(folder, args.kind, [".png"]).with_suffix(".png")
    format = figure_format(path)
    within = folder if not args.output and len(runs) == 1 else None
    outputs = Outputs([path], args.overwrite, within).require_possible()
    if args.kind == "training":
        figure = training_figure(runs, args.y, args.x, args.window)
    else:
        from metarl.meta.evaluation.comparison import comparison_figure

        figure = comparison_figure([last_evaluation(item, f"{item.algo}/{item.folder.name}") for item in runs])
    (path,) = outputs.write([figure_bytes(figure, format)])
    say(f"Saved {path}")
    return 0


def training_figure(runs: Sequence[Run], keys: Sequence[str], axis: str, window: int) -> Figure:
    """Draw columns of progress.csv, one panel for each environment.

    :param keys: the columns.
    :param axis: a key of :data:`AXES`.
    :param window: rows in the running mean.
    """
    from matplotlib.figure import Figure

    envs = sorted({item.env_id for item in runs})
    figure = Figure(figsize=(6.0 * len(envs), 4.0), layout="constrained")
    panels = figure.subplots(1, len(envs), squeeze=False)[0]
    column, caption = AXES[axis]
    styles = ["-", "--", ":", "-."]
    for i, item in enumerate(runs):
        panel = panels[envs.index(item.env_id)]
        for j, key in enumerate(keys):
            curve = read_curve(item, column, key)
            x = run_on(curve.x) if axis == "time" else curve.x
            label = f"{item.algo}/{item.folder.name} {key}"
            panel.plot(x, running_mean(curve.y, window), styles[j % 4], color=f"C{i}", label=label)
    for env_id, panel in zip(envs, panels, strict=True):
        panel.set_title(env_id)
        panel.set_xlabel(caption)
        panel.set_ylabel(quantity(keys))
        panel.grid(alpha=0.3)
        # Below: curves may lie anywhere inside.
        panel.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.15))
    return figure


def quantity(keys: Sequence[str]) -> str:
    """Return what a vertical axis shows: a return, or the columns by name."""
    return "return" if all("rew" in key or "return" in key for key in keys) else ", ".join(keys)


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
    """Return the seconds of a run from those of its processes, whose clocks start anew where it was gone on with."""
    falls = np.flatnonzero(np.diff(elapsed) < 0)
    offsets = np.zeros(len(elapsed))
    np.add.at(offsets, falls + 1, elapsed[falls])
    return elapsed + np.cumsum(offsets)


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Return the mean of the last ``window`` values at each point, of fewer at the beginning."""
    if window <= 1 or len(values) == 0:
        return values
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return np.asarray((sums[ends] - sums[starts]) / (ends - starts))


def last_evaluation(run: Run, label: str) -> Report:
    """Return a run's last evaluation on validation tasks, from meta_evaluations.npz.

    :raises CheckpointError: it has none.
    """
    from metarl.meta.evaluation.report import Report
    from metarl.zoo.runs.evaluations import TASK, read_meta

    path = run.folder / "meta_evaluations.npz"
    if not path.is_file():
        raise CheckpointError(f"{run.folder} has no meta_evaluations.npz: train with --eval-freq")
    arrays = read_meta(path)
    if not len(arrays["timesteps"]):
        raise CheckpointError(f"{path} holds no evaluations yet")
    returns = np.concatenate([arrays["pre"][-1][:, None], arrays["post"][-1].T], axis=1)
    tasks = {name.removeprefix(TASK): value for name, value in arrays.items() if name.startswith(TASK)}
    steps = arrays["env_steps"][-1]
    strata, n_family = _strata(run, len(returns))
    meta = {"family_tasks": n_family}
    return Report(run.algo, run.env_id, "validation", returns[None], steps, tasks, [0], strata, label, meta)


def _strata(run: Run, n_tasks: int) -> tuple[np.ndarray | None, int | None]:
    """Return the strata of a run's evaluations, see :class:`~metarl.meta.evaluation.report.Report`, and the tasks in
    all: its family says them.
    """
    from metarl.envs import make_family
    from metarl.files.schema import convert
    from metarl.meta.evaluation.tasks import evaluation_tasks
    from metarl.zoo.algorithms import check_env
    from metarl.zoo.config import merge

    hint = dict[str, Any] | None
    own = convert("env_kwargs", run.config().get("env_kwargs"), hint) or {}
    changed = convert("eval_env_kwargs", run.args().get("eval_env_kwargs"), hint) or {}
    check_env(run.env_id, run.folder)
    family = make_family(run.env_id, **merge(own, changed))
    _, strata, n_family = evaluation_tasks(family, "validation", n_tasks)
    family.close()
    return None if strata is None else np.array(strata), n_family
