"""Environments of Gymnasium on the command line, by id and what differs by task, through every command."""

from __future__ import annotations

import json
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import stable_baselines3
import yaml

import metarl
from metarl.envs import SingleEnv
from metarl.meta.export.sb3 import load_sb3
from metarl.zoo.__main__ import main
from tests.meta.small import equal
from tests.zoo.conftest import Refused

CARTPOLE = ["--env", "CartPole-v1", "--task", "gravity:5..15", "length:0.3..1.0"]
PENDULUM = ["--env", "Pendulum-v1", "--task", "g:5..15", "m:0.5,1.0,2.0", "--env-kwargs", "horizon:20"]
TINY = ["--seed", "0", "--num-threads", "1", "--verbose", "0", "--n-eval-tasks", "2", "-params"]
TINY += ["meta_batch_size:2", "n_episodes:2", "policy_kwargs.net_arch:[8]"]


def train(logs: Path, *words: str, n: int = 160) -> None:
    words = ("train", *words, "-n", str(n), "--eval-freq", str(n // 2), "-f", str(logs), *TINY)
    assert main(list(words)) == 0


@pytest.fixture(scope="module")
def pendulum(tmp_path_factory: pytest.TempPathFactory) -> Path:
    logs = tmp_path_factory.mktemp("logs")
    train(logs, "--algo", "fomaml", *PENDULUM)
    return logs / "fomaml" / "Pendulum-v1_1"


def test_a_run_knows_what_differs_by_task(pendulum: Path) -> None:
    config = yaml.safe_load((pendulum / "Pendulum-v1" / "config.yml").read_text())
    assert config["env_kwargs"] == {"tasks": {"g": "5..15", "m": "0.5,1.0,2.0"}, "horizon": 20}
    model = metarl.load(pendulum / "Pendulum-v1.safetensors")
    assert model.env_kwargs == {"tasks": {"g": "5.0..15.0", "m": [0.5, 1.0, 2.0]}, "horizon": 20}
    assert set(model.family.sample_tasks(np.random.default_rng(0), 50)["m"]) == {0.5, 1.0, 2.0}
    with np.load(pendulum / "meta_evaluations.npz") as arrays:
        assert {"task_g", "task_m"} <= set(arrays)


def test_it_is_evaluated_plotted_exported_and_fine_tuned(pendulum: Path, tmp_path: Path) -> None:
    logs = ["-f", str(pendulum.parents[1])]
    which = ["--algo", "fomaml", "--env", "Pendulum-v1", *logs]
    out = [str(tmp_path / name) for name in ("eval.json", "plain.zip", "fine.json", "curve.png", "adaptation.svg")]
    assert main(["evaluate", *which, "--n-eval-tasks", "3", "--n-inner-steps", "2", "-o", out[0]]) == 0
    (record,) = json.loads(Path(out[0]).read_text())["reports"]
    assert (record["env"], record["env_steps"]) == ("Pendulum-v1", [0.0, 40.0, 80.0])
    assert main(["export", *which, "--to", "ppo", "--task", "g:9", "m:0.5", "-o", out[1]]) == 0
    assert main(["finetune", *which, "-n", "200", "--n-eval-tasks", "2", "--optimizer", "adam", "-o", out[2]]) == 0
    assert main(["plot", *which, "-o", out[3]]) == 0
    assert main(["plot", *which, "--kind", "adaptation", "-o", out[4]]) == 0
    assert all(Path(path).stat().st_size > 100 for path in out)
    # Plain SB3 goes on with the export on Gymnasium's own environment.
    ppo = stable_baselines3.PPO.load(out[1], env=gymnasium.make("Pendulum-v1"), n_steps=32, batch_size=32)
    ppo.learn(32)
    assert load_sb3(out[1]).num_timesteps == 0, "without an environment, on the family that the sidecar names"


def test_plain_sb3_from_scratch_needs_the_tasks_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Refused
) -> None:
    words = ["finetune", "--from-scratch", "--env", "Pendulum-v1", "-n", "250", "--n-eval-tasks", "2"]
    words += ["-f", str(tmp_path), "--num-threads", "1"]
    assert "elsewhere --env-kwargs tasks.gravity:5..15" in refused(*words)
    assert main([*words, "--env-kwargs", "tasks.g:5..15", "horizon:10"]) == 0
    assert "--env Pendulum-v1 --env-kwargs tasks.g:5..15 horizon:10" in capsys.readouterr().out


def test_a_run_goes_on_where_it_was(pendulum: Path, tmp_path: Path, refused: Refused) -> None:
    train(tmp_path, "--algo", "fomaml", *PENDULUM)
    run = tmp_path / "fomaml" / "Pendulum-v1_1"
    more = ["train", "-i", str(run), "--verbose", "0", "--num-threads", "1"]
    assert "--env-kwargs tasks.g contradicts the run" in refused(*more, "--task", "g:5..16")
    assert main([*more, "-n", "320", "--task", "g:5..15"]) == 0
    train(tmp_path / "whole", "--algo", "fomaml", *PENDULUM, n=320)
    whole = tmp_path / "whole" / "fomaml" / "Pendulum-v1_1"
    assert equal(*(metarl.load(folder / "Pendulum-v1.safetensors").params for folder in (run, whole)))


def test_cartpole_with_its_episodes_of_many_lengths(tmp_path: Path) -> None:
    train(tmp_path, "--algo", "maml", *CARTPOLE)
    run = tmp_path / "maml" / "CartPole-v1_1"
    assert metarl.load(run / "CartPole-v1.safetensors").family.horizon == 500
    assert main(["evaluate", "-i", str(run), "--n-eval-tasks", "2", "--env-kwargs", "tasks.gravity:1..30"]) == 0
    # A new run from its parameters, on the tasks that it had.
    assert main(["train", "-i", str(run / "CartPole-v1.safetensors"), "-n", "20", "-f", str(tmp_path), *TINY]) == 0
    assert metarl.load(tmp_path / "maml" / "CartPole-v1_2" / "CartPole-v1.safetensors").env_kwargs == {
        "tasks": {"gravity": "5.0..15.0", "length": "0.3..1.0"}
    }


def test_a_stock_learner_and_the_oracle(tmp_path: Path) -> None:
    words = ["learner:sb3_ppo", "learner_kwargs.batch_size:20", "n_inner_steps:1"]
    assert main(["train", "--algo", "reptile", *PENDULUM, "-n", "80", "-f", str(tmp_path), *TINY, *words]) == 0
    train(tmp_path, "--algo", "oracle", *PENDULUM)
    model = metarl.load(tmp_path / "oracle" / "Pendulum-v1_1" / "Pendulum-v1.safetensors")
    assert model.observation_space.shape == (5,)
    assert main(["train", "-i", str(tmp_path / "oracle" / "Pendulum-v1_1"), "-n", "200", "--verbose", "0"]) == 0


def test_ids_with_a_slash_have_folders_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = dict(gymnasium.registry)
    monkeypatch.setattr(gymnasium.envs.registration, "registry", registry)
    monkeypatch.setattr(gymnasium, "registry", registry)
    entry_point = "gymnasium.envs.classic_control.pendulum:PendulumEnv"
    gymnasium.register("my/Swing-v0", entry_point=entry_point, max_episode_steps=10)
    train(tmp_path, "--algo", "fomaml", "--env", "my/Swing-v0", "--task", "m:0.5..2.0")
    run = tmp_path / "fomaml" / "my-Swing-v0_1"
    assert metarl.load(run / "my-Swing-v0.safetensors").family.id == "my/Swing-v0"
    logs = ["--algo", "fomaml", "--env", "my/Swing-v0", "-f", str(tmp_path)]
    assert main(["evaluate", *logs, "--n-eval-tasks", "2", "--n-inner-steps", "1"]) == 0
    assert main(["train", "-i", str(run), "-n", "200", "--verbose", "0"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--env", "CartPole-v1"], "'CartPole-v1' is one environment of Gymnasium, not a family of tasks"),
        (["--env", "CartPole-v1", "--task", "gravty:5..15"], "did you mean 'gravity'?"),
        (["--env", "CartPole-v1", "--task", "gravity:15..5"], "the low end of a range is below the high one"),
        (["--env", "CartPole-v1", "--task", "gravity:5"], "tasks.gravity=5 is one value"),
        (["--env", "CartPole-v1", "--task", "gravity=5..15"], "--task takes k:v pairs, such as gravity:5..15"),
        (["--env", "CartPol-v1", "--task", "gravity:5..15"], "did you mean 'CartPole-v1'?"),
        (["--env", "FrozenLake-v1", "--task", "is_slippery:true,false"], "observes Discrete(16)"),
        (["--env", "PointMass-v0", "--task", "gravity:5..15"], "PointMass-v0 has tasks already"),
        (["--env", "my_module:Env", "--task", "gravity:5..15"], "need --gym-packages MODULE"),
    ],
)
def test_what_makes_no_sense_leaves_nothing_behind(
    words: list[str], message: str, tmp_path: Path, refused: Refused
) -> None:
    assert message in refused("train", "--algo", "fomaml", *words, "-n", "100", "-f", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_function_is_said_to_need_a_name(tmp_path: Path, refused: Refused) -> None:
    family = metarl.envs.from_gym(lambda: gymnasium.make("Pendulum-v1"), {"m": (0.5, 2.0)}, horizon=5)
    model = metarl.FOMAML("MlpPolicy", family, meta_batch_size=2, n_episodes=2)
    path = model.save(tmp_path / "model")
    message = refused("evaluate", "-i", path)
    assert "which is not registered: families of your own need --gym-packages MODULE" in message
    assert metarl.load(path, env=family).family is family
    assert isinstance(SingleEnv(family).family.horizon, int)
