"""Trains runs whole, with other numbers of threads, and killed again and again; a program that test_resume.py starts.

    python tests/zoo/runs/killing.py FOLDER SEED ENV... -- train ...

Runs are forked processes, so that the imports, which take longer than all of them, are done once; the environments go
side by side. A process that is to be killed counts what its interpreter calls, and at a given count it sends itself
SIGKILL: a moment is then the same on an idle and on a busy machine. What happened is in ``FOLDER/<env>/found.json``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from torch.utils.tensorboard import writer

from metarl.files.checkpoint import load_checkpoint
from metarl.files.writing import write_bytes_atomic
from metarl.meta.algorithms.maml import MAML
from metarl.zoo.__main__ import main as run_command
from tests.zoo.cards import blank

WITHIN = 3
"""A process is killed before it has done, or saved, so many meta-iterations."""


class Clock:
    """Counts calls of Python and built-in functions in each phase of a training process, and kills it at a moment.

    :param path: where the counts of a process go that is not killed.
    :param phase: ``"start-up"`` (until the first meta-iteration), ``"iteration"`` (inside one) or ``"saving"`` (while a
        file is replaced, later than start-up).
    :param moment: the count at which to kill; 0: never. A start-up that is over sooner is killed at its end.
    """

    def __init__(self, path: Path, phase: str = "", moment: int = 0) -> None:
        self.path, self.phase, self.moment = path, phase, moment
        self.counts = {"start-up": 0, "iteration": 0, "saving": 0}
        self.n_iterations = 0
        self._inside = {MAML.train.__code__: "iteration", write_bytes_atomic.__code__: "saving"}
        self._open: set[str] = set()

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        del argument
        phase = self._inside.get(frame.f_code)
        if phase is not None and event == "return":
            self._open.discard(phase)
        if event not in ("call", "c_call"):
            return
        if phase is not None and event == "call":
            self._open.add(phase)
            self.n_iterations += phase == "iteration"
        for name in self._open if self.n_iterations else {"start-up"}:
            self.counts[name] += 1
        if self.moment:
            over = self.phase == "start-up" and self.n_iterations > 0
            if over or self.counts[self.phase] >= self.moment:
                os.kill(os.getpid(), signal.SIGKILL)

    def write(self) -> None:
        """Write down what was counted."""
        self.path.write_text(json.dumps({**self.counts, "n_iterations": self.n_iterations}))


def fork(work: Callable[[], int]) -> int:
    """Do some work in a process of its own, whose exit code it returns; return the process's id."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            code = work()
        finally:
            os._exit(code)
    return process


def run(argv: list[str], clock: Clock | None = None) -> int:
    """Run a command in a process of its own; return how it ended, as ``waitpid`` says it."""

    def work() -> int:
        sys.setprofile(clock)
        code = run_command(argv)
        sys.setprofile(None)
        if clock is not None:
            clock.write()
        return code

    return os.waitpid(fork(work), 0)[1]


def compare(folder: Path, seed: int, argv: list[str]) -> int:
    """Do all the runs of one environment and write down what happened."""
    count = folder / "counts.json"
    found: dict[str, Any] = {
        f"threads_{n}": run([*argv, "-f", str(folder / f"threads_{n}"), "--num-threads", str(n)], clock)
        for n, clock in ((1, None), (2, Clock(count)), (3, None))
    }
    counts = json.loads(count.read_text())
    rng = np.random.default_rng(seed)
    # A process that is killed before its first checkpoint leaves nothing to go on from.
    phases = ["iteration", *rng.permutation(["start-up", "iteration", "saving", "saving"]).tolist()]
    argv = [*argv, "-f", str(folder / "killed"), "--num-threads", "2"]
    found["kills"] = []
    for phase in phases:
        most = counts[phase] if phase == "start-up" else counts[phase] * WITHIN // counts["n_iterations"]
        ended = run(argv, Clock(count, phase, int(rng.integers(1, most))))
        (place,) = (folder / "killed").glob("*/*")
        steps = load_checkpoint(place / "checkpoint.safetensors")[1]["num_timesteps"]
        final = (place / f"{place.name.rpartition('_')[0]}.safetensors").exists()
        found["kills"].append({"phase": phase, "ended": ended, "num_timesteps": steps, "final": final})
        argv = ["train", "-i", str(place), "--verbose", "0", "--num-threads", "2"]
    found["killed"] = run(argv)
    (folder / "found.json").write_text(json.dumps(found))
    return 0


def main(folder: Path, seed: int, envs: list[str], argv: list[str]) -> int:
    """Do all the runs; returns the exit code."""
    assert run_command([*argv, "-f", str(folder / "imports"), "--num-threads", "1", "-n", "1"]) == 0
    assert len(os.listdir("/proc/self/task")) == 1, "a fork of a process with threads may hang"
    processes = []
    for env in envs:
        (folder / env).mkdir()
        words = [*argv, "--env", env]
        processes.append(fork(lambda env=env, words=words: compare(folder / env, seed, words)))  # type: ignore[misc]
    return max(os.waitpid(process, 0)[1] for process in processes)


if __name__ == "__main__":
    writer.figure_to_image = blank
    cut = sys.argv.index("--")
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:cut], sys.argv[cut + 1 :]) > 0)
