"""``metarl record``: a moving picture of what the policies do that held-out tasks adapted."""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from metarl.envs.family import score_of
from metarl.envs.tasks import Task, one_task
from metarl.envs.views.rules import as_batch
from metarl.envs.views.single import SingleEnv
from metarl.errors import ConfigError, shorten
from metarl.meta.base import MetaAlgorithm
from metarl.meta.evaluating import Evaluates
from metarl.meta.evaluation.points import so_many
from metarl.zoo.algorithms import load_model
from metarl.zoo.console import say, show_commands
from metarl.zoo.experiments.pictures import apart, play
from metarl.zoo.runs.outputs import Outputs, free_name
from metarl.zoo.runs.sources import Source, find_sources, next_commands, typed_again

FORMAT = ".gif"
SHORTEST = 20
"""Env steps in a task where their number is not given, at least: episodes of examples have one."""
COLOURS = 128
"""Of a frame: pictures of robots have few, and need a third of the bytes."""
N_CANDIDATES = 40
"""Tasks of the split that those which differ most are chosen among."""


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    (source,) = find_sources(args)
    outputs = _outputs(args, source)
    model = load_model(source.path, args.num_threads, args.env_kwargs)
    acts_in = model.family.acts_in
    if acts_in.render_fps is None:
        raise ConfigError(f"{acts_in.id} is not drawn")
    n_steps = args.n_timesteps or max(acts_in.horizon, SHORTEST)
    say(f"{source.path}: {model.name} on {model.family.id}, {score_of(model.family).amount(model.num_timesteps)}")
    frames = [frame for task in _tasks(model, args) for frame in _frames(model, task, n_steps, args)]
    # GIFs count hundredths of a second, and browsers slow down what has only one.
    milliseconds = 10 * max(2, round(100 / acts_in.render_fps))
    buffer = io.BytesIO()
    frames[0].save(
        buffer, "GIF", save_all=True, append_images=frames[1:], duration=milliseconds, loop=0, optimize=False
    )
    (path,) = outputs.write([buffer.getvalue()])
    say(f"Saved {path}: {len(frames):,} frames, {len(frames) * milliseconds / 1000:.1f} s")
    show_commands(next_commands(model, typed_again(args, [source]), ["evaluate", "finetune", "export"]))
    return 0


def _tasks(model: MetaAlgorithm, args: argparse.Namespace) -> list[Task]:
    """Return the tasks that are recorded."""
    if not args.task:
        return apart(model.family.tasks(args.split, max(N_CANDIDATES, args.n_eval_tasks)), args.n_eval_tasks)
    for name in ("split", "n_eval_tasks"):
        if name in args.given:
            raise ConfigError(f"--{name.replace('_', '-')} chooses tasks, and --task names one")
    return [one_task(as_batch(model.family, args.task), 0)]


def _frames(model: MetaAlgorithm, task: Task, n_steps: int, args: argparse.Namespace) -> Iterator[Image.Image]:
    """Adapt to a task, and draw ``n_steps`` env steps of episodes there."""
    env = SingleEnv(model.family.acts_in, render_mode="rgb_array", **task)
    policy = model.adapt(SingleEnv(model.family, **task), args.n_inner_steps, n_episodes=args.episodes, seed=args.seed)
    left, returns = n_steps, list[float]()
    while left > 0:
        wanted = range(min(left, env.horizon) + 1)
        found, total = play(policy, env, wanted, args.seed + len(returns), not args.stochastic)
        found = found[: len(wanted)]
        left -= max(len(found) - 1, 1)
        returns.append(total)
        yield from (Image.fromarray(frame.image).quantize(COLOURS) for frame in found)
    env.close()
    mean = sum(returns) / len(returns)
    point = type(model).point if isinstance(model, Evaluates) else "step"
    after = so_many(args.n_inner_steps, "inner step" if point == "step" else point)
    words = f"{model.family.describe(task)}, after {after}: return {mean:.3g}"
    say(f"{words}, a mean of {len(returns)}" if len(returns) > 1 else words)


def _outputs(args: argparse.Namespace, source: Source) -> Outputs:
    """Return where the picture goes, after trying whether it can be written."""
    if args.output is not None:
        path, within = Path(args.output), None
        if path.suffix.lower() != FORMAT:
            raise ConfigError(
                f"cannot write the picture as {shorten(args.output)}: use a name in {FORMAT} (SB3's VecVideoRecorder, "
                "with moviepy, writes .mp4 of FamilyVecEnv)"
            )
    else:
        within = None if source.run is None else source.run.folder
        folder = Path() if within is None else within / "videos"
        path = free_name(folder, "task" if args.task else args.split, (FORMAT,)).with_suffix(FORMAT)
    return Outputs([path], args.overwrite, within).require_possible()
