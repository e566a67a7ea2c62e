"""Meta-reinforcement learning for Stable-Baselines3."""

from typing import TYPE_CHECKING, Any

from metarl import startup as startup  # first: it makes the other imports safe

# isort: split
from metarl import envs
from metarl.envs.registry import family_ids, make_family
from metarl.errors import MetaRLError
from metarl.version import __version__

startup.families_imported()

if TYPE_CHECKING:
    from metarl.meta import (
        ALGORITHMS,
        ANIL,
        BOIL,
        CAVIA,
        FOMAML,
        HAT,
        IMAML,
        LEO,
        MALTML,
        MAML,
        OML,
        RL2,
        AdaptedPolicy,
        Leap,
        MAMLPlusPlus,
        MetaAlgorithm,
        MetaCurvature,
        MetaSGD,
        MetaTransfer,
        MultiTask,
        Oracle,
        Pretrain,
        ProgressiveNets,
        RandomInit,
        Reptile,
        load,
    )

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
    "MetaRLError",
    "MetaSGD",
    "MetaTransfer",
    "MultiTask",
    "Oracle",
    "Pretrain",
    "ProgressiveNets",
    "RandomInit",
    "Reptile",
    "__version__",
    "envs",
    "family_ids",
    "load",
    "make_family",
]


def __getattr__(name: str) -> Any:
    """Import :mod:`metarl.meta`, and with it torch, when something of it is first asked for: ``--help`` never does."""
    import importlib

    if name == "meta":
        return importlib.import_module("metarl.meta")
    if name in __all__:
        return getattr(importlib.import_module("metarl.meta"), name)
    raise AttributeError(f"module 'metarl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
