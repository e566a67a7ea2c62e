"""Learners: what learns one task, as pure functions on named tensors."""

from metarl.agents.a2c import A2C
from metarl.agents.learner import Learner, LearnerState, Watcher
from metarl.agents.policy import FunctionalPolicy
from metarl.agents.ppo import PPO
from metarl.agents.samples import Samples
from metarl.agents.sampling import Episodes, collect, collect_env
from metarl.agents.vpg import VPG

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
