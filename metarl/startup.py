"""What must be right before anything heavy is imported, since importing it already fails or can be interrupted.

Importing :mod:`metarl` comes first in every program of ours, and imports this first.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from types import FrameType

INTERRUPTED = 130
"""Exit code after Ctrl-C or SIGTERM, as shells count it."""


def prepare() -> None:
    """Make imports safe: in every program matplotlib's, in our own commands Ctrl-C and missing streams as well."""
    command = is_command()
    if command:
        open_missing_streams()
        for name in ("COLUMNS", "LINES"):
            if not re.fullmatch("[0-9]{1,5}", os.environ.get(name, "")):  # rich reads ² as a digit
                os.environ.pop(name, None)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell's background jobs ignore it
            signal.signal(signal.SIGINT, _stop_at_once)
            _block_interrupts(True)
    backend = os.environ.get("MPLBACKEND")
    if backend is not None and "matplotlib" not in sys.modules and (command or not _can_load_matplotlib()):
        os.environ["MPLBACKEND"] = "agg"


def families_imported() -> None:
    """Hear Ctrl-C again: importing MuJoCo starts a process that would answer it with a traceback (glfw's)."""
    if signal.getsignal(signal.SIGINT) is _stop_at_once:
        _block_interrupts(False)


def is_command() -> bool:
    """Return whether this process is ``metarl …`` or ``python -m metarl.zoo… …``, and not a program that imports us."""
    if sys.argv[:1] == ["-m"]:  # what Python puts there until it has found the module
        return any(word.partition(".")[0] == "metarl" for word in sys.orig_argv)
    return bool(sys.argv) and os.path.basename(sys.argv[0]) in ("metarl", "metarl.exe")


def open_missing_streams() -> None:
    """Send to nowhere what a process without stdin, stdout or stderr reads or writes.

    Otherwise the next file that is opened gets the stream's number, and a library's message lands in it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the smallest number that is free
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  (open as long as the process)


def interruptible() -> None:
    """Let Ctrl-C raise ``KeyboardInterrupt`` from now on, but for imports, which come late as well."""
    if signal.getsignal(signal.SIGINT) is _stop_at_once:
        signal.signal(signal.SIGINT, _interrupt)


def _block_interrupts(block: bool) -> None:
    if hasattr(signal, "pthread_sigmask"):  # a blocked one waits; processes that are started inherit that
        signal.pthread_sigmask(signal.SIG_BLOCK if block else signal.SIG_UNBLOCK, [signal.SIGINT])


def _can_load_matplotlib() -> bool:
    """Return whether matplotlib takes the environment's backend.

    A notebook's ``module://matplotlib_inline…`` is refused in an environment without that module, and with it every
    import of matplotlib; figures of ours need no backend.
    """
    try:
        import matplotlib  # noqa: F401
    except ValueError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
            del sys.modules[name]  # parts that were loaded: the next import starts over
        return False
    except ImportError:
        pass
    return True


def _stop_at_once(number: int, frame: FrameType | None) -> None:
    """End the process while it loads: torch aborts at an exception in its imports, others swallow it."""
    del number, frame
    with contextlib.suppress(OSError):
        os.write(2, b"metarl: stopped\n")
    os._exit(INTERRUPTED)


def _interrupt(number: int, frame: FrameType | None) -> None:
    above = frame
    while above is not None:
        if above.f_code.co_filename.startswith("<frozen importlib"):
            _stop_at_once(number, frame)
        above = above.f_back
    raise KeyboardInterrupt


prepare()
