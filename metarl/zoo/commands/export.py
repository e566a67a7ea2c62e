"""``metarl export``: writes a plain Stable-Baselines3 zip, which opens where metarl is not installed, and a sidecar."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import gymnasium as gym

from metarl.envs.family import score_of
from metarl.envs.imitation.network import EXPERT, Card
from metarl.envs.registry import make_family
from metarl.envs.score import fixed
from metarl.envs.tasks import one_task
from metarl.envs.views.rules import as_batch
from metarl.envs.views.single import SingleEnv
from metarl.errors import ConfigError, shorten, unknown_name
from metarl.meta.base import MetaAlgorithm
from metarl.meta.export.expert import expert_from_model, expert_from_sb3
from metarl.meta.export.sb3 import export_files, export_sb3, sb3_files
from metarl.meta.export.settings import EXPORTED, FINETUNED, choose, fits_value
from metarl.meta.export.start import reach_of
from metarl.params import take
from metarl.zoo.algorithms import load_model
from metarl.zoo.console import say, show_commands
from metarl.zoo.runs.folder import command_line, file_name
from metarl.zoo.runs.outputs import Outputs
from metarl.zoo.runs.sources import Source, find_sources, next_commands, typed_again


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    kind = None if args.to is None else args.to.lower()
    if kind is not None and kind not in (*EXPORTED, EXPERT):
        raise unknown_name("export format", args.to, [*EXPORTED, EXPERT])
    if kind == EXPERT and args.trained_agent and args.trained_agent[0].endswith(".zip"):
        return _write_expert_of_sb3(args)
    (source,) = find_sources(args)
    if kind == EXPERT:
        return _write_expert(args, source)
    model = load_model(source.path, args.num_threads, args.env_kwargs)
    kind = choose(model, kind, args.optimizer, 1).kind
    env = task_env(model, args.task)
    adapted = _adapted(model, args)
    path = _output(args, source, model, kind)
    within = None if args.output is not None or source.run is None else source.run.folder
    # Looked at before the value network is fitted, which takes a while.
    Outputs(list(export_files(path)), args.overwrite, within).require_possible()
    if fits_value(model):
        say(f"Collecting on training tasks for {kind}'s value network")
    exported = export_sb3(model, kind, optimizer=args.optimizer, **adapted)
    if adapted:
        words = model.family.describe(one_task(as_batch(model.family, args.task), 0))
        adaptation = {"task": words, "n_inner_steps": args.n_inner_steps, "episodes": args.episodes}
        source_of = {**exported.document["source"], "adapted": adaptation}
        exported = replace(exported, document={**exported.document, "source": source_of})
    contents = sb3_files(exported, path, env)
    path, *others = Outputs(list(contents), args.overwrite, within).write(list(contents.values()))
    cls = EXPORTED[kind]
    package = cls.__module__.partition(".")[0]
    trained = score_of(model.family).amount(model.num_timesteps)
    say(f"Saved {path}: {model.name} on {model.family.id}, {trained}, from {source.path}")
    if adapted:
        say(f"  it acts as adaptation to {words} ends, {args.n_inner_steps} inner step{'s' * (args.n_inner_steps > 1)}")
    say(f"  {others[0].name} beside it says what it was exported from")
    say(f"  from {package} import {cls.__name__}")
    if exported.settings.normalize is not None:
        say("  from stable_baselines3.common.vec_env import VecNormalize")
        say(f'  env = VecNormalize.load("{others[-1]}", env)')
    say(f'  model = {cls.__name__}.load("{path}", env=env)')
    where = typed_again(args, [source])
    commands = {}
    if kind in FINETUNED:
        commands[command_line(["finetune", *where, "--to", kind])] = "the export against from scratch"
    show_commands({**commands, **next_commands(model, where, ["evaluate", "record"])})
    return 0


def _write_expert(args: argparse.Namespace, source: Source) -> int:
    """Write the policy of a run that observes the task as an expert."""
    model = load_model(source.path, args.num_threads, args.env_kwargs)
    own = None if source.run is None else source.run.folder
    folder = Path() if own is None else own / "export"
    path = Path(args.output or folder / f"{model.family.id}_expert.safetensors")
    within = None if args.output is not None else own
    return _written(args, path, within, str(source.path), lambda file: expert_from_model(model, file))


def _write_expert_of_sb3(args: argparse.Namespace) -> int:
    """Write the actor of a stock model's zip as an expert of ``--env``."""
    (zip_file,) = args.trained_agent
    if args.env is None:
        raise ConfigError(f"{shorten(zip_file, quote=False)} does not say what it learnt on: give --env")
    family = make_family(args.env, **args.env_kwargs)
    path = Path(args.output or f"{family.id}_expert.safetensors")
    kwargs = dict(args.env_kwargs)
    return _written(args, path, None, zip_file, lambda file: expert_from_sb3(zip_file, family, file, env_kwargs=kwargs))


def _written(
    args: argparse.Namespace, path: Path, within: Path | None, source: str, write: Callable[[Path], Card]
) -> int:
    """Write an expert where it may be, and say what it is."""
    outputs = Outputs([path], args.overwrite, within)
    outputs.require_possible()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "expert.safetensors"
        card = write(file)
        (path,) = outputs.write([file.read_bytes()])
    mean, low, high = (fixed(value) for value in (fmean(card.returns), min(card.returns), max(card.returns)))
    say(f"Saved {path}: an expert of {card.env}, from {source}")
    say(f"  its return in {len(card.returns)} {card.split} tasks: {mean} on average, {low} to {high}")
    say(f"  families of imitation take it: --env-kwargs expert:{path}")
    return 0


def task_env(model: MetaAlgorithm, task: dict[str, Any]) -> gym.Env[Any, Any] | None:
    """Return the environment of one task, None where no task is given.

    :raises TaskError: an unknown or missing task parameter, or a value outside the task space.
    """
    if not task:
        return None

    return SingleEnv(model.family.acts_in, **task)


def _adapted(model: MetaAlgorithm, args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of an export that starts at what adaptation to the task comes to; none where none is asked.

    :raises ConfigError: no task is given, or what adapts is none of the tensors.
    """
    if args.n_inner_steps == 0:
        if args.episodes is not None:
            raise ConfigError("--episodes is how much each inner step collects: give --n-inner-steps as well")
        return {}
    if not args.task:
        example = " ".join(f"{name}:…" for name in model.family.task_space.spaces)
        raise ConfigError(f"--n-inner-steps adapts to one task: give --task {example}")
    reach = reach_of(model, args.n_inner_steps, args.episodes)
    assert reach is not None
    return {"params": take(reach(as_batch(model.family, args.task)), 0), "value_actors": reach}


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
