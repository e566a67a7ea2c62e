"""Where commands write: looked at before the work, never over what is there, and one name for each process."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest

from metarl.errors import CheckpointError, ConfigError
from metarl.zoo.__main__ import main
from metarl.zoo.runs import outputs
from metarl.zoo.runs.outputs import Outputs, free_name, require_writable
from tests.zoo.conftest import TINY, Refused, contents


# --------------------------------------------------------------------------------------------------- before the work
def places(folder: Path) -> dict[str, Path]:
    """Return names that nothing can be written as."""
    (folder / "file").write_text("mine")
    (folder / "dangling").symlink_to(folder / "nowhere" / "at all")
    return {
        "file": folder / "file" / "a" / "x.json",
        "dangling": folder / "dangling" / "x.json",
        "dangling itself": folder / "dangling",
        "name": folder / "new" / ("x" * 300 + ".json"),
        "path": folder.joinpath(*["deep" * 50] * 30, "x.json"),
        "proc": Path("/proc/metarl/x.json"),
        "nul": folder / "a\0b.json",
    }


@pytest.mark.parametrize("name", ["file", "dangling", "dangling itself", "name", "path", "proc", "nul"])
def test_names_that_cannot_be_written(name: str, tmp_path: Path) -> None:
    path = places(tmp_path)[name]
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(ConfigError, match="cannot write "):
        require_writable(path)
    assert sorted(os.listdir(tmp_path)) == before


def test_names_that_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(tmp_path)
    for path in (tmp_path, tmp_path / "x", tmp_path / "a" / "b" / "x", tmp_path / "linked" / "c" / ("x" * 250)):
        require_writable(path)
    assert os.listdir(tmp_path) == ["linked"]


def test_a_disk_that_is_read_only_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions do not bind root, and say nothing of such a disk."""

    def refuses(**_: Any) -> Any:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(outputs.tempfile, "TemporaryFile", refuses)
    with pytest.raises(ConfigError, match=r"cannot write .*x\.json: Read-only file system"):
        require_writable(tmp_path / "x.json")


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "-i", "RUN", "-o", "BAD/x.json"],
        ["evaluate", "-i", "RUN", "-o", "GOOD/x.json", "--figure", "BAD/x.png"],
        ["finetune", "-i", "RUN", "-o", "BAD/x.json"],
        ["finetune", "-i", "RUN", "--figure", "BAD/x.png"],
        ["finetune", "--from-scratch", "-f", "BAD"],
        ["export", "-i", "RUN", "-o", "BAD/x.zip"],
        ["plot", "-i", "RUN", "-o", "BAD/x.png"],
        ["reproduce", "first-order-rl", "--scale", "smoke", "-f", "BAD"],
        ["reproduce", "first-order-rl", "--scale", "smoke", "-f", "GOOD", "-o", "BAD/x"],
        [*TINY, "-f", "BAD"],
        [*TINY, "-f", "GOOD", "-tb", "BAD/tb"],
    ],
)
def test_every_command_notices_before_its_work(
    words: list[str], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    for place in ("metarl.meta.base.MetaAlgorithm.learn", "metarl.meta.evaluating.Evaluates.evaluate"):
        monkeypatch.setattr(place, lambda *_, **__: pytest.fail("it has begun to work"))
    for place in ("metarl.meta.export.finetune.finetune", "metarl.meta.export.sb3.export_sb3"):
        monkeypatch.setattr(place, lambda *_, **__: pytest.fail("it has begun to work"))
    (tmp_path / "file").write_text("mine")
    before = contents(trained)
    names = {"RUN": str(trained), "BAD": str(tmp_path / "file" / "a"), "GOOD": str(tmp_path / "good")}
    line = refused(*[names.get(word, word) for word in _filled(words, names)])
    assert f"{tmp_path / 'file'} is a file, not a folder" in line
    assert sorted(os.listdir(tmp_path)) == ["file"]
    assert contents(trained) == before


def _filled(words: list[str], names: dict[str, str]) -> list[str]:
    for key, value in names.items():
        words = [word.replace(f"{key}/", f"{value}/") if word.startswith(key) else word for word in words]
    return words


# ----------------------------------------------------------------------------------------------- one name for each
def claim(folder: Path, queue: multiprocessing.Queue[str], own: int) -> None:
    for i in range(5):
        base = free_name(folder, "test", (".json", ".png"))
        paths = [base.with_suffix(".json"), base.with_suffix(".png")]
        text = f"{own} {i}".encode()
        record, figure = Outputs(paths, False, None).write([text, text])
        assert record.stem == figure.stem
        queue.put(f"{record.name} {text.decode()}")


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue[str] = context.Queue()
    workers = [context.Process(target=claim, args=(tmp_path / "evaluations", queue, own)) for own in range(4)]
    for worker in workers:
        worker.start()
    written = [queue.get(timeout=60) for _ in range(20)]
    for worker in workers:
        worker.join()
    found = [f"{path.name} {path.read_text()}" for path in (tmp_path / "evaluations").glob("*.json")]
    assert sorted(found) == sorted(written)
    assert len(os.listdir(tmp_path / "evaluations")) == 40


def test_a_name_that_is_taken_in_the_meantime_is_kept(tmp_path: Path) -> None:
    chosen = Outputs([tmp_path / "x.json", tmp_path / "x.png"], False, None).require_possible()
    (tmp_path / "x.png").write_text("another's")
    (tmp_path / "x_1.json").write_text("another's")
    assert chosen.write([b"1", b"2"]) == [tmp_path / "x_2.json", tmp_path / "x_2.png"]
    assert contents(tmp_path) == {"x.png": b"another's", "x_1.json": b"another's", "x_2.json": b"1", "x_2.png": b"2"}
    assert Outputs([tmp_path / "x.png"], True, None).write([b"3"]) == [tmp_path / "x.png"]
    assert (tmp_path / "x.png").read_bytes() == b"3"


def test_a_full_disk_leaves_neither_files_nor_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="cannot write"):
        Outputs([tmp_path / "x.json", tmp_path / "x.png"], False, None).write([b"1", b"2"])
    assert os.listdir(tmp_path) == []


