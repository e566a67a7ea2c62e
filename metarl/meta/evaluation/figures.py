"""Figures of evaluations, drawn with matplotlib's object interface: no global state, no display needed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from metarl.envs.score import Score, common_score
from metarl.errors import ConfigError, unknown_name
from metarl.meta.evaluation.points import POINTS
from metarl.meta.evaluation.published import Published
from metarl.meta.evaluation.statistics import Bands

HIDING = 20.0
"""How many times as large as another one a value is that hides it."""


class Drawn(Protocol):
    """What is drawn of a report; see :class:`metarl.meta.evaluation.report.Report`."""

    @property
    def algo(self) -> str: ...

    @property
    def label(self) -> str: ...

    @property
    def env(self) -> str: ...

    @property
    def split(self) -> str: ...

    @property
    def returns(self) -> np.ndarray: ...

    @property
    def env_steps(self) -> np.ndarray: ...

    @property
    def tasks(self) -> dict[str, np.ndarray]: ...

    @property
    def score(self) -> Score: ...

    @property
    def n_tasks(self) -> int: ...

    @property
    def entries(self) -> str: ...

    @property
    def n_inner_steps(self) -> int: ...

    @property
    def point(self) -> str: ...

    def bands(self, level: float = 0.95) -> Bands:
        """Return means and intervals after each inner step."""
        ...


def nth_colour(index: int) -> str:
    """Return the colour of the line of an index: matplotlib's ten, and then ten lighter ones before they repeat."""
    return f"C{index}" if index % 20 < 10 else to_hex(colormaps["tab20"](2 * (index % 10) + 1))


def spread_out(axis: Axes, values: Iterable[float]) -> None:
    """Make the vertical axis of a panel logarithmic where one of its values would hide all others.

    That is where all are above 0, or all below, and the largest is more than :data:`HIDING` times the smallest.
    """
    sizes = np.array(list(values))
    if len(sizes) == 0 or not (np.all(sizes > 0) or np.all(sizes < 0)):
        return
    smallest = float(np.abs(sizes).min())
    if np.abs(sizes).max() <= HIDING * smallest:
        return
    if sizes[0] > 0:
        axis.set_yscale("log")
    else:
        axis.set_yscale("symlog", linthresh=smallest)


def adaptation_figure(
    reports: Sequence[Drawn],
    published: Sequence[Published] | None = None,
    *,
    task_parameter: str | None = None,
    level: float = 0.95,
    colours: Mapping[str, str] | None = None,
) -> Figure:
    """Draw the return against inner steps and, where inner steps after the first spend some, against env steps.

    Where all reports have one score, it says how returns and env steps are called and shown. Lines have bands.

    :param reports: one line each.
    :param published: dashed lines against inner steps only; their env steps are not comparable.
    :param task_parameter: a scalar task parameter of the first report; a third panel shows each task before and after
        adaptation.
    :param colours: by algorithm, where several figures are to agree; the first line is blue and so on by default.
    :raises ConfigError: no reports, or a task parameter that is not scalar.
    """
    if not reports:
        raise ConfigError("no reports to draw")
    adapted = [report for report in reports if report.n_inner_steps > 0]
    with_env_steps = any(map(_spends_by_step, adapted or reports))
    panels = 1 + with_env_steps + (task_parameter is not None)
    figure = Figure(figsize=(5.0 * panels + 2.0, 4.0), layout="constrained")
    axes = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
    by_step, by_env_step = axes[0], axes[1] if with_env_steps else None
    score = common_score(report.score for report in reports)
    for i, report in enumerate(reports):
        bands = report.bands(level).signed(score.sign)
        colour = (colours or {}).get(report.algo, nth_colour(i))
        _curve(by_step, np.arange(report.n_inner_steps + 1), bands, colour, report.label)
        if by_env_step is not None and _spends_by_step(report):
            _curve(by_env_step, report.env_steps, bands, colour, report.label)
    for i, entry in enumerate(published or ()):
        colour = (colours or {}).get(entry.method.lower(), nth_colour(len(reports) + i))
        style: dict[str, Any] = {"color": colour, "linestyle": "--", "linewidth": 1.0, "marker": "x"}
        shown = score.sign * np.array(entry.returns)
        by_step.plot(np.arange(len(shown)), shown, label=f"{entry.method}, published", **style)
    by_step.xaxis.set_major_locator(MaxNLocator(integer=True))
    by_step.set_xlabel(" or ".join(dict.fromkeys(POINTS[report.point] for report in reports)))
    if by_env_step is not None:
        by_env_step.set_xlabel(_spent(score))
        by_env_step.grid(alpha=0.3)
    by = " and ".join(dict.fromkeys("task" if report.entries == "tasks" else "family" for report in reports))
    by_step.set_ylabel(f"{score.axis}\n({level:.0%} intervals by {by})")
    # Outside: bands may lie anywhere inside.
    figure.legend(*by_step.get_legend_handles_labels(), fontsize="small", loc="outside right center")
    by_step.grid(alpha=0.3)
    if task_parameter is not None:
        _scatter(axes[-1], reports[0], task_parameter, score)
    envs = sorted({f"{report.env}, {report.split} {report.entries}" for report in reports})
    figure.suptitle("; ".join(envs))
    return figure


