"""Meta-wrappers: what is learnt across tasks."""

from metarl.meta.base import AdaptedPolicy, MetaAlgorithm, algorithms, load
from metarl.meta.maml import FOMAML, MAML, Oracle, Pretrain, RandomInit

ALGORITHMS = algorithms()
"""Every meta-algorithm by its name on the command line."""

__all__ = [
    "ALGORITHMS",
    "FOMAML",
    "MAML",
    "AdaptedPolicy",
    "MetaAlgorithm",
    "Oracle",
    "Pretrain",
    "RandomInit",
    "algorithms",
    "load",
]
