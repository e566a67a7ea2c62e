"""What surrounds a program: missing streams, a notebook's backend, Ctrl-C before anything runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from metarl.zoo.__main__ import _Lasting

NOTEBOOK = {"MPLBACKEND": "module://matplotlib_inline_of_another_environment.backend_inline"}


def run(code: str, *, shell: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python code, or a shell line in which it is ``$CODE`` and Python ``$PYTHON``."""
    variables = {**os.environ, **environment, "CODE": code, "PYTHON": sys.executable}
    command = ["bash", "-c", shell] if shell else [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env=variables, timeout=120)


def test_figures_need_no_backend_of_a_notebook() -> None:
    code = (
        "import io, sys, metarl\n"
        "from matplotlib.figure import Figure\n"
        "Figure().savefig(io.BytesIO(), format='png')\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    done = run(code, **NOTEBOOK)
    assert done.returncode == 0, done.stderr


def test_a_command_without_streams() -> None:
    """Without stdin, stdout and stderr, with a notebook's backend."""
    done = run("", shell="$PYTHON -m metarl.zoo list algos <&- >&- 2>&-", **NOTEBOOK)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("module", ["mujoco", "stable_baselines3"])
def test_ctrl_c_while_modules_load(module: str) -> None:
    """The first is loaded before the command's own code runs, the second after it: one line, no traceback."""
    code = f"""
import os, runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what it starts in the background
class Interrupting:
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
sys.argv = ["-m", "list", "runs"]
sys.orig_argv = [sys.executable, "-m", "metarl.zoo", "list", "runs"]
runpy.run_module("metarl.zoo", run_name="__main__", alter_sys=True)
"""
    done = run(code)
    assert (done.returncode, done.stderr) == (130, "metarl: stopped\n")


def test_the_first_line_of_training_waits_for_no_compiler_and_no_figures(tmp_path: Path) -> None:
    """Making an optimiser of PyTorch's imports its compiler, and with it SymPy: seconds of what is never used."""
    arguments = [
        *("train", "--env", "PointMass-v0", "-n", "1", "-f", str(tmp_path), "--eval-freq", "-1", "--verbose", "0"),
        *("-params", "meta_batch_size:1", "n_episodes:1"),
    ]
    code = (
        "import os, sys\n"
        "os.environ.pop('MPLBACKEND', None)  # with one, a program that imports us tries whether it can be loaded\n"
        "from metarl.zoo.__main__ import main\n"
        f"assert main({arguments}) == 0\n"
        "print(*sorted({'torch._dynamo', 'sympy', 'matplotlib', 'mujoco', 'torch'} & set(sys.modules)))"
    )
    done = run(code)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "mujoco torch\n")


def test_importing_the_library_leaves_signals_and_streams_alone() -> None:
    code = (
        "import signal, sys\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])\n"
        "before = signal.getsignal(signal.SIGINT), sys.stdout, sys.stderr\n"
        "import metarl.zoo.__main__\n"
        "assert before == (signal.getsignal(signal.SIGINT), sys.stdout, sys.stderr)\n"
        "assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])"
    )
    done = run(code)
    assert done.returncode == 0, done.stderr


def test_a_reader_that_goes_stops_no_work() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with _Lasting(writer, "w") as stream:
        assert stream.write(b"nobody reads this") == 17


def test_a_full_disk_is_said() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    done = run("", shell="$PYTHON -m metarl.zoo --version > /dev/full")
    assert done.returncode == 2
    assert done.stderr.startswith("metarl: error: No space left on device")
    assert done.stderr.count("\n") == 1
