"""Meta-wrappers: what is learnt across tasks."""

from metarl.meta.adapted import AdaptedPolicy
from metarl.meta.base import MetaAlgorithm, algorithms, load
from metarl.meta.leap import Leap
from metarl.meta.maml import FOMAML, MAML, Oracle, Pretrain, RandomInit
from metarl.meta.reptile import Reptile

ALGORITHMS = algorithms()
"""Every meta-algorithm by its name on the command line."""

__all__ = [
    "ALGORITHMS",
    "FOMAML",
    "MAML",
    "AdaptedPolicy",
    "Leap",
    "MetaAlgorithm",
    "Oracle",
    "Pretrain",
    "RandomInit",
    "Reptile",
    "algorithms",
    "load",
]
