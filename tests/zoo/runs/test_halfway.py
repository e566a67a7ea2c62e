"""Runs that are killed in the middle of a meta-iteration go on there, and end with the bits of an uninterrupted run."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import metarl
from metarl.files.checkpoint import load_checkpoint
from metarl.meta.progress import Work
from metarl.meta.workers import pool
from metarl.zoo.__main__ import main
from metarl.zoo.console import Reporter
from metarl.zoo.runs import callbacks
from tests.zoo.runs.halfway import CASES, CONTINUING, SIZES, TINY
from tests.zoo.runs.test_resume import ENVIRONMENT, numbers


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("halfway")
    program = [sys.executable, "-m", "tests.zoo.runs.halfway", str(folder), *CASES]
    done = subprocess.run(
        program, env=ENVIRONMENT, cwd=ENVIRONMENT["PYTHONPATH"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("case", CASES)
def test_killed_inside_a_meta_iteration_it_ends_with_the_same_bits(case: str, killed: Path) -> None:
    found = json.loads((killed / case / "found.json").read_text())
    assert found["ended"] == [0, signal.SIGKILL, 0]
    assert found["n_iterations"] == 1
    # Of inner steps of all tasks, or of tasks that are walks of their own.
    done = {"leap_stock": [1, 1], "reptile_segments": [2, 1], "rl2": [1]}.get(case, [2])
    known = {name: n for name, n in found["halfway"].items() if n}
    assert known == {f"unfinished/{number}/n_done": n for number, n in enumerate(done)}
    (whole,), (again,) = ((killed / case / each).glob("*/*") for each in ("whole", "killed"))
    for name in ("PointMass-v0", "checkpoint"):
        ours, theirs = (load_checkpoint(run / f"{name}.safetensors") for run in (whole, again))
        assert ours[1] == theirs[1]
        assert ours[0].keys() == theirs[0].keys()
        assert all(torch.equal(tensor, theirs[0][key]) for key, tensor in ours[0].items())
        assert not any(key.startswith("unfinished/") for key in ours[0])
    assert numbers(whole) == numbers(again)


def test_an_interrupt_stops_inside_and_is_gone_on_with_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["train", "--algo", "reptile", *TINY, "-params", *SIZES, *CONTINUING, "n_inner_steps:3"]
    inside = Reporter.inside

    def interrupted(self: Reporter, *args: Any) -> None:
        monkeypatch.setattr(Reporter, "inside", inside)
        inside(self, *args)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Reporter, "inside", interrupted)
    assert main([*argv, "-f", str(tmp_path / "stopped"), "--verbose", "1"]) == 130
    says = [line for line in capsys.readouterr().out.splitlines() if line.startswith("stopping")]
    assert len(says) == 1
    assert re.fullmatch(r"stopping after part 2 of 3 of learning goal .* and 2 more, so that all is saved .*", says[0])
    run = tmp_path / "stopped" / "reptile" / "PointMass-v0_1"
    assert int(load_checkpoint(run / "checkpoint.safetensors")[0]["unfinished/0/n_done"]) == 1
    assert metarl.load(run / "checkpoint").num_timesteps == 0
    assert main(["train", "-i", str(run), "--verbose", "0"]) == 0
    assert main([*argv, "-f", str(tmp_path / "whole")]) == 0
    again, whole = (
        load_checkpoint(tmp_path / each / "reptile" / "PointMass-v0_1" / "checkpoint.safetensors")[0]
        for each in ("stopped", "whole")
    )
    assert all(torch.equal(tensor, whole[name]) for name, tensor in again.items())


def test_a_worker_that_is_killed_loses_nothing_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for word in TINY if word not in ("--save-freq", "20")]
    argv = ["train", "--algo", "reptile", *words, "-params", *SIZES, "learner:sb3_a2c"]
    inside, run = pool.Workers.run, tmp_path / "killed" / "reptile" / "PointMass-v0_1"

    def killing(self: pool.Workers, jobs: Any, told: Any) -> None:
        def heard(job: int, answer: pool.Message) -> None:
            told(job, answer)
            for worker in self._workers:
                worker._process.kill()

        inside(self, jobs[:1], heard)
        inside(self, jobs[1:], heard)

    monkeypatch.setattr(pool.Workers, "run", killing)
    assert main([*argv, "-f", str(tmp_path / "killed"), "--num-workers", "2"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    ended = r"worker process \d was ended by SIGKILL, .*; what was learnt is saved, go on with: .*train -i"
    assert re.search(ended, line)
    done = load_checkpoint(run / "checkpoint.safetensors")[0]
    assert [int(value) for name, value in sorted(done.items()) if name.endswith("n_done")] == [1, 0, 0]
    assert main(["train", "-i", str(run), "--verbose", "0"]) == 0
    assert main([*argv, "-f", str(tmp_path / "whole")]) == 0
    again, whole = (
        load_checkpoint(tmp_path / each / "reptile" / "PointMass-v0_1" / "checkpoint.safetensors")[0]
        for each in ("killed", "whole")
    )
    assert all(torch.equal(tensor, whole[name]) for name, tensor in again.items())


@pytest.mark.parametrize(
    ("inside", "between", "first", "last"),
    [(0.0, 0.0, [60, 120, 180, 180], 540), (1e9, 0.0, [180, 360], 540), (1e9, 1e9, [540], 540)],
)
def test_meta_iterations_are_saved_by_the_clock_too(
    inside: float,
    between: float,
    first: list[int],
    last: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    saved: list[int] = []
    monkeypatch.setattr(callbacks, "SAVE_SECONDS", inside)
    monkeypatch.setattr(callbacks, "SAVE_SPACING", between)
    monkeypatch.setattr(callbacks.RunCallback, "_save", lambda self, now: saved.append(now))
    words = [word for word in TINY if word not in ("--save-freq", "20")]
    argv = ["train", "--algo", "reptile", *words, "-params", *SIZES, *CONTINUING, "n_inner_steps:3"]
    assert main([*argv, "-f", str(tmp_path)]) == 0
    assert saved[: len(first)] == first
    assert saved[-1] == last


@pytest.mark.parametrize("bar", [True, False])
def test_the_bar_and_the_lines_say_what_is_learnt(
    bar: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    reporter = Reporter(1000, 0, bar=bar, lines=True)
    with reporter:
        reporter.inside(50, 0, Work("game Pong and 2 more", 1, 100, 50))
        started = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: started + 61.0)
        reporter.inside(120, 0, Work("game Pong and 2 more", 2, 100, 120))
        described = None if reporter._progress is None else reporter._progress.tasks[0]
    shown = capsys.readouterr().out
    if described is not None:
        assert described.description == "iteration 1, game Pong and 2 more: 2/100"
        assert described.completed == 120
    else:
        assert shown == "in meta-iteration 1  120/1,000 env steps  1/s  game Pong and 2 more: 2/100\n"
