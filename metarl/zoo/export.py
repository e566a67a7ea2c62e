"""``metarl export``: a plain Stable-Baselines3 zip that opens where metarl is not installed, and a JSON sidecar."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metarl.errors import UnknownNameError

if TYPE_CHECKING:
    import gymnasium as gym

    from metarl.meta.base import MetaAlgorithm
    from metarl.zoo.sources import Source

KINDS = {"ppo": "stable_baselines3", "a2c": "stable_baselines3", "trpo": "sb3_contrib"}
"""What can be exported, and the package that opens it."""


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from metarl.meta.export import export_sb3, save_sb3
    from metarl.zoo.algorithms import load_model
    from metarl.zoo.console import say
    from metarl.zoo.sources import find_sources

    kind = args.to.lower()
    if kind not in KINDS:
        raise UnknownNameError(f"unknown export format {args.to!r}: known: {', '.join(KINDS)}", args.to, KINDS)
    (source,) = find_sources(args)
    model = load_model(source.path, env_kwargs=args.env_kwargs)
    path = _output(args, source, model, kind)
    env = task_env(model, args.task)
    exported = export_sb3(model, kind, optimizer=args.optimizer)
    save_sb3(exported, path, args.overwrite, env)
    say(f"Saved {path}: {model.name} on {model.family.id}, {model.num_timesteps:,} env steps, from {source.path}")
    say(f"  from {KINDS[kind]} import {kind.upper()}")
    say(f'  model = {kind.upper()}.load("{path}", env=env)')
    return 0


def task_env(model: MetaAlgorithm, task: dict[str, Any]) -> gym.Env[Any, Any] | None:
    """Return the environment of one task, None where no task is given.

    :raises TaskError: an unknown or missing task parameter, or a value outside the task space.
    """
    if not task:
        return None
    from metarl.envs.batch import SingleEnv

    return SingleEnv(model.family, **task)


def _output(args: argparse.Namespace, source: Source, model: MetaAlgorithm, kind: str) -> Path:
    from metarl.zoo.outputs import require_new

    if args.output is not None:
        path = Path(args.output)
    elif source.run is not None:
        path = source.run.folder / "export" / f"{source.run.env_id}.zip"
    else:
        path = Path(f"{model.name}_{model.family.id}_{kind}.zip")
    if path.suffix != ".zip":
        path = path.with_name(path.name + ".zip")
    # Looked at before the value network is fitted, which takes a while.
    require_new([path, path.with_suffix(".json")], args.overwrite)
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``python -m metarl.zoo.export``."""
    from metarl.zoo.__main__ import main as run_command

    return run_command(["export", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    raise SystemExit(main())
