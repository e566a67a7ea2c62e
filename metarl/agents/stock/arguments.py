"""Which values the arguments of stock algorithms may have.

SB3 looks at few of them when it is built: most others fail while it learns, or change what it learns. What a policy
makes classes and layers of (``net_arch``, ``activation_fn``, ``optimizer_class``, …) fails when it is built.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from gymnasium import spaces
from sb3_contrib import CrossQ
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import DictReplayBuffer, DictRolloutBuffer, ReplayBuffer, RolloutBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.preprocessing import is_image_space

from metarl.checks import (
    ABOVE_ZERO,
    COUNT,
    COUNT_OR_ZERO,
    FINITE,
    FRACTION,
    MAPPING,
    NONE,
    NOT_NEGATIVE,
    ROUNDS,
    SWITCH,
    Check,
    choice,
    instance,
    integer,
    number,
    plain,
)
from metarl.errors import ConfigError, shorten


def _subclass(base: type) -> Check[type]:
    def read(value: Any) -> type:
        of_dicts = (DictReplayBuffer, DictRolloutBuffer)
        if not (isinstance(value, type) and issubclass(value, base)) or issubclass(value, of_dicts):
            raise ValueError
        return value

    return Check(f"a subclass of {base.__name__} that holds arrays, as observations of families are", read)


def _train_freq(value: Any) -> Any:
    if not isinstance(value, (list, tuple)):
        return COUNT.read(value)
    size, unit = value
    return [COUNT("train_freq", size), choice("step", "episode").read(unit)]


def _learnt_coefficient(value: Any) -> Any:
    if not isinstance(value, str):
        return NOT_NEGATIVE.read(value)
    if value != "auto" and not (value.startswith("auto_") and 0.0 < float(value[len("auto_") :]) < math.inf):
        raise ValueError
    return value


def _schedule(value: Any) -> Any:
    if not callable(value):
        raise ValueError
    try:
        NOT_NEGATIVE.read(plain(value(1.0)))  # SB3 calls it when it learns
    except Exception:  # of any kind: it is somebody's function
        raise ValueError from None
    return value


COPIES = integer(1, 10**4)
COUNT_OR_OFF = ROUNDS | choice(-1)
SCHEDULE = Check("a schedule", _schedule, "SB3 takes a function from the share of training left to a number")

ALLOWED: dict[str, Check[Any]] = {
    **dict.fromkeys(("n_steps", "batch_size", "buffer_size", "stats_window_size"), COUNT),
    **dict.fromkeys(("policy_delay", "target_update_interval", "sub_sampling_factor"), COUNT),
    **dict.fromkeys(("n_epochs", "n_critic_updates", "cg_max_steps", "line_search_max_iter"), ROUNDS),
    **dict.fromkeys(("learning_starts", "top_quantiles_to_drop_per_net"), COUNT_OR_ZERO),
    **dict.fromkeys(("gradient_steps", "sde_sample_freq"), COUNT_OR_OFF),
    **dict.fromkeys(("ent_coef", "vf_coef", "cg_damping", "target_policy_noise", "target_noise_clip"), NOT_NEGATIVE),
    **dict.fromkeys(("max_grad_norm", "target_kl", "rms_prop_eps"), ABOVE_ZERO),
    **dict.fromkeys(("gamma", "gae_lambda", "tau", "line_search_shrinking_factor"), FRACTION),
    **dict.fromkeys(("exploration_initial_eps", "exploration_final_eps"), FRACTION),
    "exploration_fraction": number("(0, 1]"),
    **dict.fromkeys(("use_sde", "use_sde_at_warmup", "use_rms_prop"), SWITCH),
    **dict.fromkeys(("normalize_advantage", "optimize_memory_usage"), SWITCH),
    "learning_rate": NOT_NEGATIVE | SCHEDULE,
    **dict.fromkeys(("clip_range", "clip_range_vf"), ABOVE_ZERO | SCHEDULE),
    "train_freq": Check(f"{COUNT.words} or [such an integer, 'step' or 'episode']", _train_freq),
    "action_noise": instance(ActionNoise, "an ActionNoise"),
    "rollout_buffer_class": _subclass(RolloutBuffer),
    "replay_buffer_class": _subclass(ReplayBuffer),
    **dict.fromkeys(("rollout_buffer_kwargs", "replay_buffer_kwargs", "policy_kwargs"), MAPPING),
    "normalize": (SWITCH | MAPPING).says("true, false or a mapping"),
    # of VecNormalize
    **dict.fromkeys(("norm_obs", "norm_reward"), SWITCH),
    **dict.fromkeys(("clip_obs", "clip_reward", "epsilon"), ABOVE_ZERO),
    # of policies
    **dict.fromkeys(("ortho_init", "full_std", "use_expln", "squash_output", "normalize_images"), SWITCH),
    **dict.fromkeys(("share_features_extractor", "batch_norm"), SWITCH),
    **dict.fromkeys(("n_envs", "n_critics", "n_quantiles"), COPIES),
    **dict.fromkeys(("log_std_init", "clip_mean"), FINITE),
    **dict.fromkeys(("optimizer_kwargs", "features_extractor_kwargs"), MAPPING),
    "batch_norm_momentum": FRACTION,
    "batch_norm_eps": NOT_NEGATIVE,
    "renorm_warmup_steps": COUNT_OR_ZERO,
}
"""By the argument's name: it means the same to every algorithm or policy that has it."""

