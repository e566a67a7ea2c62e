"""Used models and environments in copies, in forked children and in threads: the numbers are those of the original."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import (
    CallbackList,
    CheckpointCallback,
    EveryNTimesteps,
    StopTrainingOnMaxEpisodes,
)

import metarl
from metarl.envs.views.vec_env import FamilyVecEnv
from tests.children import FORKS_WITH_THREADS, in_child
from tests.meta.small import copy as copied
from tests.meta.small import equal, small

WAYS: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
    "cloudpickle": lambda thing: pickle.loads(cloudpickle.dumps(thing)),
}
MODELS: dict[str, dict[str, Any]] = {
    "maml vpg": {"algorithm": metarl.MAML},
    "maml ppo": {"algorithm": metarl.MAML, "learner": "ppo"},
    "fomaml a2c": {"learner": "a2c"},
    "leap sb3_ppo": {
        "algorithm": metarl.Leap,
        "learner": "sb3_ppo",
        "learner_kwargs": {"n_epochs": 2, "batch_size": 20},
    },
    "reptile sb3_sac": {
        "algorithm": metarl.Reptile,
        "learner": "sb3_sac",
        "learner_kwargs": {"learning_starts": 20, "buffer_size": 200, "batch_size": 8, "train_freq": 20},
    },
    "oracle": {"algorithm": metarl.Oracle},
}
ENVS: dict[str, dict[str, Any]] = {
    "AntVel-v0": {"velocity": 1.0},
    "AntLeg-v0": {"upper_leg": 0.3, "ankle": 0.5},
    "HalfCheetahDir-v0": {"direction": 1.0},
    "PointMass-v0": {"goal": [0.3, 0.2]},
}
way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def used(name: str, **kwargs: Any) -> Any:
    """Return a model whose pools, caches and loggers are all there."""
    model = small(**{**MODELS[name], "meta_batch_size": 2, "n_episodes": 2, "n_threads": 2, **kwargs})
    model.learn(1)
    model.predict(np.zeros((1, *model.observation_space.shape), np.float32))
    return model


@cache
def shared(name: str) -> Any:
    """Return a used model that tests do not train."""
    return used(name)


def returns(model: Any, **kwargs: Any) -> np.ndarray:
    return model.evaluate(n_tasks=2, n_inner_steps=1, **kwargs).returns


@way
@pytest.mark.parametrize("name", MODELS)
def test_a_copy_of_a_used_model_goes_on_with_the_same_numbers_on_its_own(
    name: str, way: Callable[[Any], Any], tmp_path: Path
) -> None:
    model = used(name, tensorboard_log=str(tmp_path))
    other, before = way(model), copied(model.params)
    other.learn(1, reset_num_timesteps=False)
    assert equal(model.params, before)
    model.learn(1, reset_num_timesteps=False)
    assert equal(model.params, other.params)
    assert not equal(model.params, before)
    assert other.num_timesteps == model.num_timesteps


@way
@pytest.mark.parametrize("name", ["maml vpg", "leap sb3_ppo"])
def test_what_adaptation_returns_can_be_copied(name: str, way: Callable[[Any], Any]) -> None:
    env = gym.make("PointMass-v0", goal=[0.3, 0.2], horizon=20)
    adapted = shared(name).adapt(env, n_episodes=2)
    other, obs = way(adapted), np.zeros((3, 2), np.float32)
    expected, _ = adapted.predict(obs, rng=np.random.default_rng(0))
    assert np.array_equal(other.predict(obs, rng=np.random.default_rng(0))[0], expected)


def test_a_callback_may_copy_the_model_that_learns() -> None:
    copies: list[Any] = []
    for name in ("maml vpg", "leap sb3_ppo"):
        model = used(name)
        model.learn(1, callback=lambda local, _: copies.append(copy.deepcopy(local["self"])) or True)
        assert equal(copies[-1].params, model.params)


@way
@pytest.mark.parametrize("env_id", ENVS)
def test_a_copy_of_a_stepped_environment_goes_on_with_the_same_numbers_on_its_own(
    env_id: str, way: Callable[[Any], Any]
) -> None:
    env = gym.make(env_id, **ENVS[env_id])
    env.reset(seed=0)
    action = np.full(env.action_space.shape, 0.3, np.float32)
    env.step(action)
    other = way(env)
    there = [other.step(action)[0] for _ in range(3)]
    other.close()
    assert np.array_equal(there, [env.step(action)[0] for _ in range(3)])


@way
@pytest.mark.parametrize("env_id", ENVS)
def test_a_copy_of_a_stepped_batch_goes_on_with_the_same_numbers_on_its_own(
    env_id: str, way: Callable[[Any], Any]
) -> None:
    env = stepped(env_id)
    other = way(env)
    there = steps(other)
    other.close()
    assert np.array_equal(there, steps(env))
    env.close()


def stepped(env_id: str) -> FamilyVecEnv:
    family = metarl.make_family(env_id, n_threads=2) if env_id != "PointMass-v0" else metarl.make_family(env_id)
    env = FamilyVecEnv(family, family.tasks("test", 2), n_envs=3, seed=0)
    env.reset()
    steps(env)
    return env


def steps(env: FamilyVecEnv) -> np.ndarray:
    actions = np.full((env.num_envs, *env.action_space.shape), 0.3, np.float32)
    return np.array([env.step(actions)[0] for _ in range(3)])


@pytest.mark.filterwarnings(FORKS_WITH_THREADS)
def test_a_stepped_batch_goes_on_in_a_child_and_is_closed_there() -> None:
    env = stepped("AntVel-v0")

    def child() -> np.ndarray:
        there = steps(env)
        env.close()
        return there

    there = in_child(child)
    assert np.array_equal(there, steps(env))
    env.close()


@pytest.mark.filterwarnings(FORKS_WITH_THREADS)
@pytest.mark.parametrize("name", ["maml vpg", "leap sb3_ppo"])
def test_a_used_model_works_in_a_child(name: str) -> None:
    model = shared(name)

    def child() -> tuple[np.ndarray, dict[str, np.ndarray]]:
        there = returns(model)
        model.learn(1, reset_num_timesteps=False)
        return there, {key: tensor.numpy() for key, tensor in model.params.items()}

    there, params = in_child(child)
    assert np.array_equal(there, returns(model))
    other = copy.deepcopy(model).learn(1, reset_num_timesteps=False)
    assert equal(other.params, {key: torch.from_numpy(value) for key, value in params.items()})


def learnt(model: Any) -> Any:
    return model.learn(1, reset_num_timesteps=False)


@pytest.mark.filterwarnings(FORKS_WITH_THREADS)
@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["maml vpg", "leap sb3_ppo"])
def test_a_used_model_goes_to_a_process_and_comes_back(name: str, method: str) -> None:
    model = shared(name)
    before = copied(model.params)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
        other = pool.submit(learnt, model).result(timeout=120)
    assert equal(model.params, before)
    assert equal(other.params, learnt(copy.deepcopy(model)).params)
    learnt(other)


@pytest.mark.parametrize("name", ["maml vpg", "leap sb3_ppo"])
def test_threads_may_share_a_model(name: str) -> None:
    model = shared(name)
    alone = [returns(model, seed=seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda seed: returns(model, seed=seed), range(4)))
    assert np.array_equal(alone, together)


@pytest.mark.parametrize("learners", [("vpg", "ppo"), ("vpg", "sb3_a2c"), ("sb3_a2c", "sb3_trpo")])
def test_studies_in_threads_get_the_numbers_of_their_seeds(learners: tuple[str, str]) -> None:
    def study(trial: int) -> dict[str, torch.Tensor]:
        model = small(learner=learners[trial % 2], seed=trial, meta_batch_size=2, n_episodes=2, n_threads=2)
        return model.learn(1).params

    alone = [study(trial) for trial in range(3)]
    with ThreadPoolExecutor(2) as pool:  # what Optuna's n_jobs=2 does
        assert all(map(equal, pool.map(study, range(3)), alone))


def test_models_made_in_threads_start_from_their_seeds() -> None:
    def start(seed: int) -> dict[str, torch.Tensor]:
        return small(seed=seed).params

    alone = [start(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            assert all(map(equal, pool.map(start, range(4)), alone))


def test_callbacks_that_have_learnt_can_be_copied(tmp_path: Path) -> None:
    """Those of SB3 that hold the model, their parents and what ``learn`` gave them."""
    saving = CheckpointCallback(1, str(tmp_path))
    callbacks = CallbackList([EveryNTimesteps(1, saving), StopTrainingOnMaxEpisodes(10**6)])
    model = small()
    learnt = copied(model.learn(1, callback=callbacks).params)
    for again in [pickle.loads(pickle.dumps(callbacks)), copy.deepcopy(callbacks)]:
        assert again.model is not model
        assert equal(again.model.params, learnt)
        model.learn(1, callback=again)
