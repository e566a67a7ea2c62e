"""Which values the arguments of stock algorithms may have.

SB3 looks at few of them when it is built: most others fail while it learns, or change what it learns. What a policy
makes classes and layers of (``net_arch``, ``activation_fn``, ``optimizer_class``, …) fails when it is built.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from sb3_contrib import CrossQ
from stable_baselines3.common.buffers import ReplayBuffer, RolloutBuffer
from stable_baselines3.common.noise import ActionNoise

from metarl.agents.actor_critic import is_number, require
from metarl.schema import MOST


class Allowed(NamedTuple):
    """What an argument may be.

    :param words: as an error message says it.
    :param holds: whether a value is that.
    """

    words: str
    holds: Callable[[Any], bool]


def _subclass(base: type) -> Allowed:
    return Allowed(f"a subclass of {base.__name__}", lambda v: isinstance(v, type) and issubclass(v, base))


COUNT = Allowed("an integer of at least 1", lambda v: type(v) is int and v >= 1)
COPIES = Allowed("an integer from 1 to 10,000", lambda v: type(v) is int and 1 <= v <= 10**4)
ROUNDS = Allowed(f"an integer from 1 to {MOST:,}", lambda v: type(v) is int and 1 <= v <= MOST)
COUNT_OR_ZERO = Allowed("an integer of at least 0", lambda v: type(v) is int and v >= 0)
COUNT_OR_OFF = Allowed(
    f"an integer from 1 to {MOST:,}, or -1", lambda v: type(v) is int and (v == -1 or ROUNDS.holds(v))
)
NUMBER = Allowed("a finite number", lambda v: is_number(v) and math.isfinite(v))
WEIGHT = Allowed("a number of at least 0", lambda v: NUMBER.holds(v) and v >= 0.0)
POSITIVE = Allowed("a positive number", lambda v: is_number(v) and v > 0.0)
FRACTION = Allowed("a number in [0, 1]", lambda v: is_number(v) and 0.0 <= v <= 1.0)
POSITIVE_FRACTION = Allowed("a number in (0, 1]", lambda v: is_number(v) and 0.0 < v <= 1.0)
SWITCH = Allowed("true or false", lambda v: isinstance(v, bool))
MAPPING = Allowed("a mapping", lambda v: isinstance(v, Mapping))
RATE = Allowed("a number of at least 0 or a schedule", lambda v: WEIGHT.holds(v) or callable(v))
CLIP = Allowed("a positive number or a schedule", lambda v: POSITIVE.holds(v) or callable(v))


def _is_train_freq(value: Any) -> bool:
    if not isinstance(value, (list, tuple)):
        return COUNT.holds(value)
    return len(value) == 2 and COUNT.holds(value[0]) and value[1] in ("step", "episode")


def _is_learnt_coefficient(value: Any) -> bool:
    if not isinstance(value, str):
        return WEIGHT.holds(value)
    try:
        return value == "auto" or (value.startswith("auto_") and 0.0 < float(value[len("auto_") :]) < math.inf)
    except ValueError:
        return False


ALLOWED: dict[str, Allowed] = {
    **dict.fromkeys(("n_steps", "batch_size", "buffer_size", "stats_window_size"), COUNT),
    **dict.fromkeys(("policy_delay", "target_update_interval", "sub_sampling_factor"), COUNT),
    **dict.fromkeys(("n_epochs", "n_critic_updates", "cg_max_steps", "line_search_max_iter"), ROUNDS),
    **dict.fromkeys(("learning_starts", "top_quantiles_to_drop_per_net"), COUNT_OR_ZERO),
    **dict.fromkeys(("gradient_steps", "sde_sample_freq"), COUNT_OR_OFF),
    **dict.fromkeys(("ent_coef", "vf_coef", "cg_damping", "target_policy_noise", "target_noise_clip"), WEIGHT),
    **dict.fromkeys(("max_grad_norm", "target_kl", "rms_prop_eps"), POSITIVE),
    **dict.fromkeys(("gamma", "gae_lambda", "tau", "line_search_shrinking_factor"), FRACTION),
    **dict.fromkeys(("exploration_initial_eps", "exploration_final_eps"), FRACTION),
    "exploration_fraction": POSITIVE_FRACTION,
    **dict.fromkeys(("use_sde", "use_sde_at_warmup", "use_rms_prop"), SWITCH),
    **dict.fromkeys(("normalize_advantage", "optimize_memory_usage"), SWITCH),
    "learning_rate": RATE,
    **dict.fromkeys(("clip_range", "clip_range_vf"), CLIP),
    "train_freq": Allowed("an integer of at least 1, or [such an integer, 'step' or 'episode']", _is_train_freq),
    "action_noise": Allowed("an ActionNoise", lambda v: isinstance(v, ActionNoise)),
    "rollout_buffer_class": _subclass(RolloutBuffer),
    "replay_buffer_class": _subclass(ReplayBuffer),
    **dict.fromkeys(("rollout_buffer_kwargs", "replay_buffer_kwargs", "policy_kwargs"), MAPPING),
    "normalize": Allowed("true, false or a mapping", lambda v: isinstance(v, (bool, Mapping))),
    # of VecNormalize
    **dict.fromkeys(("norm_obs", "norm_reward"), SWITCH),
    **dict.fromkeys(("clip_obs", "clip_reward", "epsilon"), POSITIVE),
    # of policies
    **dict.fromkeys(("ortho_init", "full_std", "use_expln", "squash_output", "normalize_images"), SWITCH),
    **dict.fromkeys(("share_features_extractor", "batch_norm"), SWITCH),
    **dict.fromkeys(("n_envs", "n_critics", "n_quantiles"), COPIES),
    **dict.fromkeys(("log_std_init", "clip_mean"), NUMBER),
    **dict.fromkeys(("optimizer_kwargs", "features_extractor_kwargs"), MAPPING),
    "batch_norm_momentum": FRACTION,
    "batch_norm_eps": WEIGHT,
    "renorm_warmup_steps": COUNT_OR_ZERO,
}
"""By the argument's name: it means the same to every algorithm or policy that has it."""

LEARNT: dict[str, Allowed] = {
    "ent_coef": Allowed("a number of at least 0, 'auto' or 'auto_<first value>'", _is_learnt_coefficient),
    "target_entropy": Allowed("a finite number or 'auto'", lambda v: NUMBER.holds(v) or v == "auto"),
}
"""The same, for what is ``"auto"`` by default."""


def check_values(function: Callable[..., Any], kwargs: Mapping[str, Any], prefix: str = "") -> None:
    """Raise :class:`ConfigError` for the first argument of a value that it may not have.

    None is allowed where it is the default. Arguments that are in no table may be anything.

    :param function: takes the arguments.
    :param prefix: comes before their names in messages.
    """
    parameters = inspect.signature(function).parameters
    for name, value in kwargs.items():
        default = parameters[name].default
        allowed = (LEARNT if default == "auto" else ALLOWED).get(name)
        if allowed is not None:
            words = f"{allowed.words} or None" if default is None else allowed.words
            require(f"{prefix}{name}", value, allowed.holds(value) or (value is None and default is None), words)


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
        require("top_quantiles_to_drop_per_net", dropped, dropped < n_quantiles, words)
    if "sub_sampling_factor" in values:
        size = values["n_steps"] * n_envs
        factor = values["sub_sampling_factor"]
        require("sub_sampling_factor", factor, factor <= size, f"at most the env steps of a rollout, {size}")
    if cls is CrossQ:
        require("batch_size", values["batch_size"], values["batch_size"] > 1, "more than 1: CrossQ normalises batches")
