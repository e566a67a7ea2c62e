"""Which models a command means: runs, files, or the initialisations that ship with the package."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from metarl.errors import CheckpointError, ConfigError, MetaRLError, shorten
from metarl.meta.base import MetaAlgorithm
from metarl.meta.export.settings import has_sb3_policy, usual_kind
from metarl.zoo.algorithms import algorithm, check_env
from metarl.zoo.config import DEFAULT_ALGO, DEFAULT_ENV
from metarl.zoo.console import say
from metarl.zoo.runs.folder import Run, command_line, find_run, open_run, saved_model, shipped_model
from metarl.zoo.values import similar


def _is_finetuned(model: MetaAlgorithm) -> bool:
    """Return whether ``finetune`` takes a model without ``--to``."""
    try:
        usual_kind(model)
    except MetaRLError:  # no policy of SB3's, or one that learnt by another algorithm
        return False
    return True


TAKES: dict[str, Callable[[MetaAlgorithm], bool]] = {
    "evaluate": lambda model: True,
    "finetune": _is_finetuned,
    "export": has_sb3_policy,
    "record": lambda model: model.family.acts_in.render_fps is not None,
}
"""Commands that take a model, each with what says whether it takes one, in the order in which they are proposed."""


class Source(NamedTuple):
    """A saved model.

    :param path: the file.
    :param run: the run it belongs to, None for a lone file.
    """

    path: Path
    run: Run | None

    @property
    def name(self) -> str:
        """The run's folder, or the file without its suffix: unique among sources."""
        return str(self.run.folder if self.run is not None else self.path.with_suffix(""))


def find_sources(args: argparse.Namespace) -> list[Source]:
    """Return what ``-i``, or ``--algo --env --exp-id``, names.

    :raises MetaRLError: there is nothing of that name; the message says what there is.
    """
    if args.trained_agent:
        _refuse_names(args)
        return [_named(Path(text), args) for text in args.trained_agent]
    run = wanted_run(args)
    if run is not None:
        return [Source(_model(run, args), run)]
    algo, env_id = wanted(args)
    shipped = shipped_model(algo, env_id)
    if shipped is None:
        raise CheckpointError(f"there is no run of {algo} on {env_id} under {args.log_folder}: train one first")
    _refuse_choice(args, shipped)

    say(f"No run of {algo} on {env_id} under {args.log_folder}: using the initialisation that ships with metarl")
    return [Source(shipped, None)]


def find_runs(args: argparse.Namespace) -> list[Run]:
    """Return the run folders that the arguments name."""
    if args.trained_agent:
        _refuse_names(args)
        for text in args.trained_agent:
            if Path(text).is_file():
                raise CheckpointError(f"{shorten(text, quote=False)} is a file: curves are drawn of run folders")
            if not Path(text).is_dir():
                raise missing(Path(text))
        return [open_run(text) for text in args.trained_agent]
    run = wanted_run(args)
    if run is None:
        algo, env_id = wanted(args)
        raise CheckpointError(f"there is no run of {algo} on {env_id} under {args.log_folder}: train one first")
    return [run]


def wanted_run(args: argparse.Namespace) -> Run | None:
    """Return the run that ``--algo --env --exp-id`` names, None if there is no run of them at all."""
    algo, env_id = wanted(args)
    algorithm(algo)
    run = find_run(args.log_folder, algo, env_id, args.exp_id)
    check_env(env_id, None if run is None else run.folder)
    return run


def wanted(args: argparse.Namespace) -> tuple[str, str]:
    """Return algorithm and environment, defaults filled in."""
    return args.algo or DEFAULT_ALGO, args.env or DEFAULT_ENV


def missing(path: Path) -> CheckpointError:
    """Return the error for a run folder or model that is not there, with the nearest name."""
    hint = similar(path, [".safetensors"])
    return CheckpointError(f"there is no run folder or file {shorten(path, quote=False)}{hint}")


def typed_again(args: argparse.Namespace, sources: Sequence[Source]) -> list[str]:
    """Return the words that name models in a further command as they were named in this one."""
    words = ["-i", *(str(source.path if source.run is None else source.run.folder) for source in sources)]
    for name in ("load_best", "load_checkpoint"):
        if getattr(args, name):
            words.append("--" + name.replace("_", "-"))
    return [*words, *typed_env_kwargs(args), *typed_packages(args)]


def typed_env_kwargs(args: argparse.Namespace) -> list[str]:
    """Return the words that hand the arguments of the family on to a further command."""
    typed = {key: value if isinstance(value, str) else json.dumps(value) for key, value in args.env_kwargs.items()}
    return ["--env-kwargs", *(f"{key}:{text}" for key, text in typed.items())] if typed else []


def typed_packages(args: argparse.Namespace) -> list[str]:
    """Return the words that hand modules on to a further command."""
    return ["--gym-packages", *args.gym_packages] if args.gym_packages else []


def next_commands(model: MetaAlgorithm, where: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Return what can be typed next, with what it does: those of some commands that take the model.

    :param where: the words that name the model.
    :param names: keys of :data:`TAKES`.
    """
    return {command_line([name, *where]): name for name in names if TAKES[name](model)}


def _named(path: Path, args: argparse.Namespace) -> Source:
    if path.is_dir():
        run = open_run(path)
        return Source(_model(run, args), run)
    if not path.is_file():
        raise missing(path)
    _refuse_choice(args, path)
    return Source(path, None)


def _refuse_names(args: argparse.Namespace) -> None:
    """Refuse flags that say again what ``-i`` says already."""
    for name in ("algo", "env", "exp_id"):
        if name in args.given:
            raise ConfigError(f"--{name.replace('_', '-')} cannot be given with -i, which names the models already")


def _refuse_choice(args: argparse.Namespace, file: Path) -> None:
    """Refuse to choose among the models of a run where there is none."""
    for name in ("load_best", "load_checkpoint"):
        if getattr(args, name):
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag} chooses among the models of a run folder: {file} is a single one")


def _model(run: Run, args: argparse.Namespace) -> Path:
    return saved_model(run, best=args.load_best, checkpoint=args.load_checkpoint)
