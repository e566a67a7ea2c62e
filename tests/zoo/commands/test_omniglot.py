"""Omniglot and data sets on the command line, with their settings, through every command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import metarl
from metarl.zoo.__main__ import main
from metarl.zoo.config import load_hyperparameters
from tests.meta.small import equal
from tests.zoo.conftest import Refused

SMALL = ["meta_batch_size:2", "policy_kwargs.features_extractor_kwargs.n_filters:2"]


def train(logs: Path, algo: str, env: str, n: int, *words: str) -> Path:
    line = ["train", "--algo", algo, "--env", env, "--seed", "0", "--num-threads", "1", "--verbose", "0"]
    line += ["-n", str(n), "--n-eval-tasks", "2", "-f", str(logs), *words]
    assert main([*line, "-params", *SMALL]) == 0
    return logs / algo / f"{env}_1"


def images_in(run: Path) -> set[str]:
    events = EventAccumulator(str(run), size_guidance={"images": 0})
    events.Reload()
    return set(events.Tags()["images"])


def test_a_run_is_evaluated_and_gone_on_with_and_shows_what_it_predicts(
    refused: Refused, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(tmp_path, "maml", "OmniglotFewShot-v0", 20, "--eval-freq", "20", "--verbose", "1")
    _, proposed = capsys.readouterr().out.split("Next:")
    assert "metarl.zoo evaluate" in proposed
    assert "export" not in proposed  # it is refused, see below
    cards = {f"eval/{name}" for name in ("adaptation", "confusion", "predictions", "support_images")}
    assert images_in(run) >= cards
    assert main(["evaluate", "-i", str(run), "--n-eval-tasks", "3", "--n-inner-steps", "3"]) == 0
    _, proposed = capsys.readouterr().out.split("Next:\n")
    assert [line.split("metarl.zoo ")[1].split()[0] for line in proposed.splitlines()] == ["record", "plot"]
    (report,) = (run / "evaluations").glob("*.json")
    (record,) = json.loads(report.read_text())["reports"]
    assert record["env_steps"] == [0.0, 5.0, 5.0, 5.0]
    assert main(["train", "-i", str(run), "-n", "40", "--verbose", "0"]) == 0
    whole = train(tmp_path / "whole", "maml", "OmniglotFewShot-v0", 40, "--eval-freq", "20")
    ours, theirs = (metarl.load(folder / "OmniglotFewShot-v0.safetensors") for folder in (run, whole))
    assert equal(ours.params, theirs.params)
    assert "none of Stable-Baselines3's policies" in refused("export", "-i", run)


def test_alphabets_with_the_settings_of_leap(tmp_path: Path) -> None:
    for algo in ("leap", "reptile", "fomaml", "random"):
        config = load_hyperparameters(algo, "Omniglot-v0")
        assert config["meta_batch_size"] == config["n_episodes"] == 20
        assert config["inner_lr"] == 0.1
        assert config["n_inner_steps"] == (5 if algo == "random" else 100)
    words = ["--env-kwargs", "n_alphabets:2", "--eval-freq", "-1"]
    run = train(tmp_path, "leap", "Omniglot-v0", 1, *words, "-params", "n_inner_steps:2")
    assert main(["evaluate", "-i", str(run), "--n-eval-tasks", "2", "--split", "shifted", "--n-inner-steps", "2"]) == 0
    (report,) = (run / "evaluations").glob("*.json")
    (record,) = json.loads(report.read_text())["reports"]
    assert np.shape(record["learning_returns"]) == (1, 2, 3)


def test_data_sets_of_a_folder(refused: Refused, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for name, n_classes in (("ants", 2), ("bees", 3), ("cows", 2)):
        arrays = {f"{part}_images": rng.integers(0, 256, (6, 16, 16), dtype=np.uint8) for part in ("train", "test")}
        labels = {f"{part}_labels": np.arange(6) % n_classes for part in ("train", "test")}
        np.savez(tmp_path / "data" / f"{name}.npz", **arrays, **labels)
    words = ["--env-kwargs", f"folder:{tmp_path / 'data'}", "held_out:bees", "-params", "n_inner_steps:2"]
    run = train(tmp_path, "leap", "MultiCV-v0", 1, *words, "--eval-freq", "-1")
    assert main(["evaluate", "-i", str(run), "--n-eval-tasks", "1", "--n-inner-steps", "2"]) == 0
    words = ["train", "--algo", "leap", "--env", "MultiCV-v0", "-f", tmp_path, "--env-kwargs", "folder:nowhere"]
    assert "there is no such folder of data sets" in refused(*words)