LEARNT: dict[str, Check[Any]] = {
    "ent_coef": Check(f"{NOT_NEGATIVE.words}, 'auto' or 'auto_<first value>'", _learnt_coefficient),
    "target_entropy": FINITE | choice("auto"),
}
"""The same, for what is ``"auto"`` by default."""


def check_values(function: Callable[..., Any], kwargs: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return arguments as plain values.

    None is allowed where it is the default. Arguments that are in no table may be anything.

    :param function: takes the arguments.
    :param prefix: comes before their names in messages.
    :raises ConfigError: the first argument of a value that it may not have.
    """
    parameters = inspect.signature(function).parameters
    result = dict(kwargs)
    for name, value in kwargs.items():
        default = parameters[name].default
        allowed = (LEARNT if default == "auto" else ALLOWED).get(name)
        if allowed is not None:
            result[name] = (allowed | NONE if default is None else allowed)(f"{prefix}{name}", value)
    return result


def check_policy(policy: str, observation_space: spaces.Space[Any], policy_kwargs: Mapping[str, Any]) -> None:
    """Raise :class:`ConfigError` for a policy of SB3's that takes other observations."""
    if policy == "MultiInputPolicy":
        raise ConfigError(f"policy={policy!r} takes observations that are dicts: those of families are arrays")
    raw = policy_kwargs.get("normalize_images", True) is False
    if policy == "CnnPolicy" and not is_image_space(observation_space, normalized_image=raw):
        raise ConfigError(f"policy={policy!r} takes images: 'MlpPolicy' takes a {shorten(observation_space)}")


def check_together(cls: type, kwargs: Mapping[str, Any], n_envs: int) -> None:
    """Raise :class:`ConfigError` for arguments that are fine by themselves and not together: nothing would be learnt.

    :param cls: a stock algorithm.
    :param kwargs: its arguments, each of them allowed.
    :param n_envs: copies of the task.
    """
    parameters = inspect.signature(cls.__init__).parameters  # type: ignore[misc]  # of the class, not of an instance
    values = {**{name: parameter.default for name, parameter in parameters.items()}, **kwargs}
    if "top_quantiles_to_drop_per_net" in values:
        n_quantiles = (values["policy_kwargs"] or {}).get("n_quantiles", 25)
        dropped = values["top_quantiles_to_drop_per_net"]
        words = f"less than a critic's n_quantiles, {n_quantiles}"
        _require("top_quantiles_to_drop_per_net", dropped, dropped < n_quantiles, words)
    if "sub_sampling_factor" in values:
        size = values["n_steps"] * n_envs
        factor = values["sub_sampling_factor"]
        _require("sub_sampling_factor", factor, factor <= size, f"at most the env steps of a rollout, {size}")
    if cls is CrossQ:
        _require("batch_size", values["batch_size"], values["batch_size"] > 1, "more than 1: CrossQ normalises batches")


def _require(name: str, value: Any, fulfilled: bool, allowed: str) -> None:
    if not fulfilled:
        raise ConfigError(f"{name}={shorten(value)} is not {allowed}")


def query_arguments(algorithm: BaseAlgorithm, n_steps: int, n_envs: int) -> dict[str, Any]:
    """Return the hyperparameters with which one ``learn()`` is one rollout and one step of size 0."""
    batch = n_steps * n_envs
    kwargs: dict[str, Any] = {"learning_rate": 0.0, "max_grad_norm": math.inf, "batch_size": batch}
    if isinstance(algorithm, OnPolicyAlgorithm):
        kwargs |= {"n_steps": n_steps, "n_epochs": 1}
        kwargs |= {"n_critic_updates": 1, "sub_sampling_factor": 1, "cg_max_steps": 1, "line_search_max_iter": 0}
    else:
        kwargs |= {"train_freq": n_steps, "gradient_steps": 1, "learning_starts": 0, "buffer_size": batch}
        kwargs |= {"policy_delay": 1}
        kwargs |= {"exploration_initial_eps": getattr(algorithm, "exploration_final_eps", None)}
    known = inspect.signature(type(algorithm).__init__).parameters
    return {name: value for name, value in kwargs.items() if name in known}
