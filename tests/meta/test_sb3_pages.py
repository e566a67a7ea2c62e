"""Pages of the documentation of Stable-Baselines3 and RL Baselines3 Zoo, one after the other, on metarl's objects.

``tests/meta/test_sb3_habits.py`` has what everybody writes; here is what else the pages show. What has no meaning
here is in ``test_sb3_instead.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env as check_env_of_gymnasium
from gymnasium.wrappers import RescaleAction
from sb3_contrib import CrossQ, RecurrentPPO
from sb3_contrib.common.wrappers import TimeFeatureWrapper
from stable_baselines3 import A2C, PPO, SAC, TD3
from stable_baselines3.common import callbacks as cb
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import Image, KVWriter, Logger, TensorBoardOutputFormat
from stable_baselines3.common.monitor import Monitor, load_results
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.results_plotter import ts2xy
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import LinearSchedule, set_random_seed
from stable_baselines3.common.vec_env import VecCheckNan, VecEnvWrapper, VecMonitor, VecNormalize
from stable_baselines3.ppo import MlpPolicy

import metarl
from metarl.envs import SingleEnv
from metarl.envs.views.vec_env import FamilyVecEnv
from tests.meta.habits import GOAL, OFF_POLICY, TINY, Onnxable, OwnPolicy, Sees, fresh, logs, run, single, stock, vec
from tests.meta.small import equal

OBS = np.zeros(2, np.float32)


@pytest.fixture(scope="module")
def model() -> Any:
    """Return a model that has learnt for a meta-iteration."""
    return fresh().learn(1)


@pytest.fixture(scope="module")
def export(model: Any) -> Any:
    """Return plain PPO, started at the initialisation."""
    return model.to_sb3("ppo", value_tasks=0, env=single())


# ---------------------------------------------------------------------------------------------------------- examples
class SavesTheBest(cb.BaseCallback):
    """Examples: saves a model whose training reward is the best so far, which is in ``locals`` here."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.best = -np.inf

    def _on_step(self) -> bool:
        mean = self.locals["stats"]["rollout/ep_rew_mean"]
        if mean > self.best:
            self.best = mean
            self.model.save(self.path / "best_model")
        return True


def saves_the_best(folder: Path) -> None:
    learner = run(SavesTheBest(folder))
    assert equal(metarl.FOMAML.load(folder / "best_model").params, learner.params)


def best_of_eval_callback(folder: Path) -> None:
    envs = make_vec_env("PointMass-v0", 3, seed=0, env_kwargs=GOAL)
    run(cb.EvalCallback(envs, None, None, 3, 1, str(folder), str(folder), verbose=0))
    assert set(np.load(folder / "evaluations.npz")) == {"timesteps", "results", "ep_lengths"}
    metarl.load(folder / "best_model").predict(OBS)


def normalises_and_loads(folder: Path) -> None:
    env = VecNormalize(vec(), clip_obs=10.0)
    PPO("MlpPolicy", env, n_steps=8, batch_size=8, device="cpu").learn(8).save(folder / "ppo")
    env.save(str(folder / "vec_normalize.pkl"))
    loaded = VecNormalize.load(str(folder / "vec_normalize.pkl"), vec())
    loaded.training = loaded.norm_reward = False
    PPO.load(folder / "ppo", env=loaded, device="cpu").predict(loaded.reset())


def evolves(model: Any) -> None:
    mean = model.get_parameters()["policy"]
    mutant = {name: tensor + torch.randn_like(tensor) for name, tensor in mean.items() if "policy" in name}
    other = fresh()
    other.set_parameters({"policy": mutant}, exact_match=False)
    assert all(torch.equal(other.policy_params[name], tensor) for name, tensor in mutant.items())
    evaluate_policy(other, other.get_env(), n_eval_episodes=2)


def policy_by_itself(export: Any, folder: Path) -> None:
    export.policy.save(folder / "policy")
    loaded = MlpPolicy.load(folder / "policy", device="cpu")
    assert np.array_equal(loaded.predict(OBS, deterministic=True)[0], export.predict(OBS, deterministic=True)[0])
    evaluate_policy(loaded, Monitor(single()), n_eval_episodes=1)


