"""Kills runs in the middle of a meta-iteration; a program that test_halfway.py starts.

    python tests/zoo/runs/halfway.py FOLDER CASE...

Each case is trained whole, and again by a process that sends itself SIGKILL after some units of work of the second
meta-iteration, and a third time by one that goes on with it. Processes are forked, because imports take longer than all
of them. How they ended is in ``FOLDER/<case>/found.json``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from metarl.files.checkpoint import load_checkpoint
from metarl.zoo.__main__ import main as run_command
from metarl.zoo.runs.callbacks import RunCallback
from tests.zoo.runs.killing import fork

CONTINUING = ["learner:a2c", "learner_kwargs.n_steps:5", "learner_kwargs.n_envs:2", "learner_kwargs.ent_coef:0.01"]
STOCK = ["learner:sb3_a2c", "learner_kwargs.n_steps:5", "learner_kwargs.n_envs:2"]
CASES: dict[str, list[str]] = {
    **{algo: [algo, *CONTINUING, "n_inner_steps:3"] for algo in ("fomaml", "reptile", "leap")},
    "leap_stock": ["leap", *STOCK, "n_inner_steps:1"],
    "rl2": ["rl2"],
    "reptile_segments": ["reptile", *STOCK, "n_inner_steps:2", "learner_kwargs.segments:true"],
}
OWN_SIZES = {"rl2": ["meta_batch_size:3", "n_episodes:2", "n_trials:1", "policy_kwargs.lstm_hidden_size:4"]}
"""Hyperparameters that stand for :data:`SIZES` where an algorithm has others."""
N_UNITS = {"fomaml": 4, "reptile_segments": 6, "rl2": 1}
"""Units of work in a meta-iteration where they are not three: inner steps of all tasks, or tasks."""
KILLED_AT = {"reptile_segments": 3, "rl2": 1}
"""Units of the second meta-iteration that are done where they are not two: there in the middle of the second task."""
TINY = ["--env", "PointMass-v0", "--seed", "0", "-n", "400", "--num-threads", "1", "--eval-freq", "-1"]
TINY += ["--env-kwargs", "horizon:8", "--save-freq", "20", "--verbose", "0"]
SIZES = ["meta_batch_size:3", "n_transitions:20", "policy_kwargs.net_arch:[12]"]


def run(argv: list[str], kill_after: int = 0) -> int:
    """Run a command in a process of its own, which may be killed; return how it ended, as ``waitpid`` says it."""

    def work() -> int:
        on_unit, heard = RunCallback.on_unit, []

        def watched(self: RunCallback, work: Any) -> bool:
            answer = on_unit(self, work)
            heard.append(work)
            if len(heard) == kill_after:
                os.kill(os.getpid(), signal.SIGKILL)
            return answer

        RunCallback.on_unit = watched  # type: ignore[method-assign]
        return run_command(argv)

    return os.waitpid(fork(work), 0)[1]


def compare(folder: Path, case: str) -> None:
    """Do the runs of one case and write down how they ended."""
    algo, *params = CASES[case]
    argv = ["train", "--algo", algo, *TINY, "-params", *OWN_SIZES.get(case, SIZES), *params]
    ended = [run([*argv, "-f", str(folder / "whole")])]
    killed = N_UNITS.get(case, 3) + KILLED_AT.get(case, 2)
    ended.append(run([*argv, "-f", str(folder / "killed")], kill_after=killed))
    (place,) = (folder / "killed").glob("*/*")
    tensors, document = load_checkpoint(place / "checkpoint.safetensors")
    halfway = {name: int(tensors[name]) for name in tensors if name.endswith("/n_done")}
    ended.append(run(["train", "-i", str(place), "--verbose", "0", "--num-threads", "1"]))
    found = {"ended": ended, "halfway": halfway, "n_iterations": document["n_iterations"]}
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    for name in sys.argv[2:]:
        place = Path(sys.argv[1]) / name
        place.mkdir()
        compare(place, name)
