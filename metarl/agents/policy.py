"""Stock SB3 policies as pure functions of named tensors.

The tensors keep the names they have in SB3's ``ActorCriticPolicy`` (``action_net.weight``, ``log_std``, …), so an
export is a copy. Functions take one task's tensors or a stack with a leading task axis alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn

from metarl.agents.distributions import Categorical, Distribution, Gaussian
from metarl.agents.parallel import single_threaded_torch
from metarl.envs.family import check_arguments
from metarl.errors import ConfigError, unknown_name

Params = dict[str, torch.Tensor]
"""Named tensors: one task's, or a stack of several tasks' with a leading task axis."""

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "leaky_relu": nn.LeakyReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}
POLICIES: dict[str, type[ActorCriticPolicy]] = {"MlpPolicy": ActorCriticPolicy}


def sb3_policy_kwargs(policy_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return ``policy_kwargs`` as SB3 takes them: the activation function may be given by name.

    :raises ConfigError: an unknown keyword or activation, or gSDE, which ignores functional parameters.
    """
    kwargs = dict(policy_kwargs or {})
    check_arguments(ActorCriticPolicy.__init__, kwargs, "policy keyword")
    if kwargs.get("use_sde"):
        raise ConfigError("use_sde=True is not supported: gSDE samples from the module, not from adapted parameters")
    if kwargs.get("squash_output"):
        raise ConfigError("squash_output=True is not supported: SB3 squashes with gSDE only")
    activation = kwargs.get("activation_fn")
    if isinstance(activation, str):
        if activation not in ACTIVATIONS:
            raise unknown_name("activation function", activation, ACTIVATIONS)
        kwargs["activation_fn"] = ACTIVATIONS[activation]
    elif activation is not None and activation not in ACTIVATIONS.values():
        # Others may have parameters of their own or mix units, which nothing here would notice.
        raise ConfigError(f"activation_fn={activation!r} is not supported: use {', '.join(ACTIVATIONS)}")
    net_arch = kwargs.get("net_arch")
    parts = net_arch if isinstance(net_arch, dict) else {"pi": [] if net_arch is None else net_arch}
    if not set(parts) <= {"pi", "vf"} or not all(map(_is_widths, parts.values())):
        raise ConfigError(f"net_arch={net_arch!r} is not a list of positive integers, such as [100, 100]")
    if kwargs.get("features_extractor_class", FlattenExtractor) is not FlattenExtractor:
        raise ConfigError("only policies without a features extractor (MlpPolicy) are supported")
    log_std = kwargs.get("log_std_init", 0.0)
    if not isinstance(log_std, (int, float)) or not math.isfinite(log_std):
        raise ConfigError(f"log_std_init={log_std!r} is not a finite number")
    return kwargs


def _is_widths(value: Any) -> bool:
    return isinstance(value, list) and all(type(width) is int and width > 0 for width in value)