def compiles(model: Any) -> None:
    plain = model.to_sb3("ppo", value_tasks=0)
    before = plain.predict(OBS, deterministic=True)[0]
    plain.policy = torch.compile(plain.policy, backend="eager")
    np.testing.assert_array_equal(plain.predict(OBS, deterministic=True)[0], before)


def makes_a_gif(model: Any) -> None:
    env = model.get_env()
    obs = env.reset()
    images = [env.render(mode="rgb_array")]
    for _ in range(2):
        obs, *_ = env.step(model.predict(obs)[0])
        images.append(env.render(mode="rgb_array"))
    assert images[0].dtype == np.uint8
    assert not np.array_equal(images[0], images[2])


def replay_buffer_of_an_export(folder: Path) -> None:
    sac = stock("sac").to_sb3(env=single())
    sac.learn(8)
    sac.save_replay_buffer(folder / "buffer")
    sac.load_replay_buffer(folder / "buffer")
    assert sac.replay_buffer.size() == 8


# ---------------------------------------------------------------------------------------------- vectorised environments
def converts_steps(env: Any) -> None:
    env.reset()
    for _ in range(20):
        obs, rewards, dones, infos = env.step(np.ones((env.num_envs, 2), np.float32))
    assert dones.all()
    assert all(info["TimeLimit.truncated"] and info["terminal_observation"].shape == (2,) for info in infos)
    assert len(env.reset_infos) == env.num_envs
    assert obs.shape == (env.num_envs, 2)
    assert rewards.shape == (env.num_envs,)


def sets_tasks(env: Any) -> None:
    env.env_method("set_task", {"goal": [0.3, 0.3]}, indices=0)
    env.reset()
    env.set_options({"task": {"goal": [0.4, 0.4]}})
    env.seed(3)
    env.reset()
    assert env.has_attr("task")
    assert np.allclose([task["goal"] for task in env.get_attr("task")], 0.4)
    assert env.env_is_wrapped(RescaleAction) == [False] * env.num_envs


class HalvesRewards(VecEnvWrapper):
    """A wrapper of one's own."""

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        obs, rewards, dones, infos = self.venv.step_wait()
        return obs, rewards / 2, dones, infos


def wraps_each(folder: Path) -> None:
    keys = {"wrapper_kwargs": {"min_action": -1.0, "max_action": 1.0}, "monitor_dir": str(folder / "monitor")}
    env = make_vec_env("PointMass-v0", 2, seed=0, env_kwargs=GOAL, wrapper_class=RescaleAction, **keys)
    PPO("MlpPolicy", HalvesRewards(env), n_steps=20, batch_size=20, n_epochs=1, device="cpu").learn(40)
    env.close()
    x, y = ts2xy(load_results(str(folder / "monitor")), "timesteps")
    assert list(x) == [20, 40]
    assert (y < 0).all()


class ChangesTheTask(cb.BaseCallback):
    """Vectorised environments: changes the task while stock PPO learns."""

    def _on_step(self) -> bool:
        self.training_env.env_method("set_task", {"goal": [0.4, 0.4]})
        return True


def changes_the_task() -> None:
    env = vec()
    PPO("MlpPolicy", env, n_steps=40, batch_size=20, n_epochs=1, device="cpu").learn(40, callback=ChangesTheTask())
    np.testing.assert_allclose(env.get_attr("task")[0]["goal"], 0.4)


# ------------------------------------------------------------------------------------------------------------- policies
class Extractor(BaseFeaturesExtractor):
    """A features extractor of one's own."""

    def __init__(self, observation_space: gym.Space[Any], features_dim: int = 3) -> None:
        super().__init__(observation_space, features_dim)
        self.linear = torch.nn.Linear(2, features_dim)

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return self.linear(observations)  # type: ignore[no-any-return]


def own_policy() -> None:
    PPO(OwnPolicy, single(), n_steps=8, batch_size=8, device="cpu").learn(8)


# ------------------------------------------------------------------------------------------------ callbacks and logging
class Events(cb.BaseCallback):
    """Notes what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def _on_training_start(self) -> None:
        self.seen.append("training")

    def _on_rollout_start(self) -> None:
        self.seen.append("rollout")

    def _on_step(self) -> bool:
        self.seen.append("step")
        return True

    def _on_rollout_end(self) -> None:
        self.seen.append("rollout ends")

    def _on_training_end(self) -> None:
        self.seen.append("training ends")


def is_told_in_order() -> None:
    events = Events()
    run(events)
    assert events.seen == ["training", "rollout", "rollout ends", "step", "training ends"]


class EveryOther(cb.EventCallback):
    """An event of one's own."""

    def _on_step(self) -> bool:
        return self._on_event() if self.n_calls % 2 else True


