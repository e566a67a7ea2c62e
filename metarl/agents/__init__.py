"""Learners: what learns one task, as pure functions on named tensors."""

from metarl.agents.learners.a2c import A2C
from metarl.agents.learners.base import Learner
from metarl.agents.learners.ppo import PPO
from metarl.agents.learners.registry import LEARNERS, find_learner, learner_names, register_learner
from metarl.agents.learners.supervised import Cloning, Supervised
from metarl.agents.learners.vpg import VPG
from metarl.agents.learners.watching import LearnerState, Watcher
from metarl.agents.networks.policy import FunctionalPolicy
from metarl.agents.sampling.collect import collect
from metarl.agents.sampling.episodes import Episodes
from metarl.agents.sampling.one_env import collect_env
from metarl.agents.sampling.samples import Samples
from metarl.agents.stock.entries import StockAlgorithm

__all__ = [
    "A2C",
    "LEARNERS",
    "PPO",
    "VPG",
    "Cloning",
    "Episodes",
    "FunctionalPolicy",
    "Learner",
    "LearnerState",
    "Samples",
    "StockAlgorithm",
    "Supervised",
    "Watcher",
    "collect",
    "collect_env",
    "find_learner",
    "learner_names",
    "register_learner",
]
