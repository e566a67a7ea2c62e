"""Policies that are given to collect a support of episodes: random ones, files, and what is no such policy."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3
import torch

import metarl
from metarl.envs.views.single import SingleEnv
from metarl.errors import ConfigError, MetaRLError
from metarl.meta.transfer.exploring.policies import RANDOM, explorer_of
from metarl.params import expand
from tests.meta.algorithms.test_meta_transfer import batches
from tests.meta.transfer.exploring.test_exploring_model import explore
from tests.meta.walk import Walk


@pytest.mark.parametrize("discrete", [False, True])
def test_random_actions_are_uniform_and_their_likelihood_is_that_of_the_space(discrete):
    model = explore(env=Walk(discrete), exploration_policy=RANDOM, n_support=40)
    _, support, _ = batches(model)
    samples, space = support[0], model.family.action_space
    valid = samples.weights > 0
    actions = samples.actions[valid].double().numpy()
    if discrete:
        shares = np.bincount(actions.astype(int), minlength=space.n) / len(actions)
        np.testing.assert_allclose(shares, 1.0 / space.n, atol=0.05)
        expected = -np.log(space.n)
    else:
        assert actions.min() >= space.low.min()
        assert actions.max() <= space.high.max()
        share = (actions - space.low) / (space.high - space.low)
        np.testing.assert_allclose(np.quantile(share, [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.05)
        expected = -np.log(space.high - space.low).sum()
    np.testing.assert_allclose(samples.log_prob[valid], expected, rtol=1e-5)


def test_a_zip_s_policy_collects_in_training_and_stays_as_it_is(tmp_path):
    network = {"net_arch": {"pi": [6, 5], "vf": [4]}}
    stock = stable_baselines3.A2C("MlpPolicy", SingleEnv(Walk()), policy_kwargs=network, seed=1)
    stock.save(tmp_path / "explorer.zip")
    given = explorer_of(str(tmp_path / "explorer.zip"), Walk())
    acts = stock.policy.state_dict()
    assert all(torch.equal(tensor, acts[name]) for name, tensor in given.params.items())
    obs = np.random.default_rng(0).uniform(-1, 1, (5, *Walk().observation_space.shape)).astype(np.float32)
    mean = given.policy.distribution(given.params, torch.from_numpy(obs)).mode()
    low, high = Walk().action_space.low, Walk().action_space.high
    np.testing.assert_allclose(mean.clip(low[0], high[0]), stock.predict(obs, deterministic=True)[0], atol=1e-5)
    model = explore(exploration_policy=str(tmp_path / "explorer.zip"))
    _, support, _ = batches(model)
    stacked = {name: tensor.contiguous() for name, tensor in expand(given.params, 3).items()}
    old = given.policy.distribution(stacked, support[0].obs.float()).log_prob(support[0].actions.float()).double()
    valid = support[0].weights > 0
    torch.testing.assert_close(old[valid], support[0].log_prob[valid], rtol=1e-5, atol=1e-5)
    model.learn(1, log_interval=None)
    after = model.adaptation.model.exploring(model.theta)
    assert all(torch.equal(tensor, acts[name]) for name, tensor in after.items())


def test_an_initialisation_of_ours_collects_and_runs_go_on(tmp_path):
    arguments = {"env": "PointMass-v0", "env_kwargs": {"horizon": 4}, "n_threads": 1}
    path = metarl.FOMAML(policy_kwargs={"net_arch": [6]}, seed=3, **arguments).save(tmp_path / "explorer")
    sizes = {"meta_batch_size": 2, "n_support": 3, "n_query": 2, "policy_kwargs": {"net_arch": [8]}}
    model = metarl.MetaTransfer(support_surrogate="dice", exploration_policy=str(path), **arguments, **sizes)
    model.learn(2 * model.steps_per_iteration, log_interval=None)
    again = metarl.load(model.save(tmp_path / "model"))
    assert again.exploration_policy == str(path)
    ours, theirs = (each.evaluate(n_tasks=2).returns for each in (model, again))
    assert np.array_equal(ours, theirs)
    adapted = again.adapt(gym.make("PointMass-v0", horizon=4, goal=[0.2, 0.1]))
    assert adapted.env_steps == 12
    path.unlink()
    with pytest.raises(MetaRLError, match="no such file"):
        metarl.load(tmp_path / "model")


def test_what_cannot_explore_is_one_line(tmp_path: Path):
    stable_baselines3.PPO("MlpPolicy", gym.make("Pendulum-v1"), n_steps=2, batch_size=2).save(tmp_path / "other.zip")
    (tmp_path / "bad.zip").write_bytes(b"PK\x03\x04 no zip")
    memory = metarl.RL2(env="PointMass-v0", env_kwargs={"horizon": 4}).save(tmp_path / "memory")
    for given, words in (
        (tmp_path / "none.zip", "no such file"),
        (tmp_path / "none", "no such file"),
        (tmp_path / "bad.zip", "damaged, or no zip"),
        (tmp_path / "other.zip", "does not fit"),
        (memory, "whose policy cannot explore alone"),
        ("", "is not 'random' or the name of a file"),
        (3, "is not 'random' or the name of a file"),
    ):
        with pytest.raises(MetaRLError, match=words) as caught:
            explore(exploration_policy=given if isinstance(given, int) else str(given))
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="collects episodes: give support_surrogate"):
        explore(surrogate=None, exploration_policy=RANDOM)
