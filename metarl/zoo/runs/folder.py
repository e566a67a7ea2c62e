"""Run folders: ``logs/<algo>/<Env-v0>_<k>/`` and what lies in them.

::

    <Env-v0>.safetensors      the final model             best_model.safetensors   best of the evaluations
    checkpoint.safetensors    the state to go on from     progress.csv, events…    what the logger wrote
    evaluations.npz           timesteps, results, ep_lengths: SB3's keys, after as many inner steps as in training
    meta_evaluations.npz      timesteps, pre[n, task], post[n, step, task], task_<parameter>[task]
    <Env-v0>/config.yml       hyperparameters             <Env-v0>/args.yml        flags, commits, the format's version
    <Env-v0>/command.txt      the command line
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from metarl.errors import CheckpointError, ConfigError, MetaRLError, shorten
from metarl.files.checkpoint import save_checkpoint
from metarl.files.schema import LARGEST, Range, convert
from metarl.files.untrusted import MAX_YAML, dump_yaml, read_text
from metarl.files.writing import open_to_write, write_all_atomic
from metarl.meta.base import MetaAlgorithm
from metarl.zoo.config import load_yaml
from metarl.zoo.console import warn

FORMAT = 2
"""Version of the run folder's layout. Since 2 the last line of config.yml and args.yml is ``...``, and a file without
it is refused as cut off: what is left of cut YAML may be whole YAML, with other values. 1 is read as well."""

_Count = Annotated[int, Range(1, LARGEST)]
_Frequency = Annotated[int, Range(-LARGEST, LARGEST)]
FLAGS: dict[str, Any] = {
    "format": Literal[1, 2],
    "algo": str,
    "env": str,
    "log_folder": str,
    "seed": Annotated[int, Range(0, 2**64 - 1)],
    "device": str,
    "log_interval": _Count,
    "gym_packages": list[str],
    "eval_freq": _Frequency,
    "eval_episodes": _Count | None,
    "n_eval_tasks": _Count,
    "save_freq": _Frequency,
    "eval_env_kwargs": dict[str, Any] | None,
    "tensorboard": str | None,
    "tensorboard_mark": str | None,
    "started_from": str | None,
    "commits": list[str | None],
}
"""What args.yml holds, and of which type; a run of another version may lack some and have more."""

TRAINED = Path(__file__).parents[1] / "trained"
"""Initialisations that ship with the package: ``trained/<algo>/<Env-v0>.safetensors``."""


RUN_NAME = re.compile(r".+_\d+(_[0-9a-f-]+)?", re.DOTALL)
"""What a run folder is called unless somebody renames it."""


def file_name(env_id: str) -> str:
    """Return what files and folders of an environment are called: ids of Gymnasium may hold a slash or a colon."""
    return re.sub(r"[/\\:]", "-", env_id)


class Run(NamedTuple):
    """A run folder."""

    folder: Path
    algo: str
    env_id: str
    number: int

    @property
    def final(self) -> Path:
        """The final model."""
        return self.folder / f"{file_name(self.env_id)}.safetensors"

    @property
    def best(self) -> Path:
        """The best model of the run's evaluations."""
        return self.folder / "best_model.safetensors"

    @property
    def checkpoint(self) -> Path:
        """The full state after the last saved meta-iteration."""
        return self.folder / "checkpoint.safetensors"

    @property
    def records(self) -> Path:
        """The folder of config.yml, args.yml and command.txt."""
        return self.folder / file_name(self.env_id)

    def config(self) -> dict[str, Any]:
        """Return the run's hyperparameters."""
        return _read_mapping(self.records / "config.yml", cut_shows=self.args()["format"] != 1)

    def args(self) -> dict[str, Any]:
        """Return the flags that the run was started with."""
        return _read_args(self.records / "args.yml")

    def commands(self) -> list[str]:
        """Return the command that the run was started with, and those that it went on with."""
        return _read_record(self.records / "command.txt").splitlines()

    def require_own_files(self) -> None:
        """Raise :class:`CheckpointError` if a file that a run goes on with is a link, a folder or a device.

        Whoever goes on with a run writes into its folder and nowhere else, whoever made that folder.
        """
        if self.records.is_symlink():
            raise CheckpointError(
                f"{self.records} is a link: a run goes on in files of its own, put the folder itself there"
            )
        names = ("progress.csv", "evaluations.npz", "meta_evaluations.npz")
        files = [self.final, self.best, self.checkpoint, *(self.folder / name for name in names)]
        files += [self.records / name for name in ("args.yml", "config.yml", "command.txt")]
        for path in (*files, *sorted(self.folder.glob("events.out.tfevents.*"))):
            if path.is_symlink():
                raise CheckpointError(f"{path} is a link: a run goes on in files of its own, put the file itself there")
            if path.exists() and not path.is_file():
                raise CheckpointError(f"{path} is a folder or a device: it should be a file of the run's")

    def save(self, path: Path, model: MetaAlgorithm) -> None:
        """Save a model as one of the run's files."""
        save_checkpoint(path, *model.state(), self.folder)


