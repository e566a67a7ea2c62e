"""Write small checkpoints, a run folder and an export with the metarl that is on the path.

``PYTHONPATH=CHECKOUT python tests/golden/write_files.py FOLDER`` makes what ``files/<commit>`` holds of a commit that
users may have files of; :mod:`tests.golden.test_files` reads them with the code of today.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO

import metarl
from metarl.zoo.__main__ import main

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "maml": ("MAML", {"learner": "ppo", "inner_lr": 0.05}),
    "fomaml": ("FOMAML", {"learner": "ppo", "inner_lr": 0.01, "learner_kwargs": {"n_epochs": 2}}),
    "leap": ("Leap", {"learner": "ppo", "inner_lr": 0.01, "learner_kwargs": {"n_epochs": 2}, "n_inner_steps": 2}),
    "leap_sb3_ppo": ("Leap", {"learner": "sb3_ppo", "learner_kwargs": {"batch_size": 4}, "n_inner_steps": 2}),
}
SIZES: dict[str, Any] = {
    "env": "PointMass-v0",
    "env_kwargs": {"horizon": 10},
    "meta_batch_size": 2,
    "n_episodes": 2,
    "policy_kwargs": {"net_arch": [12]},
    "n_threads": 1,
    "seed": 3,
}
TRAIN = ["train", "--algo", "fomaml", "--env", "PointMass-v0", "--seed", "3", "-n", "240", "--num-threads", "1"]
TRAIN += ["--n-eval-tasks", "2", "--eval-freq", "160", "--verbose", "0", "--env-kwargs", "horizon:10"]
TRAIN += ["-params", "meta_batch_size:2", "n_episodes:2", "policy_kwargs.net_arch:[12]", "fisher_fraction:1.0"]
TRAIN += ["outer_kwargs.cg_damping:0.1", "outer_kwargs.cg_steps:3"]
GO_ON = ["-n", "400", "--num-threads", "1", "--verbose", "0"]
OBSERVATIONS = np.array([[0.0, 0.0], [0.3, -0.2], [-0.5, 0.4]], np.float32)


def one_iteration(model: Any) -> Any:
    """Let a model learn for one meta-iteration more."""
    return model.learn(1, reset_num_timesteps=False)


def found(model: Any) -> dict[str, Any]:
    """Return what is to be the same when a checkpoint is loaded: counters, parameters, returns."""
    return {
        "num_timesteps": model.num_timesteps,
        "n_iterations": model.n_iterations,
        "params": {name: tensor.flatten().tolist() for name, tensor in model.params.items()},
        "returns": model.evaluate("test", n_inner_steps=2, n_tasks=2).returns[0].tolist(),
    }


def rows(run: Path) -> list[dict[str, str]]:
    """Return progress.csv of a run."""
    with open(run / "progress.csv", newline="") as file:
        return list(csv.DictReader(file))


def write(folder: Path) -> None:
    """Write everything into a new folder, which becomes the working folder, so that no path is recorded."""
    folder.mkdir(parents=True)
    os.chdir(folder)
    expected: dict[str, Any] = {"models": {}}
    for name, (cls, arguments) in MODELS.items():
        model = getattr(metarl, cls)("MlpPolicy", **{**SIZES, **arguments})
        one_iteration(one_iteration(model)).save(name)
        expected["models"][name] = {"saved": found(model), "after_one_more": found(one_iteration(model))}
    assert main([*TRAIN, "-f", "logs"]) == 0
    Path("logs/fomaml/PointMass-v0_1").rename("run")
    shutil.rmtree("logs")
    Path("run/.lock").unlink()
    for events in Path("run").glob("events.*"):  # their names tell the time and the machine
        events.rename("run/events.out.tfevents.1700000000.machine.1.0")
    assert main(["export", "-i", "run", "--to", "ppo", "--optimizer", "adam", "-o", "plain.zip"]) == 0
    expected["actions"] = PPO.load("plain.zip").predict(OBSERVATIONS, deterministic=True)[0].tolist()
    expected["final"] = found(metarl.load("run/PointMass-v0.safetensors", n_threads=1))
    shutil.copytree("run", "copy")
    assert main(["train", "-i", "copy", *GO_ON]) == 0
    keys = ("time/total_timesteps", "meta/post_adapt_rew", "train/kl_divergence_loss", "eval/mean_reward")
    expected["run"] = [{key: row[key] for key in keys} for row in rows(Path("copy"))]
    shutil.rmtree("copy")
    Path("expected.json").write_text(json.dumps(expected) + "\n", encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    write(Path(sys.argv[1]).resolve())
