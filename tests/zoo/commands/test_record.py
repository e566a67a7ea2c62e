"""``metarl record``: frames of adapted policies as a GIF."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metarl import RL2, MetaTransfer
from metarl.zoo.__main__ import main
from tests.meta.small import small
from tests.zoo.conftest import Refused


def frames(path: Path) -> list[np.ndarray]:
    """Return the pictures of a GIF; equal ones in a row are one there."""
    with Image.open(path) as image:
        found = []
        for index in range(image.n_frames):
            image.seek(index)
            found.append(np.asarray(image.convert("RGB")))
        return found


def test_an_episode_of_a_task_is_recorded_before_and_after_adaptation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(small(env_kwargs={"horizon": 4}).save(tmp_path / "model"))
    record = ["record", "-i", path, "--num-threads", "1", "--task", "goal:[0.4,0.3]", "--stochastic"]
    for steps in (0, 1):
        words = ["-n", "4", "--n-inner-steps", str(steps), "-o", str(tmp_path / f"{steps}.gif")]
        assert main([*record, *words]) == 0
    before, after = (frames(tmp_path / f"{steps}.gif") for steps in (0, 1))
    assert len(before) == len(after) == 5
    assert np.array_equal(before[0], after[0])
    assert not np.array_equal(before[-1], after[-1])
    said = capsys.readouterr().out
    assert "goal [0.4, 0.3], after 0 inner steps: return -" in said
    assert "5 frames" in said
    assert main([*record, "-n", "6", "-o", str(tmp_path / "more.gif")]) == 0
    assert "a mean of 2" in capsys.readouterr().out
    assert len(frames(tmp_path / "more.gif")) == 8


@pytest.mark.parametrize("cls", [MetaTransfer, RL2])
def test_policies_that_are_decoded_or_remember_are_recorded(cls: type[MetaTransfer | RL2], tmp_path: Path) -> None:
    sizes = {"n_support": 2} if cls is MetaTransfer else {"n_episodes": 2, "n_trials": 1}
    model = cls(env="PointMass-v0", env_kwargs={"horizon": 3}, n_threads=1, **sizes)
    words = ["record", "-i", str(model.save(tmp_path / "model")), "--n-eval-tasks", "2", "-n", "3"]
    assert main([*words, "-o", str(tmp_path / "out.gif")]) == 0
    assert 2 <= len(frames(tmp_path / "out.gif")) <= 8


def test_what_cannot_be_recorded_is_one_line(tmp_path: Path, refused: Refused) -> None:
    path = small(env_kwargs={"horizon": 4}).save(tmp_path / "model")
    assert "use a name in .gif" in refused("record", "-i", path, "-o", tmp_path / "out.mp4")
    assert "--split chooses tasks" in refused("record", "-i", path, "--task", "goal:[0,0]", "--split", "test")
    assert "goal" in refused("record", "-i", path, "--task", "goal:[9,9]", "-o", tmp_path / "out.gif")
    bare = small(env="CartPole-v1", env_kwargs={"tasks": {"gravity": "5..15"}, "horizon": 5}).save(tmp_path / "bare")
    assert "CartPole-v1 is not drawn" in refused("record", "-i", bare, "-o", tmp_path / "out.gif")
    assert not (tmp_path / "out.gif").exists()
