"""Games of unequal action sets: one encoder, heads of each game's own, and the encoder in a stock CnnPolicy."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from stable_baselines3 import A2C

import metarl
from metarl.envs import Atari
from metarl.envs.views.single import SingleEnv
from metarl.errors import ConfigError
from metarl.meta.export.sb3 import export_sb3, save_sb3
from metarl.zoo.algorithms import with_env_kwargs
from tests.meta.small import copy

GAMES = ["Atlantis", "Pong", "Amidar", "Boxing"]
"""Of 4, 6, 10 and 18 actions."""
HEADS = ["action_net", "value_net"]


def games(**changes):
    return Atari(games=GAMES, screen_size=36, max_frames=200, **changes)


def make(algorithm, family=None, **kwargs):
    options = {"n_steps": 5, "n_envs": 1, "optimizer_kwargs": {"eps": 1e-4}}
    kwargs = {"meta_batch_size": 2, "n_inner_steps": 1, "n_transitions": 10, **kwargs}
    family = games() if family is None else family
    return algorithm("CnnPolicy", family, learner="a2c", learner_kwargs=options, task_local=HEADS, **kwargs)


@pytest.fixture(scope="module")
def model():
    made = make(metarl.Leap, metric="energy", meta_batch_size=4)
    made.learn(1)
    return made


@pytest.fixture(scope="module")
def named():
    return make(metarl.Reptile, "Atari-v0", env_kwargs={"games": GAMES, "screen_size": 36})


def test_games_of_4_6_10_and_18_actions_share_an_encoder(model):
    names = {name.removeprefix("policy/").split(".")[0] for name in model.params}
    assert names == {"features_extractor"}
    assert {4, 6, 10, 18} <= {space.n for _, space in model.adaptations.pairs}
    fresh = make(metarl.Leap, metric="energy", meta_batch_size=4)
    assert all(not torch.equal(model.params[name], tensor) for name, tensor in fresh.params.items())


def test_the_encoder_starts_a_stock_a2c_for_a_game_of_one_s_choice(model, tmp_path):
    env = SingleEnv(model.family, game="Breakout")
    exported = export_sb3(model, "a2c")
    path = save_sb3(exported, tmp_path / "breakout", env=env)
    assert json.loads(path.with_suffix(".json").read_text())["action_space"]["n"] == 4
    before = A2C.load(path).policy.state_dict()
    stock = A2C.load(path, env=env)
    stock.learn(10)
    for name, tensor in model.theta.items():
        assert torch.equal(before[name], tensor)
        assert not torch.equal(stock.policy.state_dict()[name], tensor)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"observation": "grey", "n_stack": 3}, "observation='grey': the policy was trained with observation='rgb'"),
        ({"lineage": "sb3"}, "observation='grey': the policy was trained with observation='rgb'"),
        ({"n_stack": 2}, "n_stack=2: the policy was trained with n_stack=1"),
        ({"screen_size": 40}, "screen_size=40: the policy was trained with screen_size=36"),
    ],
)
def test_another_observation_than_was_learnt_from_is_refused(named, changes, says):
    with pytest.raises(ConfigError) as caught:
        with_env_kwargs(named, changes, 1)
    assert str(caught.value) == says


def test_other_rewards_and_ends_are_not(named):
    whole = with_env_kwargs(named, {"terminal_on_life_loss": False, "reward_clip": 0.0}, 1)
    assert whole.family.constants.reward_clip == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", [metarl.Leap, metarl.Reptile, metarl.FOMAML])
def test_no_head_moves_the_initialisation_and_evaluations_adapt(algorithm):
    model = make(algorithm, meta_batch_size=4)
    before = copy(model.params)
    model.learn(1)
    assert list(model.params) == list(before)
    report = model.evaluate("test", 1, n_tasks=3, n_episodes=1)
    assert np.isfinite(report.returns).all()


@pytest.mark.slow
def test_plain_sb3_opens_an_export_and_learns_on_its_own_environment(model, tmp_path):
    """Frames come from Gymnasium and SB3's wrappers, as large as ours: SB3 turns them channels first by itself."""
    path = save_sb3(export_sb3(model, "a2c"), tmp_path / "pong", env=SingleEnv(model.family, game="Pong"))
    code = f"""
import gymnasium, numpy, ale_py
from gymnasium.wrappers import TransformObservation
from stable_baselines3 import A2C
from stable_baselines3.common.atari_wrappers import EpisodicLifeEnv, FireResetEnv, MaxAndSkipEnv
env = FireResetEnv(EpisodicLifeEnv(MaxAndSkipEnv(gymnasium.make("PongNoFrameskip-v4").unwrapped)))
space = gymnasium.spaces.Box(0, 255, (36, 36, 3), numpy.uint8)
env = TransformObservation(env, lambda obs: numpy.ascontiguousarray(obs[30:174:4, 8:152:4]), space)
model = A2C.load({str(path)!r}, env=env)
model.learn(20)
assert "metarl" not in __import__("sys").modules
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
