"""benchmarks.pictures: a figure of episodes before and after adaptation."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.image import imread

from benchmarks.pictures import main
from metarl.errors import ConfigError
from tests.meta.small import small


def test_a_figure_has_two_rows_for_a_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = small(env_kwargs={"horizon": 4}).save(tmp_path / "model")
    size = ["--tasks", "1", "--frames", "3", "--n-episodes", "2"]
    main([str(path), "-o", str(tmp_path / "out.png"), *size, "--inner-lr", "0.5"])
    before, after = capsys.readouterr().out.splitlines()
    assert "before adaptation: return -" in before
    assert "after 1 inner step: return -" in after
    assert before.partition(":")[2] != after.partition(":")[2]
    assert before.endswith("on average of 2 episodes")
    picture = imread(tmp_path / "out.png")
    assert min(picture.shape[:2]) > 200
    assert picture[..., :3].std() > 0.05


def test_a_family_that_is_not_drawn_is_refused(tmp_path: Path) -> None:
    path = small(env="CartPole-v1", env_kwargs={"tasks": {"gravity": "5..15"}, "horizon": 5}).save(tmp_path / "model")
    with pytest.raises(ConfigError, match=r"^CartPole-v1 is not drawn$"):
        main([str(path), "-o", str(tmp_path / "out.png")])
