"""Runs that cannot go on stay as they were; folders that vanish, links and full disks lose nothing."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import metarl
from metarl.errors import NonFiniteError
from metarl.files.checkpoint import load_checkpoint, save_checkpoint
from metarl.meta.algorithms.maml import FOMAML
from metarl.zoo.__main__ import main
from metarl.zoo.runs import callbacks

from .conftest import TINY, Refused, contents

FILES = [
    *["PointMass-v0/config.yml", "PointMass-v0/args.yml", "PointMass-v0/command.txt", "checkpoint.safetensors"],
    *["evaluations.npz", "meta_evaluations.npz", "progress.csv", "best_model.safetensors", "PointMass-v0.safetensors"],
]
"""What a run is gone on with from, and the two models that are written only."""


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A finished run to damage."""
    return Path(shutil.copytree(trained, tmp_path / "PointMass-v0_1"))


def tree(folder: Path) -> dict[str, Any]:
    """Return all that a folder holds but for the lock, with links, permissions and empty folders."""
    found: dict[str, Any] = {}
    for path in folder.rglob("*"):
        kind = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else "no file"
        found[str(path.relative_to(folder))] = (kind, path.lstat().st_mode)
    return {name: what for name, what in found.items() if name != ".lock"}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00" * 40)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def missing(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("how", [cut, damage, folder, pipe, missing])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_stops_nothing_or_leaves_all_as_it_was(
    name: str, how: Callable[[Path], None], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Logs and evaluations that end early, or are missing, are no reason not to go on; all else is."""
    how(run / name)
    before = tree(run)
    code = main(["train", "-i", str(run), "-n", "480", "--verbose", "0"])
    error = capsys.readouterr().err
    harmless = how not in (folder, pipe) and name in (FILES[-3:] if how is not missing else FILES[-5:])
    harmless |= how is cut and name.endswith("command.txt")
    if code == 0:
        assert harmless, error
        assert metarl.load(run / "PointMass-v0").num_timesteps >= 480
    else:
        assert code == 2
        assert not harmless, error
        assert error.count("\n") == 1
        assert tree(run) == before


def test_a_pointer_in_the_place_of_a_large_file_is_said_to_be_one(run: Path, refused: Refused) -> None:
    """Git LFS leaves them in a clone; nothing takes them for a damaged file, and nothing replaces them."""
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1234\n"
    events = next(run.glob("events*")).name
    for name in [*FILES[:7], events]:
        whole = (run / name).read_bytes()
        (run / name).write_text(pointer)
        before = tree(run)
        said = refused("train", "-i", run, "-n", "480")
        assert "it is a pointer of Git LFS" in said
        assert Path(name).name[-12:] in said
        assert tree(run) == before
        (run / name).write_bytes(whole)
    for command, name in (("evaluate", FILES[8]), ("export", FILES[8]), ("plot", "progress.csv")):
        (run / name).write_text(pointer)
        assert "which `git lfs pull` replaces" in refused(command, "-i", run)


def test_an_algorithm_that_is_not_registered_here(run: Path, refused: Refused) -> None:
    """It is not taken for damage: going on says what to import, as far as the run's records name it."""
    args = run / "PointMass-v0" / "args.yml"
    mine = args.read_text().replace("algo: fomaml", "algo: mine")
    args.write_text(mine)
    tensors, document = load_checkpoint(run / "checkpoint.safetensors")
    save_checkpoint(run / "checkpoint.safetensors", tensors, {**document, "algorithm": "mine"})
    before = tree(run)
    said = refused("train", "-i", run, "-n", "800")
    assert f"{run} cannot go on: unknown algorithm 'mine': known: anil, " in said
    assert "(algorithms of your own need --gym-packages MODULE, the module that registers them)" in said
    assert "damaged" not in said
    assert tree(run) == before
    args.write_text(mine.replace("gym_packages: []", "gym_packages: [my_module]"))
    assert "(the run was trained with --gym-packages my_module: add that)" in refused("train", "-i", run, "-n", "800")


def test_a_family_that_is_not_registered_here(run: Path, refused: Refused) -> None:
    """Its module may be missing, or the package that the module imports."""
    tensors, document = load_checkpoint(run / "checkpoint.safetensors")
    save_checkpoint(run / "checkpoint.safetensors", tensors, {**document, "env": "Gone-v0"})
    args = run / "PointMass-v0" / "args.yml"
    args.write_text(args.read_text().replace("env: PointMass-v0", "env: Gone-v0"))
    (run / "PointMass-v0").rename(run / "Gone-v0")
    before = tree(run)
    assert "Gone-v0" in refused("train", "-i", run, "-n", "800")
    assert "not_there" in refused("train", "-i", run, "-n", "800", "--gym-packages", "not_there")
    assert tree(run) == before


