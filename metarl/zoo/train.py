"""``metarl train``: a new run, or going on exactly where one stopped."""

from __future__ import annotations

import argparse
import secrets
import shlex
import shutil
import sys
import uuid
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metarl.errors import CheckpointError, ConfigError, DivergedError, NonFiniteError, UnknownNameError, shorten
from metarl.zoo.runs import Run, command_line, create_run, locked, open_run, write_records

if TYPE_CHECKING:
    from metarl.meta.base import MetaAlgorithm

MAY_CHANGE = frozenset(
    {"trained_agent", "n_timesteps", "num_threads", "verbose", "progress", "save_freq", "log_folder", "gym_packages"}
    | {"tensorboard_log"}
)
"""Flags that may be typed when a run goes on: none of them changes a number that the run computes; where events go is
looked at by :func:`~metarl.zoo.event_folders.events_of`."""

RECORDED: dict[str, Any] = {
    "log_folder": str,
    "seed": int,
    "device": str,
    "log_interval": int,
    "eval_freq": int,
    "eval_episodes": int | None,
    "n_eval_tasks": int,
    "save_freq": int,
}
"""Flags that args.yml keeps as they are, and their types."""

COUNTS = ("log_interval", "eval_episodes", "n_eval_tasks")
"""Those of them that are positive."""

HPARAM_METRICS = ("eval/mean_reward", "eval/adapt_gain", "meta/post_adapt_rew")
"""Scalars that TensorBoard's HParams page shows beside the hyperparameters."""


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    if args.device not in ("auto", "cpu"):
        raise ConfigError(f"--device {args.device} is not available: use auto or cpu")
    source = None if args.trained_agent is None else Path(args.trained_agent)
    if source is not None and source.is_dir():
        return _go_on(args, source)
    if source is not None and not source.is_file():
        raise CheckpointError(f"there is no run folder or file {source}")
    return _start(args, source)


