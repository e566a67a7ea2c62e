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
from PIL import Image

import metarl
from metarl.envs.tasks import Task
from metarl.envs.views.single import SingleEnv
from metarl.errors import ConfigError
from metarl.zoo.experiments.pictures import Row, apart, moments, picture, play

COLOURS = 128
"""Of the file: frames of robots have few, and a palette makes the file a third as large."""


def rows(model: Any, tasks: list[Task], options: argparse.Namespace) -> list[Row]:
    """Return a title and frames for each row: every task before adaptation and after it."""
    found = []
    wanted = moments(model.family.acts_in.horizon, options.frames)
    for number, task in enumerate(tasks):
        words = model.family.describe(task)
        learnt_in = SingleEnv(model.family, **task)
        acted_in = SingleEnv(model.family.acts_in, render_mode="rgb_array", **task)
        for steps in (0, options.n_inner_steps):
            how = {} if options.inner_lr is None else {"inner_lr": options.inner_lr}
            policy = model.adapt(learnt_in, steps, seed=options.seed + number, **(how if steps else {}))
            frames, shown = play(policy, acted_in, wanted, options.seed, options.deterministic)
            further = range(options.seed + 1, options.seed + options.n_episodes)
            returns = [play(policy, acted_in, (), each, options.deterministic)[1] for each in further]
            when = f"after {steps} inner step{'s' * (steps > 1)}" if steps else "before adaptation"
            mean = f"{np.mean([shown, *returns]):.3g} on average of {options.n_episodes} episodes"
            found.append((f"{words}, {when}: return {shown:.3g}, {mean}", frames))
            print(found[-1][0], flush=True)
        acted_in.close()
        learnt_in.close()
    return found


def draw(found: list[Row], path: Path) -> None:
    """Write the rows as one figure, with a palette."""
    buffer = io.BytesIO()
    picture(found).savefig(buffer, format="png")
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
