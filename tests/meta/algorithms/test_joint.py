"""Joint training around a stock algorithm: its own learn() on copies of all tasks, from one meta-batch to the next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO

import metarl
from metarl.agents.stock.learner import learning_seed
from metarl.envs.family import draw_tasks
from metarl.envs.registry import make_family
from metarl.envs.views.oracle import Oracle
from metarl.envs.views.vec_env import FamilyVecEnv
from metarl.errors import ConfigError
from metarl.streams import seed_sequence, stream
from tests.meta.aim import Aim

SIZES: dict[str, Any] = {
    "learner": "sb3_ppo",
    "learner_kwargs": {"n_envs": 2, "n_steps": 8, "batch_size": 16, "n_epochs": 2},
    "inner_lr": 3e-3,
    "n_transitions": 32,
    "meta_batch_size": 3,
    "policy_kwargs": {"net_arch": [8]},
    "seed": 4,
}


def make(cls: type[Any] = metarl.Oracle, **kwargs: Any) -> Any:
    return cls("MlpPolicy", "PointMass-v0", **{**SIZES, **kwargs})


@pytest.mark.parametrize("cls", [metarl.Oracle, metarl.Pretrain])
def test_a_meta_iteration_is_one_learn_of_sb3_on_all_tasks(cls: type[Any]) -> None:
    model = make(cls)
    theta = {name: tensor.clone() for name, tensor in model.theta.items()}
    model.learn(1)
    assert (model.n_iterations, model.num_timesteps) == (1, 96)

    family = make_family("PointMass-v0", oracle=cls is metarl.Oracle)
    tasks = draw_tasks(family, stream(4, "tasks", 0), 3)
    env = FamilyVecEnv(family, tasks, n_envs=2)
    arguments = {**SIZES["learner_kwargs"], "learning_rate": 3e-3, "policy_kwargs": SIZES["policy_kwargs"]}
    del arguments["n_envs"]
    plain = PPO("MlpPolicy", env, device="cpu", **arguments)
    plain.policy.load_state_dict(theta)
    plain.set_random_seed(learning_seed(seed_sequence(4, "train", 0, 0)))
    plain.learn(96)
    for name, tensor in plain.policy.state_dict().items():
        # θ − (θ − φ) is φ but for rounding.
        torch.testing.assert_close(model.theta[name], tensor, rtol=0, atol=1e-6)
    assert any(not torch.equal(model.theta[name], theta[name]) for name in theta)


def test_a_run_goes_on_from_a_file_and_statistics_go_along(tmp_path: Path) -> None:
    normalised = {**SIZES["learner_kwargs"], "normalize": True}
    whole, part = make(learner_kwargs=normalised), make(learner_kwargs=normalised)
    whole.learn(10**6, callback=lambda local, _: whole.n_iterations < 2)
    part.learn(10**6, callback=lambda local, _: False)
    again = metarl.load(part.save(tmp_path / "model"))
    again.learn(10**6 - 96, callback=lambda local, _: False, reset_num_timesteps=False)
    assert again.num_timesteps == whole.num_timesteps == 192
    for name, tensor in whole.params.items():
        assert torch.equal(tensor, again.params[name]), name
    assert float(whole.params["statistics/obs_count"]) == pytest.approx(192, abs=20)


def test_joint_ppo_learns_what_the_oracle_sees() -> None:
    # Minibatches are larger than a single task's rollout, of which SB3 would warn.
    sizes = {"n_steps": 4, "batch_size": 64, "n_epochs": 10, "gae_lambda": 1.0}
    more = {"learner_kwargs": sizes, "n_transitions": 4, "meta_batch_size": 64, "inner_lr": 1e-2}
    model = metarl.Oracle("MlpPolicy", Oracle(Aim()), **{**SIZES, **more})
    model.learn(12 * 256)
    targets = np.array([0.45, 0.65, 0.85], np.float32)
    shots, _ = model.predict(np.stack([np.ones(3, np.float32), targets], axis=1), deterministic=True)
    assert np.abs(shots[:, 0] - targets).max() < 0.15


def test_tensors_of_tasks_own_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"task_local=\['action_net'\]: oracle around 'sb3_ppo' has one policy"):
        make(task_local=["action_net"])


def test_the_exported_algorithm_acts_the_same() -> None:
    model = make()
    model.learn(1)
    plain = model.to_sb3()
    obs = np.random.default_rng(0).uniform(-1, 1, (5, 4)).astype(np.float32)
    ours, _ = model.predict(obs, deterministic=True)
    theirs, _ = plain.predict(obs, deterministic=True)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
