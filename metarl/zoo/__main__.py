"""Entry point of ``python -m metarl.zoo`` and of the ``metarl`` console script."""

from __future__ import annotations

import errno
import importlib
import io
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn, TextIO

from metarl.errors import ConfigError, MetaRLError, MetaRLWarning, UnregisteredError, shorten
from metarl.startup import INTERRUPTED, interruptible, open_missing_streams
from metarl.zoo.cli import parse

OUT_OF_MEMORY = "out of memory: use a smaller meta_batch_size, n_episodes or --n-eval-tasks"
TOO_LARGE = ("can't allocate memory", "Maximum allowed dimension exceeded", "array is too big")
"""How torch says it, and NumPy of arrays that no memory could hold."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    An expected error becomes one line on stderr and code 2; Ctrl-C becomes code 130. Anything else is a bug and keeps
    its traceback.

    :param argv: the arguments after the program's name; ``sys.argv`` by default.
    """
    prepare_streams()
    try:
        args = parse(list(sys.argv[1:] if argv is None else argv))
        if args is None:
            return 0
        _require_working_folder()
        for name in args.gym_packages:
            import_package(name)
        module = importlib.import_module(f"metarl.zoo.commands.{args.command}")
        return int(module.run(args))
    except MetaRLError as error:
        return _fail(f"{error}{_registering(error)}")
    except OSError as error:
        return _fail(describe_os_error(error))
    except UnicodeEncodeError as error:  # a name that a link or the working folder brought in
        return _fail(f"{shorten(error.object)} is not UTF-8 text")
    except MemoryError as error:
        return _fail(f"{OUT_OF_MEMORY} ({error})")
    except (RuntimeError, ValueError) as error:
        if not any(words in str(error) for words in TOO_LARGE):
            raise
        return _fail(OUT_OF_MEMORY)
    except KeyboardInterrupt:
        print("metarl: stopped", file=sys.stderr)
        return INTERRUPTED


def script(command: str | None = None) -> NoReturn:
    """Run one command as a program, which ends at once after Ctrl-C, whatever its threads are in the middle of.

    :param command: its name, where ``sys.argv`` has its arguments only.
    """
    _show_warnings_in_one_line()
    try:
        interruptible()
        code = main(sys.argv[1:] if command is None else [command, *sys.argv[1:]])
    except KeyboardInterrupt:  # once more, while the first was being answered
        code = INTERRUPTED
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError as error:  # a full disk, where nothing is left to write to
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = code or _fail(describe_os_error(error))
    if code == INTERRUPTED:
        # Python would wait for them, for seconds, and answer another Ctrl-C with a traceback. What is on the disk is
        # whole, and files of ours are closed.
        os._exit(code)
    raise SystemExit(code)


class _Lasting(io.FileIO):
    """A stream whose reader may go, as in ``metarl list | head`` or with a closed terminal; the work goes on."""

    def write(self, data: Any, /) -> int:
        """Write, or drop what nobody can read."""
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            return len(data)


def prepare_streams() -> None:
    """Make stdout and stderr such that no message can fail, whatever they encode and whether or not they are there."""
    open_missing_streams()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper):
            continue
        # A table's lines and arrows must not fail where ASCII is all there is.
        stream.reconfigure(errors="replace")
        if stream is getattr(sys, f"__{name}__") and os.name != "nt":
            stream.flush()
            raw = io.BufferedWriter(_Lasting(stream.fileno(), "w", closefd=False))
            setattr(sys, name, io.TextIOWrapper(raw, stream.encoding, "replace", line_buffering=stream.line_buffering))


def _show_warnings_in_one_line() -> None:
    """Print metarl's own warnings as the command line prints everything; others stay as they are."""
    others = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, MetaRLWarning):
            from metarl.zoo.console import warn  # late: it takes 2 s (SB3), and --help never warns

            warn(str(message))
        else:
            others(message, category, filename, lineno, file, line)

    warnings.showwarning = show


def _require_working_folder() -> None:
    try:
        os.getcwd()
    except FileNotFoundError:
        raise ConfigError("the working folder is not there any more: change to another one") from None


def import_package(name: str) -> None:
    """Import a module that registers what is somebody's own. Whatever else than a failed import it raises keeps its
    traceback.

    :raises ConfigError: the name is no module's, or the module imports something that is not there.
    """
    what = f"--gym-packages {shorten(name, quote=False)}"
    module = name.removesuffix(".py").replace(os.sep, ".")
    if not all(part.isidentifier() for part in name.split(".")) or module != name:
        example = f"{module}, without .py" if module.isidentifier() else "my_families"
        raise ConfigError(f"{what}: not the name of a module, such as {example}")
    try:
        importlib.import_module(name)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            hint = "(looked for in PYTHONPATH, by `python -m metarl.zoo` in the working directory too)"
            raise ConfigError(f"{what}: {error} {hint}") from None
        places = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
        place = f" ({places[-1].filename}, line {places[-1].lineno})" if len(places) > 1 else ""
        raise ConfigError(f"{what} is there, and an import inside it failed: {error}{place}") from None


def _registering(error: BaseException | None) -> str:
    """Return what to type for what is not registered, where an error is one of those, or was raised from one."""
    while error is not None and not isinstance(error, UnregisteredError):
        error = error.__context__
    return "" if error is None else " (what a module of your own registers needs --gym-packages MODULE)"


def describe_os_error(error: OSError) -> str:
    """Return an operating system's error in one line: what failed, on which file, and what can be done."""
    where = f": {shorten(error.filename, quote=False)}" if error.filename else ""
    hint = ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        hint = " (what was saved before is whole; free some space and go on with train -i RUN)"
    return f"{error.strerror or error}{where}{hint}"


def _fail(message: str) -> int:
    print("metarl: error: " + " ".join(message.split()), file=sys.stderr)
    return 2


if __name__ == "__main__":
    script()
