"""What an export is: the stock algorithm, and the hyperparameters with which it goes on as the learner learnt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import sb3_contrib
import stable_baselines3
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike

from metarl.agents.learners.base import Continuing, Learner
from metarl.agents.stock.learner import ALGORITHMS, SB3Learner
from metarl.envs.family import score_of
from metarl.errors import ConfigError, shorten, unknown_name
from metarl.meta.adaptation.memory import MemoryAdaptation
from metarl.meta.adaptation.stock import StockAdaptation
from metarl.meta.model import Model

KINDS: dict[str, type[OnPolicyAlgorithm]] = {
    "ppo": stable_baselines3.PPO,
    "a2c": stable_baselines3.A2C,
    "trpo": sb3_contrib.TRPO,
}
"""What an actor of ours can be exported to."""
WITH_MEMORY = "ppo_lstm"
"""What a policy with a memory is exported to, by the name that RL-Zoo3 gives it."""
FINETUNED = (*KINDS, WITH_MEMORY)
"""What held-out tasks are learnt with by ``finetune``."""
EXPORTED: dict[str, type[BaseAlgorithm]] = {**ALGORITHMS, WITH_MEMORY: sb3_contrib.RecurrentPPO}
"""What there may be in an export."""
OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "rmsprop": torch.optim.RMSprop,
    "rmsprop_tf_like": RMSpropTFLike,
}
KIND = "ppo"
"""What a policy is exported to whose learner no stock algorithm repeats."""
CHOICES = ("sgd", "adam")
OWN = "own"
"""Stands among optimisers for the one that an export goes on with where none is named."""
BY_CLASS: dict[str, dict[str, Any]] = {"a2c": {"use_rms_prop": False}}
"""Arguments of algorithms that choose their optimiser otherwise, with which it is given by its class."""
ONE_STEP: dict[str, Callable[[int], dict[str, Any]]] = {
    "ppo": lambda n_samples: {"batch_size": n_samples, "n_epochs": 1},
    "a2c": lambda n_samples: BY_CLASS["a2c"],
}
"""Arguments with which an update is one step of the optimiser on all samples of a batch."""
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


def has_sb3_policy(model: Model) -> bool:
    """Return whether Stable-Baselines3 or sb3-contrib has the policy of a model, which no export goes without."""
    if isinstance(getattr(model, "adaptation", None), StockAdaptation | MemoryAdaptation):
        return True
    return bool(model.policy.network.stock)


def choose(model: Model, kind: str | None, optimizer: str | None, n_envs: int) -> Settings:
    """Return what a model is exported as.

    :param kind: see :func:`metarl.meta.export.sb3.export_sb3`, as ``optimizer`` and ``n_envs``.
    :raises ConfigError: no such kind or optimiser, or no policy that Stable-Baselines3 has.
    """
    adaptation = getattr(model, "adaptation", None)
    if isinstance(adaptation, StockAdaptation):
        if kind not in (None, adaptation.algorithm):
            raise ConfigError(
                f"the initialisation was learnt for {adaptation.algorithm!r}: it cannot start {shorten(kind)}"
            )
        if optimizer is not None:
            raise ConfigError(f"optimizer={shorten(optimizer)}: {adaptation.algorithm!r} goes on with its own")
        arguments = {**adaptation.stock_arguments(n_envs), "device": "cpu"}
        return Settings(adaptation.algorithm, model.policy_name, arguments, adaptation.normalize, is_stock=True)
    if isinstance(adaptation, MemoryAdaptation):
        return _with_memory(model, adaptation, kind, optimizer, n_envs)
    if not has_sb3_policy(model):
        raise ConfigError(f"{model.policy_name} is none of Stable-Baselines3's policies: nothing to export to")
    learner: Learner | None = getattr(adaptation, "learner", None)
    name = "a policy" if learner is None else repr(learner.name)
    sizes = {} if learner is None else _sizes(model, n_envs)
    # What learnt in another family than it acts in repeats no update of its own there.
    repeats = learner is not None and model.family.evaluation_family is None
    own = learner.sb3_settings(sizes["n_steps"] * n_envs) if learner is not None and repeats else None
    if kind is None:
        kind = KIND if own is None else own.kind
    if kind not in KINDS:
        if kind in ALGORITHMS:
            raise ConfigError(f"an initialisation that was learnt around {name} starts {', '.join(KINDS)}, no {kind}")
        raise unknown_name("kind of SB3 model", kind, KINDS)
    if optimizer is not None and optimizer not in CHOICES:
        raise unknown_name("optimizer", optimizer, CHOICES)
    if optimizer == "sgd" and kind not in ONE_STEP:
        raise ConfigError("optimizer='sgd' is for ppo and a2c: TRPO's actor takes no gradient steps")
    plain = own is not None and not own.update
    of_optimizer: dict[str, Any] = {}
    if optimizer is None and own is not None and kind == own.kind and not plain:
        optimizer, arguments = own.optimizer, {**sizes, **own.loss, **own.update}
        arguments["max_grad_norm"] = min(arguments.get("max_grad_norm", NO_CLIPPING), NO_CLIPPING)
        of_optimizer = own.optimizer_kwargs
    elif optimizer == "sgd" or (optimizer is None and kind in ONE_STEP and plain):
        if own is None:
            raise ConfigError(f"no step of {kind} repeats one of {name}: use optimizer='adam'")
        one_step = ONE_STEP[kind](sizes["n_steps"] * n_envs)
        optimizer, arguments = "sgd", {**sizes, **own.loss, "max_grad_norm": NO_CLIPPING, **one_step}
    else:
        gamma = 0.99 if own is None else own.loss.get("gamma", 0.99)
        optimizer, arguments = "adam", {"gamma": gamma, **BY_CLASS.get(kind, {})}
    policy_kwargs = {**model.policy.policy_kwargs, "optimizer_class": OPTIMIZERS[optimizer]}
    if of_optimizer:
        policy_kwargs["optimizer_kwargs"] = of_optimizer
    return Settings(kind, model.policy_name, {**arguments, "policy_kwargs": policy_kwargs, "device": "cpu"})


def _with_memory(
    model: Any, adaptation: MemoryAdaptation, kind: str | None, optimizer: str | None, n_envs: int
) -> Settings:
    """Return how sb3-contrib's recurrent PPO goes on with a policy that has a memory."""
    if kind not in (None, WITH_MEMORY):
        raise ConfigError(f"a policy with a memory starts {WITH_MEMORY} (sb3-contrib's RecurrentPPO), not {kind}")
    if optimizer not in (None, "adam"):
        raise ConfigError(f"optimizer={shorten(optimizer)}: {WITH_MEMORY} goes on with Adam")
    outer = model.outer_optimizer
    arguments = {
        **adaptation.learner_on_trials.sb3_arguments(adaptation.family.horizon, n_envs),
        "learning_rate": outer.learning_rate,
        "max_grad_norm": min(outer.max_grad_norm or NO_CLIPPING, NO_CLIPPING),
        "policy_kwargs": dict(adaptation.policy.policy_kwargs),
        "device": "cpu",
    }
    return Settings(WITH_MEMORY, model.policy_name, arguments, is_stock=True)


