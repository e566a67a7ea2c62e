"""Episodes before and after adaptation, as pictures: ``python -m benchmarks.pictures RUN -o FILE``.

RUN is a run folder, or a ``.safetensors``, on any family that is drawn. It adapts to held-out tasks that differ most,
and acts in each before and after, from the same start, where policies of the family act. The figure has two rows for a
task, with the return of the episode that they show and the mean of a few.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

import metarl
from metarl.envs.tasks import Task, Tasks, n_tasks, one_task
from metarl.envs.views.single import SingleEnv
from metarl.errors import ConfigError

COLOURS = 128
"""Of the file: frames of robots have few, and a palette makes the file a third as large."""
INCHES = 1.45


def apart(tasks: Tasks, n: int) -> list[Task]:
    """Return ``n`` tasks that lie far from each other: from the first on, each is the farthest from those before."""
    flat = np.concatenate([np.reshape(value, (n_tasks(tasks), -1)) for value in tasks.values()], axis=1).astype(float)
    flat = (flat - flat.min(0)) / np.maximum(np.ptp(flat, axis=0), 1e-12)
    chosen = [0]
    while len(chosen) < min(n, len(flat)):
        away = np.linalg.norm(flat[:, None] - flat[chosen], axis=-1).min(1)
        chosen.append(int(away.argmax()))
    return [one_task(tasks, index) for index in chosen]


def episode(policy: Any, env: SingleEnv, wanted: np.ndarray, seed: int, deterministic: bool) -> tuple[list[Any], float]:
    """Return frames of an episode with their env steps, and its return.

    :param wanted: the env steps that are drawn, where the episode lasts as long, and its end.
    """
    obs, _ = env.reset(seed=seed)
    policy.set_random_seed(seed)
    frames, total, ended, time = [(0, env.render())] if len(wanted) else [], 0.0, False, 0
    while not ended:
        action, _ = policy.predict(obs, deterministic=deterministic)
        obs, reward, terminated, truncated, _ = env.step(action)
        time, total, ended = time + 1, total + float(reward), terminated or truncated
        if time in wanted or (ended and len(wanted)):
            frames.append((time, env.render()))
    return frames, total


def rows(model: Any, tasks: list[Task], options: argparse.Namespace) -> list[tuple[str, list[Any]]]:
    """Return a title and frames for each row: every task before adaptation and after it."""
    found = []
    wanted = np.unique(np.linspace(0, model.family.acts_in.horizon, options.frames).round().astype(int))
    for number, task in enumerate(tasks):
        words = model.family.describe(task)
        learnt_in = SingleEnv(model.family, **task)
        acted_in = SingleEnv(model.family.acts_in, render_mode="rgb_array", **task)
        for steps in (0, options.n_inner_steps):
            how = {} if options.inner_lr is None else {"inner_lr": options.inner_lr}
            policy = model.adapt(learnt_in, steps, seed=options.seed + number, **(how if steps else {}))
            frames, shown = episode(policy, acted_in, wanted, options.seed, options.deterministic)
            further = range(options.seed + 1, options.seed + options.n_episodes)
            returns = [episode(policy, acted_in, wanted[:0], each, options.deterministic)[1] for each in further]
            when = f"after {steps} inner step{'s' * (steps > 1)}" if steps else "before adaptation"
            mean = f"{np.mean([shown, *returns]):.3g} on average of {options.n_episodes} episodes"
            found.append((f"{words}, {when}: return {shown:.3g}, {mean}", frames))
            print(found[-1][0], flush=True)
        acted_in.close()
        learnt_in.close()
    return found


def draw(found: list[tuple[str, list[Any]]], path: Path) -> None:
    """Write the rows as one figure, with a palette."""
    columns = max(len(frames) for _, frames in found)
    height, width = found[0][1][0][1].shape[:2]
    figure = Figure(figsize=(INCHES * columns, (INCHES * height / width + 0.22) * len(found) + 0.05), dpi=110)
    axes = np.reshape(figure.subplots(len(found), columns), (len(found), columns))
    for row, (title, frames) in zip(axes, found, strict=True):
        for ax in row:
            ax.axis("off")
        row[0].set_title(title, loc="left", fontsize=7)
        for ax, (time, frame) in zip(row, frames, strict=False):
            ax.imshow(frame, interpolation="antialiased")
            ax.text(0.02, 0.03, f"env step {time}", transform=ax.transAxes, fontsize=5.5, color="0.35")
    figure.subplots_adjust(
        0.005, 0.005, 0.995, 1 - 0.25 / figure.get_figheight(), wspace=0.02, hspace=0.22 * width / height / INCHES
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    buffer.seek(0)
    Image.open(buffer).convert("RGB").quantize(COLOURS).save(path, optimize=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pictures", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path, help="a run folder, or a .safetensors")
    parser.add_argument("-o", "--output", type=Path, required=True, help="a .png")
    parser.add_argument("--tasks", type=int, default=3)
    parser.add_argument("--split", default="test", help="validation, test (default) or shifted")
    parser.add_argument("--n-inner-steps", type=int, default=1)
    parser.add_argument("--inner-lr", type=float, default=None, help="another rate than training's")
    parser.add_argument("--frames", type=int, default=6, help="of an episode")
    parser.add_argument("--n-episodes", type=int, default=10, help="for the mean return; the first is drawn")
    parser.add_argument("--deterministic", action="store_true", help="act by the mode")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    path = options.run / "checkpoint.safetensors" if options.run.is_dir() else options.run
    model = metarl.load(path)
    if model.family.acts_in.render_fps is None:
        raise ConfigError(f"{model.family.acts_in.id} is not drawn")
    tasks = apart(model.family.tasks(options.split, 40), options.tasks)
    draw(rows(model, tasks, options), options.output)


if __name__ == "__main__":
    main()
