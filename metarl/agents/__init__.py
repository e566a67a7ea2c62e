"""Learners: what learns one task, as pure functions on named tensors."""

from metarl.agents.policy import FunctionalPolicy
from metarl.agents.sampling import Episodes, Samples, collect, collect_env
from metarl.agents.vpg import VPG

__all__ = ["VPG", "Episodes", "FunctionalPolicy", "Samples", "collect", "collect_env"]
