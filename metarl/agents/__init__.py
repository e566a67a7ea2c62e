"""Learners: what learns one task, as pure functions on named tensors."""

from metarl.agents.learners.a2c import A2C
from metarl.agents.learners.base import Learner, LearnerState, Watcher
from metarl.agents.learners.ppo import PPO
from metarl.agents.learners.vpg import VPG
from metarl.agents.networks.policy import FunctionalPolicy
from metarl.agents.sampling.collect import Episodes, collect, collect_env
from metarl.agents.sampling.samples import Samples

__all__ = [
    "A2C",
    "PPO",
    "VPG",
    "Episodes",
    "FunctionalPolicy",
    "Learner",
    "LearnerState",
    "Samples",
    "Watcher",
    "collect",
    "collect_env",
]
