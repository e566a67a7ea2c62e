"""Fine-tuning a stock model: the rates of an optimiser that Stable-Baselines3 steps, tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from metarl.errors import ConfigError
from metarl.meta.adaptation.tuning import Tuning
from metarl.meta.export.sb3 import Exported
from metarl.meta.export.settings import ONE_STEP
from metarl.params import Params


def tuned(exported: Exported, tuning: Tuning) -> Callable[[VecEnv, int], BaseAlgorithm]:
    """Return what builds a stock model that is fine-tuned: ``Exported.on``, with other rates or a new head.

    :raises ConfigError: an algorithm whose actor takes no steps of an optimiser.
    """
    kind = exported.settings.kind
    if not tuning.is_plain and kind not in ONE_STEP:
        raise ConfigError(
            f"tuning={tuning} with {kind}, whose actor takes no steps of an optimiser: {', '.join(ONE_STEP)} have rates"
        )
    fresh = tuning.fresh(list(exported.tensors))
    kept = {name: tensor for name, tensor in exported.tensors.items() if name not in fresh}
    start = replace(exported, tensors=kept, has_local=exported.has_local or bool(fresh))

    def make(env: VecEnv, seed: int) -> BaseAlgorithm:
        model = start.on(env, seed)
        if not tuning.is_plain:
            assert isinstance(model, OnPolicyAlgorithm)
            tune_rates(model, tuning)
        return model

    return make


def tune_rates(model: OnPolicyAlgorithm, tuning: Tuning) -> None:
    """Have the steps of a model's optimiser go by the rates of ``tuning``; step ``k`` of that is rollout ``k``.

    Stable-Baselines3 writes one rate for all before every update, so that each step multiplies it here, and puts it
    back.
    """
    optimizer = model.policy.optimizer
    params: Params = dict(model.policy.named_parameters())
    tuning.frozen(params)  # what is wrong is said before anything is learnt
    (group,) = optimizer.param_groups
    optimizer.param_groups = [{**group, "params": [tensor]} for tensor in group["params"]]
    names = {id(tensor): name for name, tensor in params.items()}
    rollout = model.n_steps * model.n_envs

    def slow(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        factors = tuning.factors(params, model.num_timesteps // rollout - 1)
        for own in optimizer.param_groups:
            own["whole_lr"] = own["lr"]
            own["lr"] *= factors[names[id(own["params"][0])]]

    def restore(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for own in optimizer.param_groups:
            own["lr"] = own.pop("whole_lr")

    optimizer.register_step_pre_hook(slow)
    optimizer.register_step_post_hook(restore)