def adaptation_cards(report: Drawn, level: float = 0.95) -> dict[str, Figure]:
    """Draw the return against inner steps and against env steps, each as a figure of its own for a TensorBoard card.

    A card is about 400 pixels wide and shows a figure at its own size: so one panel, few ticks, large text.

    :return: by what to add to the card's name; the second one only where inner steps after the first spend something.
    """
    score = report.score
    bands = report.bands(level).signed(score.sign)
    cards = {}
    axes = {"": (np.arange(report.n_inner_steps + 1), POINTS[report.point])}
    if _spends_by_step(report):
        axes["_env_steps"] = report.env_steps, f"{score.budget} per task"
    for name, (x, label) in axes.items():
        cards[name] = figure = Figure(figsize=(4.0, 3.0), dpi=100, layout="constrained")
        axis = figure.subplots()
        _curve(axis, x, bands, "C0", report.label)
        axis.set_title(f"{report.env}, {report.n_tasks} {report.split} {report.entries}", fontsize=12)
        axis.set_xlabel(label, fontsize=12)
        axis.set_ylabel(f"{score.name} ({level:.0%})", fontsize=12)
        axis.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
        axis.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axis.tick_params(labelsize=12)
        for side in (axis.xaxis, axis.yaxis):
            side.get_offset_text().set_fontsize(12)
        axis.grid(alpha=0.3)
    return cards


def _spends_by_step(report: Drawn) -> bool:
    """Return whether every inner step spends something, so that returns are a curve against what is spent."""
    return len(set(report.env_steps.tolist())) == len(report.env_steps)


def _spent(score: Score) -> str:
    """Return the caption of an axis of what adaptation spends."""
    return f"{score.budget} of adaptation, per task"


def _curve(axis: Any, x: np.ndarray, bands: Bands, colour: str, label: str) -> None:
    """Draw one report's mean return with its band."""
    axis.plot(x, bands.mean, marker="o", color=colour, label=label)
    axis.fill_between(x, bands.low, bands.high, color=colour, alpha=0.2, linewidth=0)


def _scatter(axis: Any, report: Drawn, name: str, score: Score) -> None:
    """Show every task's return before and after adaptation against one of its parameters."""
    if name not in report.tasks:
        raise unknown_name("task parameter", name, report.tasks)
    values = report.tasks[name].reshape(report.n_tasks, -1)
    if values.shape[1] != 1:
        raise ConfigError(f"task parameter {name!r} has {values.shape[1]} numbers: only a scalar can be drawn against")
    means = score.sign * report.returns.mean(0)
    for step, marker in ((0, "o"), (report.n_inner_steps, "^")):
        axis.scatter(values[:, 0], means[:, step], s=14, marker=marker, label=f"{step} {POINTS[report.point]}")
    axis.set_xlabel(name)
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small", loc="lower right")