def has_repeatable_steps(model: Model) -> bool:
    """Whether an update of a stock SB3 model can be an inner step of ``model``."""
    learner = getattr(getattr(model, "adaptation", None), "learner", None)
    if model.family.evaluation_family is not None:
        return False
    return not isinstance(learner, Learner) or learner.sb3_settings(1) is not None


def _sizes(model: Any, n_envs: int) -> dict[str, Any]:
    """Return the learning rate, and the size of an inner step's batch, of a wrapper around a learner."""
    learner: Learner = model.adaptation.learner
    size = model.batch_steps if learner.continuing is None else learner.continuing.size
    return {"learning_rate": model.plain_rate, "n_steps": max(1, -(-size // n_envs))}


def fits_value(model: Model) -> bool:
    """Return whether an export's value network is fitted on training tasks: where the learner has none of its own."""
    return not choose(model, None, None, 1).is_stock and not model.policy.has_critic


def usual_kind(model: Model) -> str:
    """Return what held-out tasks are learnt with where nothing is said: what a model was learnt for, else PPO.

    :raises ConfigError: it was learnt around another stock algorithm than those of :data:`FINETUNED`.
    """
    kind = choose(model, None, None, 1).kind
    if kind not in FINETUNED:
        known = ", ".join(FINETUNED)
        raise ConfigError(f"the initialisation was learnt for {kind!r}: tasks are fine-tuned to by {known} only")
    return kind


def usual_optimizers(model: Model, kind: str, from_export: bool = True) -> list[str]:
    """Return the optimisers that an export is tried with; from scratch alone SB3's own is enough."""
    if isinstance(getattr(model, "adaptation", None), StockAdaptation):
        return [OWN]
    only_adam = not from_export or kind not in ONE_STEP or not has_repeatable_steps(model)
    return ["adam"] if only_adam else ["sgd", "adam"]


class Point(NamedTuple):
    """What a point of the curves is: rollouts.

    :param n_envs: copies of a task that step together.
    :param n_steps: env steps of each in a rollout.
    :param n_rollouts: rollouts of a point.
    """

    n_envs: int
    n_steps: int
    n_rollouts: int


def require_learnable(
    model: Model, total_timesteps: int, n_envs: int | None = None, n_steps: int | None = None
) -> Point:
    """Return what a point of the curves is; parameters as in
    :func:`~metarl.meta.export.finetune.finetune`.

    :raises ConfigError: so many env steps have one point, the policy before any update.
    """
    episodes = getattr(model, "n_trials", getattr(model, "n_episodes", 20))
    learner = getattr(getattr(model, "adaptation", None), "learner", None)
    continuing: Continuing | None = getattr(learner, "continuing", None)
    stock = learner if isinstance(learner, SB3Learner) else None
    if n_envs is None:
        n_envs = stock.n_envs if stock is not None else episodes if continuing is None else continuing.n_envs
    batch = getattr(model, "n_transitions", None) or episodes * model.family.acts_in.horizon
    if stock is not None and n_steps is None:
        n_steps = int(choose(model, None, None, n_envs).arguments["n_steps"])
    size = batch if continuing is None else continuing.size
    n_steps = -(-size // n_envs) if n_steps is None else n_steps
    rollout = n_steps * n_envs
    n_rollouts = -(-batch // rollout) if stock is not None or continuing is not None else 1
    if total_timesteps <= n_rollouts * rollout:
        amount = score_of(model.family.acts_in).amount(total_timesteps)
        raise ConfigError(f"{amount} are no more than a rollout ({n_rollouts * rollout:,}): nothing would be learnt")
    return Point(n_envs, n_steps, n_rollouts)
