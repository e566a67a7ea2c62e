"""Training in a run folder, new or gone on with: logs, evaluations, checkpoints, stops, and what is shown at last."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from metarl.envs.family import score_of
from metarl.errors import CheckpointError, DivergedError, MetaRLError, NonFiniteError, UnknownNameError, WorkerError
from metarl.files.checkpoint import save_checkpoint
from metarl.files.logging import flush, log_hyperparameters, make_logger
from metarl.meta.base import MetaAlgorithm
from metarl.startup import INTERRUPTED
from metarl.zoo.algorithms import with_env_kwargs
from metarl.zoo.console import CountBars, Reporter, format_steps, is_terminal, say, show_commands, warn
from metarl.zoo.interrupts import Interrupts
from metarl.zoo.runs.callbacks import Evaluation, RunCallback
from metarl.zoo.runs.curves import read_curve
from metarl.zoo.runs.folder import FolderGoneError, Held, Run, command_line
from metarl.zoo.runs.held_out import full_run, show_reports
from metarl.zoo.runs.sources import next_commands

RECORDED = (
    *("log_folder", "seed", "device", "log_interval", "gym_packages"),
    *("eval_freq", "eval_episodes", "n_eval_tasks", "save_freq"),
)
"""Flags that args.yml keeps as they are."""

FORMATS = ("csv", "tensorboard")
"""What a run's log is written as."""

HPARAM_METRICS = ("eval/mean_reward", "eval/adapt_gain", "meta/post_adapt_rew")
"""Scalars that TensorBoard's HParams page shows beside the hyperparameters."""


def evaluation_of(
    args: argparse.Namespace, folder: Run, model: MetaAlgorithm, recorded: Mapping[str, Any]
) -> Evaluation | None:
    """Return the periodic evaluation of a run, None where it has none."""
    if recorded["eval_freq"] <= 0:
        return None
    return Evaluation(
        folder,
        recorded["eval_freq"],
        recorded["n_eval_tasks"],
        recorded["eval_episodes"],
        with_env_kwargs(model, recorded["eval_env_kwargs"], args.num_threads) if recorded["eval_env_kwargs"] else None,
    )