def stops_after_one(callback: Any) -> None:
    assert run(callback, 10**6).n_iterations == 1


def checkpoints(learner: Any, folder: Path) -> None:
    learner.learn(1, callback=cb.CheckpointCallback(1, str(folder), "mine", save_replay_buffer=True, verbose=0))
    (path,) = folder.iterdir()
    assert path.name.startswith("mine_")
    assert equal(metarl.load(path).params, learner.params)


class Writes(cb.BaseCallback):
    """TensorBoard: takes the summary writer."""

    def _on_training_start(self) -> None:
        self.writer = next(f for f in self.logger.output_formats if isinstance(f, TensorBoardOutputFormat)).writer

    def _on_step(self) -> bool:
        self.writer.add_text("direct_access", "this is a value", self.num_timesteps)
        self.writer.flush()
        return True


def continues_a_curve(folder: Path) -> None:
    learner = fresh(tensorboard_log=str(folder))
    learner.learn(1, tb_log_name="first").learn(1, tb_log_name="second", reset_num_timesteps=False)
    learner.logger.close()
    assert len(list(folder.rglob("events.*"))) == 2


def every_method(callback: cb.BaseCallback) -> None:
    logger = callback.logger
    logger.record_mean("mean", 1)
    logger.record("histogram", np.arange(5.0))
    logger.record("tensor", torch.arange(3.0))
    for say in (logger.debug, logger.info, logger.warn, logger.error):
        say("nothing to say")
    logger.set_level(50)
    assert logger.name_to_value["mean"] == 1
    logger.dump(callback.num_timesteps)