class FolderGoneError(CheckpointError):
    """A run folder is not where it was when training began."""


def create_run(log_folder: str | Path, algo: str, env_id: str, suffix: str = "") -> Run:
    """Make the next run folder; making the directory is what claims the number, so two processes never share one.

    :param suffix: added to the folder's name after the number (``_<uuid>``).
    """
    parent = Path(log_folder) / algo
    parent.mkdir(parents=True, exist_ok=True)
    number = 1 + max((run_number(path.name, env_id) or 0 for path in parent.iterdir()), default=0)
    while True:
        folder = parent / f"{file_name(env_id)}_{number}{suffix}"
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
            continue
        return Run(folder, algo, env_id, number)


class Held:
    """A run folder that this process trains.

    :param run: the run.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._identity = os.stat(run.folder)

    def require_in_place(self) -> None:
        """Raise :class:`FolderGoneError` if the folder is not where it was."""
        if not self._is(self.run.folder):
            raise FolderGoneError(f"{self.run.folder} was removed or renamed while it was trained")

    def new_place(self) -> Path | None:
        """Return where the folder lies now, if it was renamed and not moved away; else None."""
        try:
            return next(filter(self._is, self.run.folder.absolute().parent.iterdir()), None)
        except OSError:
            return None

    def _is(self, path: Path) -> bool:
        try:
            return os.path.samestat(os.stat(path), self._identity)
        except OSError:
            return False


@contextmanager
def locked(run: Run) -> Iterator[Held]:
    """Keep other processes from training the same run. The lock goes with the process, however that ends.

    :raises CheckpointError: another process is training it, or nothing can be written there.
    """
    try:
        import fcntl
    except ImportError:  # no such locks here
        yield Held(run)
        return
    path = run.folder / ".lock"
    try:
        # Neither emptied nor followed: in a stranger's run folder it may be a link to any file, or a pipe.
        descriptor = open_to_write(path, os.O_CREAT)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(f"another process is training {run.folder}") from None
        yield Held(run)
    finally:
        os.close(descriptor)


def run_number(name: str, env_id: str) -> int | None:
    """Return ``k`` of a folder called ``<env_id>_<k>`` or ``<env_id>_<k>_<uuid>``, None for any other name."""
    match = re.fullmatch(re.escape(file_name(env_id)) + r"_(\d+)(_[0-9a-f-]+)?", name)
    return int(match[1]) if match else None


def records(
    run: Run, config: Mapping[str, Any], args: Mapping[str, Any], argv: list[str], history: Sequence[str] = ()
) -> dict[Path, bytes]:
    """Return what config.yml, args.yml and command.txt are to hold.

    :param config: every hyperparameter, ``n_timesteps`` included.
    :param args: the flags.
    :param argv: the words of the command, without the program's name.
    :param history: the commands before, where a run goes on.
    """
    header = {"format": FORMAT, "algo": run.algo, "env": run.env_id}
    texts = {
        "config.yml": dump_yaml(dict(config)),
        "args.yml": dump_yaml({**args, **header}),
        "command.txt": "\n".join([*history, command_line(argv)]) + "\n",
    }
    return {run.records / name: text.encode() for name, text in texts.items()}


def write_records(run: Run, config: Mapping[str, Any], args: Mapping[str, Any], argv: list[str]) -> None:
    """Write config.yml, args.yml and command.txt of a new run; parameters as of :func:`records`."""
    write_all_atomic(records(run, config, args, argv), [run.folder])


def command_line(argv: list[str]) -> str:
    """Return a command that can be pasted into a shell."""
    return "python -m metarl.zoo " + shlex.join(argv)


def open_run(folder: str | Path) -> Run:
    """Read a run folder's header.

    :raises CheckpointError: it is missing, no run folder, truncated, or from another version.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):
        raise CheckpointError(f"there is no run folder {shorten(folder, quote=False)}")
    # Editors, notebooks and file managers keep copies in hidden folders.
    found = [path for path in sorted(folder.glob("*/args.yml")) if not path.parent.name.startswith(".")]
    if not found:
        raise CheckpointError(f"{folder} is not a run folder: it has no <env>/args.yml{_why_not_whole(folder)}")
    if len(found) > 1:
        names = shorten(" and ".join(str(path) for path in found), quote=False)
        raise CheckpointError(f"{folder} has more than one <env>/args.yml: keep one of {names}")
    args = _read_args(found[0])
    algo, env_id = args.get("algo"), args.get("env")
    if not (isinstance(algo, str) and isinstance(env_id, str) and file_name(env_id) == found[0].parent.name):
        raise CheckpointError(f"{found[0]} is damaged: algo={shorten(algo)}, env={shorten(args.get('env'))}")
    return Run(folder, algo, env_id, run_number(folder.name, env_id) or 0)


