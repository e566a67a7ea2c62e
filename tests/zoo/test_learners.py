"""Reptile, Leap and other learners on the command line: train, go on exactly, evaluate, export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from stable_baselines3 import PPO

import metarl
from metarl.meta.export.sb3 import load_sb3
from metarl.zoo.__main__ import main
from metarl.zoo.runs import callbacks

from .conftest import TINY, Refused

STOCK = "{n_steps: 20, n_envs: 2, batch_size: 20, n_epochs: 2, normalize: true}"
RUNS: dict[str, list[str]] = {
    "reptile-vpg": ["serial:true"],
    "leap-ppo": ["learner:ppo", "learner_kwargs.n_epochs:2", "drop_last:true", "exclude:[log_std]"],
    "reptile-sb3_ppo": ["learner:sb3_ppo", f"learner_kwargs:{STOCK}"],
    "fomaml-sb3_ppo": ["learner:sb3_ppo", f"learner_kwargs:{STOCK}", "outer_kwargs.learning_rate:0.01"],
}


@pytest.mark.parametrize("name", list(RUNS))
def test_a_run_that_is_stopped_goes_on_to_the_same_end(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    algo = name.partition("-")[0]
    argv = [*TINY, "--algo", algo, "-n", "500"]
    own = ["n_inner_steps:2", *RUNS[name]]
    start = argv.index("-params") + 1
    argv = [*argv[:start], *own, *argv[start:]]
    assert main([*argv, "-f", str(tmp_path / "whole")]) == 0
    whole, run = (tmp_path / part / algo / "PointMass-v0_1" for part in ("whole", "stopped"))

    monkeypatch.setattr(callbacks, "SAVE_SPACING", 0.0)
    cls: Any = metarl.ALGORITHMS[algo]
    train = cls.train

    def stop(model: Any) -> Any:
        if model.n_iterations == 2:
            raise KeyboardInterrupt
        return train(model)

    with monkeypatch.context() as patch:
        patch.setattr(cls, "train", stop)
        assert main([*argv, "-f", str(tmp_path / "stopped")]) == 130
    assert metarl.load(run / "checkpoint").n_iterations == 2
    assert main(["train", "-i", str(run), "--verbose", "0"]) == 0
    first, second = (metarl.load(folder / "PointMass-v0") for folder in (whole, run))
    assert first.num_timesteps == second.num_timesteps >= 500
    assert all(torch.equal(tensor, second.params[key]) for key, tensor in first.params.items())

    words = ["--n-eval-tasks", "3", "--n-inner-steps", "2", "-o", str(tmp_path / "e.json")]
    assert main(["evaluate", "-i", str(run), *words]) == 0
    report = json.loads((tmp_path / "e.json").read_text())
    assert len(report["reports"][0]["env_steps"]) == 3
    capsys.readouterr()
    assert main(["export", "-i", str(run)]) == 0
    out = capsys.readouterr().out
    assert "from stable_baselines3 import PPO\n" in out
    assert ("VecNormalize.load" in out) == name.endswith("sb3_ppo")
    model = load_sb3(run / "export" / "PointMass-v0.zip")
    assert type(model) is PPO
    assert (model.get_vec_normalize_env() is not None) == name.endswith("sb3_ppo")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--algo", "maml", "-params", "learner:sb3_ppo"], "maml around 'sb3_ppo': a stock algorithm's steps"),
        (["--algo", "reptile", "-params", "outer:trpo"], "reptile with outer='trpo'"),
        (["--algo", "reptile", "-params", "learner:sb3_dqn"], "'dqn' takes Discrete actions"),
        (["--algo", "leap", "-params", "metric:lenght"], "did you mean 'length'"),
        (["--algo", "leap", "-params", "serial:true"], "unknown hyperparameter 'serial'"),
        (["--algo", "reptile", "-params", "learner:pppo"], "did you mean 'ppo'"),
        (["--algo", "reptile", "-params", "learner:ppo", "learner_kwargs:{n_epoch: 3}"], "did you mean 'n_epochs'"),
        (["--algo", "reptile", "-params", "learner:ppo", "learner_kwargs:{parallel: 3}"], "parallel of the learner is"),
        (
            ["--algo", "reptile", "-params", "learner:sb3_ppo", "learner_kwargs:{ent_coef: auto}"],
            "ent_coef='auto' is not",
        ),
        (["--algo", "reptile", "-params", "learner:sb3_ppo", "learner_kwargs:{normalize: 5}"], "normalize=5 is not"),
        (["--algo", "reptile", "-params", "exclude:[valu_net]"], "unknown part of the policy 'valu_net'"),
    ],
)
def test_bad_input_leaves_nothing_behind(words: list[str], message: str, tmp_path: Path, refused: Refused) -> None:
    assert message in refused("train", "--env", "PointMass-v0", "-n", "100", "-f", tmp_path / "logs", *words)
    assert not (tmp_path / "logs").exists()