class FunctionalPolicy:
    """The actor of a stock ``ActorCriticPolicy`` as functions of its named tensors.

    :param policy: ``"MlpPolicy"``.
    :param observation_space: a Box; observations are flattened.
    :param action_space: a Box (Gaussian) or Discrete (categorical).
    :param policy_kwargs: as in SB3; ``activation_fn`` may be a name such as ``"relu"``.
    :raises ConfigError: spaces or keywords that cannot be evaluated functionally.
    """

    def __init__(
        self,
        policy: str,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        policy_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        if policy not in POLICIES:
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
        module = self.build(seed=0)
        layers = [*module.mlp_extractor.policy_net.named_children(), ("action_net", module.action_net)]
        self._layers: list[str | nn.Module] = []
        for name, layer in layers:
            if isinstance(layer, nn.Linear):
                self._layers.append(name if name == "action_net" else f"mlp_extractor.policy_net.{name}")
            else:
                self._layers.append(layer)
        self.linear_names = [layer for layer in self._layers if isinstance(layer, str)]
        """The linear layers, from the observation to the head."""
        self.activations = [layer for layer in self._layers if not isinstance(layer, str)]
        """What stands between them: one fewer."""
        actor = {f"{name}.{kind}" for name in self._layers if isinstance(name, str) for kind in ("weight", "bias")}
        self.names = [name for name, _ in module.named_parameters() if name in actor or name == "log_std"]
        """The actor's tensors, in SB3's order."""
        self.width = max(layer.out_features for _, layer in layers if isinstance(layer, nn.Linear))
        """Units of the widest layer; it sets how many tasks fit a chunk."""

    def build(self, seed: int) -> ActorCriticPolicy:
        """Return a fresh stock policy, initialised as SB3 does it from ``seed``; global generators are left alone."""
        # The last bits of the orthogonal initialisation would depend on the number of threads.
        with single_threaded_torch(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return POLICIES[self.name](self.observation_space, self.action_space, lambda _: 0.0, **self.policy_kwargs)

    def init(self, seed: int) -> Params:
        """Return fresh tensors of the actor, float32."""
        tensors = dict(self.build(seed).named_parameters())
        return {name: tensors[name].detach().clone() for name in self.names}

    def distribution(self, params: Params, obs: torch.Tensor) -> Distribution:
        """Return the action distribution at ``obs``.

        :param params: the actor's tensors, each ``[…]`` or stacked ``[task, …]``.
        :param obs: ``[n, *observation]`` or ``[task, n, *observation]``, of the tensors' dtype.
        """
        x = self.flatten(obs)
        for layer in self._layers:
            x = linear(x, params[f"{layer}.weight"], params[f"{layer}.bias"]) if isinstance(layer, str) else layer(x)
        return self.from_heads(self.heads(x, params))

    def heads(self, x: torch.Tensor, params: Params) -> tuple[torch.Tensor, ...]:
        """Return what the distribution is made of, given the last layer's output ``x``."""
        return (x, params["log_std"]) if "log_std" in params else (x,)

    def from_heads(self, heads: tuple[torch.Tensor, ...]) -> Distribution:
        """Return the distribution that is made of ``heads``."""
        return Gaussian(*heads) if len(heads) > 1 else Categorical(*heads)

    def linearize(self, params: Params, obs: torch.Tensor) -> Linearization:
        """Return the derivative of the distribution's heads with respect to the tensors, at ``params``.

        The activations are kept, so a product costs two matrix products a layer.
        """
        return Linearization(self, params, obs)

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


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Return ``x Wᵀ + b`` for ``[n, in]`` with one ``W``, or ``[task, n, in]`` with a stack of them."""
    if weight.ndim == 3:
        return torch.baddbmm(bias.unsqueeze(1), x, weight.mT)
    return nn.functional.linear(x, weight, bias)


def outer(error: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return ``Σ_n error xᵀ``, ``[…, out, in]``: the gradient of a linear layer's weight.

    BLAS is several times faster when the smaller of the two sides comes first.
    """
    return (x.mT @ error).mT if x.shape[-1] < error.shape[-1] else error.mT @ x


def tanh_slope(y: torch.Tensor) -> torch.Tensor:
    """Return ``1 − y²`` in one pass."""
    return torch.addcmul(y.new_ones(()), y, y, value=-1.0)


class Linearization:
    """Jacobian products of a policy's heads; memory is the activations of one batch."""

    def __init__(self, policy: FunctionalPolicy, params: Params, obs: torch.Tensor) -> None:
        self._params = {name: tensor.detach() for name, tensor in params.items()}
        self._layers = policy._layers
        self._inputs: list[torch.Tensor] = []
        self._slopes: list[torch.Tensor] = []
        x = policy.flatten(obs)
        for layer in self._layers:
            if isinstance(layer, str):
                self._inputs.append(x)
                with torch.no_grad():
                    x = linear(x, self._params[f"{layer}.weight"], self._params[f"{layer}.bias"])
            else:
                x, slope = _activation(layer, x)
                self._slopes.append(slope)
        self.distribution: Distribution = (
            Gaussian(x, self._params["log_std"]) if "log_std" in self._params else Categorical(x)
        )

    @torch.no_grad()
    def jvp(self, tangents: Params) -> tuple[torch.Tensor, ...]:
        """Return the change of the heads along ``tangents``."""
        dx: torch.Tensor | None = None
        inputs, slopes = iter(self._inputs), iter(self._slopes)
        for layer in self._layers:
            if isinstance(layer, str):
                change = linear(next(inputs), tangents[f"{layer}.weight"], tangents[f"{layer}.bias"])
                dx = change if dx is None else change.add_(dx @ self._params[f"{layer}.weight"].mT)
            elif dx is not None:
                dx = dx.mul_(next(slopes))
        assert dx is not None
        return (dx, tangents["log_std"]) if "log_std" in self._params else (dx,)

    @torch.no_grad()
    def vjp(self, cotangents: tuple[torch.Tensor, ...]) -> Params:
        """Return the gradient of ``Σ cotangent · head`` with respect to the tensors."""
        result: Params = {}
        if "log_std" in self._params:
            result["log_std"] = cotangents[1]
        dx = cotangents[0]
        inputs, slopes = list(self._inputs), list(self._slopes)
        for layer in reversed(self._layers):
            if isinstance(layer, str):
                x = inputs.pop()
                result[f"{layer}.weight"] = outer(dx, x)
                result[f"{layer}.bias"] = dx.sum(-2)
                if inputs:
                    dx = dx @ self._params[f"{layer}.weight"]
            elif slopes:
                dx = dx * slopes.pop()
        return {name: result[name] for name in self._params}


def _activation(layer: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the activation and its slope at ``x``."""
    if isinstance(layer, nn.Tanh):
        y = torch.tanh(x)
        return y, tanh_slope(y)
    if isinstance(layer, nn.ReLU):
        y = torch.relu(x)
        return y, (y > 0).to(x.dtype)
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        value: torch.Tensor = layer(leaf)
        (slope,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), slope
