"""What the tests of SB3's habits share: small models, environments of one task, callbacks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from stable_baselines3.common import callbacks as cb
from stable_baselines3.common.vec_env import DummyVecEnv
from stable_baselines3.ppo import MlpPolicy

from tests.meta.small import small

GOAL = {"goal": [0.1, 0.2], "horizon": 20}
OFF_POLICY = {"learning_starts": 5, "buffer_size": 100, "batch_size": 4}
TINY: dict[str, Any] = {"meta_batch_size": 2, "n_episodes": 2}


def fresh(**kwargs: Any) -> Any:
    return small(**{**TINY, "policy_kwargs": {"net_arch": [4]}, **kwargs})


def single(**kwargs: Any) -> gym.Env[Any, Any]:
    return gym.make("PointMass-v0", **{**GOAL, **kwargs})


def vec(n: int = 1) -> DummyVecEnv:
    return DummyVecEnv([single] * n)


class Sees(cb.BaseCallback):
    """Looks at one thing in every step."""

    def __init__(self, look: Callable[[cb.BaseCallback], Any]) -> None:
        super().__init__()
        self.look = look

    def _on_step(self) -> bool:
        self.look(self)
        return True


def run(callback: Any, n: int = 1, **kwargs: Any) -> Any:
    return fresh().learn(n, callback=callback, **kwargs)


def logs(look: Callable[[cb.BaseCallback], Any], folder: Path) -> None:
    learner = fresh(tensorboard_log=str(folder))
    learner.learn(1, callback=Sees(look))
    learner.logger.close()
    assert list(folder.rglob("events.*"))


def stock(name: str, **kwargs: Any) -> Any:
    """Return a model around an off-policy algorithm of SB3's."""
    return fresh(learner=f"sb3_{name}", n_inner_steps=1, learner_kwargs={**OFF_POLICY, **kwargs})


class OwnPolicy(MlpPolicy):
    """A policy of one's own."""


class Onnxable(torch.nn.Module):
    """Exporting models: what is handed to ONNX, TorchScript and torch.export."""

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, observation: torch.Tensor) -> Any:
        return self.policy(observation, deterministic=True)
