"""What Stable-Baselines3's users write, page by page of its documentation, on metarl's objects.

Each habit works, or raises one sentence that says what to do instead. ``works`` holds the first kind, ``instead`` the
second, with words of the sentence.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers import RecordEpisodeStatistics, RescaleAction, TimeLimit
from sb3_contrib import TRPO
from stable_baselines3 import A2C, PPO
from stable_baselines3.common import callbacks as cb
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import Figure, HParam, Image, configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecCheckNan,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    sync_envs_normalization,
)
from stable_baselines3.ppo import MlpPolicy

import metarl
from metarl.envs import PointMass, SingleEnv, make_family
from metarl.errors import ConfigError, MetaRLError
from tests.meta.habits import GOAL, TINY, Sees, fresh, logs, run, single, vec
from tests.meta.small import equal


@pytest.fixture(scope="module")
def model() -> Any:
    """Return a model that has learnt for a meta-iteration."""
    return fresh().learn(1)


def saved_and_loaded(model: Any, path: Any) -> None:
    model.save(path)
    assert equal(metarl.FOMAML.load(path).params, model.params)


def draws(model: Any, seed: int) -> tuple[float, float]:
    model.set_random_seed(seed)
    env = single()
    env.reset(seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return evaluate_policy(model, env, n_eval_episodes=2, deterministic=False)  # type: ignore[return-value]


def repeats(model: Any) -> None:
    assert draws(model, 3) == draws(model, 3) != draws(model, 4)


def is_near(model: Any) -> None:
    returns, lengths = evaluate_policy(model, Monitor(single()), n_eval_episodes=3, return_episode_rewards=True)
    assert len(returns) == len(lengths) == 3  # type: ignore[arg-type]


def changes_parameters(model: Any) -> None:
    parameters = model.get_parameters()
    parameters["policy"]["log_std"] += 1.0
    other = fresh()
    other.set_parameters(parameters, exact_match=True)
    assert torch.equal(other.policy_params["log_std"], model.policy_params["log_std"] + 1.0)
    partly = {"policy": {"log_std": torch.zeros(2)}}
    other.set_parameters(partly, exact_match=False)
    assert not other.policy_params["log_std"].any()


def counts_episodes() -> None:
    stop = cb.StopTrainingOnMaxEpisodes(max_episodes=1, verbose=0)
    learner = run(stop, 10**6)
    assert learner.n_iterations == 1
    assert stop.n_episodes == 8


def exports(model: Any, **kwargs: Any) -> None:
    stock = model.to_sb3("ppo", value_tasks=0, **kwargs)
    assert isinstance(stock, PPO)
    stock.predict(np.zeros(2, np.float32))


def logs_to(folder: Path) -> None:
    learner = fresh()
    learner.set_logger(configure(str(folder), ["csv", "json"]))
    learner.learn(1)
    learner.logger.close()
    assert (folder / "progress.csv").stat().st_size > 0


def trains_stock(env: Any) -> None:
    PPO("MlpPolicy", env, n_steps=16, batch_size=16, n_epochs=1, device="cpu").learn(16)


def evaluates_during_stock_training(folder: Path) -> None:
    callback = cb.EvalCallback(Monitor(single()), eval_freq=8, n_eval_episodes=1, log_path=str(folder), verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        A2C("MlpPolicy", vec(), n_steps=8, device="cpu").learn(8, callback=callback)
    assert (folder / "evaluations.npz").is_file()


WORKS: dict[str, Callable[[Any, Path], Any]] = {
    # the environment that an algorithm learns on
    "env: a name": lambda m, p: metarl.FOMAML("MlpPolicy", "PointMass-v0", **TINY),
    "env: gym.make": lambda m, p: metarl.FOMAML("MlpPolicy", gym.make("PointMass-v0"), **TINY),
    "env: Monitor": lambda m, p: metarl.MAML("MlpPolicy", Monitor(single()), **TINY),
    "env: RecordEpisodeStatistics": lambda m, p: metarl.Leap("MlpPolicy", RecordEpisodeStatistics(single()), **TINY),
    "env: a class": lambda m, p: metarl.FOMAML("MlpPolicy", PointMass, env_kwargs={"horizon": 9}, **TINY),
    "env: a family": lambda m, p: metarl.Reptile("MlpPolicy", make_family("PointMass-v0"), **TINY),
    "env: get_env()": lambda m, p: metarl.FOMAML("MlpPolicy", m.get_env(), **TINY),
    "env: make_vec_env": lambda m, p: metarl.FOMAML("MlpPolicy", make_vec_env("PointMass-v0", 2), **TINY),
    "env: VecMonitor": lambda m, p: metarl.FOMAML("MlpPolicy", VecMonitor(VecCheckNan(vec(2))), **TINY),
    # the policy
    "policy: MlpPolicy": lambda m, p: fresh(),
    "policy: the class": lambda m, p: saved_and_loaded(metarl.FOMAML(MlpPolicy, "PointMass-v0", **TINY), p / "m"),
    "policy: ActorCriticPolicy": lambda m, p: metarl.MAML(ActorCriticPolicy, "PointMass-v0", **TINY),
    "policy: the class, stock": lambda m, p: metarl.FOMAML(MlpPolicy, "PointMass-v0", learner="sb3_ppo", **TINY),
    "policy_kwargs: pi and vf": lambda m, p: saved_and_loaded(
        fresh(policy_kwargs={"activation_fn": torch.nn.ReLU, "net_arch": {"pi": [4], "vf": [4]}}), p / "m"
    ),
    "policy_kwargs: a tuple": lambda m, p: saved_and_loaded(fresh(policy_kwargs={"net_arch": (4, 4)}), p / "m"),
    "device=torch.device": lambda m, p: fresh(device=torch.device("cpu")),
    "seed=None": lambda m, p: fresh(seed=None),
    # learn
    "learn(1e2)": lambda m, p: fresh().learn(1e2),
    "learn(np.int64)": lambda m, p: fresh().learn(np.int64(100)),
    "learn(total_timesteps=)": lambda m, p: fresh().learn(total_timesteps=1, progress_bar=False),
    "learn twice": lambda m, p: fresh().learn(1).learn(1, reset_num_timesteps=False),
    "learn(log_interval=None)": lambda m, p: fresh(verbose=1).learn(1, log_interval=None),
    "learn(tb_log_name=)": lambda m, p: fresh(tensorboard_log=p).learn(1, tb_log_name="first_run").logger.close(),
    "learn(progress_bar=True)": lambda m, p: fresh().learn(1, progress_bar=True),
    # callbacks
    "callback: None": lambda m, p: run(None),
    "callback: a function": lambda m, p: run(lambda local, _: local["self"] is not None),
    "callback: a list": lambda m, p: run([Sees(lambda c: c.n_calls), Sees(lambda c: c.num_timesteps)]),
    "callback: a tuple": lambda m, p: run((Sees(lambda c: c.n_calls),)),
    "callback: CallbackList": lambda m, p: run(cb.CallbackList([Sees(lambda c: c.model), Sees(lambda c: c.logger)])),
    "callback: training_env": lambda m, p: run(Sees(lambda c: c.training_env.num_envs)),
    "callback: locals": lambda m, p: run(Sees(lambda c: (c.locals["stats"], c.locals["total_timesteps"]))),
    "CheckpointCallback": lambda m, p: run(cb.CheckpointCallback(1, str(p), save_vecnormalize=True)),
    "EveryNTimesteps": lambda m, p: run(cb.EveryNTimesteps(10, cb.CheckpointCallback(1, str(p)))),
    "LogEveryNTimesteps": lambda m, p: run(cb.LogEveryNTimesteps(10), log_interval=None),
    "StopTrainingOnMaxEpisodes": lambda m, p: counts_episodes(),
    "EvalCallback": lambda m, p: run(cb.EvalCallback(m.get_env(), best_model_save_path=str(p), eval_freq=1, verbose=0)),
    "StopTrainingOnRewardThreshold": lambda m, p: run(
        cb.EvalCallback(m.get_env(), cb.StopTrainingOnRewardThreshold(-1e9), eval_freq=1, verbose=0), 10**6
    ),
    "StopTrainingOnNoModelImprovement": lambda m, p: run(
        cb.EvalCallback(m.get_env(), callback_after_eval=cb.StopTrainingOnNoModelImprovement(1), eval_freq=1, verbose=0)
    ),
    "ProgressBarCallback": lambda m, p: run(cb.ProgressBarCallback()),
    # TensorBoard and the logger
    "log a value": lambda m, p: logs(lambda c: c.logger.record("random_value", 1.0), p),
    "log an image": lambda m, p: logs(
        lambda c: c.logger.record(
            "image", Image(np.zeros((4, 4, 3), np.uint8), "HWC"), exclude=("stdout", "log", "json", "csv")
        ),
        p,
    ),
    "log hyperparameters": lambda m, p: logs(
        lambda c: c.logger.record(
            "hparams",
            HParam({"algorithm": type(c.model).__name__, "gamma": c.model.gamma}, {"rollout/ep_rew_mean": 0.0}),
            exclude=("stdout", "log", "json", "csv"),
        ),
        p,
    ),
    "set_logger(configure())": lambda m, p: logs_to(p),
    "model.logger": lambda m, p: m.logger.record("a", 1),
    "dump_logs": lambda m, p: m.dump_logs(),
    # saving and loading
    "save(str)": lambda m, p: saved_and_loaded(m, str(p / "m")),
    "save(Path)": lambda m, p: saved_and_loaded(m, p / "m"),
    "save(.zip)": lambda m, p: saved_and_loaded(m, p / "m.zip"),
    "load(env=gym.make)": lambda m, p: metarl.FOMAML.load(m.save(p / "m"), env=single()),
    "load(device=)": lambda m, p: metarl.FOMAML.load(m.save(p / "m"), device="cpu", force_reset=True),
    "load, then learn": lambda m, p: metarl.load(m.save(p / "m")).learn(1),
    "get_parameters, set_parameters": lambda m, p: changes_parameters(m),
    "set_parameters(path)": lambda m, p: fresh().set_parameters(m.save(p / "m")),
    # what a model has
    "get_env().reset()": lambda m, p: m.get_env().reset(),
    "n_envs": lambda m, p: m.n_envs == m.get_env().num_envs or pytest.fail("n_envs"),
    "spaces": lambda m, p: m.observation_space.sample() is not None and m.action_space.sample(),
    "num_timesteps = 0": lambda m, p: setattr(fresh(), "num_timesteps", 0),
    "get_vec_normalize_env": lambda m, p: m.get_vec_normalize_env() is None or pytest.fail("normalised"),
    "hasattr": lambda m, p: not hasattr(m, "replay_buffer") or pytest.fail("replay_buffer"),
    "set_random_seed": lambda m, p: fresh().set_random_seed(7),
    # predict
    "predict: one": lambda m, p: m.predict(np.zeros(2, np.float32)),
    "predict: float64": lambda m, p: m.predict(np.zeros(2)),
    "predict: a batch": lambda m, p: m.predict(np.zeros((3, 2), np.float32), deterministic=True),
    "predict: a list": lambda m, p: m.predict([0.0, 0.0]),
    "predict: a tensor": lambda m, p: m.predict(torch.zeros(3, 2)),
    "predict: positional": lambda m, p: m.predict(np.zeros(2), None, None, True),
    "predict: episode_start": lambda m, p: m.predict(np.zeros((1, 2)), state=None, episode_start=np.ones(1, bool)),
    "predict: a VecEnv's": lambda m, p: m.predict(m.get_env().reset()),
    # evaluation
    "evaluate_policy": lambda m, p: is_near(m),
    "evaluate_policy: VecEnv": lambda m, p: evaluate_policy(m, make_vec_env("PointMass-v0", 2), n_eval_episodes=2),
    "evaluate_policy: callback": lambda m, p: evaluate_policy(
        m, Monitor(single()), n_eval_episodes=1, callback=lambda local, _: local["episode_rewards"]
    ),
    "evaluate_policy: adapted": lambda m, p: is_near(m.adapt(single(), 1, n_episodes=1)),
    "evaluate_policy: seeded": lambda m, p: repeats(m),
    "evaluate_policy: seeded, adapted": lambda m, p: repeats(m.adapt(single(), 0)),
    "evaluate_policy: seeded, stock": lambda m, p: repeats(fresh(learner="sb3_a2c", n_inner_steps=1)),
    # adapting and exporting
    "adapt: an id": lambda m, p: m.adapt("PointMass-v0", 1, n_episodes=1),
    "adapt: a family": lambda m, p: m.adapt(make_family("PointMass-v0", horizon=20), 1, n_episodes=1),
    "adapt: a class": lambda m, p: m.adapt(PointMass, 1, n_episodes=1),
    "adapt: get_env() of one task": lambda m, p: m.adapt(fresh(meta_batch_size=1).get_env(), 1, n_episodes=1),
    "adapt: DummyVecEnv": lambda m, p: m.adapt(vec(1), 1, n_episodes=1),
    "adapt: VecMonitor": lambda m, p: m.adapt(VecMonitor(vec(1)), 0),
    "adapt: Monitor": lambda m, p: m.adapt(Monitor(single()), 1, n_episodes=np.int64(1)),
    "to_sb3": lambda m, p: exports(m),
    "to_sb3: an id": lambda m, p: exports(m, env="PointMass-v0"),
    "to_sb3: gym.make": lambda m, p: exports(m, env=single(), seed=np.int64(0)),
    "to_sb3: make_vec_env": lambda m, p: exports(m, env=make_vec_env("PointMass-v0", 2, env_kwargs=GOAL)),
    "to_sb3: a schedule": lambda m, p: m.to_sb3("ppo", value_tasks=0, learning_rate=1e-3, n_steps=np.int64(8)),
    "check_env of a model": lambda m, p: m.check_env(vec(2)),
    # metarl's environments in plain SB3
    "stock: an id": lambda m, p: PPO("MlpPolicy", "PointMass-v0", n_steps=8, batch_size=8, device="cpu"),
    "stock: make_vec_env": lambda m, p: trains_stock(make_vec_env("PointMass-v0", 2, env_kwargs=GOAL)),
    "stock: get_env()": lambda m, p: trains_stock(m.get_env()),
    "stock: VecNormalize": lambda m, p: trains_stock(VecNormalize(vec(2))),
    "stock: VecNormalize of get_env()": lambda m, p: trains_stock(VecNormalize(m.get_env())),
    "stock: VecFrameStack": lambda m, p: trains_stock(VecFrameStack(m.get_env(), n_stack=2)),
    "stock: VecCheckNan, VecMonitor": lambda m, p: trains_stock(VecMonitor(VecCheckNan(vec(2)))),
    "stock: TRPO": lambda m, p: TRPO("MlpPolicy", vec(), n_steps=8, batch_size=8, device="cpu").learn(8),
    "stock: EvalCallback": lambda m, p: evaluates_during_stock_training(p),
    "stock: sync_envs_normalization": lambda m, p: sync_envs_normalization(VecNormalize(vec()), VecNormalize(vec())),
    "check_env": lambda m, p: check_env(SingleEnv("PointMass-v0"), skip_render_check=True),
    "Monitor to a file": lambda m, p: Monitor(single(), str(p / "monitor")).close(),
}


@pytest.mark.filterwarnings("ignore:.*render_mode='rgb_array' that is not in the possible:UserWarning")
@pytest.mark.filterwarnings("ignore::tqdm.TqdmExperimentalWarning")
@pytest.mark.filterwarnings("ignore:Training and eval env are not of the same type:UserWarning")
@pytest.mark.parametrize("habit", WORKS)
def test_it_works(habit: str, model: Any, tmp_path: Path) -> None:
    WORKS[habit](model, tmp_path)


INSTEAD: dict[str, tuple[Callable[[Any, Path], Any], str]] = {
    # the environment
    "env: CartPole-v1": (lambda m, p: metarl.FOMAML("MlpPolicy", "CartPole-v1"), "one environment of Gymnasium"),
    "env: gym.make(CartPole)": (
        lambda m, p: metarl.FOMAML("MlpPolicy", gym.make("CartPole-v1")),
        "one environment, Ca",
    ),
    "env: a list": (
        lambda m, p: metarl.FOMAML("MlpPolicy", ["PointMass-v0"]),
        "is no family of tasks: pass its name",
    ),
    "env: None": (lambda m, p: metarl.FOMAML("MlpPolicy", None), "is no family of tasks: pass its name"),
    "env: a function": (lambda m, p: metarl.FOMAML("MlpPolicy", single), "is no family of tasks"),
    "env: RescaleAction": (lambda m, p: metarl.FOMAML("MlpPolicy", RescaleAction(single(), -1, 1)), "would be lost"),
    "env: TimeLimit": (
        lambda m, p: metarl.FOMAML("MlpPolicy", TimeLimit(SingleEnv("PointMass-v0"), 5)),
        "would be lost",
    ),
    "env: VecNormalize": (lambda m, p: metarl.FOMAML("MlpPolicy", VecNormalize(vec())), "'normalize': True"),
    "env: VecFrameStack": (lambda m, p: metarl.FOMAML("MlpPolicy", VecFrameStack(vec(), 2)), "would be lost"),
    "env: DummyVecEnv of CartPole": (
        lambda m, p: metarl.FOMAML("MlpPolicy", DummyVecEnv([lambda: gym.make("CartPole-v1")])),
        "not a family of tasks",
    ),
    # the constructor
    "CnnPolicy": (lambda m, p: metarl.FOMAML("CnnPolicy", "PointMass-v0"), "CnnPolicy takes images"),
    "a policy of one's own": (
        lambda m, p: metarl.FOMAML(type("Mine", (ActorCriticPolicy,), {}), "PointMass-v0"),
        "unknown policy",
    ),
    "device='cuda'": (lambda m, p: fresh(device="cuda"), "use 'cpu' or 'auto'"),
    "learning_rate=": (lambda m, p: fresh(learning_rate=1e-3), "inner_lr is the learning rate of the learner"),
    "n_steps=": (lambda m, p: fresh(n_steps=128), "n_transitions"),
    "ent_coef=": (lambda m, p: fresh(ent_coef=0.1), "learner_kwargs={'ent_coef': …}"),
    "inner_lr: a function": (lambda m, p: fresh(inner_lr=lambda remaining: remaining), "a list has a rate for each"),
    "inner_lr: LinearSchedule": (
        lambda m, p: fresh(inner_lr=LinearSchedule(1.0, 0.0, 1.0)),
        "a list has a rate for each",
    ),
    "inner_lr: lin_0.1": (lambda m, p: fresh(inner_lr="lin_0.1"), "a list has a rate for each inner step"),
    "outer: a schedule": (
        lambda m, p: fresh(outer="adam", outer_kwargs={"learning_rate": LinearSchedule(1.0, 0.0, 1.0)}),
        "final_learning_rate is where it falls to",
    ),
    "gamma: a schedule": (lambda m, p: fresh(gamma=lambda _: 0.9), "it cannot be a schedule"),
    "stock: lin_0.2": (
        lambda m, p: fresh(learner="sb3_ppo", learner_kwargs={"clip_range": "lin_0.2"}),
        "SB3 takes a function",
    ),
    "stock: a schedule that cannot be saved": (
        lambda m, p: fresh(learner="sb3_ppo", learner_kwargs={"clip_range": LinearSchedule(1.0, 0.0, 1.0)}).learn(1),
        "cannot be saved",
    ),
    "custom features extractor": (
        lambda m, p: fresh(policy_kwargs={"features_extractor_class": object}),
        "without a features extractor",
    ),
    "seed='1'": (lambda m, p: fresh(seed="1"), "seed='1' is not an integer"),
    "verbose=5": (lambda m, p: fresh(verbose=5), "verbose=5 is not 0, 1 or 2"),
    # learn and callbacks
    "learn(nan)": (lambda m, p: fresh().learn(float("nan")), "total_timesteps=nan is not an integer"),
    "learn('1e5')": (lambda m, p: fresh().learn("1e5"), "total_timesteps='1e5' is not an integer"),
    "learn(log_interval=0)": (lambda m, p: fresh().learn(1, log_interval=0), "log_interval=0"),
    "callback: a class": (lambda m, p: run(cb.ProgressBarCallback), "make one, ProgressBarCallback"),
    "callback: text": (lambda m, p: run("eval"), "neither a callback of SB3's nor a function"),
    "callback: locals['infos']": (lambda m, p: run(Sees(lambda c: c.locals["infos"])), "locals has no 'infos'"),
    "callback: HParamCallback": (
        lambda m, p: run(Sees(lambda c: c.model.learning_rate)),
        "no learning_rate: inner",
    ),
    "callback: n_epochs": (lambda m, p: run(Sees(lambda c: c.model.n_epochs)), "learner_kwargs={'n_epochs': …}"),
    "set_logger(text)": (lambda m, p: fresh().set_logger("folder"), "no Logger"),
    "logger before learn": (lambda m, p: fresh().logger, "there is no logger yet"),
    # saving and loading
    "save(BytesIO)": (lambda m, p: m.save(io.BytesIO()), "is not a path"),
    "load(BytesIO)": (lambda m, p: metarl.load(io.BytesIO()), "is not a path"),
    "load of a zip of SB3's": (
        lambda m, p: (exports_to(m, p / "ppo.zip"), metarl.load(p / "ppo.zip")),
        "ppo.zip",
    ),
    "PPO.load's kind": (lambda m, p: metarl.MAML.load(m.save(p / "m")), "load it with metarl.load"),
    "load(custom_objects=)": (lambda m, p: metarl.load(m.save(p / "m"), custom_objects={"a": 1}), "nothing is pickled"),
    "set_env": (lambda m, p: m.set_env(single()), "metarl.load(path, env=…) has another"),
    "set_parameters: another size": (
        lambda m, p: fresh(policy_kwargs={"net_arch": [5]}).set_parameters(m.get_parameters()),
        "parameters do not fit the policy",
    ),
    "set_parameters: a part": (
        lambda m, p: fresh().set_parameters({"policy": {"log_std": torch.zeros(2)}}),
        "is in one of the two only",
    ),
    "set_parameters: another name": (
        lambda m, p: fresh().set_parameters({"policy": {**m.policy_params, 3: torch.zeros(2)}}),
        "3 is in one of the two only",
    ),
    "set_parameters: no tensor": (
        lambda m, p: fresh().set_parameters({"policy": {**m.policy_params, "log_std": "wide"}}),
        "'log_std' is no tensor",
    ),
    "set_parameters: no dict": (lambda m, p: fresh().set_parameters({"policy": 3}), "as get_parameters returns it"),
    "set_parameters: nothing": (lambda m, p: fresh().set_parameters({}), "as get_parameters returns it"),
    "save_replay_buffer": (lambda m, p: m.save_replay_buffer("b"), "starts with an empty buffer"),
    "ep_info_buffer": (lambda m, p: m.ep_info_buffer, "callbacks find them in locals"),
    "model.env": (lambda m, p: m.env, "get_env()"),
    # the policy and its parts
    "policy.predict": (lambda m, p: m.policy.predict(np.zeros(2)), "a meta-algorithm's predict acts"),
    "policy.state_dict": (lambda m, p: m.policy.state_dict(), "policy_params are its tensors"),
    "policy.save": (lambda m, p: m.policy.save(p / "m"), "to_sb3()"),
    "policy.optimizer": (lambda m, p: m.policy.optimizer, "to_sb3()"),
    "adapted.learn": (lambda m, p: m.adapt(single(), 0).learn(100), "returns a stock model, which learns on"),
    "adapted.save": (lambda m, p: m.adapt(single(), 0).save("m"), "returns a stock model"),
    "stock learner's policy": (lambda m, p: fresh(learner="sb3_a2c").policy, "to_sb3() returns a stock model with it"),
    # predict
    "predict: reset's pair": (lambda m, p: m.predict(single().reset()), "env.reset() returns obs, info"),
    "predict: a dict": (lambda m, p: m.predict({"obs": np.zeros(2)}), "no array of numbers"),
    "predict: text": (lambda m, p: m.predict("here"), "no array of numbers"),
    "predict: None": (lambda m, p: m.predict(None), "observation"),
    "predict: another shape": (lambda m, p: m.predict(np.zeros(5)), "observation has shape"),
    "predict: another shape, stock": (
        lambda m, p: fresh(learner="sb3_a2c").predict(np.zeros(5)),
        "observation has shape",
    ),
    # adapting and exporting
    "adapt: two copies": (lambda m, p: m.adapt(vec(2)), "of 2 environments: one environment is adapted to"),
    "adapt: VecNormalize": (lambda m, p: m.adapt(VecNormalize(vec())), "VecNormalize of one: one environment is"),
    "adapt: another family": (lambda m, p: m.adapt("CartPole-v1"), "differs from"),
    "adapt: an unknown id": (lambda m, p: m.adapt("PointMas-v0"), "cannot be made"),
    "adapt: a function": (lambda m, p: m.adapt(single), "call it"),
    "adapt: a list": (lambda m, p: m.adapt([single()]), "is no environment"),
    "adapt: None": (lambda m, p: m.adapt(None), "is no environment"),
    "to_sb3: VecNormalize": (lambda m, p: exports(m, env=VecNormalize(vec())), "wrapped in VecNormalize"),
    "to_sb3: VecNormalize of rewards": (
        lambda m, p: exports(m, env=VecNormalize(vec(), norm_obs=False)),
        "wrapped in VecNormalize",
    ),
    "to_sb3: CartPole": (lambda m, p: exports(m, env="CartPole-v1"), "differs from"),
    "check_env: text": (lambda m, p: m.check_env(3), "is no environment"),
    "evaluate(n_tasks='all')": (lambda m, p: m.evaluate(n_tasks="all"), "n_tasks='all' is not an integer"),
    "evaluate(env)": (lambda m, p: m.evaluate(single()), "unknown split"),
}


def exports_to(model: Any, path: Path) -> None:
    model.to_sb3("ppo", value_tasks=0).save(path)


@pytest.mark.parametrize("habit", INSTEAD)
def test_one_sentence_says_what_to_do_instead(habit: str, model: Any, tmp_path: Path) -> None:
    do, words = INSTEAD[habit]
    with pytest.raises(MetaRLError) as caught:
        do(model, tmp_path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_pictures_are_logged(tmp_path: Path) -> None:
    from matplotlib.figure import Figure as Drawing

    drawing = Drawing()
    logs(lambda c: c.logger.record("figure", Figure(drawing, close=True), exclude=("stdout", "csv")), tmp_path)


def test_log_every_n_timesteps_writes_one_row_where_nothing_else_does(tmp_path: Path) -> None:
    model = fresh()
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(1, callback=cb.LogEveryNTimesteps(1), log_interval=None)
    assert len((tmp_path / "progress.csv").read_text().splitlines()) == 2
    model.dump_logs()  # nothing is new
    assert len((tmp_path / "progress.csv").read_text().splitlines()) == 2
    model.logger.close()


def test_predictions_follow_the_seed_of_the_model() -> None:
    obs = np.zeros((4, 2), np.float32)
    first, again, other = (fresh(seed=seed).predict(obs)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    model = fresh(seed=1)
    assert not np.array_equal(model.predict(obs)[0], model.predict(obs)[0])


def test_an_environment_object_is_asked_for_again_at_load(tmp_path: Path) -> None:
    env = single()
    path = metarl.FOMAML("MlpPolicy", env, **TINY).save(tmp_path / "m")
    with pytest.raises(MetaRLError, match="pass env="):
        metarl.load(path)
    assert metarl.load(path, env=env).family is env.unwrapped.family  # type: ignore[attr-defined, arg-type]


def test_a_schedule_error_is_a_value_error_too() -> None:
    with pytest.raises(ValueError, match="inner_lr="):
        fresh(inner_lr="lin_0.1")
    assert issubclass(ConfigError, ValueError)
