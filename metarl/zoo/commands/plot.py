"""``metarl plot``: draws training curves or adaptation curves of one or several runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from metarl.envs.score import Score, common_score
from metarl.errors import ConfigError
from metarl.meta.evaluation.comparison import comparison_figure
from metarl.meta.evaluation.figures import nth_colour
from metarl.zoo.console import say, show_commands
from metarl.zoo.runs.curves import budget_of, column_scores, last_evaluation, read_curve, run_on
from metarl.zoo.runs.folder import Run, command_line
from metarl.zoo.runs.outputs import Outputs, figure_bytes, figure_format, free_name
from metarl.zoo.runs.sources import find_runs, typed_packages

AXES = {
    "steps": ("time/total_timesteps", "{budget}, support and query together"),
    "iterations": ("time/iterations", "meta-iterations"),
    "time": ("time/time_elapsed", "seconds"),
}
"""The column of progress.csv and the caption of each horizontal axis."""


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
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
        figure = comparison_figure([last_evaluation(item, f"{item.algo}/{item.folder.name}") for item in runs])
    (path,) = outputs.write([figure_bytes(figure, format)])
    say(f"Saved {path}")
    comparable = [str(item.folder) for item in runs if item.env_id == runs[0].env_id]
    words = ["evaluate", "-i", *comparable, *typed_packages(args)]
    show_commands({command_line(words): "evaluate"})
    return 0


def training_figure(runs: Sequence[Run], keys: Sequence[str], axis: str, window: int) -> Figure:
    """Draw columns of progress.csv, one panel for each environment; returns as the family's score shows them.

    :param keys: the columns.
    :param axis: a key of :data:`AXES`.
    :param window: rows in the running mean.
    """
    envs = sorted({item.env_id for item in runs})
    figure = Figure(figsize=(6.0 * len(envs), 4.0), layout="constrained")
    panels = figure.subplots(1, len(envs), squeeze=False)[0]
    column, caption = AXES[axis]
    styles = ["-", "--", ":", "-."]
    budgets = {item.env_id: budget_of(item) for item in reversed(runs)}
    found: dict[str, list[Score | None]] = {env: [] for env in envs}
    for item in runs:
        found[item.env_id] += column_scores(item, keys)
    scores = {env: _common(own) for env, own in found.items()}
    for i, item in enumerate(runs):
        panel = panels[envs.index(item.env_id)]
        score = scores[item.env_id]
        sign = 1 if score is None else score.sign
        for j, key in enumerate(keys):
            curve = read_curve(item, column, key)
            x = run_on(curve.x) if axis == "time" else curve.x
            label = f"{item.algo}/{item.folder.name} {key}"
            panel.plot(x, sign * running_mean(curve.y, window), styles[j % 4], color=nth_colour(i), label=label)
    for env_id, panel in zip(envs, panels, strict=True):
        panel.set_title(env_id)
        panel.set_xlabel(caption.format(budget=budgets[env_id]))
        score = scores[env_id]
        panel.set_ylabel(", ".join(keys) if score is None else score.axis)
        panel.grid(alpha=0.3)
        # Below: curves may lie anywhere inside.
        panel.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.15))
    return figure


def _common(scores: Sequence[Score | None]) -> Score | None:
    """Return how the columns of a panel are shown together; None where one of them holds no returns."""
    known = [score for score in scores if score is not None]
    return common_score(known) if len(known) == len(scores) else None


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Return the mean of the last ``window`` values at each point, of fewer at the beginning."""
    if window <= 1 or len(values) == 0:
        return values
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return np.asarray((sums[ends] - sums[starts]) / (ends - starts))
