"""``metarl export``: a zip that opens without metarl, and nothing collected for one that cannot be written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import metarl
from metarl.zoo.__main__ import main
from tests.zoo.conftest import Refused, contents, tiny


def test_an_export_that_cannot_be_written_collects_nothing(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = logs / "fomaml" / "PointMass-v0_1"
    assert main(["export", "-i", str(run), "-o", str(run / "progress.csv" / "x" / "model.zip")]) == 2
    said = capsys.readouterr()
    assert "progress.csv" in said.err
    assert "Collecting" not in said.out


def test_the_export_opens_without_metarl(logs: Path, tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / "plain.zip"
    argv = ["export", "-f", str(logs), "--to", "ppo", "-o", str(path)]
    assert main(argv) == 0
    assert path.with_suffix(".json").is_file()
    code = (
        "import sys; sys.modules['metarl'] = None\n"
        "from stable_baselines3 import PPO\n"
        f"print(PPO.load({str(path)!r}).predict([0.1, 0.2], deterministic=True)[0].tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", timeout=120)
    assert done.returncode == 0, done.stderr
    model = metarl.load(logs / "fomaml" / "PointMass-v0_1" / "PointMass-v0")
    expected = model.predict(np.array([0.1, 0.2], dtype=np.float32), deterministic=True)[0]
    assert json.loads(done.stdout) == pytest.approx(expected.tolist(), abs=1e-6)
    before = contents(tmp_path)
    assert "exists already" in refused(*argv)
    assert "outside the task space" in refused(*argv, "--overwrite", "--task", "goal:[9,9]")
    assert "did you mean 'goal'" in refused(*argv, "--overwrite", "--task", "gol:[0,0]")
    assert contents(tmp_path) == before
    assert main([*argv, "--overwrite", "--task", "goal:[0.1,0.2]"]) == 0
    path.unlink()
    assert "plain.json exists already" in refused(*argv)


@pytest.mark.parametrize("algo", ["hat", "progressive"])
def test_a_network_that_sb3_has_not_is_refused_before_anything_is_collected(
    algo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learnt = ["--algo", algo, "-f", str(tmp_path), "--eval-freq", "-1", "-params", "n_training_tasks:2"]
    assert main(tiny(*learnt)) == 0
    for command in ("export", "finetune"):
        assert main([command, "-i", str(tmp_path / algo / "PointMass-v0_1")]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.endswith("is none of Stable-Baselines3's policies: nothing to export to\n")
