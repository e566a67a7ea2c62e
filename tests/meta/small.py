"""Small meta-algorithms on PointMass, quick enough to train in a test."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from metarl.agents.learners.registry import LEARNERS
from metarl.envs.registry import make_family
from metarl.meta import ALGORITHMS
from metarl.meta.adaptive import AdaptiveAlgorithm
from metarl.meta.algorithms.maml import FOMAML
from metarl.meta.algorithms.transfer import TransferAlgorithm
from metarl.meta.base import MetaAlgorithm
from metarl.params import Params

ADAPTIVE = sorted(name for name, cls in ALGORITHMS.items() if issubclass(cls, AdaptiveAlgorithm))
"""The wrappers that take inner steps of a learner."""
REINFORCED = [name for name in ADAPTIVE if ALGORITHMS[name].refusal(LEARNERS["vpg"]) is None]  # type: ignore[attr-defined]
"""Those that go around learners of reinforcement learning."""
SIZES: dict[str, Any] = {
    "meta_batch_size": 4,
    "n_episodes": 5,
    "env_kwargs": {"horizon": 20},
    "policy_kwargs": {"net_arch": [16]},
    "n_threads": 1,
}


def small(algorithm: type[MetaAlgorithm] = FOMAML, **kwargs: Any) -> Any:
    """Return a small algorithm on PointMass-v0, or on Sinusoid-v0 around a learner of supervised tasks; what transfers,
    on CosineSine-v0.
    """
    sizes = {"env": "PointMass-v0", **SIZES}
    own = inspect.signature(algorithm).parameters.get("learner")
    learner = LEARNERS.get(kwargs.get("learner", "vpg" if own is None or own.default is None else own.default))
    if learner is not None and learner.misfit(make_family("PointMass-v0")):
        sizes = {**sizes, "env": "Sinusoid-v0", "env_kwargs": {}}
    if issubclass(algorithm, TransferAlgorithm):
        rest = {name: value for name, value in SIZES.items() if name not in ("n_episodes", "env_kwargs")}
        sizes = {**rest, "env": "CosineSine-v0", "n_support": 5}
    # What adapts by its memory has a policy that has one.
    given = inspect.signature(algorithm).parameters.get("policy")
    return algorithm("MlpPolicy" if given is None else given.default, **{**sizes, **kwargs})


def copy(params: Params) -> Params:
    """Return a copy of tensors."""
    return {name: tensor.clone() for name, tensor in params.items()}


def equal(a: Params, b: Params) -> bool:
    """Tell whether two sets of tensors have the same bits."""
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def run_iterations(model: Any, n: int, **kwargs: Any) -> Any:
    """Learn for ``n`` meta-iterations more."""
    counts: list[int] = []

    def stop(local: dict[str, Any], _: dict[str, Any]) -> bool:
        counts.append(1)
        return len(counts) < n

    return model.learn(10**9, callback=stop, **kwargs)
