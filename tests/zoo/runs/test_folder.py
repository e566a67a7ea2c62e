"""Run folders: numbers, records, and what is refused."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from metarl.errors import CheckpointError, ConfigError
from metarl.zoo.__main__ import main
from metarl.zoo.runs.folder import (
    Run,
    create_run,
    find_run,
    list_runs,
    locked,
    open_run,
    records,
    saved_model,
    write_records,
)


def create(folder: Path, queue: multiprocessing.Queue[int]) -> None:
    for _ in range(10):
        queue.put(create_run(folder, "maml", "PointMass-v0").number)


def make(folder: Path, suffix: str = "") -> Run:
    run = create_run(folder, "maml", "PointMass-v0", suffix)
    write_records(run, {"n_timesteps": 10, "gamma": 0.99}, {"seed": 3}, ["train", "-params", "a:[1, 2]"])
    return run


def test_numbers_count_up_and_ignore_other_folders(tmp_path: Path) -> None:
    for name in ("PointMass-v0_7_0a1b-2c", "PointMass-v0_x", "PointMass-v00_9", "AntVel-v0_12", "PointMass-v0"):
        (tmp_path / "maml" / name).mkdir(parents=True)
    assert create_run(tmp_path, "maml", "PointMass-v0").folder.name == "PointMass-v0_8"
    assert create_run(tmp_path, "maml", "PointMass-v0", "_ab-1").folder.name == "PointMass-v0_9_ab-1"
    assert create_run(tmp_path, "fomaml", "PointMass-v0").number == 1


def test_two_processes_never_share_a_number(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue[int] = context.Queue()
    workers = [context.Process(target=create, args=(tmp_path, queue)) for _ in range(3)]
    for worker in workers:
        worker.start()
    numbers = [queue.get(timeout=30) for _ in range(30)]
    for worker in workers:
        worker.join()
    assert sorted(numbers) == list(range(1, 31))


def test_records_are_read_back(tmp_path: Path) -> None:
    run = make(tmp_path)
    assert open_run(run.folder) == run
    assert run.config() == {"n_timesteps": 10, "gamma": 0.99}
    assert run.args() == {"seed": 3, "format": 2, "algo": "maml", "env": "PointMass-v0"}
    command = (run.records / "command.txt").read_text()
    assert command == "python -m metarl.zoo train -params 'a:[1, 2]'\n"


def test_find_run(tmp_path: Path) -> None:
    assert find_run(tmp_path, "maml", "PointMass-v0") is None
    made = [make(tmp_path), make(tmp_path, "_ab-1"), make(tmp_path)]
    assert find_run(tmp_path, "maml", "PointMass-v0") == made[2]
    assert find_run(tmp_path, "maml", "PointMass-v0", 2) == made[1]
    with pytest.raises(CheckpointError, match="numbers of PointMass-v0: 1, 2, 3"):
        find_run(tmp_path, "maml", "PointMass-v0", 4)
    with pytest.raises(ConfigError, match="0 is the latest"):
        find_run(tmp_path, "maml", "PointMass-v0", -1)
    assert list(list_runs(tmp_path)) == made


def test_which_model(tmp_path: Path) -> None:
    run = make(tmp_path)
    with pytest.raises(CheckpointError, match=r"has no checkpoint\.safetensors"):
        saved_model(run)
    run.checkpoint.write_bytes(b"")
    assert saved_model(run) == run.checkpoint
    run.final.write_bytes(b"")
    assert saved_model(run) == run.final
    assert saved_model(run, checkpoint=True) == run.checkpoint
    with pytest.raises(CheckpointError, match="best_model"):
        saved_model(run, best=True)


def test_what_is_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no run folder"):
        open_run(tmp_path / "missing")
    with pytest.raises(CheckpointError, match="is not a run folder"):
        open_run(tmp_path)
    run = make(tmp_path)
    args = run.records / "args.yml"
    text = args.read_text()
    for damaged, message in [
        (text.replace("format: 2", "format: 3"), "has format 3: this version reads 1 and 2"),
        (text.replace("env: PointMass-v0", "env: AntVel-v0"), "is damaged"),
        ("[1, 2]", "holds no mapping"),
        ("a: [1", "is damaged"),
        ("x: !!python/object/apply:os.getcwd []", "is damaged"),
    ]:
        args.write_text(damaged)
        with pytest.raises(CheckpointError, match=message):
            open_run(run.folder)
    args.unlink()
    with pytest.raises(CheckpointError, match="is not a run folder"):
        open_run(run.folder)


def test_a_copy_of_the_records_is_said_to_be_one(tmp_path: Path) -> None:
    run = make(tmp_path)
    shutil.copytree(run.records, run.folder / "PointMass-v0 (copy)")
    with pytest.raises(CheckpointError, match=r"has more than one <env>/args\.yml: keep one of .* \(copy\)/args\.yml"):
        open_run(run.folder)


def test_what_other_programs_leave_in_a_run_folder_is_not_looked_at(tmp_path: Path) -> None:
    """Notebooks, file managers, editors, zip programs."""
    run = make(tmp_path)
    for folder in (run.folder, run.records):
        (folder / ".ipynb_checkpoints").mkdir()
        shutil.copy(run.records / "args.yml", folder / ".ipynb_checkpoints")
        (folder / "__MACOSX").mkdir()
        (folder / ".DS_Store").write_bytes(b"\0")
        (folder / "notes").symlink_to(tmp_path)
    (run.records / "args.yml~").write_text("x")
    assert open_run(run.folder) == run
    assert list(list_runs(tmp_path)) == [run]
    run.require_own_files()


def test_records_that_are_cut_off_are_refused(tmp_path: Path) -> None:
    run = make(tmp_path)
    for name in ("config.yml", "args.yml"):
        path = run.records / name
        whole = path.read_text()
        for length in range(len(whole)):
            path.write_text(whole[:length])
            with pytest.raises(CheckpointError, match=r"\.yml is damaged: "):
                open_run(run.folder).config()
        path.write_text(whole)
    assert open_run(run.folder).config() == {"n_timesteps": 10, "gamma": 0.99}


def test_records_of_the_first_format_are_read(tmp_path: Path) -> None:
    run = make(tmp_path)
    config, args = run.records / "config.yml", run.records / "args.yml"
    args.write_text("algo: maml\nenv: PointMass-v0\nformat: 1\nseed: 3\n")
    for text in ("gamma: 0.99\nn_timesteps: 10\n", config.read_text()):  # the second: killed while it was brought up
        config.write_text(text)
        assert open_run(run.folder).config() == {"n_timesteps": 10, "gamma": 0.99}
    assert open_run(run.folder).args()["seed"] == 3


def test_a_run_is_trained_by_one_process_at_a_time(tmp_path: Path) -> None:
    run = make(tmp_path)
    with (
        locked(run),
        pytest.raises(CheckpointError, match="another process is training"),
        locked(run),
    ):
        pass
    with locked(run):
        pass


def test_a_lock_that_is_a_link_empties_nothing(tmp_path: Path) -> None:
    run, victim, missing = make(tmp_path), tmp_path / "thesis.txt", tmp_path / "missing"
    victim.write_text("years of work")
    for target in (victim, missing):
        (run.folder / ".lock").symlink_to(target)
        with pytest.raises(CheckpointError, match=r"cannot write .*\.lock: it is a link"), locked(run):
            pass
        (run.folder / ".lock").unlink()
    os.link(victim, run.folder / ".lock")  # nobody can tell such a file from others: it is left as it is
    with locked(run):
        pass
    assert victim.read_text() == "years of work"
    assert not missing.exists()


def lock(run: Run, queue: multiprocessing.Queue[str]) -> None:
    try:
        with locked(run):
            queue.put("locked")
    except CheckpointError as error:
        queue.put(str(error))


@pytest.mark.parametrize("make_it", [os.mkfifo, os.mkdir])
def test_a_lock_that_is_no_file_is_refused_at_once(make_it: Callable[[Path], None], tmp_path: Path) -> None:
    run = make(tmp_path)
    make_it(run.folder / ".lock")
    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue[str] = context.Queue()
    worker = context.Process(target=lock, args=(run, queue), daemon=True)  # it would wait for ever
    worker.start()
    assert queue.get(timeout=60).startswith(f"cannot write {run.folder / '.lock'}: ")


def test_the_latest_run_is_the_latest_that_is_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = make(tmp_path)
    first.checkpoint.write_bytes(b"")
    empty, unsaved = create_run(tmp_path, "maml", "PointMass-v0"), make(tmp_path)
    assert find_run(tmp_path, "maml", "PointMass-v0") == first
    told = capsys.readouterr().err
    assert f"{unsaved.folder} has no checkpoint.safetensors" in told
    assert f"{first.folder} is taken, the latest run that is whole" in told
    why = "stopped in its first moment leaves such a folder: start a new one"
    with pytest.raises(CheckpointError, match=why):
        find_run(tmp_path, "maml", "PointMass-v0", empty.number)
    assert list(list_runs(tmp_path)) == [first, unsaved]
    first.checkpoint.unlink()
    assert find_run(tmp_path, "maml", "PointMass-v0") == unsaved
    create_run(tmp_path, "leap", "PointMass-v0")
    with pytest.raises(CheckpointError, match=why):
        find_run(tmp_path, "leap", "PointMass-v0")


def test_runs_that_are_not_whole_are_listed_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = create_run(tmp_path, "maml", "PointMass-v0")
    (tmp_path / "maml" / "evaluations").mkdir()
    make(tmp_path)
    assert main(["list", "runs", "-f", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "not whole" in out
    assert "damaged" in out
    assert "evaluations" not in out
    assert empty.folder.is_dir()


@pytest.mark.parametrize("written", [0, 1, 2, 3])
def test_killed_while_its_records_are_written(
    written: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever a kill leaves of a new run, the run before it is found, and what is left says so itself."""
    first = make(tmp_path)
    first.checkpoint.write_bytes(b"")
    run = create_run(tmp_path, "maml", "PointMass-v0")
    whole = records(run, {"n_timesteps": 10}, {"seed": 3}, ["train"])
    monkeypatch.setattr("metarl.zoo.runs.folder.records", lambda *_: dict(list(whole.items())[:written]))
    write_records(run, {}, {}, [])
    assert find_run(tmp_path, "maml", "PointMass-v0") == first
    assert f"{first.folder} is taken" in capsys.readouterr().err
    if written < 2:
        with pytest.raises(CheckpointError, match="start a new one"):
            open_run(run.folder)
    else:
        with pytest.raises(CheckpointError, match="the run stopped before it was written"):
            saved_model(open_run(run.folder))
