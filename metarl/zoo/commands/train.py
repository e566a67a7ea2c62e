"""``metarl train``: starts a new run, or goes on exactly where one stopped."""

from __future__ import annotations

import argparse
import secrets
import shutil
import uuid
from pathlib import Path

from metarl.envs.registry import takes_tasks
from metarl.errors import ConfigError
from metarl.meta.adaptation.learners import merge_arguments
from metarl.zoo.algorithms import algorithm, check_env, copy_parameters, load_model, with_env_kwargs
from metarl.zoo.config import (
    DEFAULT_ALGO,
    DEFAULT_ENV,
    check_hyperparameters,
    load_hyperparameters,
    merge,
    merge_env_kwargs,
)
from metarl.zoo.runs.event_folders import Events, claim
from metarl.zoo.runs.folder import create_run, file_name, locked, write_records
from metarl.zoo.runs.outputs import require_writable
from metarl.zoo.runs.provenance import commit
from metarl.zoo.runs.resume import go_on
from metarl.zoo.runs.sources import missing
from metarl.zoo.runs.training import RECORDED, evaluation_of, train


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    if args.device not in ("auto", "cpu"):
        raise ConfigError(f"--device {args.device} is not available: use auto or cpu")
    if args.task:  # what differs by task is an argument of the family
        args.env_kwargs = {**args.env_kwargs, **{f"tasks.{name}": value for name, value in args.task.items()}}
        args.given = args.given - {"task"} | {"env_kwargs"}
    source = None if args.trained_agent is None else Path(args.trained_agent)
    if source is not None and source.is_dir():
        return go_on(args, source)
    if source is not None and not source.is_file():
        raise missing(source)
    return _start(args, source)


def _start(args: argparse.Namespace, source: Path | None) -> int:
    origin = None if source is None else load_model(source)
    if origin is not None and args.env is None and origin.family.named() is not None:
        # The family's name alone does not say what its tasks are.
        args.env_kwargs = merge({"tasks": origin.env_kwargs["tasks"]}, args.env_kwargs)
    algo = args.algo or (origin.name if origin else DEFAULT_ALGO)
    env_id = args.env or (origin.family.id if origin else DEFAULT_ENV)
    cls = algorithm(algo)
    check_env(env_id)
    if args.task and not takes_tasks(env_id):
        raise ConfigError(
            f"--task says what differs by task in an environment of Gymnasium: {env_id} has tasks already"
        )
    config = merge_arguments(load_hyperparameters(algo, env_id, args.conf_file), args.hyperparams)
    if args.n_timesteps is not None:
        config["n_timesteps"] = args.n_timesteps
    config = check_hyperparameters(merge_env_kwargs(config, args.env_kwargs), cls)
    args.seed = secrets.randbelow(2**31) if args.seed < 0 else args.seed
    # Built before the run folder, so that a value out of range leaves nothing behind.
    model = cls(
        env=env_id,
        seed=args.seed,
        n_threads=args.num_threads,
        n_workers=args.num_workers,
        **{key: value for key, value in config.items() if key != "n_timesteps"},
    )
    if origin is not None:
        copy_parameters(origin, model, str(source))
    for place in filter(None, (args.log_folder, args.tensorboard_log)):
        require_writable(Path(place) / algo / file_name(env_id))
    total = int(config["n_timesteps"])
    if args.eval_freq is None:
        # An evaluation collects about twice as much as a meta-iteration.
        args.eval_freq = max(total // 10, 10 * model.steps_per_iteration)
    suffix = f"_{uuid.uuid4()}" if args.uuid else ""
    if args.eval_env_kwargs:
        with_env_kwargs(model, args.eval_env_kwargs, args.num_threads)
    folder = create_run(args.log_folder, algo, env_id, suffix)
    recorded = {name: getattr(args, name) for name in RECORDED}
    recorded |= {
        "eval_env_kwargs": args.eval_env_kwargs,
        "started_from": None if source is None else str(source),
        "commits": [commit()],
    }
    events = Events()
    try:
        events = claim(folder, args.tensorboard_log)
        recorded |= events.recorded()
        write_records(folder, config, recorded, args.argv)
        # A run that is killed in its first meta-iteration can go on as well.
        folder.save(folder.checkpoint, model)
    except BaseException:
        # Without a checkpoint there is nothing to go on from.
        for place in (folder.folder, events.folder):
            if place is not None:
                shutil.rmtree(place, ignore_errors=True)
        raise
    with locked(folder) as held:
        return train(args, held, model, total, recorded, evaluation_of(args, folder, model, recorded), fresh=True)
