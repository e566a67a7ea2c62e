"""Files of earlier commits load, evaluate, go on and open in SB3, with the numbers that their own code gave."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3 import PPO

import metarl
from metarl.meta.export.sb3 import load_sb3
from metarl.zoo.__main__ import main
from tests.golden.write_files import GO_ON, MODELS, OBSERVATIONS, found, one_iteration, rows

FILES = Path(__file__).resolve().parent / "files"
COMMITS = sorted(path.name for path in FILES.iterdir())
TOLERANCE = 1e-5


@pytest.fixture(params=COMMITS)
def folder(request: pytest.FixtureRequest) -> Path:
    """What one commit wrote."""
    return FILES / str(request.param)


def expected(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    return loaded


def assert_found(model: Any, before: dict[str, Any]) -> None:
    """A model has the counters, parameters and held-out returns that were found when it was saved."""
    after = found(model)
    assert (after["num_timesteps"], after["n_iterations"]) == (before["num_timesteps"], before["n_iterations"])
    assert after["params"].keys() == before["params"].keys()
    for name, values in before["params"].items():
        old, new = np.array(values), np.array(after["params"][name])
        assert np.abs(old - new).max() <= TOLERANCE * max(float(np.linalg.norm(old)), 0.1), name
    np.testing.assert_allclose(after["returns"], before["returns"], rtol=TOLERANCE)


def test_there_are_files_of_both_commits() -> None:
    assert COMMITS == ["01872e1", "8b5327d"]


@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_loads_evaluates_and_learns_on(folder: Path, name: str) -> None:
    before = expected(folder)["models"][name]
    model = metarl.load(folder / f"{name}.safetensors", n_threads=1)
    assert type(model).__name__ == MODELS[name][0]
    assert_found(model, before["saved"])
    assert_found(one_iteration(model), before["after_one_more"])


def test_a_run_folder_goes_on(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(folder / "run", run)
    assert main(["train", "-i", str(run), *GO_ON]) == 0
    before, after = expected(folder)["run"], rows(run)
    assert len(after) == len(before) > len(rows(folder / "run"))
    for old, new in zip(before, after, strict=True):
        for key, value in old.items():
            assert bool(new[key]) == bool(value)
            # A KL divergence is a difference of logarithms near each other.
            scale = 0.2 if key == "train/kl_divergence_loss" else abs(float(value or 0))
            assert abs(float(new[key] or 0) - float(value or 0)) <= TOLERANCE * scale, key


def test_a_run_folder_is_listed_and_evaluated(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(folder / "run", tmp_path / "logs" / "fomaml" / "PointMass-v0_1")
    assert main(["list", "runs", "-f", str(tmp_path / "logs")]) == 0
    assert "finished" in capsys.readouterr().out
    command = ["evaluate", "-f", str(tmp_path / "logs"), "--n-eval-tasks", "2", "--n-inner-steps", "2"]
    assert main([*command, "--num-threads", "1", "-o", str(tmp_path / "report.json")]) == 0
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["reports"][0]
    np.testing.assert_allclose(report["returns"][0], expected(folder)["final"]["returns"], rtol=TOLERANCE)


def test_an_export_opens_in_sb3_and_by_its_sidecar(folder: Path) -> None:
    actions = expected(folder)["actions"]
    for model in (PPO.load(folder / "plain.zip"), load_sb3(folder / "plain.zip")):
        assert isinstance(model, PPO)
        np.testing.assert_allclose(model.predict(OBSERVATIONS, deterministic=True)[0], actions, atol=TOLERANCE)
