"""Imitation on the command line: every command, and scores that are of the environment that the expert acts in."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import stable_baselines3
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import metarl
from metarl.envs.registry import make_family
from metarl.meta.export import expert, value_fit
from metarl.zoo.__main__ import main
from metarl.zoo.config import load_hyperparameters
from tests.meta.small import ADAPTIVE, equal
from tests.zoo.conftest import Refused

ENV = "PointMassImitation-v0"
SMALL = ["meta_batch_size:2", "n_episodes:4", "policy_kwargs.net_arch:[8]"]
FAMILY = ["--env-kwargs", "n_tasks:4", "n_demonstrations:2", "real_kwargs.horizon:10", "n_eval_episodes:2"]


def train(logs: Path, algo: str, *pairs: str, n: int = 40) -> Path:
    words = ["train", "--algo", algo, "--env", ENV, "--seed", "0", "--num-threads", "1", "--verbose", "0", *FAMILY]
    words += ["-n", str(n), "--n-eval-tasks", "3", "--eval-freq", str(n // 2), "-f", str(logs), "-params"]
    assert main([*words, *SMALL, *pairs]) == 0
    return logs / algo / f"{ENV}_1"


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Value networks are fitted badly, and cards have few tasks."""
    monkeypatch.setattr(value_fit, "ROUNDS", 2)
    monkeypatch.setattr(expert, "N_TASKS", 2)


@pytest.mark.parametrize("algo", ADAPTIVE)
def test_every_wrapper_has_settings(algo: str) -> None:
    assert load_hyperparameters(algo, ENV)["learner"] == "cloning"


@pytest.mark.parametrize("algo", ["fomaml", "leap"])
def test_a_run_is_scored_in_the_real_family_by_every_command(algo: str, tmp_path: Path) -> None:
    run = train(tmp_path, algo)
    assert main(["evaluate", "-i", str(run), "--n-eval-tasks", "3", "--n-inner-steps", "2"]) == 0
    (report,) = (run / "evaluations").glob("*.json")
    (record,) = json.loads(report.read_text())["reports"]
    assert record["env"] == ENV
    assert record["env_steps"] == [0.0, 4.0, 4.0]
    # Ten steps in the plane are no pair of a state and an action.
    assert max(max(row) for row in record["meta"]["ep_lengths"]) > 1.0
    assert record["learning_returns"] != record["returns"]
    assert main(["plot", "-i", str(run)]) == 0
    tags = EventAccumulator(str(run)).Reload().Tags()["scalars"]
    assert {"eval/return_after_1", "eval/learning_return_after_1", "eval/mean_reward"} <= set(tags)
    with open(run / "progress.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["eval/mean_reward"]]
    assert all(float(row["eval/mean_ep_length"]) > 1.0 for row in rows)


def test_a_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    run = train(tmp_path, "fomaml")
    assert main(["train", "-i", str(run), "-n", "80", "--verbose", "0", "--num-threads", "1"]) == 0
    whole = train(tmp_path / "whole", "fomaml", n=80)
    assert equal(*(metarl.load(folder / f"{ENV}.safetensors").params for folder in (run, whole)))


def test_a_clone_goes_on_under_plain_ppo_in_the_real_family(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(tmp_path, "fomaml")
    assert main(["export", "-i", str(run), "--task", "goal:[0.1,0.2]"]) == 0
    real = make_family("PointMass-v0", horizon=10)
    stock = stable_baselines3.PPO.load(run / "export" / f"{ENV}.zip")
    assert (stock.observation_space, stock.action_space) == (real.observation_space, real.action_space)
    words = ["finetune", "-i", str(run), "-n", "100", "--n-eval-tasks", "2", "--num-threads", "1"]
    assert main(words) == 0
    assert "adam" in capsys.readouterr().out
    (record,) = (run / "finetune").glob("*.json")
    curves = json.loads(record.read_text())["curves"]
    assert min(curves[0]["returns"][0]) < -1.0  # of episodes


def test_an_oracles_run_becomes_an_expert(
    tmp_path: Path, refused: Refused, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["train", "--algo", "oracle", "--env", "PointMass-v0", "-n", "40", "--num-threads", "1", "--verbose", "0"]
    assert (
        main([*words, "--eval-freq", "-1", "-f", str(tmp_path), "--env-kwargs", "horizon:10", "-params", *SMALL]) == 0
    )
    run = tmp_path / "oracle" / "PointMass-v0_1"
    assert main(["export", "-i", str(run), "--to", "expert"]) == 0
    out = capsys.readouterr().out
    file = run / "export" / "PointMass-v0_expert.safetensors"
    assert "its return in 2 test tasks" in out
    own = train(tmp_path / "own", "fomaml", "n_inner_steps:1")  # by the analytic one
    assert main(["export", "-i", str(own), "--to", "ppo", "-o", str(tmp_path / "blind.zip")]) == 0
    FAMILY.append(f"expert:{file}")
    try:
        shown = train(tmp_path, "fomaml")
    finally:
        FAMILY.pop()
    assert metarl.load(shown / f"{ENV}.safetensors").family.expert.card.env == "PointMass-v0"  # type: ignore[attr-defined]
    assert "does not observe the task" in refused("export", "-i", str(own), "--to", "expert")
    assert "give --env" in refused("export", "-i", tmp_path / "blind.zip", "--to", "expert")
    told = refused("export", "-i", tmp_path / "blind.zip", "--to", "expert", "--env", "PointMass-v0")
    assert "takes 2 inputs where there are 4" in told
    told = refused("train", "--algo", "fomaml", "--env", ENV, "--env-kwargs", "expert:nowhere.safetensors")
    assert "no such file: nowhere.safetensors" in told
