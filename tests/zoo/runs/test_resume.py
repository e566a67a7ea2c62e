"""Stopping and going on: killed, interrupted, out of disk; the numbers are those of an uninterrupted run."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import metarl
from metarl.files.checkpoint import load_checkpoint
from metarl.files.untrusted import dump_yaml
from metarl.files.writing import read_npz, write_npz_atomic
from metarl.zoo import console
from metarl.zoo.__main__ import main
from metarl.zoo.runs import callbacks
from tests.processes import COMMAND, Program
from tests.zoo.conftest import TINY, Refused, contents

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
LONG = [*TINY, "-n", "2400", "--eval-freq", "500", "--save-freq", "200"]
"""About 30 meta-iterations, a checkpoint every third."""


def wait_for_steps(run: Path, steps: int) -> None:
    """Wait until the log of a run has reached a number of env steps."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            with open(run / "progress.csv", newline="") as file:
                rows = [row["time/total_timesteps"] for row in csv.DictReader(file)]
            if rows and int(float(rows[-1] or 0)) >= steps:
                return
        except (OSError, KeyError, TypeError, ValueError):
            pass
        time.sleep(0.005)
    raise AssertionError(f"{run} did not reach {steps} env steps")


def numbers(run: Path) -> list[dict[str, str]]:
    """Return progress.csv without the columns of the clock."""
    with open(run / "progress.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    clock = {name for name in rows[0] if name.startswith("time/")} - {"time/total_timesteps", "time/iterations"}
    return [{name: value for name, value in sorted(row.items()) if name not in clock} for row in rows]


def assert_same_run(a: Path, b: Path) -> None:
    for name in (a.name.removesuffix("_1"), "best_model", "checkpoint"):
        first, second = (load_checkpoint(run / f"{name}.safetensors") for run in (a, b))
        assert first[1] == second[1]
        assert first[0].keys() == second[0].keys()
        assert all(torch.equal(tensor, second[0][key]) for key, tensor in first[0].items())
    for name in ("evaluations.npz", "meta_evaluations.npz"):
        left, right = read_npz(a / name), read_npz(b / name)
        assert left.keys() == right.keys()
        assert all(np.array_equal(value, right[key]) for key, value in left.items())
    assert numbers(a) == numbers(b)
    points = []
    for run in (a, b):
        events = EventAccumulator(str(run), size_guidance={"scalars": 0})
        events.Reload()
        tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("time/")]
        points.append({tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags})
    assert points[0] == points[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    logs = tmp_path_factory.mktemp("whole")
    assert main([*LONG, "-f", str(logs)]) == 0
    return logs / "fomaml" / "PointMass-v0_1"


ENVS = ("PointMass-v0", "AntVel-v0")


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of each environment: killed five times, and whole with one, two and three threads; see killing.py."""
    folder = tmp_path_factory.mktemp("killed")
    # Chunks of one task, so that gradients too are spread over the threads; a checkpoint every second meta-iteration.
    train = ["train", "--seed", "0", "-n", "1000", "--eval-freq", "600", "--save-freq", "150", "--n-eval-tasks", "3"]
    train += ["--verbose", "0", "--env-kwargs", "horizon:10"]
    train += ["-params", "meta_batch_size:3", "n_episodes:2", "chunk_size:1", "policy_kwargs.net_arch:[8]"]
    program = [sys.executable, str(Path(__file__).with_name("killing.py")), str(folder), "2", *ENVS, "--", *train]
    done = subprocess.run(program, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("env", ENVS)
def test_killed_at_random_moments_it_ends_with_the_same_bits(env: str, killed: Path) -> None:
    found = json.loads((killed / env / "found.json").read_text())
    kills = found["kills"]
    assert [kill["ended"] for kill in kills] == 5 * [signal.SIGKILL]
    assert {kill["phase"] for kill in kills} == {"start-up", "iteration", "saving"}
    assert not any(kill["final"] for kill in kills), "killed after its end"
    assert len({kill["num_timesteps"] for kill in kills}) > 2, "killed at the same place again and again"
    assert found["killed"] == found["threads_2"] == 0
    name = Path("fomaml") / f"{env}_1"
    assert_same_run(killed / env / "threads_2" / name, killed / env / "killed" / name)
    commands = (killed / env / "killed" / name / env / "command.txt").read_text().splitlines()
    assert "train --seed 0" in commands[0]
    assert "train -i " in commands[-1]


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("env", ENVS)
def test_the_number_of_threads_changes_no_bit(env: str, n_threads: int, killed: Path) -> None:
    found = json.loads((killed / env / "found.json").read_text())
    assert found[f"threads_{n_threads}"] == 0
    name = Path("fomaml") / f"{env}_1"
    assert_same_run(killed / env / "threads_2" / name, killed / env / f"threads_{n_threads}" / name)


@pytest.mark.parametrize("place", [(callbacks.Evaluation, "run"), (console.Reporter, "update")])
def test_an_interrupt_at_the_end_of_an_iteration_loses_nothing(
    place: tuple[type, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name = place
    original = getattr(owner, name)

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(owner, name, original)
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, interrupted)
    words = [*TINY, "--algo", "fomaml", "-f", str(tmp_path), "-n", "4000", "--save-freq", "100000"]
    assert main(words) == 130
    run = tmp_path / "fomaml" / "PointMass-v0_1"
    steps = metarl.load(run / "checkpoint").num_timesteps
    assert 0 < steps == int(numbers(run)[-1]["time/total_timesteps"]) < 4000


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_saves_and_says_how_to_go_on(number: signal.Signals, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "fomaml" / "PointMass-v0_1"
    process = Program(COMMAND, *LONG, "-f", str(tmp_path))
    wait_for_steps(run, 300)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error == f"metarl: stopped; go on with: python -m metarl.zoo train -i {run}\n"
    # nothing that was done is lost: the checkpoint is of the last iteration in the log
    assert metarl.load(run / "checkpoint").num_timesteps == int(numbers(run)[-1]["time/total_timesteps"])
    assert not (run / "PointMass-v0.safetensors").exists()
    assert main(["train", "-i", str(run), "--verbose", "0"]) == 0
    assert_same_run(whole, run)


def test_an_impatient_interrupt_has_no_traceback() -> None:
    """Whatever threads are in the middle of: Python would wait for them, and be interrupted in that."""
    process = Program(COMMAND, "evaluate", "--env", "AntVel-v0", "--episodes", "40", "--n-eval-tasks", "400")
    assert any("env steps" in line for line in iter(process.stdout.readline, ""))
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        time.sleep(0.02)
    _, error = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in error


def test_a_finished_run_says_so_and_goes_on_with_more_steps(
    trained: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    before = contents(run)
    assert main(["train", "-i", str(run)]) == 0
    done = f"{metarl.load(run / 'PointMass-v0').num_timesteps:,}"
    assert f"is finished: {done} of 400 env steps done; -n above {done} goes on" in capsys.readouterr().out
    assert contents(run) == before
    assert main(["train", "-i", str(run), "-n", "2400", "--verbose", "0"]) == 0
    for name, tensor in metarl.load(whole / "PointMass-v0").params.items():
        assert torch.equal(metarl.load(run / "PointMass-v0").params[name], tensor)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            {"meta_batch_size": 3},
            "meta_batch_size is 3, and 2 in checkpoint.safetensors: a run goes on as it was started",
        ),
        ({"env_kwargs": {"horizon": 11}}, "env_kwargs is {'horizon': 11}, and {'horizon': 10} in"),
        ({"policy_kwargs": {"net_arch": [8, 8]}}, "policy_kwargs is"),
        ({"inner_lr": -1.0}, "config.yml is damaged: inner_lr=-1.0 is not a number in"),
        (
            {"learner": "ppo2"},
            "config.yml is damaged: unknown learner 'ppo2': did you mean 'ppo'? (what a module of your own registers",
        ),
        ({"n_timesteps": -3}, "config.yml is damaged: n_timesteps=-3"),
    ],
)
def test_a_config_that_was_edited_is_not_passed_over(
    trained: Path, tmp_path: Path, refused: Refused, value: dict[str, Any], message: str
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    path = run / "PointMass-v0" / "config.yml"
    path.write_text(dump_yaml({**yaml.safe_load(path.read_text()), **value}))
    before = contents(run)
    assert message in refused("train", "-i", run, "-n", "800")
    assert {**contents(run), ".lock": b""} == {**before, ".lock": b""}


def test_an_edited_length_is_that_of_the_run(trained: Path, tmp_path: Path) -> None:
    """Written as editors on Windows do."""
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    path = run / "PointMass-v0" / "config.yml"
    text = path.read_text().replace("n_timesteps: 400", "n_timesteps: 6e2")
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert main(["train", "-i", str(run), "--verbose", "0"]) == 0
    assert metarl.load(run / "PointMass-v0").num_timesteps >= 600


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--algo", "maml"], "--algo contradicts the run"),
        (["--env", "AntVel-v0"], "--env contradicts the run"),
        (["--seed", "5"], "--seed contradicts the run"),
        (["-params", "inner_lr:0.7", "n_episodes:2"], "(it has 0.1): a run goes on as it was started"),
        (["-params", "policy_kwargs.net_arch:[9]"], "-params policy_kwargs.net_arch contradicts the run"),
        (["-params", "policy_kwargs.net_arch:[9]"], "(it has [8])"),
        (["--env-kwargs", "horizon:11"], "--env-kwargs horizon contradicts the run"),
        (["--eval-freq", "7"], "--eval-freq contradicts the run"),
    ],
)
def test_conflicting_flags_are_refused(words: list[str], message: str, trained: Path, refused: Refused) -> None:
    before = contents(trained)
    assert message in refused("train", "-i", trained, "-n", "9999", *words)
    assert contents(trained) == before


def test_equal_flags_are_not_refused(trained: Path) -> None:
    assert main(["train", "-i", str(trained), "--algo", "fomaml", "--seed", "0", "-params", "meta_batch_size:2"]) == 0


def test_a_damaged_run_is_refused(trained: Path, tmp_path: Path, refused: Refused) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    checkpoint = run / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    before = contents(run)
    assert "truncated or damaged" in refused("train", "-i", run, "-n", "9999")
    assert contents(run) == before
    checkpoint.unlink()
    assert "has no checkpoint.safetensors" in refused("train", "-i", run, "-n", "9999")
    (run / "PointMass-v0" / "config.yml").unlink()
    assert "config.yml is missing" in refused("train", "-i", run, "-n", "9999")
    assert "is not a run folder" in refused("train", "-i", run / "PointMass-v0")


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("config.yml", "n_timesteps: 400\n", "n_timesteps: x\n", "n_timesteps='x' is of the wrong type"),
        ("config.yml", "n_timesteps: 400\n", "", "n_timesteps is missing"),
        ("config.yml", "00\n", "", "its end is cut off"),
        ("args.yml", "eval_freq: 160", "eval_freq: x", "eval_freq='x' is of the wrong type"),
        ("args.yml", "save_freq: -1", "save_freq: null", "save_freq=None is of the wrong type"),
        ("args.yml", "tensorboard: null", "tensorboard: 3", "tensorboard=3 is of the wrong type"),
        ("args.yml", "eval_env_kwargs: {}", "eval_env_kwargs: x", "eval_env_kwargs='x' is of the wrong type"),
        (
            "args.yml",
            "n_eval_tasks: 3",
            "n_eval_tasks: 0",
            "n_eval_tasks=0 is out of range: n_eval_tasks takes int from 1",
        ),
        ("args.yml", "save_freq: -1\n", "", "save_freq is missing"),
        ("args.yml", "algo: fomaml", "algo: maml", "algo is 'maml', and 'fomaml' in checkpoint.safetensors"),
        ("args.yml", "algo: fomaml", "algo: fomal", "did you mean 'fomaml'?"),
        ("args.yml", "seed: 0", "seed: 1", "seed is 1, and 0 in checkpoint.safetensors"),
    ],
)
def test_damaged_records_are_refused(
    name: str, old: str, new: str, message: str, trained: Path, tmp_path: Path, refused: Refused
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    path = run / "PointMass-v0" / name
    text = path.read_text()
    assert old in text
    path.write_text(text[: text.index(old)] if message == "its end is cut off" else text.replace(old, new))
    before = contents(run)
    line = refused("train", "-i", run, "-n", "9999")
    # A name that is unknown here may be one that another module registers.
    assert (f"{run} cannot go on: unknown algorithm" if "fomal" in new else f"{path} is damaged: ") in line
    assert message in line
    assert contents(run) == {**before, ".lock": b""}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("evaluations.npz", {"results": None}, "results is missing"),
        ("evaluations.npz", {"results": np.zeros((3, 9))}, "results is float64 [3, 9], not numbers [3, 3]"),
        ("evaluations.npz", {"timesteps": np.array(["a", "b", "c"])}, "timesteps is <U1 [3], not numbers [3]"),
        ("meta_evaluations.npz", {"post": None}, "post is missing"),
        ("meta_evaluations.npz", {"post": np.zeros(3)}, "post is float64 [3], not numbers [3, 0, 3]"),
    ],
)
def test_damaged_evaluations_are_refused(
    name: str, change: dict[str, Any], message: str, trained: Path, tmp_path: Path, refused: Refused
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    arrays = {**read_npz(run / name), **change}
    write_npz_atomic(run / name, **{key: value for key, value in arrays.items() if value is not None})
    before = contents(run)
    assert f"{run / name} is damaged: {message}" in refused("train", "-i", run, "-n", "9999")
    assert contents(run) == {**before, ".lock": b""}


def test_a_full_disk_leaves_the_previous_checkpoint_whole(tmp_path: Path) -> None:
    run = tmp_path / "fomaml" / "PointMass-v0_1"
    small_files = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); "
    process = Program(small_files + COMMAND, *LONG, "-f", str(tmp_path), "--eval-freq", "-1")
    _, error = process.communicate(timeout=120)
    assert process.returncode == 2
    assert error.startswith("metarl: error: cannot write ")
    assert error.count("\n") == 1
    model = metarl.load(run / "checkpoint")
    assert 0 < model.num_timesteps < 2400
    assert main(["train", "-i", str(run), "--verbose", "0"]) == 0
    assert metarl.load(run / "PointMass-v0").num_timesteps >= 2400


def test_points_that_a_log_has_lost_are_said(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Path(shutil.copytree(trained, tmp_path / trained.name))
    log = run / "progress.csv"
    lines = log.read_text().splitlines(keepends=True)
    entries = sum(bool(row["time/iterations"]) for row in csv.DictReader(lines))
    log.write_text("".join([*lines[:2], lines[2][:5]]))
    assert main(["train", "-i", str(run), "-n", "800", "--verbose", "0"]) == 0
    told = capsys.readouterr().err
    assert told == (
        f"metarl: warning: {log} has 1 of {entries} log entries: the others were cut off or damaged, and stay missing\n"
    )
    capsys.readouterr()
    whole = Path(shutil.copytree(trained, tmp_path / "whole"))
    assert main(["train", "-i", str(whole), "-n", "800", "--verbose", "0"]) == 0
    assert capsys.readouterr().err == ""
