"""Python processes that start at once: forked from a server that has imported metarl, where a fresh one takes seconds.

Each is a process of its own, with its own arguments, environment and pipes, that can be killed, interrupted or starved
of disk. What must see a fresh interpreter (start-up itself, metarl missing) starts one with ``subprocess`` instead.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from multiprocessing import reduction
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
COMMAND = "from metarl.zoo.__main__ import script; script()"
"""What ``python -m metarl.zoo`` runs."""

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    ["tests.processes", "metarl.zoo.commands.train", "metarl.zoo.commands.evaluate", "metarl.files.logging"]
)


class _Pipe:
    """The end of a pipe that goes into the process."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __reduce__(self) -> Any:
        return _opened, (reduction.DupFd(self.descriptor),)  # type: ignore[attr-defined]


def _opened(handle: Any) -> int:
    return int(handle.detach())


class Program:
    """Some Python code in a process of its own, used like :class:`subprocess.Popen` with pipes.

    :param code: the program's text; its last words may end it by ``sys.exit``.
    :param argv: its arguments.
    :param env: what its environment has besides this process's.
    """

    def __init__(self, code: str, *argv: str, env: Mapping[str, str] | None = None) -> None:
        (out, out_end), (err, err_end) = os.pipe(), os.pipe()
        with _path():
            arguments = (textwrap.dedent(code), argv, dict(env or {}), os.getcwd(), _Pipe(out_end), _Pipe(err_end))
            self._process = _SERVER.Process(target=_run, args=arguments)
            self._process.start()
        for end in (out_end, err_end):
            os.close(end)
        self.stdout, self.stderr = open(out, encoding="utf-8"), open(err, encoding="utf-8")  # noqa: SIM115

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._process.exitcode

    poll = returncode.fget

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        if self.returncode is None:
            assert self._process.pid is not None
            os.kill(self._process.pid, number)

    def communicate(self, timeout: float = 60.0) -> tuple[str, str]:
        """Wait for the end; return the rest of its output and its errors, which are short."""
        self._process.join(timeout)
        if self.returncode is None:
            self._process.kill()
            raise subprocess.TimeoutExpired(self._process.name, timeout)
        with self.stdout, self.stderr:
            return self.stdout.read(), self.stderr.read()


def run_program(code: str, *argv: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run some code to its end, as :func:`subprocess.run` does."""
    program = Program(code, *argv, env=env)
    out, err = program.communicate()
    assert program.returncode is not None
    return subprocess.CompletedProcess(list(argv), program.returncode, out, err)


class _path:
    """The server finds this tree first, as the processes of other tests do."""

    def __enter__(self) -> None:
        self._before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), self._before]))

    def __exit__(self, *_: object) -> None:
        os.environ.pop("PYTHONPATH")
        if self._before is not None:
            os.environ["PYTHONPATH"] = self._before


def _run(code: str, argv: tuple[str, ...], env: dict[str, str], folder: str, out: int, err: int) -> None:
    os.dup2(out, 1)
    os.dup2(err, 2)
    for descriptor in (out, err):
        os.close(descriptor)
    sys.stdout, sys.stderr = (open(end, "w", encoding="utf-8", closefd=False) for end in (1, 2))  # noqa: SIM115
    # A shell that starts the tests in the background has it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(env)
    os.chdir(folder)
    sys.argv = ["program", *argv]
    exec(compile(code, "program", "exec"), {"__name__": "__main__"})