def _start(args: argparse.Namespace, source: Path | None) -> int:
    from metarl.zoo.algorithms import algorithm, check_env, copy_parameters, load_model, twin
    from metarl.zoo.circumstances import commit
    from metarl.zoo.config import check_hyperparameters, load_hyperparameters, merge, merge_env_kwargs
    from metarl.zoo.event_folders import Events, claim

    origin = None if source is None else load_model(source)
    algo = args.algo or (origin.name if origin else "fomaml")
    env_id = args.env or (origin.family.id if origin else "PointMass-v0")
    cls = algorithm(algo)
    check_env(env_id)
    if {"n_episodes", "n_transitions"} <= args.hyperparams.keys():
        raise ConfigError("n_episodes and n_transitions both say how large a batch is: give one of them")
    config = merge(load_hyperparameters(algo, env_id, args.conf_file), args.hyperparams)
    if args.n_timesteps is not None:
        config["n_timesteps"] = args.n_timesteps
    config = check_hyperparameters(merge_env_kwargs(config, args.env_kwargs), cls)
    args.seed = secrets.randbelow(2**31) if args.seed < 0 else args.seed
    # Built before the run folder, so that a value out of range leaves nothing behind.
    model = cls(
        env=env_id,
        seed=args.seed,
        n_threads=threads(args),
        **{key: value for key, value in config.items() if key != "n_timesteps"},
    )
    if origin is not None:
        copy_parameters(origin, model, str(source))
    total = int(config["n_timesteps"])
    if args.eval_freq is None:
        # An evaluation collects about twice as much as a meta-iteration.
        args.eval_freq = max(total // 10, 10 * model.steps_per_iteration)
    suffix = f"_{uuid.uuid4()}" if args.uuid else ""
    if args.eval_env_kwargs:
        twin(model, args.eval_env_kwargs, threads(args))
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
        model.save(folder.checkpoint)
    except BaseException:
        # Without a checkpoint there is nothing to go on from.
        for place in (folder.folder, events.folder):
            if place is not None:
                shutil.rmtree(place, ignore_errors=True)
        raise
    with locked(folder):
        return _train(args, folder, model, total, recorded, fresh=True)


def _go_on(args: argparse.Namespace, source: Path) -> int:
    from metarl.zoo.circumstances import commit
    from metarl.zoo.console import format_steps, say, warn
    from metarl.zoo.event_folders import events_of, settle

    folder = open_run(source)
    with locked(folder):
        config, recorded = _read_records(folder)
        _refuse_conflicts(args, folder, config, recorded)
        history = folder.commands()
        events = events_of(folder, recorded["tensorboard"], recorded["tensorboard_mark"], args.tensorboard_log)
        if not folder.checkpoint.is_file():
            raise CheckpointError(f"{folder.folder} has no checkpoint.safetensors: start a new run")
        _check_evaluations(folder, recorded["n_eval_tasks"])
        model = _load_checkpoint(folder, recorded, threads(args))
        total = int(args.n_timesteps or config["n_timesteps"])
        if model.num_timesteps >= total and folder.final.is_file():
            done = f"{format_steps(model.num_timesteps)} of {format_steps(total)} env steps done"
            say(f"{folder.folder} is finished: {done}; -n above {format_steps(model.num_timesteps)} goes on")
            return 0
        if "save_freq" in args.given:
            recorded["save_freq"] = args.save_freq
        if events.earlier is not None:
            warn(
                f"TensorBoard's events of {folder.folder} go on in it: nothing says that {events.earlier} belongs to "
                "this run and not to another one"
            )
        settle(folder, events)
        # The checkpoint holds all that the final model of a shorter run held.
        folder.final.unlink(missing_ok=True)
        commits = recorded["commits"]
        recorded |= {"commits": [*commits, *({commit()} - set(commits[-1:]))], **events.recorded()}
        write_records(folder, {**config, "n_timesteps": total}, recorded, args.argv, history)
        return _train(args, folder, model, total, recorded, fresh=False)


def _read_records(folder: Run) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the hyperparameters and the flags of a run.

    :raises CheckpointError: one is missing, or has a wrong type.
    """
    from metarl.meta.outer import require_range
    from metarl.schema import convert
    from metarl.zoo.algorithms import algorithm
    from metarl.zoo.config import check_hyperparameters

    config, recorded = folder.config(), {"commits": [], "tensorboard_mark": None, **folder.args()}
    types = {**RECORDED, "eval_env_kwargs": dict[str, Any], "commits": list[str | None]}
    types |= {"tensorboard": str | None, "tensorboard_mark": str | None}
    path = folder.records / "args.yml"
    try:
        cls = algorithm(folder.algo)
        for name, hint in types.items():
            if name not in recorded:
                raise ConfigError(f"{name} is missing")
            recorded[name] = convert(name, recorded[name], hint)
            if name in COUNTS and recorded[name] is not None:
                require_range(name, recorded[name], 1, integer=True)
        path = folder.records / "config.yml"
        return check_hyperparameters(config, cls), recorded
    except (ConfigError, UnknownNameError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None


def _check_evaluations(folder: Run, n_tasks: int) -> None:
    """Raise :class:`CheckpointError` unless further evaluations fit those that a run has.

    :param n_tasks: tasks in an evaluation.
    """
    from metarl.checkpoint import read_npz
    from metarl.zoo.callbacks import META, RESULTS

    for file, names in (("evaluations.npz", RESULTS), ("meta_evaluations.npz", META)):
        path = folder.folder / file
        if not path.is_file():
            continue
        arrays = read_npz(path)
        for name in names:
            if name not in arrays:
                raise CheckpointError(f"{path} is damaged: {name} is missing")
        n = arrays["timesteps"].size
        n_steps = arrays["post"].shape[1] if "post" in arrays and arrays["post"].ndim == 3 else 0
        shapes = {"timesteps": (n,), "post": (n, n_steps, n_tasks), "env_steps": (n, n_steps + 1)}
        for name in names:
            shape, kind = shapes.get(name, (n, n_tasks)), arrays[name].dtype.kind
            if arrays[name].shape != shape or kind not in "iuf":
                raise CheckpointError(
                    f"{path} is damaged: {name} is {arrays[name].dtype} {list(arrays[name].shape)}, not numbers "
                    f"{list(shape)}"
                )


def _load_checkpoint(folder: Run, recorded: Mapping[str, Any], n_threads: int | None) -> MetaAlgorithm:
    """Return the model that a run goes on with.

    :raises CheckpointError: it is another one than args.yml says.
    """
    from metarl.zoo.algorithms import load_model

    model = load_model(folder.checkpoint, n_threads)
    for name, value in (("algo", model.name), ("env", model.family.id), ("seed", model.seed)):
        if recorded[name] != value:
            raise CheckpointError(
                f"{folder.records / 'args.yml'} is damaged: {name} is {shorten(recorded[name])}, and "
                f"{shorten(value)} in {folder.checkpoint.name}"
            )
    return model


def _refuse_conflicts(
    args: argparse.Namespace, folder: Run, config: Mapping[str, Any], recorded: Mapping[str, Any]
) -> None:
    """Refuse flags that contradict what the run was started with."""
    from metarl.zoo.config import lookup, merge

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


def _train(
    args: argparse.Namespace, folder: Run, model: MetaAlgorithm, total: int, recorded: Mapping[str, Any], fresh: bool
) -> int:
    from metarl.logging import log_hyperparameters, make_logger
    from metarl.zoo.algorithms import twin
    from metarl.zoo.callbacks import Evaluation, RunCallback
    from metarl.zoo.console import Reporter, format_steps, is_terminal, say
    from metarl.zoo.interrupts import Interrupts

    if args.verbose > 0:
        say(
            f"{'Run' if fresh else 'Going on with'} {folder.folder}: {folder.algo} on {folder.env_id}, "
            f"{format_steps(total)} env steps, seed {recorded['seed']}"
        )
    bar = args.progress if args.progress is not None else (is_terminal() and args.verbose == 1)
    evaluation = None
    if recorded["eval_freq"] > 0:
        evaluation = Evaluation(
            folder,
            recorded["eval_freq"],
            recorded["n_eval_tasks"],
            recorded["eval_episodes"],
            twin(model, recorded["eval_env_kwargs"], threads(args)) if recorded["eval_env_kwargs"] else None,
        )
        evaluation.cut(model.num_timesteps)
    if not fresh:
        _warn_of_lost_points(folder, model.n_iterations // recorded["log_interval"])
    formats = ["csv", "tensorboard", *(["stdout"] if args.verbose > 1 else [])]
    logger = make_logger(folder.folder, formats, recorded["tensorboard"], None if fresh else model.num_timesteps)
    reporter = Reporter(total, model.num_timesteps, bar=bar, lines=args.verbose > 0)
    logger.output_formats.append(reporter.writer)
    model.set_logger(logger)
    log_hyperparameters(logger, {"algo": folder.algo, "env": folder.env_id, **model.arguments()}, HPARAM_METRICS)
    try:
        with reporter, Interrupts(reporter.note) as interrupts:
            callback = RunCallback(folder, reporter, interrupts, total, recorded["save_freq"], evaluation)
            if model.num_timesteps < total:
                model.learn(
                    total - model.num_timesteps,
                    callback,
                    log_interval=recorded["log_interval"],
                    reset_num_timesteps=False,
                )
    except KeyboardInterrupt:
        return _stopped(args, folder)
    except NonFiniteError as error:
        raise NonFiniteError(f"{error}; the last good checkpoint is whole: {folder.checkpoint}") from error
    finally:
        logger.close()
    if interrupts.requested and model.num_timesteps < total:
        return _stopped(args, folder)
    model.save(folder.final)
    if args.verbose > 0:
        _summary(args, folder, model, recorded)
    return 0


def _warn_of_lost_points(folder: Run, expected: int) -> None:
    """Say if the log has fewer meta-iterations than the checkpoint has done.

    :param expected: how many were logged.
    """
    from metarl.zoo.console import warn
    from metarl.zoo.plot import read_curve

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
    from metarl.zoo.__main__ import INTERRUPTED

    print(f"metarl: stopped; go on with: {command_line(['train', *_this_run(args, folder)])}", file=sys.stderr)
    return INTERRUPTED


def _summary(args: argparse.Namespace, folder: Run, model: MetaAlgorithm, recorded: Mapping[str, Any]) -> None:
    """Show returns on test tasks before and after each inner step, and what to type next."""
    from metarl.zoo.console import CountBars, say, show_commands, warn
    from metarl.zoo.evaluate import full_run, show_reports

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
    commands = {
        command_line(["evaluate", *where]): "evaluate",
        command_line(["export", *where]): "export",
        shlex.join(["tensorboard", "--logdir", recorded["tensorboard"] or str(folder.folder)]): "TensorBoard",
    }
    if model.num_timesteps > 0:  # the random initialisation is never trained
        commands[command_line(["train", *where, "-n", str(2 * model.num_timesteps)])] = "go on"
    show_commands(commands)


def threads(args: argparse.Namespace) -> int | None:
    """Return the number of threads to use, None for all."""
    return None if args.num_threads < 1 else int(args.num_threads)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``python -m metarl.zoo.train``."""
    from metarl.zoo.__main__ import main as run_command

    return run_command(["train", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    raise SystemExit(main())
