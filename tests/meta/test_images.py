"""Images from end to end: collecting, learning, evaluation, saving and export of a CnnPolicy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metarl.agents.learners.vpg import VPG
from metarl.agents.networks.policy import FunctionalPolicy
from metarl.agents.sampling.collect import collect
from metarl.envs.checker.family import check_family
from metarl.envs.views.single import SingleEnv
from metarl.errors import ConfigError
from metarl.meta import FOMAML, MAML, Leap, Reptile
from metarl.meta.adaptive import AdaptiveAlgorithm
from metarl.meta.algorithms.anil import ANIL
from metarl.meta.algorithms.meta_sgd import MetaSGD
from metarl.params import expand
from metarl.streams import seed_sequence
from tests.agents.pictures import Patterns, Pictures

TRUSTED = {"outer": "trpo", "outer_kwargs": {"cg_damping": 1e-2}}
"""At SB3's initialisation convolutions hardly bend the divergence: with the default damping steps are far too long."""
SMALL = {"features_extractor_kwargs": {"features_dim": 16}}


def make(cls: type[AdaptiveAlgorithm] = MAML, continuous: bool = False, **kwargs: Any) -> AdaptiveAlgorithm:
    kwargs = {"policy_kwargs": SMALL, "meta_batch_size": 2, "n_episodes": 3, "seed": 0, "n_threads": 1, **kwargs}
    return cls(kwargs.pop("policy", "CnnPolicy"), Pictures(continuous), **kwargs)


def learn_once(model: AdaptiveAlgorithm) -> AdaptiveAlgorithm:
    return model.learn(2 * 3 * 4 * (model.n_inner_steps + 1))


def test_the_family_keeps_its_promises() -> None:
    check_family(Pictures())
    check_family(Pictures(continuous=True))


def test_images_are_kept_as_bytes_and_vpg_learns_from_them() -> None:
    family = Pictures()
    policy = FunctionalPolicy("CnnPolicy", family.observation_space, family.action_space, SMALL)
    params = {name: tensor.contiguous() for name, tensor in expand(policy.init(0), 2).items()}
    tasks = {"flip": np.array([0, 1])}
    learner = VPG(policy)
    means = []
    for k in range(6):
        seeds = [seed_sequence(0, "test", k, task) for task in range(2)]
        episodes = collect(family, policy, params, tasks, seeds, n_episodes=20)
        assert episodes.obs.dtype == np.uint8
        means.append(episodes.mean_returns)
        samples = learner.process(episodes, params)
        assert samples.obs.dtype == torch.uint8
        params = learner.update(learner.start(params), samples, 0.2, seeds).params
    assert (means[-1] > means[0] + 0.8).all(), means


@pytest.mark.parametrize(
    ("cls", "continuous", "kwargs"),
    [
        (MAML, False, TRUSTED),
        (MAML, True, TRUSTED),
        (MAML, False, {"n_inner_steps": 2, "outer": "adam"}),
        (MAML, False, {"learner": "a2c", "outer": "adam"}),
        (FOMAML, True, TRUSTED),
        (Reptile, True, {"learner": "ppo", "learner_kwargs": {"n_epochs": 1}}),
        (Leap, False, {}),
    ],
)
def test_wrappers_learn_from_images(cls: type[AdaptiveAlgorithm], continuous: bool, kwargs: dict[str, Any]) -> None:
    model = make(cls, continuous, **kwargs)
    before = {name: tensor.clone() for name, tensor in model.params.items()}
    learn_once(model)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in model.params.values())
    assert any(not torch.equal(before[name], tensor) for name, tensor in model.params.items() if ".cnn." in name)
    report = model.evaluate("test", n_tasks=2, n_inner_steps=1)
    assert np.isfinite(report.returns).all()


def test_threads_make_no_difference() -> None:
    one, two = learn_once(make(n_threads=1)), learn_once(make(n_threads=2))
    assert all(torch.equal(tensor, two.params[name]) for name, tensor in one.params.items())


def test_an_environment_of_images_is_adapted_to() -> None:
    model, env = make(), SingleEnv(Pictures())
    adapted = model.adapt(env, n_inner_steps=1, n_episodes=2)
    assert adapted.env_steps == 8
    name = "features_extractor.cnn.0.weight"
    assert not torch.equal(adapted.params[name], model.policy_params[name])
    obs, _ = env.reset(seed=0)
    assert env.action_space.contains(adapted.predict(obs, deterministic=True)[0])
    env.close()


@pytest.mark.parametrize("learner", ["vpg", "a2c"])
def test_it_is_saved_and_exported_into_sb3s_cnn_policy(tmp_path: Path, learner: str) -> None:
    model = learn_once(make(learner=learner, outer="adam"))
    model.save(tmp_path / "model")
    again = MAML.load(tmp_path / "model", env=Pictures())
    assert all(torch.equal(tensor, again.params[name]) for name, tensor in model.params.items())
    stock = again.to_sb3() if learner == "a2c" else again.to_sb3(value_tasks=4, value_episodes=2)
    assert type(stock.policy).__name__ == "ActorCriticCnnPolicy"
    own = dict(stock.policy.named_parameters())
    learnt = [name for name in model.policy.names if learner == "a2c" or "value_net" not in name]
    assert all(torch.equal(own[name], model.policy_params[name]) for name in learnt)
    obs = Pictures().reset({"flip": np.zeros(1)}, [np.random.default_rng(0)], 6)[1][0]
    assert np.array_equal(stock.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])


def test_few_shot_classification_is_learnt() -> None:
    """Classes are permuted in every task: without adaptation one in three is right."""
    family = Patterns()
    check_family(family)
    model = MAML(
        "FewShotCnnPolicy",
        family,
        learner="supervised",
        policy_kwargs={"features_extractor_kwargs": {"n_filters": 8}},
        inner_lr=0.1,
        outer="adam",
        outer_kwargs={"learning_rate": 1e-2},
        meta_batch_size=6,
        n_episodes=9,
        seed=0,
        n_threads=1,
    )
    while model.n_iterations < 12:
        model.learn(1, reset_num_timesteps=False)
    accuracy = model.evaluate("test", n_tasks=6, n_inner_steps=1).returns.mean((0, 1))
    assert accuracy[0] < 0.6
    assert accuracy[1] > 0.9


def test_the_few_shot_network_learns_and_is_no_policy_of_sb3() -> None:
    kwargs = {"features_extractor_kwargs": {"n_filters": 4}}
    model = learn_once(make(policy="FewShotCnnPolicy", policy_kwargs=kwargs))
    with pytest.raises(ConfigError, match="FewShotCnnPolicy is none of Stable-Baselines3's policies"):
        model.to_sb3()


@pytest.mark.parametrize("cls", [ANIL, MetaSGD])
def test_running_statistics_move_without_rates_of_their_own(cls: type[AdaptiveAlgorithm]) -> None:
    kwargs = {"features_extractor_kwargs": {"n_filters": 4, "batch_statistics": "running"}}
    model = make(cls, policy="FewShotCnnPolicy", policy_kwargs=kwargs, outer="adam")
    before = dict(model.params)
    learn_once(model)
    moved = {name for name in before if not torch.equal(before[name], model.params[name])}
    assert any(name.endswith("cnn.1.weight") for name in moved)
    assert {name for name in before if "statistics/" in name} <= moved
    assert not any(name.startswith("rates/statistics/") for name in before)
    assert np.isfinite(model.evaluate("test", n_tasks=2, n_inner_steps=1).returns).all()
