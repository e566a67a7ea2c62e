"""Maze-v0 on the command line: a categorical policy with its settings, through every command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import stable_baselines3
from gymnasium.spaces import Discrete
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import metarl
from metarl.zoo.__main__ import main
from metarl.zoo.config import check_hyperparameters, load_hyperparameters
from tests.meta.small import REINFORCED, equal
from tests.zoo.conftest import Refused

ALGOS = REINFORCED
SMALL = ["meta_batch_size:2", "n_episodes:2", "policy_kwargs.net_arch:[8]"]


def train(logs: Path, algo: str, *, n: int = 100, eval_freq: int = -1) -> Path:
    words = ["train", "--algo", algo, "--env", "Maze-v0", "--seed", "0", "--num-threads", "1", "--verbose", "0"]
    words += ["-n", str(n), "--n-eval-tasks", "2", "--eval-freq", str(eval_freq), "-f", str(logs)]
    assert main([*words, "--env-kwargs", "width:6", "-params", *SMALL]) == 0
    return logs / algo / "Maze-v0_1"


@pytest.mark.parametrize("algo", ALGOS)
def test_every_wrapper_has_settings_and_trains_with_them(algo: str, tmp_path: Path) -> None:
    config = load_hyperparameters(algo, "Maze-v0")
    n_tasks = config["meta_batch_size"] * config.get("n_tasks", 1)  # of each family, where a meta-batch is of families
    at_once = 1 if "n_iterations_per_task" in config else 20
    assert (config["learner"], n_tasks, config["n_episodes"]) == ("vpg", at_once, 20)
    run = train(tmp_path, algo)
    assert metarl.load(run / "Maze-v0.safetensors").family.horizon == 12


def test_a_run_goes_through_every_command(tmp_path: Path, refused: Refused) -> None:
    run = train(tmp_path, "reptile", eval_freq=100)
    assert main(["train", "-i", str(run), "-n", "300", "--verbose", "0", "--num-threads", "1"]) == 0
    whole = train(tmp_path / "whole", "reptile", n=300, eval_freq=100)
    assert equal(*(metarl.load(folder / "Maze-v0.safetensors").params for folder in (run, whole)))
    assert {"meta/pre_adapt_rew", "meta/post_adapt_rew"} <= set(EventAccumulator(str(run)).Reload().Tags()["scalars"])

    assert main(["evaluate", "-i", str(run), "--n-eval-tasks", "4", "--split", "shifted", "--num-threads", "1"]) == 0
    (report,) = (run / "evaluations").glob("*.json")
    (record,) = json.loads(report.read_text())["reports"]
    # Two mazes are shifted, and each is adapted to twice.
    assert record["strata"] == [0, 1, 0, 1]
    assert record["tasks"]["obstacles"][:2] == record["tasks"]["obstacles"][2:]
    words = ["export", "-i", str(run), "--task"]
    assert "outside the task space" in refused(*words, "obstacles:[1,0,2]")
    assert main([*words, "obstacles:[1,0,1]"]) == 0
    model = stable_baselines3.PPO.load(run / "export" / "Maze-v0.zip")
    assert model.action_space == Discrete(4)
    assert main(["finetune", "-i", str(run), "-n", "80", "--n-eval-tasks", "2", "--num-threads", "1"]) == 0
    assert main(["plot", "-i", str(run)]) == 0
    assert len(list(run.glob("training_*.png"))) == 1


def test_mazes_by_hand_on_the_command_line(tmp_path: Path, refused: Refused) -> None:
    words = ["train", "--algo", "reptile", "--env", "Maze-v0", "-f", str(tmp_path), "--num-threads", "1", "-n", "60"]
    words += ["--eval-freq", "-1", "--verbose", "0", "-params", *SMALL, "--env-kwargs"]
    assert main([*words, "mazes:['..#./#...', '..../....']"]) == 0
    model = metarl.load(tmp_path / "reptile" / "Maze-v0_1" / "Maze-v0.safetensors")
    assert model.env_kwargs == {"mazes": ["..#./#...", "..../...."]}
    message = refused(*words, "mazes:['..#./.#..']")
    assert "maze '..#./.#..' cannot be solved: no way leads" in message


@pytest.mark.parametrize("algo", ALGOS)
def test_every_wrapper_has_settings_for_imitation(algo: str) -> None:
    config = check_hyperparameters(load_hyperparameters(algo, "MazeImitation-v0"), metarl.ALGORITHMS[algo])
    assert (config["learner"], config["n_episodes"], config["env_kwargs"]) == ("cloning", 30, {"order": "trajectory"})


def test_imitation_goes_through_every_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--algo", "fomaml", "--env", "MazeImitation-v0", "--seed", "0", "--num-threads", "1", "-n", "60"]
    words += ["--n-eval-tasks", "2", "--eval-freq", "30", "-f", str(tmp_path), "--verbose", "0"]
    assert main([*words, "--env-kwargs", "real_kwargs.width:6", "n_demonstrations:1", "-params", *SMALL]) == 0
    run = tmp_path / "fomaml" / "MazeImitation-v0_1"
    assert main(["train", "-i", str(run), "-n", "90", "--verbose", "0", "--num-threads", "1"]) == 0
    assert main(["evaluate", "-i", str(run), "--n-eval-tasks", "2", "--split", "shifted", "--num-threads", "1"]) == 0
    assert "accuracy where it learns" in capsys.readouterr().out
    (report,) = (run / "evaluations").glob("*.json")
    (record,) = json.loads(report.read_text())["reports"]
    # Scores are those of Maze-v0, and accuracies are beside them.
    assert min(min(task) for task in record["returns"][0]) >= -1.0
    assert all(0.0 <= value <= 1.0 for task in record["learning_returns"][0] for value in task)
    assert main(["export", "-i", str(run)]) == 0
    assert stable_baselines3.PPO.load(run / "export" / "MazeImitation-v0.zip").observation_space.shape == (12,)
    assert main(["plot", "-i", str(run)]) == 0
