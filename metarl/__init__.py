"""Meta-reinforcement learning for Stable-Baselines3."""

from metarl import envs
from metarl.envs.family import family_ids, make_family
from metarl.errors import MetaRLError
from metarl.meta import (
    ALGORITHMS,
    FOMAML,
    MAML,
    AdaptedPolicy,
    MetaAlgorithm,
    Oracle,
    Pretrain,
    RandomInit,
    load,
)
from metarl.version import __version__

__all__ = [
    "ALGORITHMS",
    "FOMAML",
    "MAML",
    "AdaptedPolicy",
    "MetaAlgorithm",
    "MetaRLError",
    "Oracle",
    "Pretrain",
    "RandomInit",
    "__version__",
    "envs",
    "family_ids",
    "load",
    "make_family",
]