def train(
    args: argparse.Namespace,
    held: Held,
    model: MetaAlgorithm,
    total: int,
    recorded: Mapping[str, Any],
    evaluation: Evaluation | None,
    fresh: bool,
) -> int:
    """Train a model in its run folder, whose files are cut back to it; returns the exit code.

    :param held: the folder.
    :param total: env steps after which the run ends.
    :param recorded: the flags.
    :param fresh: whether the run is new.
    """
    folder = held.run
    if args.verbose > 0:
        score = score_of(model.family)
        length = score.amount(total) if model.learns else "no training"
        say(
            f"{'Run' if fresh else 'Going on with'} {folder.folder}: {folder.algo} on {folder.env_id}, "
            f"{length}, seed {recorded['seed']}"
        )
        own = model.steps_per_iteration
        if model.learns and 0 < total - model.num_timesteps < own:
            early = "" if model.family.horizon == 1 else " where no episode ends early"
            end = format_steps(model.num_timesteps + own)
            say(f"A meta-iteration takes {score.amount(own)}{early}, so the run ends after {end}")
    bar = args.progress if args.progress is not None else (is_terminal() and args.verbose == 1)
    if not fresh:
        _warn_of_lost_points(folder, model.n_iterations // recorded["log_interval"])
    formats = [*FORMATS, *(["stdout"] if args.verbose > 1 else [])]
    logger = make_logger(folder.folder, formats, recorded["tensorboard"], None if fresh else model.num_timesteps)
    reporter = Reporter(total, model.num_timesteps, bar, args.verbose > 0, score_of(model.family))
    logger.output_formats.append(reporter.writer)
    model.set_logger(logger)
    log_hyperparameters(logger, {"algo": folder.algo, "env": folder.env_id, **model.arguments()}, HPARAM_METRICS)
    # The checkpoint holds all that the final model of a shorter run held.
    folder.final.unlink(missing_ok=True)
    try:
        with _rescuing(held, model), reporter, Interrupts(reporter.note, lambda: reporter.doing) as interrupts:
            callback = RunCallback(held, reporter, interrupts, total, recorded["save_freq"], evaluation)
            if model.num_timesteps < total:
                model.learn(
                    total - model.num_timesteps,
                    callback,
                    log_interval=recorded["log_interval"],
                    reset_num_timesteps=False,
                )
            if model.num_timesteps >= total or not interrupts.requested:
                held.require_in_place()
                folder.save(folder.final, model)
    except KeyboardInterrupt:
        return _stopped(args, folder)
    except NonFiniteError as error:
        raise NonFiniteError(f"{error}; the last good checkpoint is whole: {folder.checkpoint}") from error
    except WorkerError as error:
        flush(logger)
        folder.save(folder.checkpoint, model)
        again = command_line(["train", *_this_run(args, folder)])
        raise WorkerError(f"{error}; what was learnt is saved, go on with: {again}") from error
    finally:
        logger.close()
    if interrupts.requested and model.num_timesteps < total:
        return _stopped(args, folder)
    if args.verbose > 0:
        _summary(args, folder, model, recorded)
        with _rescuing(held, model):
            held.require_in_place()
    return 0


@contextmanager
def _rescuing(held: Held, model: MetaAlgorithm) -> Iterator[None]:
    """Replace an error by what is behind it where the run folder has gone, and keep what was learnt.

    :raises FolderGoneError: the folder has gone; the message says where the model is.
    """
    try:
        yield
    except (MetaRLError, OSError):
        try:
            held.require_in_place()
        except FolderGoneError as gone:
            raise FolderGoneError(f"{gone}: {_rescue(held, model)}") from None
        raise


def _rescue(held: Held, model: MetaAlgorithm) -> str:
    """Save a model beside its run folder, which has gone, unless the folder is there under another name.

    :return: a few words that say where the model is.
    """
    place, folder = held.new_place(), held.run.folder
    if place is not None:
        return f"it is {place} now, go on with: {command_line(['train', '-i', str(place)])}"
    path = folder.with_name(f"{folder.name}_rescued.safetensors")
    try:
        if path.exists():
            raise CheckpointError(f"{path} exists already")
        save_checkpoint(path, *model.state(), folder.parent)
    except MetaRLError as error:
        return f"what was learnt is lost ({error})"
    return f"what was learnt is kept in {path}"


def _warn_of_lost_points(folder: Run, expected: int) -> None:
    """Warn if the log has fewer meta-iterations than the checkpoint has done.

    :param expected: how many were logged.
    """
    try:
        found = len(read_curve(folder, "time/iterations", "time/iterations").y)
    except (CheckpointError, UnknownNameError):
        found = 0
    if found < expected:
        path = folder.folder / "progress.csv"
        warn(f"{path} has {found} of {expected} log entries: the others were cut off or damaged, and stay missing")


def _this_run(args: argparse.Namespace, folder: Run) -> list[str]:
    """Return the words that name a run in a command."""
    return ["-i", str(folder.folder), *(["--gym-packages", *args.gym_packages] if args.gym_packages else [])]


def _stopped(args: argparse.Namespace, folder: Run) -> int:
    print(f"metarl: stopped; go on with: {command_line(['train', *_this_run(args, folder)])}", file=sys.stderr)
    return INTERRUPTED


def _summary(args: argparse.Namespace, folder: Run, model: MetaAlgorithm, recorded: Mapping[str, Any]) -> None:
    """Show returns on test tasks before and after each inner step, and what to type next."""
    amount = {"n_tasks": recorded["n_eval_tasks"], "n_episodes": recorded["eval_episodes"]}
    say(f"Testing on {recorded['n_eval_tasks']} held-out tasks")
    try:
        with CountBars("done", lines=False) as bars:
            report = model.evaluate(split="test", progress=partial(bars.update, model.name), **amount)
    except DivergedError as error:
        warn(f"no returns on test tasks, adaptation diverged: {error}")
    except NonFiniteError as error:
        raise NonFiniteError(
            f"on test tasks, after training: {error}; the trained model is whole: {folder.final}"
        ) from error
    else:
        report.meta["env_kwargs"] = model.env_kwargs
        show_reports([report, *full_run(report)])
    say(f"Saved {folder.final}")
    where = _this_run(args, folder)
    commands = next_commands(model, where, ["evaluate", "export"])
    commands[shlex.join(["tensorboard", "--logdir", recorded["tensorboard"] or str(folder.folder)])] = "TensorBoard"
    if model.num_timesteps > 0:  # the random initialisation is never trained
        commands[command_line(["train", *where, "-n", str(2 * model.num_timesteps)])] = "go on"
    show_commands(commands)
