"""``metarl train -i RUN``: goes on exactly where a run stopped.

Everything is read, checked and laid out before a file is touched: a run that cannot go on stays as it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metarl.envs.family import score_of
from metarl.errors import CheckpointError, ConfigError, MetaRLError, UnknownNameError, UnregisteredError, shorten
from metarl.files.logging import cut_logs
from metarl.files.writing import write_all_atomic
from metarl.meta.base import MetaAlgorithm
from metarl.zoo.algorithms import algorithm, load_model, registering
from metarl.zoo.config import check_hyperparameters, lookup, merge
from metarl.zoo.console import format_steps, say, warn
from metarl.zoo.runs.evaluations import read_meta, read_results
from metarl.zoo.runs.event_folders import events_of, settle
from metarl.zoo.runs.folder import Run, locked, open_run, records
from metarl.zoo.runs.provenance import commit
from metarl.zoo.runs.training import FORMATS, RECORDED, evaluation_of, train

MAY_CHANGE = frozenset(
    {"trained_agent", "n_timesteps", "num_threads", "num_workers", "verbose", "progress", "save_freq", "log_folder"}
    | {"gym_packages", "tensorboard_log"}
)
"""Flags that may be typed when a run goes on: none of them changes a number that the run computes; where events go is
looked at by :func:`~metarl.zoo.runs.event_folders.events_of`."""


def go_on(args: argparse.Namespace, source: Path) -> int:
    """Go on with the run in a folder; returns the exit code."""
    folder = open_run(source)
    folder.require_own_files()
    with locked(folder) as held:
        config, recorded = _read_records(folder)
        _refuse_conflicts(args, folder, config, recorded)
        history = folder.commands()
        events = events_of(folder, recorded["tensorboard"], recorded["tensorboard_mark"], args.tensorboard_log)
        if not folder.checkpoint.is_file():
            raise CheckpointError(f"{folder.folder} has no checkpoint.safetensors: start a new run")
        _check_evaluations(folder, recorded["n_eval_tasks"])
        model = _load_checkpoint(folder, recorded, args.num_threads, args.num_workers)
        _refuse_edits(folder, config, model)
        step, total = model.num_timesteps, int(args.n_timesteps or config["n_timesteps"])
        if step >= total and folder.final.is_file():
            done = f"{format_steps(step)} of {score_of(model.family).amount(total)} done"
            say(f"{folder.folder} is finished: {done}; -n above {format_steps(step)} goes on")
            return 0
        if "save_freq" in args.given:
            recorded["save_freq"] = args.save_freq
        commits = recorded["commits"]
        recorded |= {"commits": [*commits, *({commit()} - set(commits[-1:]))], **events.recorded()}
        evaluation = evaluation_of(args, folder, model, recorded)
        contents = records(folder, {**config, "n_timesteps": total}, recorded, args.argv, history)
        contents |= cut_logs(folder.folder, FORMATS, events.folder or folder.folder, step)
        contents |= settle(folder, events, step)
        contents |= {} if evaluation is None else evaluation.cut(step)
        write_all_atomic(contents, [folder.folder, *filter(None, [events.folder])])
        if warning := events.warning(folder):
            warn(warning)
        return train(args, held, model, total, recorded, evaluation, fresh=False)


def _read_records(folder: Run) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the hyperparameters and the flags of a run.

    :raises CheckpointError: one is missing, or has a wrong type.
    """
    config, recorded = folder.config(), {"commits": [], "gym_packages": [], "tensorboard_mark": None, **folder.args()}
    cls, path = _algorithm(folder), folder.records / "args.yml"
    try:
        for name in (*RECORDED, "eval_env_kwargs", "tensorboard"):
            if name not in recorded:
                raise ConfigError(f"{name} is missing")
        path = folder.records / "config.yml"
        return check_hyperparameters(config, cls), recorded
    except (ConfigError, UnknownNameError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None


def _algorithm(folder: Run) -> type[MetaAlgorithm]:
    """Return the class of the algorithm that a run learns with.

    :raises CheckpointError: nobody registered it.
    """
    try:
        return algorithm(folder.algo)
    except UnregisteredError as error:
        how = registering(folder.folder, "algorithms")
        raise CheckpointError(f"{folder.folder} cannot go on: {error} ({how})") from None


def _check_evaluations(folder: Run, n_tasks: int) -> None:
    """Raise :class:`CheckpointError` unless further evaluations fit those that a run has.

    :param n_tasks: tasks in an evaluation.
    """
    for file, read in (("evaluations.npz", read_results), ("meta_evaluations.npz", read_meta)):
        if (folder.folder / file).exists():
            read(folder.folder / file, n_tasks)


def _load_checkpoint(folder: Run, recorded: Mapping[str, Any], n_threads: int | None, n_workers: int) -> MetaAlgorithm:
    """Return the model that a run goes on with.

    :raises CheckpointError: it is another one than args.yml says.
    """
    model = load_model(folder.checkpoint, n_threads, n_workers=n_workers)
    for name, value in (("algo", model.name), ("env", model.family.id), ("seed", model.seed)):
        if recorded[name] != value:
            raise CheckpointError(
                f"{folder.records / 'args.yml'} is damaged: {name} is {shorten(recorded[name])}, and "
                f"{shorten(value)} in {folder.checkpoint.name}"
            )
    return model


def _refuse_edits(folder: Run, config: Mapping[str, Any], model: MetaAlgorithm) -> None:
    """Refuse hyperparameters that somebody changed in config.yml, since a run goes on with those of its checkpoint.

    Only how long the run is, ``n_timesteps``, is taken from config.yml.

    :raises CheckpointError: one is out of range, or another in the checkpoint.
    """
    path = folder.records / "config.yml"
    arguments = {name: value for name, value in config.items() if name != "n_timesteps"}
    try:
        edited = type(model)(env=model.family.id, seed=model.seed, n_threads=1, **arguments)
    except MetaRLError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None
    says, has = ({**one.arguments(), "policy": one.policy_name} for one in (edited, model))
    for name in arguments:
        if says[name] != has[name]:
            raise CheckpointError(
                f"{path} was changed: {name} is {shorten(says[name])}, and {shorten(has[name])} in "
                f"{folder.checkpoint.name}: a run goes on as it was started"
            )


def _refuse_conflicts(
    args: argparse.Namespace, folder: Run, config: Mapping[str, Any], recorded: Mapping[str, Any]
) -> None:
    """Refuse flags that contradict what the run was started with."""
    known: dict[str, Any] = {**recorded, "algo": folder.algo, "env": folder.env_id}
    for name in sorted(args.given - MAY_CHANGE):
        value, flag = getattr(args, name), "--" + name.replace("_", "-")
        if name in ("hyperparams", "env_kwargs"):
            own = config if name == "hyperparams" else config.get("env_kwargs") or {}
            other = [key for key in value if merge(own, {key: value[key]}) != dict(own)]
            same, has = not other, [lookup(own, key) for key in other]
            flag = " ".join(["-params" if name == "hyperparams" else flag, *other])
        else:
            has = [known[name]] if name in known else []
            same = has == [value]
        if not same:
            was = f" (it has {', '.join(map(repr, has))})" if has else ""
            raise ConfigError(f"{flag} contradicts the run {folder.folder}{was}: a run goes on as it was started")
