"""``metarl export``: writes a plain Stable-Baselines3 zip, which opens where metarl is not installed, and a sidecar."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import gymnasium as gym

from metarl.agents.stock.learner import ALGORITHMS
from metarl.envs.views.single import SingleEnv
from metarl.errors import ConfigError, shorten, unknown_name
from metarl.meta.base import MetaAlgorithm
from metarl.meta.export.sb3 import export_files, export_sb3, sb3_files
from metarl.meta.export.settings import choose
from metarl.zoo.algorithms import load_model
from metarl.zoo.console import say
from metarl.zoo.runs.folder import file_name
from metarl.zoo.runs.outputs import Outputs
from metarl.zoo.runs.sources import Source, find_sources


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    kind = None if args.to is None else args.to.lower()
    if kind is not None and kind not in ALGORITHMS:
        raise unknown_name("export format", args.to, ALGORITHMS)
    (source,) = find_sources(args)
    model = load_model(source.path, args.num_threads, args.env_kwargs)
    kind = choose(model, kind, args.optimizer, 1).kind
    path = _output(args, source, model, kind)
    within = None if args.output is not None or source.run is None else source.run.folder
    # Looked at before the value network is fitted, which takes a while.
    Outputs(list(export_files(path)), args.overwrite, within).require_possible()
    env = task_env(model, args.task)
    say(f"Collecting on training tasks for {kind}'s value network")
    exported = export_sb3(model, kind, optimizer=args.optimizer)
    contents = sb3_files(exported, path, env)
    path, *others = Outputs(list(contents), args.overwrite, within).write(list(contents.values()))
    cls = ALGORITHMS[kind]
    package = cls.__module__.partition(".")[0]
    say(f"Saved {path}: {model.name} on {model.family.id}, {model.num_timesteps:,} env steps, from {source.path}")
    say(f"  {others[0].name} beside it says what it was exported from")
    say(f"  from {package} import {cls.__name__}")
    if exported.settings.normalize is not None:
        say("  from stable_baselines3.common.vec_env import VecNormalize")
        say(f'  env = VecNormalize.load("{others[-1]}", env)')
    say(f'  model = {cls.__name__}.load("{path}", env=env)')
    return 0


def task_env(model: MetaAlgorithm, task: dict[str, Any]) -> gym.Env[Any, Any] | None:
    """Return the environment of one task, None where no task is given.

    :raises TaskError: an unknown or missing task parameter, or a value outside the task space.
    """
    if not task:
        return None

    return SingleEnv(model.family.acts_in, **task)


def _output(args: argparse.Namespace, source: Source, model: MetaAlgorithm, kind: str) -> Path:
    if args.output is not None:
        path = Path(args.output)
        if not path.name:
            raise ConfigError(f"cannot write the export as {shorten(args.output)}: use a name in .zip")
        if path.is_dir():  # whose name with .zip behind it would be a file beside the folder
            raise ConfigError(f"{shorten(args.output, quote=False)} is a folder: use a name in .zip")
        return path
    if source.run is not None:
        return source.run.folder / "export" / f"{file_name(source.run.env_id)}.zip"
    return Path(f"{model.name}_{file_name(model.family.id)}_{kind}.zip")
