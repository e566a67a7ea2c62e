"""Stock SB3 policies as pure functions of named tensors.

The tensors keep the names they have in SB3's ``ActorCriticPolicy`` (``action_net.weight``, ``log_std``, …), so an
export is a copy. Functions take one task's tensors or a stack with a leading task axis alike.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn

from metarl.agents.derivatives.base import Derivatives, HeadLoss, Linearized, LossFunction
from metarl.agents.derivatives.mlp import MlpDerivatives, MlpLinearized
from metarl.agents.generators import drawing_from
from metarl.agents.networks.distributions import MAX_LOG_STD, MIN_LOG_STD, Distribution, from_heads
from metarl.agents.networks.mlp import Tower
from metarl.agents.networks.products import fewest_rows
from metarl.agents.parallel import library_torch
from metarl.checks import FINITE, SWITCH, check_arguments, plain_tree
from metarl.errors import ConfigError, NoSuchNameError, shorten, unknown_name
from metarl.params import Params

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "leaky_relu": nn.LeakyReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}
POLICIES: dict[str, type[ActorCriticPolicy]] = {"MlpPolicy": ActorCriticPolicy}
LARGEST_NETWORK = 10**8
"""Weights of one network of a policy, at most."""
LARGEST_DEPTH = 100
"""Its hidden layers, at most."""
_OF_MODULES = {
    *("action_net", "value_net", "mlp_extractor", "features_extractor", "log_std", "optimizer", "device", "training"),
    *("pi_features_extractor", "vf_features_extractor", "features_dim", "action_dist", "dist_kwargs"),
    *inspect.signature(ActorCriticPolicy.__init__).parameters,
}
"""What SB3's policies have beside the attributes of their class."""
_SET_HERE = ("observation_space", "action_space", "lr_schedule")
_EMPTY = {
    "features_extractor_kwargs": "MlpPolicy has no features extractor",
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
    if kwargs.get("features_extractor_class", FlattenExtractor) is not FlattenExtractor:
        raise ConfigError("only policies without a features extractor (MlpPolicy) are supported")
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


def require_network_size(net_arch: Any, observation_space: spaces.Space[Any]) -> None:
    """Raise :class:`ConfigError` for a network of more than :data:`LARGEST_NETWORK` weights or so.

    PyTorch would ask for the memory, and the system end the process.

    :param net_arch: as SB3 takes it; what is no list of widths is left to SB3.
    """
    for part in net_arch.values() if isinstance(net_arch, Mapping) else [net_arch]:
        if not _is_widths(part):
            continue
        widths = [spaces.utils.flatdim(observation_space), *part]
        size = sum(before * after for before, after in zip(widths, part, strict=False))
        if size > LARGEST_NETWORK or len(part) > LARGEST_DEPTH:
            raise ConfigError(
                f"net_arch={shorten(net_arch)} is a network of {len(part):,} layers and {size:,} weights: "
                f"{LARGEST_DEPTH} and {LARGEST_NETWORK:,} are the most"
            )


class FunctionalPolicy:
    """A stock ``ActorCriticPolicy`` as functions of its named tensors.

    :param policy: ``"MlpPolicy"``.
    :param observation_space: a Box; observations are flattened.
    :param action_space: a Box (Gaussian) or Discrete (categorical).
    :param policy_kwargs: as in SB3; ``activation_fn`` may be a name such as ``"relu"``.
    :param critic: whether the critic's tensors belong to it too; without them there is the actor alone.
    :raises ConfigError: spaces or keywords that cannot be evaluated functionally.
    """

    def __init__(
        self,
        policy: str,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        policy_kwargs: Mapping[str, Any] | None = None,
        critic: bool = False,
    ) -> None:
        if not isinstance(policy, str) or policy not in POLICIES:
            raise unknown_name("policy", policy, POLICIES)
        if not isinstance(observation_space, spaces.Box) or is_image_space(observation_space):
            raise ConfigError(
                f"observation space {observation_space} is not supported: MlpPolicy takes a Box, no image"
            )
        vector = isinstance(action_space, spaces.Box) and len(action_space.shape) == 1
        if not (vector or isinstance(action_space, spaces.Discrete)):
            raise ConfigError(
                f"action space {action_space} is not supported: use a Box of one axis or a Discrete space"
            )
        self.name = policy
        self.observation_space = observation_space
        self.action_space = action_space
        self.policy_kwargs = sb3_policy_kwargs(policy_kwargs)
        require_network_size(self.policy_kwargs.get("net_arch"), observation_space)
        module = self.build(seed=0)
        extractor = module.mlp_extractor
        self.actor = Tower.of(extractor.policy_net, "mlp_extractor.policy_net", "action_net")
        """From observations to actions."""
        self.critic = Tower.of(extractor.value_net, "mlp_extractor.value_net", "value_net") if critic else None
        """From observations to values."""
        self.linear_names = self.actor.linear_names
        """The actor's linear layers, from the observation to the head."""
        self.activations = self.actor.activations
        """What stands between them: one fewer."""
        own = {"log_std", *self.actor.names, *(self.critic.names if self.critic else ())}
        shapes = {name: tensor.shape for name, tensor in module.named_parameters() if name in own}
        self.names = list(shapes)
        """The tensors, in SB3's order."""
        self.width = max(shape[0] for name, shape in shapes.items() if name.endswith(".weight"))
        """Units of the widest layer; it sets how many tasks fit a chunk."""
        self.min_rows = fewest_rows([shapes[f"{name}.weight"].numel() for name in self.linear_names])
        """Fewest observations of a task for which the actor computes the same bits as among more."""

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Say what there is instead of an attribute of SB3's policies; only missing ones come here."""
            if hasattr(ActorCriticPolicy, name) or name in _OF_MODULES:
                raise self._no_module(f"has no {name}")
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            """Say what there is instead of calling SB3's policies."""
            del args, kwargs
            raise self._no_module("cannot be called")

    def _no_module(self, what: str) -> NoSuchNameError:
        return NoSuchNameError(
            f"{type(self).__name__} {what}: these are functions; a meta-algorithm's predict acts, "
            "policy_params are its tensors, and to_sb3() returns a stock model with SB3's policy"
        )

    def __str__(self) -> str:
        """Return the networks as PyTorch prints them: SB3's users print a policy to see its architecture."""
        return str(self.build(seed=0))

    def build(self, seed: int) -> ActorCriticPolicy:
        """Return a fresh stock policy, initialised as SB3 does it from ``seed``; global generators are left alone.

        It has no optimiser.
        """
        # The last bits of the orthogonal initialisation would depend on the number of threads.
        with library_torch(), drawing_from(seed):
            return POLICIES[self.name](
                self.observation_space,
                self.action_space,
                lambda _: 0.0,
                optimizer_class=_no_optimizer,  # type: ignore[arg-type]
                **self.policy_kwargs,
            )

    def init(self, seed: int) -> Params:
        """Return fresh tensors, float32."""
        tensors = dict(self.build(seed).named_parameters())
        return {name: tensors[name].detach().clone() for name in self.names}

    def distribution(self, params: Params, obs: torch.Tensor) -> Distribution:
        """Return the action distribution at ``obs``.

        :param params: the tensors, each ``[…]`` or stacked ``[task, …]``.
        :param obs: ``[n, *observation]`` or ``[task, n, *observation]``, of the tensors' dtype.
        """
        return from_heads(self.heads(self.actor(params, self.flatten(obs)), params))

    def values(self, params: Params, obs: torch.Tensor) -> torch.Tensor:
        """Return the critic's values at ``obs``, ``[n]`` or ``[task, n]``; the parameters are as above.

        :raises ConfigError: the policy was made without a critic.
        """
        if self.critic is None:
            raise ConfigError("this policy has no critic: make it with critic=True")
        return self.critic(params, self.flatten(obs)).squeeze(-1)

    def heads(self, x: torch.Tensor, params: Params) -> tuple[torch.Tensor, ...]:
        """Return what the distribution is made of, given the last layer's output ``x``."""
        return (x, params["log_std"]) if "log_std" in params else (x,)

    # ----------------------------------------------------------------------------------------------------- derivatives
    def differentiate(
        self, params: Params, obs: torch.Tensor, loss: HeadLoss, second_order: bool = False
    ) -> Derivatives:
        """Return each task's loss and its gradient in the tensors, at ``params``.

        :param params: stacked ``[task, …]``.
        :param obs: ``[task, n, *observation]``.
        :param loss: the losses ``[task]`` at ``obs``, twice differentiable in the distribution's heads and the values.
        :param second_order: keep what products with the Hessian need.
        """
        towers = [tower for tower in (self.actor, self.critic) if tower is not None]
        return MlpDerivatives(towers, params, self.flatten(obs), loss, second_order)

    def loss_function(self, obs: torch.Tensor, loss: HeadLoss) -> LossFunction:
        """Return the losses at ``obs`` as a function of stacked parameters, differentiable any number of times.

        Paths of several levels are built of such functions, see :mod:`metarl.agents.derivatives.unrolled`.
        """

        def losses(params: Params) -> torch.Tensor:
            values = self.values(params, obs) if self.critic is not None else None
            return loss(self.distribution(params, obs), values)

        return losses

    def linearize(self, params: Params, obs: torch.Tensor) -> Linearized:
        """Return the derivative of the distribution's heads in the tensors, at ``params``.

        :param params: the tensors, each ``[…]`` or stacked ``[task, …]``.
        :param obs: ``[n, *observation]`` or ``[task, n, *observation]``.
        """
        return MlpLinearized(self.actor, params, self.flatten(obs))

    def flatten(self, obs: torch.Tensor) -> torch.Tensor:
        """Return observations as vectors."""
        rank = len(self.observation_space.shape)
        return obs if rank == 1 else obs.flatten(start_dim=obs.ndim - rank)

    def actions_to_env(self, actions: torch.Tensor) -> np.ndarray:
        """Return actions as the environment takes them (the family clips, as SB3's collectors do)."""
        array: np.ndarray = actions.numpy()
        if isinstance(self.action_space, spaces.Discrete):
            return array + int(self.action_space.start)
        return array


def _no_optimizer(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """Stand for the optimiser that a stock policy makes, and that functions have no use for.

    Making one imports PyTorch's compiler, and SymPy with it: more than a second before the first line of training.
    """
    del parameters, lr
