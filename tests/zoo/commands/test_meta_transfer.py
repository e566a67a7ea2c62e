"""Meta-transfer on the command line: CosineSine-v0 with its settings, through every command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import stable_baselines3
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import metarl
from metarl.zoo.__main__ import main
from metarl.zoo.config import check_hyperparameters, load_hyperparameters
from tests.meta.small import equal
from tests.zoo.conftest import Refused

SMALL = ["meta_batch_size:2", "n_support:3", "n_query:3", "policy_kwargs.net_arch:[8]"]


def train(logs: Path, *pairs: str, env: str = "CosineSine-v0", n: int = 48) -> Path:
    words = ["train", "--algo", "meta_transfer", "--env", env, "--seed", "0", "--num-threads", "1", "--verbose", "0"]
    words += ["-n", str(n), "--n-eval-tasks", "3", "--eval-freq", str(n // 2), "-f", str(logs), "-params"]
    assert main([*words, *SMALL, *pairs]) == 0
    return logs / "meta_transfer" / f"{env}_1"


@pytest.mark.parametrize(
    "env",
    [
        "CosineSine-v0",
        "Sinusoid-v0",
        "DoublePendulum-v0",
        "PendulumParameters-v0",
        "AntLegTransfer-v0",
        "MazeTransfer-v0",
        "PointMass-v0",
        "Maze-v0",
        "AntLeg-v0",
    ],
)
def test_it_has_settings(env: str) -> None:
    config = load_hyperparameters("meta_transfer", env)
    assert check_hyperparameters(config, metarl.MetaTransfer)
    at_the_paper_s_rate = not config.get("learner") or env == "AntLeg-v0"
    assert config["outer_kwargs"]["learning_rate"] == (0.0005 if at_the_paper_s_rate else 0.002)


def test_a_run_is_evaluated_plotted_exported_and_gone_on_with(tmp_path: Path, refused: Refused) -> None:
    run = train(tmp_path, "init:naive")
    assert {"meta/post_adapt_rew", "meta/meta_loss"} <= set(EventAccumulator(str(run)).Reload().Tags()["scalars"])
    few = ["-i", str(run), "--n-eval-tasks", "3"]
    assert main(["evaluate", *few, "--n-inner-steps", "2"]) == 0
    assert main(["evaluate", *few, "--n-inner-steps", "2", "--env-kwargs", "support_noise:3.0"]) == 0
    records = [json.loads(path.read_text())["reports"][0] for path in (run / "evaluations").glob("*.json")]
    clean, noisy = sorted(records, key=lambda record: record["meta"]["env_kwargs"].get("support_noise", 0.0))
    assert clean["env_steps"] == noisy["env_steps"] == [0.0, 3.0, 6.0]
    assert clean["returns"] != noisy["returns"]
    assert main(["plot", "-i", str(run)]) == 0
    assert main(["export", "-i", str(run)]) == 0
    stable_baselines3.PPO.load(run / "export" / "CosineSine-v0.zip")
    assert main(["finetune", "-i", str(run), "-n", "20", "--n-eval-tasks", "2", "--num-threads", "1"]) == 0
    task = ["--task", "amplitude:2.0", "phase:0.5", "--n-inner-steps", "2"]
    assert main(["export", "-i", str(run), *task, "-o", str(tmp_path / "seen.zip")]) == 0
    adapted = metarl.load(run / "CosineSine-v0.safetensors").reached({"amplitude": [2.0], "phase": [0.5]}, 2)
    stock = stable_baselines3.PPO.load(tmp_path / "seen.zip").policy.state_dict()
    assert torch.equal(stock["action_net.weight"], adapted["action_net.weight"][0])
    sidecar = json.loads((tmp_path / "seen.json").read_text())
    assert sidecar["source"]["adapted"] == {"task": "amplitude 2.0, phase 0.5", "n_inner_steps": 2, "episodes": None}
    assert "give --task amplitude:… phase:…" in refused("export", "-i", run, "--n-inner-steps", "1")
    assert "give --n-inner-steps as well" in refused("export", "-i", run, "--episodes", "1")
    assert main(["train", "-i", str(run), "-n", "96", "--verbose", "0", "--num-threads", "1"]) == 0
    whole = train(tmp_path / "whole", "init:naive", n=96)
    assert equal(*(metarl.load(folder / "CosineSine-v0.safetensors").params for folder in (run, whole)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env", "kwargs"),
    [
        ("DoublePendulum-v0", []),
        ("PendulumParameters-v0", []),
        ("AntLegTransfer-v0", ["n_tasks:3", "n_trajectories:1", "n_demonstrations:1"]),
        ("MazeTransfer-v0", ["width:6"]),
    ],
)
def test_every_pair_of_families_goes_through_every_command(env: str, kwargs: list[str], tmp_path: Path) -> None:
    for folder, lengths in (("parts", (24, 48)), ("whole", (48,))):
        words = ["train", "--algo", "meta_transfer", "--env", env, "--seed", "0", "--num-threads", "1"]
        words += ["--env-kwargs", *kwargs] if kwargs else []
        words += ["-n", str(lengths[0]), "--n-eval-tasks", "2", "-f", str(tmp_path / folder), "--verbose", "0"]
        assert main([*words, "-params", *SMALL]) == 0
        for n in lengths[1:]:
            run = tmp_path / folder / "meta_transfer" / f"{env}_1"
            assert main(["train", "-i", str(run), "-n", str(n), "--verbose", "0", "--num-threads", "1"]) == 0
    run, whole = (tmp_path / folder / "meta_transfer" / f"{env}_1" for folder in ("parts", "whole"))
    assert equal(*(metarl.load(folder / f"{env}.safetensors").params for folder in (run, whole)))
    assert main(["evaluate", "-i", str(run), "--n-eval-tasks", "2", "--n-inner-steps", "1"]) == 0
    assert main(["plot", "-i", str(run)]) == 0
    assert main(["export", "-i", str(run)]) == 0
    stable_baselines3.PPO.load(run / "export" / f"{env}.zip")
    assert main(["record", "-i", str(run), "-n", "2"]) == 0
    assert (run / "videos" / "test_1.gif").is_file()


def test_a_run_whose_query_is_episodes_is_evaluated_exported_and_gone_on_with(tmp_path: Path) -> None:
    run = train(tmp_path, "init:naive", env="Maze-v0", n=2 * 2 * (3 + 3 * 24))
    assert metarl.load(run / "Maze-v0.safetensors").learner == "vpg"
    few = ["-i", str(run), "--n-eval-tasks", "3"]
    assert main(["evaluate", *few, "--n-inner-steps", "2", "--env-kwargs", "support_noise:3.0"]) == 0
    assert main(["export", "-i", str(run)]) == 0
    stable_baselines3.PPO.load(run / "export" / "Maze-v0.zip")
    assert main(["train", "-i", str(run), "-n", "1000", "--verbose", "0", "--num-threads", "1"]) == 0


def test_every_encoder_is_an_argument(tmp_path: Path, refused: Refused) -> None:
    run = train(tmp_path, "encoder:recurrent", "encoder_kwargs.hidden_size:8", env="Sinusoid-v0", n=12)
    assert metarl.load(run / "Sinusoid-v0.safetensors").encoder_kwargs == {"hidden_size": 8}
    words = ["train", "--algo", "meta_transfer", "-f", tmp_path / "none"]
    assert "'context'" in refused(*words, "--env", "CosineSine-v0", "-params", "encoder:contex")
    assert "nothing that is supervised is seen" in refused(*words, "--env", "AntVel-v0")