def test_a_folder_that_nobody_may_write_to(run: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    """As root permissions do not bind, so that the system's answer is made up."""
    (run / ".lock").unlink()
    before, opened = tree(run), os.open

    def denied(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & os.O_CREAT and str(run) in str(path) and not os.path.exists(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", denied)
    assert f"cannot write {run / '.lock'}: Permission denied" in refused("train", "-i", run, "-n", "800")
    os.close(opened(run / ".lock", os.O_WRONLY | os.O_CREAT))
    assert "Permission denied" in refused("train", "-i", run, "-n", "800")
    assert tree(run) == before


@pytest.mark.parametrize(
    "name", ["progress.csv", "evaluations.npz", "events", "PointMass-v0", "checkpoint.safetensors"]
)
def test_a_link_in_a_run_folder_is_not_written_through(name: str, run: Path, tmp_path: Path, refused: Refused) -> None:
    (path,) = run.glob(f"{name}.out*" if name == "events" else name)
    other = path.rename(tmp_path / "other")
    path.symlink_to(other)
    before = tree(tmp_path)
    assert f"{path} is a link" in refused("train", "-i", run, "-n", "800")
    assert tree(tmp_path) == before


def test_a_run_that_is_reached_through_a_link_goes_on(run: Path, tmp_path: Path) -> None:
    (tmp_path / "logs").symlink_to(run.parent)
    (tmp_path / "latest").symlink_to(run)
    for place, steps in ((tmp_path / "logs" / run.name, "480"), (tmp_path / "latest", "560")):
        assert main(["train", "-i", str(place), "-n", steps, "--verbose", "0"]) == 0
    assert metarl.load(run / "PointMass-v0").num_timesteps >= 560


def test_a_full_disk_leaves_all_as_it_was_whatever_it_is_that_does_not_fit(
    run: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    checkpoints = run / "checkpoint.safetensors"
    older = metarl.load(checkpoints)
    older.num_timesteps, older.n_iterations = 160, 2
    older.save(checkpoints)  # so that every file is cut back
    before, sync = tree(run), os.fsync
    for allowed in range(8):
        calls: list[int] = []

        def full(descriptor: int, allowed: int = allowed, calls: list[int] = calls) -> None:
            calls.append(descriptor)
            if len(calls) > allowed:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            sync(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            line = refused("train", "-i", run, "-n", "800")
        assert "cannot write" in line
        # three records, the log, its events, two files of evaluations: all on the disk before the first takes its place
        assert (tree(run) == before) == (allowed < 7)


def test_a_run_folder_that_is_renamed_while_it_is_trained(
    run: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    moved = run.with_name("elsewhere")
    train = FOMAML.train

    def moving(self: Any) -> Any:
        if not moved.exists() and self.n_iterations > 6:
            run.rename(moved)
        return train(self)

    monkeypatch.setattr(FOMAML, "train", moving)
    line = refused("train", "-i", run, "-n", "1200")
    assert f"{run} was removed or renamed while it was trained: it is {moved} now, go on with: " in line
    assert not run.exists()
    assert main(["train", "-i", str(moved), "--verbose", "0"]) == 0
    assert metarl.load(moved / "PointMass-v0").num_timesteps >= 1200


@pytest.mark.parametrize("words", [[], ["--save-freq", "100000"]])
def test_a_run_folder_that_is_removed_while_it_is_trained(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    run = tmp_path / "fomaml" / "PointMass-v0_1"
    train = FOMAML.train

    def removing(self: Any) -> Any:
        if self.n_iterations == 3:
            shutil.rmtree(run)
        return train(self)

    monkeypatch.setattr(FOMAML, "train", removing)
    line = refused(*TINY, "-f", tmp_path, *words)
    kept = run.with_name("PointMass-v0_1_rescued.safetensors")
    assert f"{run} was removed or renamed while it was trained: what was learnt is kept in {kept}" in line
    assert sorted(tmp_path.rglob("*")) == [run.parent, kept], "nothing is made anew"
    assert metarl.load(kept).n_iterations == 4


def test_a_run_folder_that_is_removed_while_its_model_is_tested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    run = tmp_path / "fomaml" / "PointMass-v0_1"
    monkeypatch.setattr("metarl.zoo.runs.training._summary", lambda *_: shutil.rmtree(run))
    assert "what was learnt is kept in" in refused(*TINY, "-f", tmp_path, "--verbose", "1")
    assert metarl.load(run.with_name("PointMass-v0_1_rescued")).num_timesteps >= 400


def test_all_of_the_log_folder_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    logs = tmp_path / "logs"
    monkeypatch.setattr(callbacks.Evaluation, "run", lambda *_: shutil.rmtree(logs))
    assert "what was learnt is lost (cannot write" in refused(*TINY, "-f", logs)
    assert not logs.exists()


def test_parameters_that_are_no_numbers_are_never_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    train = FOMAML.train

    def breaking(self: Any) -> Any:
        stats = train(self)
        if self.n_iterations == 2:
            self.params["policy/log_std"][0] = torch.nan
        return stats

    monkeypatch.setattr(FOMAML, "train", breaking)
    monkeypatch.setattr(callbacks, "SAVE_SPACING", 0.0)
    run = tmp_path / "fomaml" / "PointMass-v0_1"
    line = refused(*TINY, "-f", tmp_path, "--eval-freq", "-1")
    assert "'policy/log_std' holds a NaN or infinity" in line
    assert f"the last good checkpoint is whole: {run / 'checkpoint.safetensors'}" in line
    model = metarl.load(run / "checkpoint")
    assert model.n_iterations == 2
    assert all(bool(torch.isfinite(tensor).all()) for tensor in model.params.values())
    model.params["policy/log_std"][0] = torch.inf
    before = contents(run)
    with pytest.raises(NonFiniteError, match="'policy/log_std' holds a NaN or infinity after 2 meta-iterations"):
        model.save(run / "checkpoint")
    assert contents(run) == before


def test_a_checkpoint_that_is_no_numbers_is_refused_as_such(run: Path, refused: Refused) -> None:
    tensors, document = load_checkpoint(run / "checkpoint.safetensors")
    tensors["policy/log_std"][0] = torch.nan
    save_checkpoint(run / "checkpoint.safetensors", tensors, document)
    before = tree(run)
    line = refused("train", "-i", run, "-n", "800")
    assert "checkpoint.safetensors" in line
    assert "policy/log_std" in line
    assert "is whole" not in line
    assert tree(run) == before
