"""Exports of what was learnt around A2C, PPO and stock algorithms: to the algorithm it was learnt for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import VecNormalize

from metarl.agents.stock.learner import ALGORITHMS
from metarl.agents.stock.reuse import named_parameters, read_initialisation
from metarl.envs.views.single import SingleEnv
from metarl.envs.views.vec_env import FamilyVecEnv
from metarl.errors import CheckpointError, MetaRLError
from metarl.meta.export.sb3 import export_sb3, load_sb3, save_sb3
from metarl.streams import seed_sequence
from tests.meta.adaptation.test_learners import LEARNERS, make
from tests.meta.aim import Aim
from tests.meta.small import equal

STOCK = [name for name in LEARNERS if name.startswith("sb3_")]


def learnt(learner: str, algo: str = "reptile", normalize: bool = True, **kwargs: Any) -> Any:
    """Return an algorithm after a meta-iteration."""
    if learner in STOCK:
        kwargs["learner_kwargs"] = {**LEARNERS[learner]["learner_kwargs"], "normalize": normalize}
    model = make(algo, learner, **kwargs)
    model.learn(1)
    return model


# ------------------------------------------------------------------------------------------------------- A2C and PPO
@pytest.mark.parametrize("learner", ["a2c", "ppo"])
def test_critic_and_hyperparameters_are_copied(learner: str) -> None:
    kwargs: dict[str, Any] = {"max_grad_norm": 0.7, "ent_coef": 0.01, "vf_coef": 0.4}
    own = {"n_epochs": 3, "batch_size": 16, "clip_range": 0.1, "target_kl": 0.05} if learner == "ppo" else {}
    model = learnt(learner, learner_kwargs={**kwargs, **own}, gae_lambda=0.9, n_transitions=64)
    exported = export_sb3(model)
    assert exported.value_fit is None
    sb3: Any = exported.on(SingleEnv(model.family, target=0.5))
    assert type(sb3) is ALGORITHMS[learner]
    assert equal({n: t.detach() for n, t in sb3.policy.named_parameters()}, model.policy_params)
    for name, value in {**kwargs, "gae_lambda": 0.9, "n_steps": 64, "learning_rate": model.inner_lr}.items():
        assert getattr(sb3, name) == value
    if learner == "ppo":
        assert (sb3.n_epochs, sb3.batch_size, sb3.clip_range(1.0), sb3.target_kl) == (3, 16, 0.1, 0.05)
    kind = torch.optim.Adam if learner == "ppo" else torch.optim.RMSprop
    stock = ALGORITHMS[learner]("MlpPolicy", SingleEnv(model.family, target=0.5)).policy.optimizer
    assert type(sb3.policy.optimizer) is type(stock) is kind
    assert sb3.policy.optimizer.defaults == {**stock.defaults, "lr": model.inner_lr}
    sb3.learn(64)


def test_other_kinds_and_optimisers_take_the_critic_along() -> None:
    model = learnt("ppo")
    for kind, optimizer in (("a2c", None), ("trpo", None), ("ppo", "adam"), ("ppo", "sgd")):
        exported = export_sb3(model, kind, optimizer=optimizer)
        assert exported.value_fit is None
        assert equal({name: exported.tensors[name] for name in model.policy_params}, model.policy_params)
        assert type(exported.on()) is ALGORITHMS[kind]
    assert export_sb3(model, "a2c").on().learning_rate == 7e-4


def test_maml_around_ppo_is_exported_to_its_plain_steps() -> None:
    sb3: Any = export_sb3(learnt("ppo", "maml", learner_kwargs={"vf_coef": 0.3})).on()
    assert isinstance(sb3.policy.optimizer, torch.optim.SGD)
    assert (sb3.n_epochs, sb3.batch_size, sb3.n_steps, sb3.vf_coef, sb3.learning_rate) == (1, 32, 32, 0.3, 0.1)
    assert sb3.max_grad_norm > 1e6


# ----------------------------------------------------------------------------------------------------- stock algorithms
@pytest.mark.parametrize("learner", STOCK)
def test_an_export_learns_as_the_learner_does(learner: str) -> None:
    model = learnt(learner)
    task, seed = {"target": np.float32(0.7)}, seed_sequence(4, "task")
    run = model.adaptation.learner.run(model.theta, task, seed, 64)
    env = FamilyVecEnv(model.family, {"target": [0.7]}, n_envs=4)
    sb3 = model.to_sb3(env=env, seed=int(seed.generate_state(2)[0]))
    assert type(sb3) is ALGORITHMS[learner.removeprefix("sb3_")]
    assert equal(read_initialisation(sb3), model.theta)
    for name, module in sb3.policy.named_children():
        if name.endswith("_target"):
            online = getattr(sb3.policy, name.removesuffix("_target")).state_dict()
            assert equal(dict(module.state_dict()), dict(online))
    sb3.learn(64)
    assert equal(read_initialisation(sb3), run.params)


@pytest.mark.parametrize("learner", STOCK)
def test_one_environment_makes_rollouts_of_the_same_size(learner: str) -> None:
    model = learnt(learner, normalize=False)
    sb3: Any = model.to_sb3(env=SingleEnv(model.family, target=0.6))
    size = sb3.n_steps if learner in ("sb3_ppo", "sb3_a2c", "sb3_trpo") else sb3.train_freq.frequency
    assert size == {"sb3_a2c": 16, "sb3_dqn": 16, "sb3_ppo": 32, "sb3_sac": 16, "sb3_trpo": 32}[learner]
    assert sb3.get_vec_normalize_env() is None
    sb3.learn(40)


@pytest.mark.parametrize("learner", STOCK)
def test_load_sb3_reads_no_pickle(learner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = learnt(learner)
    path = save_sb3(export_sb3(model), tmp_path / "plain")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["plain.json", "plain.zip", "plain_vecnormalize.pkl"]
    monkeypatch.setattr(cloudpickle, "loads", lambda *_: pytest.fail("unpickled"))
    env = SingleEnv(model.family, target=0.6)
    sb3 = load_sb3(path, env=env)
    assert type(sb3) is ALGORITHMS[learner.removeprefix("sb3_")]
    assert equal(read_initialisation(sb3), model.theta)
    assert sb3.get_vec_normalize_env() is not None
    sb3.learn(40)
    with pytest.raises(CheckpointError, match="exists: force=True overwrites it"):
        save_sb3(export_sb3(model), path)


def test_the_sidecar_has_the_statistics_and_the_learner(tmp_path: Path) -> None:
    model = learnt("sb3_ppo", seed=3)
    save_sb3(export_sb3(model), tmp_path / "plain")
    document = json.loads((tmp_path / "plain.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert document["source"]["learner"] == "sb3_ppo"
    assert document["hyperparameters"]["n_epochs"] == 4
    statistics = document["vec_normalize"]["statistics"]
    for name, value in statistics.items():
        assert torch.equal(torch.tensor(value, dtype=torch.float64), model.theta[name])
    assert {"statistics/obs_mean", "statistics/return_var"} <= set(statistics)
    whole = learnt("sb3_ppo", normalize=False)
    save_sb3(export_sb3(whole), tmp_path / "other")
    assert json.loads((tmp_path / "other.json").read_text())["vec_normalize"] is None
    assert not (tmp_path / "other_vecnormalize.pkl").exists()


PLAIN_SB3 = """
import sys
import gymnasium as gym
import numpy as np
sys.modules["metarl"] = None
from sb3_contrib import TRPO
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

