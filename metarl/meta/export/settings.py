"""What an export is: the stock algorithm, and the hyperparameters with which it goes on as the learner learnt."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sb3_contrib
import stable_baselines3
import torch
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from metarl.agents.learners.a2c import A2C
from metarl.agents.learners.ppo import PPO
from metarl.agents.stock.learner import ALGORITHMS
from metarl.errors import ConfigError, shorten, unknown_name
from metarl.meta.adaptation.stock import SB3Loop

if TYPE_CHECKING:
    from metarl.meta.base import MetaAlgorithm

KINDS: dict[str, type[OnPolicyAlgorithm]] = {
    "ppo": stable_baselines3.PPO,
    "a2c": stable_baselines3.A2C,
    "trpo": sb3_contrib.TRPO,
}
"""What an actor of ours can be exported to."""
OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "rmsprop": torch.optim.RMSprop,
}
CHOICES = ("sgd", "adam")
NO_CLIPPING = 1e9
"""``max_grad_norm`` that never clips; infinity would not be strict JSON."""


@dataclass(frozen=True)
class Settings:
    """How a stock model is built.

    :param kind: the algorithm, such as ``"ppo"``.
    :param policy: one of its policies.
    :param arguments: keyword arguments of its class.
    :param normalize: arguments of ``VecNormalize``; None: nothing is normalised.
    :param is_stock: whether the initialisation was learnt around this very algorithm.
    """

    kind: str
    policy: str
    arguments: dict[str, Any]
    normalize: dict[str, Any] | None = None
    is_stock: bool = False


def choose(model: MetaAlgorithm, kind: str | None, optimizer: str | None, n_envs: int) -> Settings:
    """Return what a model is exported as.

    :param kind: see :func:`metarl.meta.export.sb3.export_sb3`, as ``optimizer`` and ``n_envs``.
    """
    loop = getattr(model, "loop", None)
    if isinstance(loop, SB3Loop):
        if kind not in (None, loop.algorithm):
            raise ConfigError(f"the initialisation was learnt for {loop.algorithm!r}: it cannot start {shorten(kind)}")
        if optimizer is not None:
            raise ConfigError(f"optimizer={shorten(optimizer)}: {loop.algorithm!r} goes on with its own")
        arguments = {**loop.stock_arguments(n_envs), "device": "cpu"}
        return Settings(loop.algorithm, model.policy_name, arguments, loop.normalize, is_stock=True)
    learner = getattr(model, "learner", "vpg")
    if kind is None:
        kind = learner if learner in KINDS else "ppo"
    if kind not in KINDS:
        if kind in ALGORITHMS:
            raise ConfigError(
                f"an initialisation that was learnt around {shorten(learner)} starts {', '.join(KINDS)}, no {kind}"
            )
        raise unknown_name("kind of SB3 model", kind, KINDS)
    if optimizer is not None and optimizer not in CHOICES:
        raise unknown_name("optimizer", optimizer, CHOICES)
    if kind == "trpo" and optimizer == "sgd":
        raise ConfigError("optimizer='sgd' is for ppo and a2c: TRPO's actor takes no gradient steps")
    plain = learner == "vpg" or getattr(model, "plain_steps", False)
    if optimizer is None and kind == learner and not plain:
        name, arguments = _as_learnt(model, n_envs)
    elif optimizer == "sgd" or (optimizer is None and kind != "trpo" and plain):
        name, arguments = "sgd", _as_inner_step(model, kind, n_envs)
    else:
        name, arguments = "adam", {"gamma": _gamma(model), **({"use_rms_prop": False} if kind == "a2c" else {})}
    policy_kwargs = {**model.policy.policy_kwargs, "optimizer_class": OPTIMIZERS[name]}
    if name == "rmsprop":
        policy_kwargs["optimizer_kwargs"] = {"alpha": 0.99, "eps": 1e-5, "weight_decay": 0.0}
    return Settings(kind, model.policy_name, {**arguments, "policy_kwargs": policy_kwargs, "device": "cpu"})


def _gamma(model: MetaAlgorithm) -> float:
    gamma: float | None = getattr(model, "gamma", None)
    return 0.99 if gamma is None else gamma


def _rollout(model: MetaAlgorithm, n_envs: int) -> dict[str, Any]:
    """Return the learning rate, and the size of an inner step's batch."""
    rates = getattr(model, "rates", None)
    if not rates:
        raise ConfigError(f"{model.name} has no inner rate to export: use optimizer='adam'")
    batch = getattr(model, "n_transitions", None) or getattr(model, "n_episodes", 1) * model.family.horizon
    return {"learning_rate": rates[0], "n_steps": max(1, -(-batch // n_envs))}


def _as_inner_step(model: MetaAlgorithm, kind: str, n_envs: int) -> dict[str, Any]:
    """Return the hyperparameters that make one update one plain gradient step on the learner's loss."""
    learner = getattr(getattr(model, "loop", None), "learner", None)
    sizes = _rollout(model, n_envs)
    result = {
        **sizes,
        "gamma": _gamma(model),
        "gae_lambda": getattr(model, "gae_lambda", 1.0),
        "ent_coef": getattr(learner, "ent_coef", 0.0),
        "vf_coef": getattr(learner, "vf_coef", 0.0),
        "max_grad_norm": NO_CLIPPING,
        "normalize_advantage": getattr(model, "normalize_advantage", True),
    }
    if kind == "ppo":
        return {**result, "batch_size": sizes["n_steps"] * n_envs, "n_epochs": 1}
    return {**result, "use_rms_prop": False}


def _as_learnt(model: MetaAlgorithm, n_envs: int) -> tuple[str, dict[str, Any]]:
    """Return the optimiser and the hyperparameters of a learner that is SB3's algorithm written anew."""
    learner = model.loop.learner  # type: ignore[attr-defined]  # only wrappers around learners get here
    sizes = _rollout(model, n_envs)
    names = ["gamma", "gae_lambda", "ent_coef", "vf_coef", "normalize_advantage"]
    result: dict[str, Any] = {**sizes, "max_grad_norm": min(learner.max_grad_norm, NO_CLIPPING)}
    if isinstance(learner, PPO):
        names += ["n_epochs", "clip_range", "clip_range_vf", "target_kl"]
        result["batch_size"] = min(learner.batch_size, sizes["n_steps"] * n_envs)
    default = inspect.signature(type(learner).__init__).parameters["optimizer"].default
    optimizer: str = model.learner_kwargs.get("optimizer", default)  # type: ignore[attr-defined]
    if isinstance(learner, A2C):
        result["use_rms_prop"] = False  # the optimiser is given by its class
    return optimizer, {**result, **{name: getattr(learner, name) for name in names}}
