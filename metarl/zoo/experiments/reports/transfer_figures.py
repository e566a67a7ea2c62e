"""What finished runs of meta-transfer do, drawn: sines after noisy cosines (S0, figure 2), and episodes of tasks seen.

They need the models, which are in run folders; a record of results stands for numbers only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from matplotlib.figure import Figure

from metarl.envs.family import score_of
from metarl.envs.mujoco.pictures import PictureError
from metarl.envs.registry import make_family
from metarl.envs.score import fixed
from metarl.envs.supervised.one_step import OneStep, with_noise
from metarl.envs.supervised.waves import LARGEST_INPUT, Wave
from metarl.envs.tasks import one_task, stack_tasks
from metarl.envs.views.single import SingleEnv
from metarl.errors import shorten
from metarl.files.schema import Range
from metarl.meta.algorithms.meta_transfer import MetaTransfer
from metarl.meta.evaluation.figures import nth_colour
from metarl.streams import stream
from metarl.zoo.algorithms import load_model
from metarl.zoo.experiments.jobs import Entry
from metarl.zoo.experiments.pictures import Frame, Row, apart, moments, picture, play
from metarl.zoo.experiments.testing import Trained

N_DRAWS = 100
"""Samples of noise in figure 2, as in the paper."""
_Count = Annotated[int, Range(1, 100)]


@dataclass(frozen=True)
class Pictures:
    """Which tasks are drawn.

    :param n_tasks: test tasks, those that differ most.
    :param n_frames: of an episode; of one there is its end only, and encoders stand side by side.
    :param encoders: whose policies act; none: all.
    """

    n_tasks: _Count
    n_frames: _Count
    encoders: list[str] = field(default_factory=list)


def models(runs: Sequence[Trained], encoder: str) -> tuple[int | None, dict[str, MetaTransfer]]:
    """Return one training seed of which runs are here, and its models by encoder; None and nothing if none is here.

    :param encoder: the hyperparameter's name.
    """
    seeds = [item.job.seed for item in runs if item.run is not None]
    if not seeds:
        return None, {}
    found: dict[str, MetaTransfer] = {}
    for item in runs:
        if item.run is not None and item.job.seed == seeds[0]:
            model = load_model(item.run.final)
            assert isinstance(model, MetaTransfer)
            found[str(item.job.cell[encoder])] = model
    return seeds[0], found


def sinusoids(entry: Entry, found: Mapping[str, MetaTransfer], noise: Sequence[float]) -> Figure:
    """Draw figure 2: the support with noise, the true sine, and what each encoder's network predicts.

    It is of the test task with the median amplitude. Lines are means over :data:`N_DRAWS` samples of the noise on the
    same inputs, bands their standard deviation.

    :param noise: its standard deviations, one for each row.
    """
    family = make_family(entry.env)
    seen = family.support_family
    assert isinstance(seen, OneStep)
    assert isinstance(family, Wave)
    tasks = family.tasks("test", 40)
    task = one_task(tasks, int(np.argsort(tasks["amplitude"])[len(tasks["amplitude"]) // 2]))
    x, y = (each[0] for each in seen.examples(stack_tasks([task]), [stream(0, "figure/support")], entry.episodes))
    grid = np.linspace(-LARGEST_INPUT, LARGEST_INPUT, 200, dtype=np.float32)[:, None]
    truth = task["amplitude"] * family.wave(grid, task["phase"])
    figure = Figure(figsize=(2.6 * len(found), 2.1 * len(noise) + 0.3), layout="constrained")
    axes = figure.subplots(len(noise), len(found), squeeze=False, sharex=True, sharey=True)
    for row, sigma in zip(axes, noise, strict=True):
        draws = [with_noise(y[None], [stream(0, "figure/noise", k)], sigma)[0] for k in range(N_DRAWS)]
        for index, (ax, (name, model)) in enumerate(zip(row, found.items(), strict=True)):
            policies = [model.adapt(support=(x, noisy), seed=0) for noisy in draws]
            lines = np.stack([policy.predict(grid, deterministic=True)[0] for policy in policies])[..., 0]
            mean, spread = lines.mean(0), lines.std(0)
            ax.plot(grid, truth, color="black", linestyle="--", linewidth=1.0, label="true sine")
            ax.plot(grid, mean, color=nth_colour(index), label="predicted")
            ax.fill_between(grid[:, 0], mean - spread, mean + spread, color=nth_colour(index), alpha=0.25, linewidth=0)
            ax.scatter(x, draws[0], color="0.5", s=8, label="support, one sample")
            ax.set_title(f"{name}, σ = {sigma:g}", fontsize="small")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), fontsize="small", loc="outside upper center", ncols=3)
    return figure


def episodes(entry: Entry, found: Mapping[str, MetaTransfer], pictures: Pictures) -> tuple[Figure | None, list[str]]:
    """Draw episodes of decoded policies in test tasks that differ most; return the figure, or a line that says why not.

    :param found: models by encoder.
    """
    chosen = {name: model for name, model in found.items() if name in (pictures.encoders or found)}
    if not chosen:
        return None, [f"No run of {', '.join(pictures.encoders)} on {entry.env} is here to be drawn."]
    acts_in = next(iter(chosen.values())).family.acts_in
    score = score_of(acts_in)
    if acts_in.render_fps is None:
        return None, [f"{acts_in.id} is not drawn."]
    wanted = moments(acts_in.horizon, pictures.n_frames)
    rows: list[Row] = []
    try:
        for task in apart(acts_in.tasks("test", 40), pictures.n_tasks):
            shown: list[tuple[str, list[Frame], float]] = []
            for name, model in chosen.items():
                policy = model.adapt(SingleEnv(model.family, **task), n_episodes=entry.episodes, seed=0)
                env = SingleEnv(model.family.acts_in, render_mode="rgb_array", **task)
                shown.append((name, *play(policy, env, wanted, 0, deterministic=True)))
            words = acts_in.describe(task)
            told = [(f"{name}: {score.name} {fixed(score.sign * total)}", frames) for name, frames, total in shown]
            if pictures.n_frames == 1:
                rows.append((words, [Frame(text, frames[-1].image) for text, frames in told]))
            else:
                rows += [(f"{words}, {text}", frames) for text, frames in told]
        return picture(rows), []
    except PictureError as error:  # no OpenGL: what was measured is none the less worth its tables
        return None, [f"{shorten(error, quote=False, limit=300)}."]


def cell_name(env: str, cell: Mapping[str, Any]) -> str:
    """Return the name of the pictures of an environment in one cell of the grid, encoders aside."""
    return "_".join([env, "tasks", *(f"{name.rsplit('.', 1)[-1]}{value}" for name, value in cell.items())])