class Target(gym.Env):
    observation_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, discrete):
        self.action_space = gym.spaces.Discrete(3) if discrete else gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        return np.ones(1, dtype=np.float32), {}

    def step(self, action):
        return np.ones(1, dtype=np.float32), -float(np.square(np.float64(action) - 0.5).sum()), True, False, {}

folder = sys.argv[1]
for cls in (A2C, DQN, PPO, SAC, TRPO):
    kind = cls.__name__.lower()
    expected = np.load(f"{folder}/{kind}.npz")
    env = DummyVecEnv([lambda: Target(cls is DQN)] * 4)
    env = VecNormalize.load(f"{folder}/{kind}_vecnormalize.pkl", env)
    assert np.array_equal(env.obs_rms.mean, expected["statistics/obs_mean"])
    assert np.array_equal(env.ret_rms.var, expected["statistics/return_var"])
    model = cls.load(f"{folder}/{kind}.zip", env=env, device="cpu")
    for name, tensor in model.policy.named_parameters():
        name = name.replace("_target.", ".")
        assert np.array_equal(tensor.detach().numpy(), expected[name]), (kind, name)
    if cls is SAC:
        assert np.array_equal(model.log_ent_coef.detach().numpy(), expected["log_ent_coef"])
    model.learn(64)
    assert model.num_timesteps >= 64
print("fine")
"""


def test_plain_sb3_opens_them_without_metarl(tmp_path: Path) -> None:
    for learner in STOCK:
        model, kind = learnt(learner), learner.removeprefix("sb3_")
        save_sb3(export_sb3(model, n_envs=4), tmp_path / kind)
        arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in model.theta.items()}
        np.savez(tmp_path / f"{kind}.npz", **arrays)
    script = tmp_path / "plain.py"
    script.write_text(PLAIN_SB3)
    argv = [sys.executable, str(script), str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "fine"


@pytest.mark.parametrize(
    ("learner", "kwargs", "message"),
    [
        ("sb3_sac", {"kind": "ppo"}, "learnt for 'sac': it cannot start 'ppo'"),
        ("sb3_ppo", {"optimizer": "sgd"}, "optimizer='sgd': 'ppo' goes on with its own"),
        ("sb3_ppo", {"n_stepz": 3}, "'n_steps'"),
        ("ppo", {"kind": "sac"}, "learnt around 'ppo' starts ppo, a2c, trpo, no sac"),
        ("ppo", {"optimizer": "rmsprop"}, "unknown optimizer 'rmsprop'"),
    ],
)
def test_bad_input_is_one_line(learner: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(MetaRLError, match=message) as caught:
        export_sb3(make("reptile", learner), **kwargs)
    assert "\n" not in str(caught.value)


def test_environments_that_are_normalised_already_are_refused() -> None:
    model = learnt("sb3_ppo")
    env = VecNormalize(FamilyVecEnv(Aim(), {"target": [0.5]}, n_envs=4))
    with pytest.raises(MetaRLError, match="wrapped in VecNormalize"):
        model.to_sb3(env=env)
    assert named_parameters(model.to_sb3()).keys() == model.policy_params.keys()
