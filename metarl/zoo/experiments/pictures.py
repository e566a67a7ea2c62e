"""Episodes as pictures: tasks that differ most, frames of a policy that acts in them, and a figure of rows of those."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from metarl.envs.tasks import Task, Tasks, n_tasks, one_task
from metarl.envs.views.single import SingleEnv
from metarl.meta.adaptation.adapted import AdaptedPolicy, predictions

INCHES = 1.45
"""Width of a frame."""


class Frame(NamedTuple):
    """A picture with what is written into it."""

    words: str
    image: np.ndarray


BEHIND = {"facecolor": "white", "alpha": 0.75, "linewidth": 0.0, "boxstyle": "square,pad=0.15"}
"""What the words in a frame stand on, so that they can be read on any picture."""
Row = tuple[str, Sequence[Frame]]
"""A title and its frames."""


def apart(tasks: Tasks, n: int) -> list[Task]:
    """Return ``n`` tasks that lie far from each other: from the first on, each is the farthest from those before."""
    flat = np.concatenate([np.reshape(value, (n_tasks(tasks), -1)) for value in tasks.values()], axis=1).astype(float)
    flat = (flat - flat.min(0)) / np.maximum(np.ptp(flat, axis=0), 1e-12)
    chosen = [0]
    while len(chosen) < min(n, len(flat)):
        away = np.linalg.norm(flat[:, None] - flat[chosen], axis=-1).min(1)
        chosen.append(int(away.argmax()))
    return [one_task(tasks, index) for index in chosen]


def moments(horizon: int, n: int) -> list[int]:
    """Return ``n`` env steps of an episode, evenly spread, the last one included; several begin with the first."""
    return [int(time) for time in np.unique(np.linspace(horizon if n == 1 else 0, horizon, n).round())]


def play(
    policy: AdaptedPolicy, env: SingleEnv, wanted: Sequence[int], seed: int, deterministic: bool
) -> tuple[list[Frame], float]:
    """Play an episode; return frames of it and its return.

    :param env: with pictures, where frames are wanted.
    :param wanted: the env steps that are drawn, where the episode lasts as long, and its end; none: nothing is drawn.
    :param seed: of the episode and of the actions.
    :param deterministic: act by the mode.
    """
    obs, _ = env.reset(seed=seed)
    rng = predictions(seed)
    frames, total, ended, time, state = [], 0.0, False, 0, None
    while True:
        if time in wanted or (ended and len(wanted)):
            image = env.render()
            assert image is not None
            frames.append(Frame(f"env step {time}", image))
        if ended:
            return frames, total
        action, state = policy.predict(obs, state, deterministic=deterministic, rng=rng)
        obs, reward, terminated, truncated, _ = env.step(action)
        time, total, ended = time + 1, total + reward, terminated or truncated


def picture(rows: Sequence[Row]) -> Figure:
    """Draw rows of frames, each under its title."""
    columns = max(len(frames) for _, frames in rows)
    height, width = rows[0][1][0].image.shape[:2]
    figure = Figure(figsize=(INCHES * columns, (INCHES * height / width + 0.22) * len(rows) + 0.05), dpi=110)
    axes = np.reshape(figure.subplots(len(rows), columns), (len(rows), columns))
    for row, (title, frames) in zip(axes, rows, strict=True):
        for ax in row:
            ax.axis("off")
        row[0].set_title(title, loc="left", fontsize=7)
        for ax, frame in zip(row, frames, strict=False):
            ax.imshow(frame.image, interpolation="antialiased")
            ax.text(0.02, 0.03, frame.words, transform=ax.transAxes, fontsize=5.5, color="0.35", bbox=BEHIND)
    figure.subplots_adjust(
        0.005, 0.005, 0.995, 1 - 0.25 / figure.get_figheight(), wspace=0.02, hspace=0.22 * width / height / INCHES
    )
    return figure
