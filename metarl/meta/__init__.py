"""Meta-wrappers: what is learnt across tasks."""

from metarl.meta.adaptation.adapted import AdaptedPolicy
from metarl.meta.algorithms.leap import Leap
from metarl.meta.algorithms.maml import FOMAML, MAML, Oracle, Pretrain, RandomInit
from metarl.meta.algorithms.reptile import Reptile
from metarl.meta.base import MetaAlgorithm, algorithms, load

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
