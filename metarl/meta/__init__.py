"""Meta-wrappers: what is learnt across tasks."""

from metarl.meta.adaptation.adapted import AdaptedPolicy
from metarl.meta.algorithms.anil import ANIL
from metarl.meta.algorithms.baselines import Oracle, Pretrain, RandomInit
from metarl.meta.algorithms.boil import BOIL
from metarl.meta.algorithms.cavia import CAVIA
from metarl.meta.algorithms.hat import HAT
from metarl.meta.algorithms.imaml import IMAML
from metarl.meta.algorithms.leap import Leap
from metarl.meta.algorithms.leo import LEO
from metarl.meta.algorithms.maltml import MALTML
from metarl.meta.algorithms.maml import FOMAML, MAML
from metarl.meta.algorithms.maml_plus_plus import MAMLPlusPlus
from metarl.meta.algorithms.meta_curvature import MetaCurvature
from metarl.meta.algorithms.meta_sgd import MetaSGD
from metarl.meta.algorithms.meta_transfer import MetaTransfer
from metarl.meta.algorithms.multi_task import MultiTask
from metarl.meta.algorithms.oml import OML
from metarl.meta.algorithms.progressive import ProgressiveNets
from metarl.meta.algorithms.reptile import Reptile
from metarl.meta.algorithms.rl2 import RL2
from metarl.meta.base import MetaAlgorithm, load
from metarl.meta.saving import ALGORITHMS

__all__ = [
    "ALGORITHMS",
    "ANIL",
    "BOIL",
    "CAVIA",
    "FOMAML",
    "HAT",
    "IMAML",
    "LEO",
    "MALTML",
    "MAML",
    "OML",
    "RL2",
    "AdaptedPolicy",
    "Leap",
    "MAMLPlusPlus",
    "MetaAlgorithm",
    "MetaCurvature",
    "MetaSGD",
    "MetaTransfer",
    "MultiTask",
    "Oracle",
    "Pretrain",
    "ProgressiveNets",
    "RandomInit",
    "Reptile",
    "load",
]
