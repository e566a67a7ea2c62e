"""Checks of the keywords that Stable-Baselines3's policies take."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from metarl.agents.networks.distributions import MAX_LOG_STD, MIN_LOG_STD
from metarl.checks import FINITE, SWITCH, check_arguments, plain_tree
from metarl.errors import ConfigError, shorten, unknown_name

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "leaky_relu": nn.LeakyReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}
LARGEST_NETWORK = 10**8
"""Weights of one network of a policy, at most."""
LARGEST_DEPTH = 100
"""Its hidden layers, at most."""
_SET_HERE = ("observation_space", "action_space", "lr_schedule")
_EMPTY = {
    "optimizer_class": "gradient steps are the learner's own",
    "optimizer_kwargs": "gradient steps are the learner's own",
}


def sb3_policy_kwargs(policy_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return ``policy_kwargs`` as SB3 takes them: the activation function may be given by name.

    :raises UnknownNameError: an unknown keyword or activation.
    :raises ConfigError: a value of the wrong type, or gSDE, which ignores functional parameters.
    """
    kwargs: dict[str, Any] = plain_tree(policy_kwargs or {})
    check_arguments(ActorCriticPolicy.__init__, kwargs, "policy keyword", own=_SET_HERE)
    for name, parameter in inspect.signature(ActorCriticPolicy.__init__).parameters.items():
        if isinstance(parameter.default, bool) and name in kwargs:
            kwargs[name] = SWITCH(name, kwargs[name])
    if kwargs.get("use_sde"):
        raise ConfigError("use_sde=True is not supported: gSDE samples from the module, not from adapted parameters")
    if kwargs.get("squash_output"):
        raise ConfigError("squash_output=True is not supported: SB3 squashes with gSDE only")
    activation = kwargs.get("activation_fn")
    if isinstance(activation, str):
        if activation not in ACTIVATIONS:
            raise unknown_name("activation function", activation, ACTIVATIONS)
        kwargs["activation_fn"] = ACTIVATIONS[activation]
    elif "activation_fn" in kwargs and activation not in ACTIVATIONS.values():
        # Others may have parameters of their own or mix units, which nothing here would notice.
        raise ConfigError(f"activation_fn={shorten(activation)} is not supported: use {', '.join(ACTIVATIONS)}")
    net_arch = kwargs.get("net_arch")
    parts = net_arch if isinstance(net_arch, dict) else {"pi": [] if net_arch is None else net_arch}
    if not set(parts) <= {"pi", "vf"} or not all(map(_is_widths, parts.values())):
        raise ConfigError(f"net_arch={shorten(net_arch)} is not a list of positive integers, such as [100, 100]")
    for name, reason in _EMPTY.items():
        value = kwargs.pop(name, None)
        if value not in (None, {}):
            raise ConfigError(f"{name}={shorten(value)} is not supported: {reason}")
    if "log_std_init" in kwargs:
        log_std = kwargs["log_std_init"] = FINITE("log_std_init", kwargs["log_std_init"])
        if not MIN_LOG_STD < log_std <= MAX_LOG_STD:
            bounds = f"({MIN_LOG_STD:.4g}, {MAX_LOG_STD:g}]"
            raise ConfigError(f"log_std_init={log_std} is outside {bounds}, where no step can be computed")
    return kwargs


def _is_widths(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(type(width) is int and width > 0 for width in value)


def require_network_size(
    net_arch: Any, observation_space: spaces.Space[Any], n_features: int | None = None, before: int = 0
) -> None:
    """Raise :class:`ConfigError` for a network of more than :data:`LARGEST_NETWORK` weights or so.

    PyTorch would ask for the memory, and the system end the process.

    :param net_arch: as SB3 takes it; what is no list of widths is left to SB3.
    :param n_features: what the layers of ``net_arch`` get from a features extractor; None: the flat observation.
    :param before: weights of the extractor.
    """
    if n_features is None:
        n_features = spaces.utils.flatdim(observation_space)
    if before > LARGEST_NETWORK:
        raise ConfigError(
            f"the features extractor of {shorten(observation_space, quote=False)} has {before:,} weights: "
            f"{LARGEST_NETWORK:,} are the most"
        )
    for part in net_arch.values() if isinstance(net_arch, Mapping) else [net_arch]:
        if not _is_widths(part):
            continue
        widths = [n_features, *part]
        size = before + sum(ahead * after for ahead, after in zip(widths, part, strict=False))
        if size > LARGEST_NETWORK or len(part) > LARGEST_DEPTH:
            raise ConfigError(
                f"net_arch={shorten(net_arch)} is a network of {len(part):,} layers and {size:,} weights: "
                f"{LARGEST_DEPTH} and {LARGEST_NETWORK:,} are the most"
            )
