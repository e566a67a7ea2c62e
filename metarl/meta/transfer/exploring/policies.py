"""Policies that are given to collect what is seen of a task, in the place of the encoder's own learner."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces

from metarl.agents.networks.policy import FunctionalPolicy
from metarl.agents.sampling.episodes import require_fit
from metarl.checks import Check
from metarl.envs.family import Family
from metarl.errors import ConfigError, shorten
from metarl.files.untrusted import read_bytes
from metarl.meta.base import MetaAlgorithm
from metarl.meta.export.sb3 import export_files
from metarl.meta.export.sidecar import read_export, read_tensors
from metarl.params import Params

RANDOM = "random"
"""Names the policy that draws each action uniformly."""
_ACTOR = "mlp_extractor.policy_net."


def _named(value: Any) -> str:
    text = os.fspath(value)
    if not (isinstance(text, str) and text):
        raise ValueError(text)
    return text


GIVEN = Check(f"{RANDOM!r} or the name of a file", _named)
"""Checks what stands for a policy that explores."""


class Explorer(NamedTuple):
    """A policy that collects, and stays as it is.

    :param policy: as functions of its tensors.
    :param params: those of one task.
    """

    policy: FunctionalPolicy
    params: Params


@dataclass(frozen=True)
class Uniform:
    """The distribution of an action that is drawn uniformly from its space.

    :param space: of one action.
    :param shape: of the batch, ``[…, n]``.
    """

    space: spaces.Box
    shape: tuple[int, ...]

    def log_prob(self, actions: torch.Tensor) -> torch.Tensor:
        """Return minus the logarithm of the space's volume, whatever the actions are."""
        volume = float(np.log(self.space.high.astype(np.float64) - self.space.low).sum())
        return torch.full(actions.shape[:-1], -volume, dtype=actions.dtype)

    def sample(self, noise: torch.Tensor) -> torch.Tensor:
        """Return actions for standard normal numbers: their cumulative probability is uniform."""
        low, high = (torch.from_numpy(bound.astype(np.float32)) for bound in (self.space.low, self.space.high))
        chance = 0.5 * (1.0 + torch.erf(noise / sqrt(2.0)))
        return low + (high - low) * chance

    def mode(self) -> torch.Tensor:
        """Return the middle of the space, since no action is the most likely one."""
        middle = torch.from_numpy(((self.space.low + self.space.high) / 2.0).astype(np.float32))
        return middle.expand(*self.shape, *self.space.shape)


class UniformPolicy(FunctionalPolicy):
    """A policy that draws each action uniformly from a Box with bounds, whatever it observes.

    :param observation_space: a Box.
    :param action_space: a Box.
    """

    def __init__(self, observation_space: spaces.Box, action_space: spaces.Box) -> None:
        super().__init__("MlpPolicy", observation_space, action_space, {"net_arch": []})

    def distribution(self, params: Params, obs: torch.Tensor) -> Any:  # what is asked of it here is all in Uniform
        del params
        assert isinstance(self.action_space, spaces.Box)
        return Uniform(self.action_space, tuple(obs.shape[: obs.ndim - len(self.observation_space.shape)]))

    def actor(self, params: Params) -> Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]:
        def act(obs: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
            found: Uniform = self.distribution(params, obs)
            return found.mode() if noise is None else found.sample(noise)

        return act


def explorer_of(given: str, family: Family) -> Explorer:
    """Return the policy that a name or a file stands for.

    :param given: ``"random"``; a zip of a PPO, A2C or TRPO of SB3 with an ``MlpPolicy``, whose activation function is
        SB3's unless an export's sidecar beside it says another; or an initialisation that metarl saved.
    :param family: where it is to act.
    :raises ConfigError: it observes or acts otherwise than the family, or is no such policy.
    :raises CheckpointError: a file that is missing or damaged.
    """
    pair = family.observation_space, family.action_space
    if given in NAMED:
        found = NAMED[given](*pair)
    elif given.endswith(".zip"):
        found = _of_zip(given, *pair)
    else:
        model = MetaAlgorithm.load(given)
        policy: Any = getattr(model, "policy", None)
        if type(policy) is not FunctionalPolicy:
            raise ConfigError(f"exploration_policy={shorten(given)} is {model.name}, whose policy cannot explore alone")
        found = Explorer(policy, {name: model.initial_policy[name].detach() for name in policy.names})
    require_fit(found.policy, *pair, family.id)
    return found


def _random(observation_space: spaces.Box, action_space: spaces.Space[Any]) -> Explorer:
    if isinstance(action_space, spaces.Box):
        if not action_space.is_bounded():
            raise ConfigError(f"exploration_policy='random' in {action_space}, which has no bounds to draw between")
        uniform = UniformPolicy(observation_space, action_space)
        return Explorer(uniform, uniform.init(0))
    # Logits of 0 are equal chances.
    policy = FunctionalPolicy("MlpPolicy", observation_space, action_space, {"net_arch": []})
    return Explorer(policy, {name: torch.zeros_like(tensor) for name, tensor in policy.init(0).items()})


def _of_zip(given: str, observation_space: spaces.Box, action_space: spaces.Space[Any]) -> Explorer:
    """Return the actor in a zip of Stable-Baselines3; nothing is unpickled."""
    path, sidecar, _ = export_files(given)
    if sidecar.is_file():
        data, card, _ = read_export(path, sidecar)
        activation = card.policy_kwargs.get("activation_fn", "tanh")
    else:
        data, activation = read_bytes(path), "tanh"
    tensors, _ = read_tensors(data, given)
    layers = sorted({int(name.removeprefix(_ACTOR).split(".")[0]) for name in tensors if name.startswith(_ACTOR)})
    sizes = [len(tensors[f"{_ACTOR}{layer}.bias"]) for layer in layers]
    network = {"net_arch": {"pi": sizes, "vf": []}, "activation_fn": activation}
    policy = FunctionalPolicy("MlpPolicy", observation_space, action_space, network)
    for name, fresh in policy.init(0).items():
        if name not in tensors or tensors[name].shape != fresh.shape:
            what = list(tensors[name].shape) if name in tensors else "missing"
            raise ConfigError(
                f"exploration_policy={shorten(given)} does not fit: {name} is {what}, and {list(fresh.shape)} in a "
                "PPO, A2C or TRPO with an MlpPolicy on this family"
            )
    return Explorer(policy, {name: tensors[name].float() for name in policy.names})


NAMED: dict[str, Callable[[spaces.Box, spaces.Space[Any]], Explorer]] = {RANDOM: _random}
"""What makes the policies that have a name."""
