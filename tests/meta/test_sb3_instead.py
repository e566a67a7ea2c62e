"""Pages of Stable-Baselines3's documentation whose habits have no meaning on metarl's objects: what is said instead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sb3_contrib import CrossQ, RecurrentPPO
from sb3_contrib.common.wrappers import TimeFeatureWrapper
from stable_baselines3 import PPO, SAC, TD3, HerReplayBuffer
from stable_baselines3.common.atari_wrappers import ClipRewardEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecMonitor

import metarl
from metarl.envs import SingleEnv
from metarl.errors import MetaRLError, NoSuchNameError
from tests.meta.habits import Onnxable, OwnPolicy, Sees, fresh, run, single, stock, vec


@pytest.fixture(scope="module")
def model() -> Any:
    """Return a model that has learnt for a meta-iteration."""
    return fresh().learn(1)


@pytest.fixture(scope="module")
def export(model: Any) -> Any:
    """Return plain PPO, started at the initialisation."""
    return model.to_sb3("ppo", value_tasks=0, env=single())


def after_monitor(wrapped: Any, learn: Callable[[Any], Any]) -> Any:
    try:
        return learn(wrapped)
    finally:
        wrapped.close()


INSTEAD: dict[str, tuple[Callable[[Any, Path], Any], str]] = {
    "examples: Monitor to a file": (
        lambda m, p: after_monitor(Monitor(single(), str(p)), lambda env: metarl.FOMAML("MlpPolicy", env)),
        "would stay empty",
    ),
    "examples: VecMonitor to a file": (
        lambda m, p: after_monitor(VecMonitor(vec(), str(p)), lambda env: metarl.FOMAML("MlpPolicy", env)),
        "would stay empty",
    ),
    "examples: MultiInputPolicy": (
        lambda m, p: metarl.FOMAML("MultiInputPolicy", "PointMass-v0"),
        "unknown policy 'MultiInputPolicy'",
    ),
    "examples: MultiInputPolicy, stock": (
        lambda m, p: metarl.FOMAML("MultiInputPolicy", "PointMass-v0", learner="sb3_ppo"),
        "observations that are dicts: those of families are arrays",
    ),
    "examples: CnnPolicy, stock": (
        lambda m, p: metarl.FOMAML("CnnPolicy", "PointMass-v0", learner="sb3_a2c"),
        "takes images: 'MlpPolicy'",
    ),
    "her: HerReplayBuffer": (
        lambda m, p: stock("sac", replay_buffer_class=HerReplayBuffer),
        "holds arrays, as observations of families",
    ),
    "her: as a learner": (lambda m, p: fresh(learner="sb3_her"), "hold no goals that hindsight could replace"),
    "examples: load_replay_buffer": (lambda m, p: m.load_replay_buffer("b"), "starts with an empty buffer"),
    "examples: a schedule in an export": (
        lambda m, p: m.to_sb3("ppo", value_tasks=0, learning_rate=LinearSchedule(1e-3, 0.0, 1.0)),
        "custom_objects={'learning_rate': …}",
    ),
    "examples: a schedule that returns text": (
        lambda m, p: fresh(learner="sb3_ppo", learner_kwargs={"clip_range": lambda left: "lin_0.2"}),
        "training left to a number",
    ),
    "examples: load_state_dict": (lambda m, p: m.policy.load_state_dict({}), "policy_params are its tensors"),
    "examples: a compiled policy": (lambda m, p: setattr(m, "policy", m.policy), "is set when it is built"),
    "examples: model.env.render": (lambda m, p: m.env.render(), "get_env()"),
    "examples: evaluate_policy of a policy": (lambda m, p: evaluate_policy(m.policy, m.get_env()), "predict acts"),
    "vec_env: set_env": (lambda m, p: m.set_env(single(), force_reset=False), "has another"),
    "vec_env: model.env = …": (lambda m, p: setattr(m, "env", single()), "env cannot be set on a FOMAML"),
    "policy: shared layers of old": (
        lambda m, p: fresh(policy_kwargs={"net_arch": [4, {"pi": [4], "vf": [4]}]}),
        "list of positive integers",
    ),
    "policy: gSDE": (lambda m, p: fresh(use_sde=True), "learner_kwargs={'use_sde': …} is for a stock learner"),
    "policy: gSDE in policy_kwargs": (lambda m, p: fresh(policy_kwargs={"use_sde": True}), "is not supported: gSDE"),
    "policy: an optimiser": (lambda m, p: fresh(policy_kwargs={"optimizer_class": RMSpropTFLike}), "the learner's own"),
    "policy: an optimiser, saved": (
        lambda m, p: fresh(learner="sb3_a2c", policy_kwargs={"optimizer_class": RMSpropTFLike}).save(p / "m"),
        "policy_kwargs.optimizer_class=<class 'stable_baselines3",
    ),
    "policy: of one's own": (
        lambda m, p: metarl.FOMAML(OwnPolicy, "PointMass-v0", learner="sb3_ppo"),
        "unknown policy of PPO",
    ),
    "policy: a call": (lambda m, p: m.policy(torch.zeros(1, 2), deterministic=True), "cannot be called"),
    "policy: net_arch of a policy": (lambda m, p: m.policy.net_arch, "these are functions"),
    "callbacks: critic_target": (lambda m, p: run(Sees(lambda c: c.model.critic_target)), "to_sb3() returns a stock"),
    "callbacks: exploration_rate": (lambda m, p: run(Sees(lambda c: c.model.exploration_rate)), "starts over"),
    "callbacks: model.use_sde": (lambda m, p: run(Sees(lambda c: c.model.use_sde)), "is for a stock learner"),
    "callbacks: _last_obs": (lambda m, p: run(Sees(lambda c: c.model._last_obs)), "collected as a whole"),
    "callbacks: model.tau = …": (lambda m, p: setattr(m, "tau", 0.1), "learner_kwargs={'tau': …} is for a stock"),
    "export: ONNX of a meta-model": (lambda m, p: Onnxable(m.policy)(torch.zeros(1, 2)), "to_sb3() returns a stock"),
    "base: save(exclude=)": (lambda m, p: m.save(p / "m", exclude=["policy"]), "nothing is excluded"),
    "base: save(include=)": (lambda m, p: m.save(p / "m", include=["policy"]), "nothing is excluded"),
    "save_format: deserialization_mode": (
        lambda m, p: metarl.load(m.save(p / "m"), deserialization_mode="legacy"),
        "nothing is unpickled",
    ),
    "save_format: no such file": (lambda m, p: metarl.FOMAML.load(p / "nothing"), "no such file"),
    "migration: load_parameters": (lambda m, p: m.load_parameters("m"), "set_parameters()"),
    "migration: cliprange": (
        lambda m, p: fresh(learner="sb3_ppo", learner_kwargs={"cliprange": 0.2}),
        "did you mean 'clip_range'",
    ),
    "algos: learner='sac'": (lambda m, p: fresh(learner="sac"), "did you mean 'sb3_sac'"),
    "algos: learner=PPO": (lambda m, p: fresh(learner=PPO), "did you mean 'sb3_ppo' or 'ppo'"),
    "contrib: RecurrentPPO": (lambda m, p: fresh(learner=RecurrentPPO), "recurrent policies carry a hidden state"),
    "contrib: ppo_lstm": (lambda m, p: fresh(learner="sb3_ppo_lstm"), "recurrent policies carry a hidden state"),
    "contrib: MaskablePPO": (lambda m, p: fresh(learner="sb3_maskable_ppo"), "families have no action masks"),
    "contrib: MlpLstmPolicy": (lambda m, p: metarl.FOMAML("MlpLstmPolicy", "PointMass-v0"), "did you mean 'MlpPolicy'"),
    "contrib: TimeFeatureWrapper": (
        lambda m, p: metarl.FOMAML("MlpPolicy", TimeFeatureWrapper(single())),
        "would be lost",
    ),
    "atari: ClipRewardEnv": (lambda m, p: metarl.FOMAML("MlpPolicy", ClipRewardEnv(single())), "would be lost"),
    "custom_env: masked observations": (
        lambda m, p: m.predict(np.ma.array([0.1, 0.2], mask=[True, False])),
        "is no array of numbers",
    ),
    "custom_env: a masked task": (
        lambda m, p: SingleEnv("PointMass-v0", goal=np.ma.array([0.1, 0.2], mask=[True, False])),
        "is not a number",
    ),
    "noise: of a learner": (
        lambda m, p: stock("td3", action_noise=NormalActionNoise(np.zeros(2), np.ones(2))).save(p / "m"),
        "learner_kwargs.action_noise=NormalActionNoise",
    ),
    "noise: of a model": (lambda m, p: fresh(action_noise=None), "give it to the model that to_sb3() returns"),
}


@pytest.mark.parametrize("habit", INSTEAD)
def test_one_sentence_says_what_to_do_instead(habit: str, model: Any, tmp_path: Path) -> None:
    do, words = INSTEAD[habit]
    with pytest.raises(MetaRLError) as caught:
        do(model, tmp_path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("kind", [PPO, SAC, TD3, CrossQ])
def test_whatever_a_model_of_sb3_has_is_there_or_said(kind: Any, model: Any, export: Any) -> None:
    """Public attributes of a stock model, of its policy, and what adaptation returns in their place."""
    plain = kind("MlpPolicy", single(), device="cpu")
    for mine, theirs in (
        (model, plain),
        (model.adapt(single(), 0), plain),
        (model.policy, export.policy),
    ):
        for name in dir(theirs):
            if not name.startswith("_") and not hasattr(mine, name):
                with pytest.raises(NoSuchNameError, match=name):
                    getattr(mine, name)


def test_no_attribute_that_nobody_has_is_said_to_be_elsewhere(model: Any) -> None:
    for mine in (model, model.adapt(single(), 0), model.policy):
        with pytest.raises(AttributeError, match="no attribute 'colour'") as caught:
            _ = mine.colour
        assert not isinstance(caught.value, MetaRLError)
