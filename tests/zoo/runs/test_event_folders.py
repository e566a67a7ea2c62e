"""Whose TensorBoard folder it is: runs that go on, moved ones, copies, old ones, and what strangers name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from metarl.zoo.__main__ import main
from metarl.zoo.runs.event_folders import MARK
from metarl.zoo.runs.folder import open_run
from tests.zoo.conftest import TINY, Refused, contents

KEY = "meta/post_adapt_rew"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose events lie elsewhere; tests work on :func:`place`'s copy of it all."""
    folder = tmp_path_factory.mktemp("elsewhere")
    words = ["-f", str(folder / "logs"), "-tb", str(folder / "tb"), "--eval-freq", "-1"]
    assert main([*TINY, *words]) == 0
    return folder / "logs" / "fomaml" / "PointMass-v0_1"


@pytest.fixture
def place(original: Path) -> Path:
    """The run, as it was; its path is in its records, so it is put back rather than copied."""
    folder = original.parents[2]
    kept = folder.with_name("kept")
    if not kept.exists():
        shutil.copytree(folder, kept)
    shutil.rmtree(folder)
    shutil.copytree(kept, folder)
    return original


def events(run: Path) -> Path:
    return Path(open_run(run).args()["tensorboard"])


def steps(folder: Path) -> list[int]:
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    found.Reload()
    return [event.step for event in found.Scalars(KEY)] if KEY in found.Tags()["scalars"] else []


def go_on(run: Path, *words: str) -> int:
    return main(["train", "-i", str(run), "-n", "800", "--verbose", "0", *words])


def test_a_run_goes_on_where_its_events_are(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = steps(events(place))
    assert go_on(place) == 0
    assert capsys.readouterr().err == ""
    after = steps(events(place))
    assert after[: len(before)] == before
    assert after[-1] >= 800
    assert len(set(after)) == len(after)
    assert not list(place.glob("events*"))


@pytest.mark.parametrize("linked", [False, True])
def test_a_copy_cuts_nothing_of_the_original(linked: bool, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = Path(shutil.copytree(place, place.with_name("copy")))
    elsewhere = events(place)
    assert go_on(place) == 0
    whole, done = contents(elsewhere), contents(place)
    if linked:
        (place.parent / "link").symlink_to(copy)
        copy = place.parent / "link"
    capsys.readouterr()
    assert go_on(copy) == 0
    assert f"nothing says that {elsewhere} belongs to this run" in capsys.readouterr().err
    assert contents(elsewhere) == whole
    assert contents(place) == done
    assert steps(copy) == steps(elsewhere), "with the events of the time before it was copied"
    assert open_run(copy).args()["tensorboard"] is None
    assert go_on(copy, "-n", "1000") == 0
    assert capsys.readouterr().err == ""


def test_a_moved_run_goes_on_where_its_events_are(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moved = place.rename(place.with_name("moved"))
    elsewhere = events(moved)
    before = steps(elsewhere)
    assert go_on(moved) == 0
    assert capsys.readouterr().err == ""
    assert len(steps(elsewhere)) > len(before)
    assert json.loads((elsewhere / MARK).read_text())["run"] == str(moved.resolve())


def test_a_run_without_a_mark_leaves_what_it_names_alone(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere = events(place)
    (elsewhere / MARK).unlink()
    args = place / "PointMass-v0" / "args.yml"
    args.write_text("".join(line for line in args.read_text().splitlines(True) if "tensorboard_mark" not in line))
    before = contents(elsewhere)
    copy = Path(shutil.copytree(place, place.with_name("stranger")))
    assert go_on(copy) == 0
    assert f"go on in it: nothing says that {elsewhere}" in capsys.readouterr().err
    assert contents(elsewhere) == before
    assert steps(copy)[: len(steps(elsewhere))] == steps(elsewhere)
    # its user may say that the folder is its own
    assert go_on(place, "-tb", str(elsewhere.parents[1])) == 0
    assert capsys.readouterr().err == ""
    assert steps(elsewhere) == steps(copy)
    assert (elsewhere / MARK).is_file()


def test_a_folder_that_was_moved_is_named_again(place: Path, refused: Refused) -> None:
    elsewhere = events(place)
    before = steps(elsewhere)
    root = elsewhere.parents[1].rename(place.parents[2] / "moved_tb")
    moved = root / elsewhere.relative_to(elsewhere.parents[1])
    assert go_on(place, "-tb", str(root)) == 0
    assert steps(moved)[: len(before)] == before
    assert steps(moved)[-1] >= 800
    assert events(place) == moved
    other = Path(shutil.copytree(place, place.with_name("copy")))
    line = refused("train", "-i", other, "-n", "1000", "-tb", root)
    assert f"{moved} is not its own, and without -tb its events go on in {other}" in line


def test_a_folder_that_is_missing_is_not_made(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere = events(place)
    shutil.rmtree(elsewhere)
    assert go_on(place) == 0
    assert f"go on in it: there is no {elsewhere} any more" in capsys.readouterr().err
    assert not elsewhere.exists()
    assert steps(place)[-1] >= 800


def test_another_folder_is_refused(place: Path, tmp_path: Path, refused: Refused) -> None:
    before = contents(place.parents[2])
    line = refused("train", "-i", place, "-n", "800", "-tb", tmp_path)
    assert f"-tb {tmp_path} contradicts the run {place}: it has {events(place)}" in line
    assert contents(place.parents[2]) == before


@pytest.mark.parametrize("text", ["", "[]", "{", '{"mark": 3}', "\xff"])
def test_a_damaged_mark_is_none(text: str, place: Path) -> None:
    elsewhere = events(place)
    (elsewhere / MARK).write_text(text)
    before = contents(elsewhere)
    assert go_on(place) == 0
    assert contents(elsewhere) == before


def test_a_mark_that_cannot_be_written_leaves_no_folder(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "file").write_text("mine")
    refused(*TINY, "-f", tmp_path / "logs", "-tb", tmp_path / "file" / "tb")
    assert not (tmp_path / "logs").exists()
    assert (tmp_path / "file").read_text() == "mine"