class Elsewhere(KVWriter):
    """Integrations: a logger's format that writes to another service, as MLflow's does."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, Any]]] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, Any], step: int = 0) -> None:
        assert list(key_values) == list(key_excluded)
        self.rows.append((step, dict(key_values)))


def logs_elsewhere() -> None:
    elsewhere = Elsewhere()
    learner = fresh()
    learner.set_logger(Logger(None, [elsewhere]))
    learner.learn(1)
    ((step, row),) = elsewhere.rows
    assert step == learner.num_timesteps
    assert "rollout/ep_rew_mean" in row


class LikeWandb(cb.BaseCallback):
    """Integrations: looks at a model as the callback of Weights & Biases does."""

    def _init_callback(self) -> None:
        self.config = {"algo": type(self.model).__name__} | {k: str(v) for k, v in self.model.__dict__.items()}

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        assert {"algo", "gamma", "meta_batch_size"} <= set(self.config)


# ----------------------------------------------------------------------------------------------------- NaNs and exports
def finds_nans() -> None:
    try:
        with torch.autograd.detect_anomaly(check_nan=True), np.errstate(all="raise"):
            fresh().learn(1)
    finally:
        torch.autograd.set_detect_anomaly(False)


def traces(export: Any, folder: Path) -> None:
    obs = torch.ones(1, 2)
    torch.jit.save(torch.jit.freeze(torch.jit.trace(Onnxable(export.policy).eval(), obs)), folder / "traced.pt")
    actions, _, _ = torch.jit.load(folder / "traced.pt")(obs)
    torch.testing.assert_close(actions, export.policy(obs, deterministic=True)[0])


def exports_by_hand(model: Any) -> None:
    """The tensors have SB3's names and SB3's layout."""
    weights = {name: tensor.numpy() for name, tensor in model.get_parameters()["policy"].items()}
    obs = np.array([0.3, -0.2], np.float32)
    hidden = np.tanh(weights["mlp_extractor.policy_net.0.weight"] @ obs + weights["mlp_extractor.policy_net.0.bias"])
    action = weights["action_net.weight"] @ hidden + weights["action_net.bias"]
    np.testing.assert_allclose(model.predict(obs, deterministic=True)[0], np.clip(action, -1, 1), rtol=1e-5)


def made_and_loaded(kwargs: dict[str, Any], path: Path) -> None:
    assert metarl.load(fresh(**kwargs).save(path)).policy_kwargs == kwargs["policy_kwargs"]


WORKS: dict[str, Callable[[Any, Any, Path], Any]] = {
    "quickstart: one line": lambda m, e, p: metarl.FOMAML("MlpPolicy", "PointMass-v0", **TINY).learn(1),
    "examples: print_system_info": lambda m, e, p: metarl.FOMAML.load(m.save(p / "m"), print_system_info=True),
    "examples: load on an object": lambda m, e, p: fresh().load(m.save(p / "m")).predict(OBS),
    "examples: make_env": lambda m, e, p: (set_random_seed(0), single().reset(seed=1)),
    "examples: the best model": lambda m, e, p: saves_the_best(p),
    "examples: EvalCallback": lambda m, e, p: best_of_eval_callback(p),
    "examples: VecNormalize": lambda m, e, p: normalises_and_loads(p),
    "examples: evolution strategies": lambda m, e, p: evolves(m),
    "examples: a policy by itself": lambda m, e, p: policy_by_itself(e, p),
    "examples: the replay buffer of an export": lambda m, e, p: replay_buffer_of_an_export(p),
    "examples: torch.compile of an export": lambda m, e, p: compiles(m),
    "examples: a GIF": lambda m, e, p: makes_a_gif(m),
    "examples: off-policy, several copies": lambda m, e, p: SAC(
        "MlpPolicy", make_vec_env("PointMass-v0", 2, env_kwargs=GOAL), train_freq=1, gradient_steps=-1, device="cpu"
    ),
    "tips: random actions": lambda m, e, p: [single().action_space.sample() for _ in range(3)],
    "vec_env: infos": lambda m, e, p: converts_steps(m.get_env()),
    "vec_env: infos, DummyVecEnv": lambda m, e, p: converts_steps(vec(2)),
    "vec_env: tasks": lambda m, e, p: sets_tasks(m.get_env()),
    "vec_env: tasks, DummyVecEnv": lambda m, e, p: sets_tasks(vec(2)),
    "vec_env: get_wrapper_attr": lambda m, e, p: vec().env_method("get_wrapper_attr", "task"),
    "vec_env: wrapper_class": lambda m, e, p: wraps_each(p),
    "vec_env: a task that changes": lambda m, e, p: changes_the_task(),
    "vec_env: VecMonitor to a file": lambda m, e, p: VecMonitor(vec(2), str(p / "monitor.csv")).close(),
    "policy: ortho_init, log_std_init": lambda m, e, p: made_and_loaded(
        {"policy_kwargs": {"net_arch": [4], "ortho_init": False, "log_std_init": -1.0}}, p / "m"
    ),
    "policy: no hidden layer": lambda m, e, p: made_and_loaded({"policy_kwargs": {"net_arch": []}}, p / "m"),
    "policy: net_arch=None": lambda m, e, p: fresh(policy_kwargs={"net_arch": None}),
    "policy: qf": lambda m, e, p: fresh(
        learner="sb3_sac", learner_kwargs=OFF_POLICY, policy_kwargs={"net_arch": {"pi": [4], "qf": [5]}}
    ),
    "policy: print": lambda m, e, p: "mlp_extractor" in str(m.policy) or pytest.fail(str(m.policy)),
    "policy: an optimiser, stock": lambda m, e, p: fresh(
        learner="sb3_a2c", policy_kwargs={"optimizer_class": RMSpropTFLike, "optimizer_kwargs": {"eps": 1e-5}}
    ),
    "policy: of one's own, stock": lambda m, e, p: own_policy(),
    "policy: an extractor of one's own, stock": lambda m, e, p: PPO(
        "MlpPolicy", single(), n_steps=64, policy_kwargs={"features_extractor_class": Extractor}, device="cpu"
    ),
    "policy: gSDE of a learner": lambda m, e, p: fresh(
        learner="sb3_ppo", learner_kwargs={"use_sde": True, "sde_sample_freq": 4}
    ),
    "custom_env: check_env of Gymnasium": lambda m, e, p: check_env_of_gymnasium(
        SingleEnv("PointMass-v0"), skip_render_check=True
    ),
    "callbacks: events": lambda m, e, p: is_told_in_order(),
    "callbacks: an event of one's own": lambda m, e, p: run(EveryOther(Sees(lambda c: c.parent.n_calls))),
    "callbacks: a function stops": lambda m, e, p: stops_after_one(lambda local, _: False),
    "callbacks: None stops, as in SB3": lambda m, e, p: stops_after_one(
        type("Forgets", (cb.BaseCallback,), {"_on_step": lambda self: None})()
    ),
    "callbacks: checkpoints": lambda m, e, p: checkpoints(fresh(), p),
    "callbacks: checkpoints, stock": lambda m, e, p: checkpoints(fresh(learner="sb3_a2c", n_inner_steps=1), p),
    "callbacks: min_evals": lambda m, e, p: run(
        cb.EvalCallback(
            m.get_env(), None, cb.StopTrainingOnNoModelImprovement(3, 5), n_eval_episodes=1, eval_freq=1, verbose=0
        )
    ),
    "tensorboard: the summary writer": lambda m, e, p: (
        fresh(tensorboard_log=str(p)).learn(1, callback=Writes()).logger.close()
    ),
    "tensorboard: a curve goes on": lambda m, e, p: continues_a_curve(p),
    "tensorboard: an image of training_env": lambda m, e, p: logs(
        lambda c: c.logger.record("image", Image(c.training_env.render(mode="rgb_array"), "HWC"), ("stdout", "csv")), p
    ),
    "logger: every method": lambda m, e, p: logs(every_method, p),
    "integrations: MLflow": lambda m, e, p: logs_elsewhere(),
    "integrations: Weights & Biases": lambda m, e, p: run(LikeWandb()),
    "nan: detect_anomaly, numpy.seterr": lambda m, e, p: finds_nans(),
    "nan: VecCheckNan": lambda m, e, p: VecCheckNan(m.get_env(), raise_exception=True).reset(),
    "export: TorchScript": lambda m, e, p: traces(e, p),
    "export: state_dict": lambda m, e, p: e.policy.load_state_dict(e.policy.state_dict()),
    "export: by hand": lambda m, e, p: exports_by_hand(m),
    "export: custom_objects": lambda m, e, p: PPO.load(
        (e.save(p / "ppo"), p / "ppo")[1], custom_objects={"learning_rate": LinearSchedule(1e-3, 0.0, 1.0)}
    ),
    "evaluation: reward_threshold": lambda m, e, p: evaluate_policy(
        m, Monitor(single()), n_eval_episodes=1, reward_threshold=-1e9, warn=False
    ),
    "noise: TD3 in plain SB3": lambda m, e, p: TD3(
        "MlpPolicy", single(), action_noise=NormalActionNoise(np.zeros(2), 0.1 * np.ones(2)), device="cpu"
    ),
    "noise: of an export": lambda m, e, p: setattr(
        stock("td3").to_sb3(env=single()), "action_noise", OrnsteinUhlenbeckActionNoise(np.zeros(2), np.ones(2))
    ),
    "base: SB3's arguments in order": lambda m, e, p: fresh().learn(1, None, 1, "FOMAML", True, False),
    "contrib: TimeFeatureWrapper": lambda m, e, p: A2C("MlpPolicy", TimeFeatureWrapper(single()), device="cpu"),
    "contrib: CrossQ": lambda m, e, p: CrossQ("MlpPolicy", single(), device="cpu"),
    "contrib: RecurrentPPO": lambda m, e, p: RecurrentPPO("MlpLstmPolicy", single(), n_steps=8, device="cpu"),
}


@pytest.mark.filterwarnings("ignore:Training and eval env are not of the same type:UserWarning")
@pytest.mark.filterwarnings("ignore:.*Box .*precision lowered by casting:UserWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled:UserWarning")
@pytest.mark.filterwarnings("ignore:.*render modes are determined during the initialization:UserWarning")
@pytest.mark.parametrize("habit", WORKS)
def test_it_works(habit: str, model: Any, export: Any, tmp_path: Path) -> None:
    WORKS[habit](model, export, tmp_path)


def test_get_env_is_reset_and_what_is_set_on_it_stays_there(model: Any) -> None:
    """Training draws its tasks itself: two views are two. The first reset of the user's is that of a new view."""
    env = model.get_env()
    np.testing.assert_array_equal(env.reset(), FamilyVecEnv(model.family, env.tasks, n_envs=1, seed=model.seed).reset())
    env.env_method("set_task", {"goal": [0.3, 0.3]})
    assert not np.allclose(model.get_env().get_attr("task")[0]["goal"], 0.3)