def _why_not_whole(folder: Path) -> str:
    """Return why a folder that is named as a run's has no records, for a message; empty for any other folder."""
    if RUN_NAME.fullmatch(folder.name) is None or any(folder.glob("*.safetensors")):
        return ""
    return " (a run that was stopped in its first moment leaves such a folder: start a new one)"


def find_run(log_folder: str | Path, algo: str, env_id: str, exp_id: int = 0) -> Run | None:
    """Return the run with a number, or the latest one for 0; None if there is no run at all.

    The latest run is the latest one that can be read and has saved something. Later ones are left out with a warning.

    :raises CheckpointError: that number does not exist, or no run can be read.
    """
    parent = Path(log_folder) / algo
    numbers: dict[int, Path] = {}
    for path in sorted(parent.iterdir()) if parent.is_dir() else ():
        number = run_number(path.name, env_id)
        if number is not None and path.is_dir():
            numbers[number] = path
    if exp_id < 0:
        raise ConfigError(f"--exp-id {exp_id} is not the number of a run: 0 is the latest")
    if exp_id and exp_id not in numbers:
        known = ", ".join(map(str, sorted(numbers))) or "none"
        raise CheckpointError(
            f"there is no run {parent / f'{file_name(env_id)}_{exp_id}'}: numbers of {env_id}: {known}"
        )
    if exp_id:
        return open_run(numbers[exp_id])
    failed: CheckpointError | None = None
    latest: Run | None = None
    for _, path in sorted(numbers.items(), reverse=True):
        try:
            run = open_run(path)
            latest = latest or run
            saved_model(run)
        except CheckpointError as error:
            failed = failed or error
            continue
        if failed is not None:
            warn(f"{failed}: {run.folder} is taken, the latest run that is whole")
        return run
    if latest is None and failed is not None:
        raise failed
    return latest


def list_runs(log_folder: str | Path) -> Iterator[Run]:
    """Yield the readable runs of a log folder."""
    for path in run_folders(log_folder):
        try:
            yield open_run(path)
        except MetaRLError:
            continue


def run_folders(log_folder: str | Path) -> Iterator[Path]:
    """Yield the folders of a log folder that are a run's, or are named as one."""
    for path in sorted(Path(log_folder).glob("*/*")):
        if path.is_dir() and (RUN_NAME.fullmatch(path.name) or any(path.glob("*/args.yml"))):
            yield path


def saved_model(run: Run, best: bool = False, checkpoint: bool = False) -> Path:
    """Return the file to load from a run: its final model, or its last checkpoint where it has not ended.

    :param best: the best model instead.
    :param checkpoint: the last checkpoint instead.
    :raises CheckpointError: there is no such file.
    """
    if best:
        options = [run.best]
    elif checkpoint:
        options = [run.checkpoint]
    else:
        options = [run.final, run.checkpoint]
    for path in options:
        if path.is_file():
            return path
    raise CheckpointError(f"{run.folder} has no {options[-1].name}: the run stopped before it was written")


def shipped_model(algo: str, env_id: str) -> Path | None:
    """Return the trained initialisation that ships with the package, None if there is none."""
    return _shipped(algo, f"{file_name(env_id)}.safetensors")


def shipped_record(algo: str, env_id: str) -> Path | None:
    """Return the recorded evaluation of the full run that ships with the package, None if there is none."""
    return _shipped(algo, f"{file_name(env_id)}.json")


def _shipped(algo: str, name: str) -> Path | None:
    path = TRAINED / algo / name
    return path if path.is_file() else None


def _read_args(path: Path) -> dict[str, Any]:
    args = _read_mapping(path)
    if args.get("format") != 1:
        args = _read_mapping(path, cut_shows=True)
        if args.get("format") != FORMAT:
            raise CheckpointError(f"{path} has format {shorten(args.get('format'))}: this version reads 1 and {FORMAT}")
    try:
        return {name: convert(name, value, FLAGS.get(name, Any)) for name, value in args.items()}
    except ConfigError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None


def _read_record(path: Path) -> str:
    if not path.exists():
        raise CheckpointError(f"{path} is missing: the run folder is not whole")
    return read_text(path, MAX_YAML)


def _read_mapping(path: Path, cut_shows: bool = False) -> dict[str, Any]:
    """Read a mapping.

    :param cut_shows: whether its last line must be ``...``.
    """
    text = _read_record(path)
    try:
        value = load_yaml(text, str(path))
    except ConfigError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise CheckpointError(f"{path} is damaged: it holds no mapping of names")
    if cut_shows and not text.endswith("\n...\n"):
        raise CheckpointError(f"{path} is damaged: its end is cut off")
    return value