def test_permissions_are_those_of_the_umask_and_stay(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    before = os.umask(0o027)
    try:
        Outputs([path], False, None).write([b"1"])
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o600)
        Outputs([path], True, None).write([b"2"])
    finally:
        os.umask(before)
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"2", 0o600)


# --------------------------------------------------------------------------------------------------- run folders
@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("evaluations", ["evaluate", "--n-eval-tasks", "2", "--n-inner-steps", "1", "--episodes", "2"]),
        ("export", ["export"]),
        ("finetune", ["finetune", "-n", "100", "--n-eval-tasks", "2"]),
    ],
)
def test_a_stranger_s_link_leads_nothing_out_of_a_run_folder(
    folder: str, words: list[str], trained: Path, tmp_path: Path, refused: Refused
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / trained.name, ignore=shutil.ignore_patterns(folder)))
    home = tmp_path / "home"
    home.mkdir()
    (run / folder).symlink_to(home)
    command, *rest = words
    line = refused(command, "-i", run, *rest)
    assert f"{run / folder} is a link" in line
    assert os.listdir(home) == []
    if command == "evaluate":  # typed, it is the user's own wish
        assert main([command, "-i", str(run), *rest, "-o", str(run / folder / "x.json")]) == 0
        assert sorted(os.listdir(home)) == ["x.json", "x.png"]
        assert json.loads((home / "x.json").read_text())["format"] == "metarl-evaluation"


def test_a_file_s_link_in_a_run_folder_is_left_alone(trained: Path, tmp_path: Path, refused: Refused) -> None:
    run = Path(shutil.copytree(trained, tmp_path / trained.name))
    victim = tmp_path / "thesis"
    victim.write_text("years of work")
    (run / "export").mkdir(exist_ok=True)
    for name in ("PointMass-v0.zip", "PointMass-v0.json"):
        (run / "export" / name).unlink(missing_ok=True)
    (run / "export" / "PointMass-v0.json").symlink_to(victim)
    for words in ([], ["--overwrite"]):
        assert "PointMass-v0.json" in refused("export", "-i", run, *words)
    assert victim.read_text() == "years of work"
