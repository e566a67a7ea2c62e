"""sb3-contrib's ``MlpLstmPolicy`` as functions of named tensors: an actor and a critic with a memory.

The tensors keep the names that they have in ``RecurrentActorCriticPolicy`` (``lstm_actor.weight_ih_l0``, …), so an
export is a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy

from metarl.agents.generators import drawing_from
from metarl.agents.networks.arguments import sb3_policy_kwargs
from metarl.agents.networks.base import with_own_heads
from metarl.agents.networks.distributions import Distribution, chooser, from_heads
from metarl.agents.networks.mlp import MlpNetwork
from metarl.agents.networks.policy import no_optimizer
from metarl.agents.networks.products import layer
from metarl.agents.networks.tower import Tower
from metarl.agents.parallel import library_torch
from metarl.checks import SWITCH, Check, check_arguments, integer
from metarl.errors import ConfigError, shorten, unknown_name
from metarl.params import Params

POLICIES = {"MlpLstmPolicy": RecurrentActorCriticPolicy}
"""The recurrent policies, by sb3-contrib's names."""
HIDDEN_SIZE = 64
"""Units of a memory where none is said; sb3-contrib has 256."""
Memory = tuple[torch.Tensor, torch.Tensor]
"""Hidden and cell state, each ``[layer, …, unit]``."""
LossOfHeads = Callable[[Distribution, torch.Tensor], torch.Tensor]
"""A loss, one number, from the action distribution and the critic's values, both of ``trial · time`` steps."""
_CHECKS: dict[str, Check[Any]] = {
    "lstm_hidden_size": integer(1, 10_000),
    "n_lstm_layers": integer(1, 10),
    "shared_lstm": SWITCH,
    "enable_critic_lstm": SWITCH,
}


@dataclass(frozen=True)
class Lstm:
    """An LSTM as functions of its tensors (Hochreiter and Schmidhuber, 1997), with PyTorch's order of gates.

    i, f, g, o = σ, σ, tanh, σ of W [x, h] + b; then c ← f c + i g and h ← o tanh(c).

    :param name: of the module.
    :param n_layers: layers, one above the other.
    """

    name: str
    n_layers: int

    def of_layer(self, params: Params, number: int) -> list[torch.Tensor]:
        """Return a layer's tensors in PyTorch's order."""
        parts = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        return [params[f"{self.name}.{part}_l{number}"] for part in parts]

    def cells(self, params: Params) -> list[Callable[[torch.Tensor], torch.Tensor]]:
        """Return what gives the gates of each layer, a function of ``[x, h]``; the parameters may be stacked."""
        found = []
        for number in range(self.n_layers):
            of_input, of_hidden, *biases = self.of_layer(params, number)
            found.append(layer(torch.cat([of_input, of_hidden], dim=-1), biases[0] + biases[1]))
        return found

    def over(self, params: Params, x: torch.Tensor) -> torch.Tensor:
        """Return the hidden states of whole sequences that begin with an empty memory, ``[time, trial, unit]``.

        :param params: one set of tensors.
        :param x: ``[time, trial, input]``.
        """
        weights = [tensor for number in range(self.n_layers) for tensor in self.of_layer(params, number)]
        empty = x.new_zeros(self.n_layers, x.shape[1], weights[1].shape[1])
        result: torch.Tensor = torch.lstm(x, (empty, empty), weights, True, self.n_layers, 0.0, False, False, False)[0]
        return result


def advance(
    cells: list[Callable[[torch.Tensor], torch.Tensor]], x: torch.Tensor, memory: Memory
) -> tuple[torch.Tensor, Memory]:
    """Return the output of one step, and the memory after it.

    :param cells: see :meth:`Lstm.cells`.
    """
    hidden, cell = [], []
    for gates, h, c in zip(cells, *memory, strict=True):
        i, f, g, o = gates(torch.cat([x, h], dim=-1)).chunk(4, dim=-1)
        cell.append(torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g))
        x = torch.sigmoid(o) * torch.tanh(cell[-1])
        hidden.append(x)
    return x, (torch.stack(hidden), torch.stack(cell))


class RecurrentPolicy:
    """A stock recurrent policy as functions of its named tensors, with a critic::

        from metarl.agents.recurrent.policy import RecurrentPolicy

        family = make_family("PointMass-v0", trial_episodes=2, horizon=5)
        policy = RecurrentPolicy("MlpLstmPolicy", family.observation_space, family.action_space)
        params = policy.init(seed=0)
        seeds = np.random.SeedSequence(0).spawn(3)
        trials = collect(family, policy, expand(params, 3), family.tasks("test", 3), seeds, n_episodes=2)
        heads, values = policy.outputs(params, torch.from_numpy(trials.obs).flatten(0, 1))
        assert values.shape == (3 * 2, 2 * 5)

    :param policy: ``"MlpLstmPolicy"``.
    :param observation_space: a Box of one axis.
    :param action_space: a Box (Gaussian) or Discrete (categorical).
    :param policy_kwargs: as in sb3-contrib, where ``lstm_hidden_size`` is 64 if it is not given.
    :raises ConfigError: spaces or keywords that cannot be evaluated functionally.
    """

    has_critic = True
    context = None
    rowwise, min_rows = False, 2**31
    """No row may be left out of an evaluation while an episode lasts: its memory is at its place."""

    def __init__(
        self,
        policy: str,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        policy_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        if policy not in POLICIES:
            raise unknown_name("recurrent policy", policy, POLICIES)
        vector = isinstance(action_space, spaces.Box) and len(action_space.shape) == 1
        if not (vector or isinstance(action_space, spaces.Discrete)):
            raise ConfigError(
                f"action space {action_space} is not supported: use a Box of one axis or a Discrete space"
            )
        self.name = policy
        self.action_space = action_space
        self.policy_kwargs = _checked(observation_space, policy_kwargs or {})
        assert isinstance(observation_space, spaces.Box)
        self.observation_space = observation_space
        module = self.build(seed=0)
        self.names = [name for name, _ in module.named_parameters()]
        """The tensors, in SB3's order."""
        n_layers, extractor = module.lstm_actor.num_layers, module.mlp_extractor
        self.memory_shape = n_layers, module.lstm_actor.hidden_size
        """Layers and units of the actor's memory."""
        self._actor = (
            Lstm("lstm_actor", n_layers),
            Tower.of(extractor.policy_net, "mlp_extractor.policy_net", "action_net"),
        )
        self._critic = Tower.of(extractor.value_net, "mlp_extractor.value_net", "value_net")
        self._critic_lstm = None if module.lstm_critic is None else Lstm("lstm_critic", n_layers)

    def __str__(self) -> str:
        """Return the networks as PyTorch prints them."""
        return str(self.build(seed=0))

    def build(self, seed: int) -> RecurrentActorCriticPolicy:
        """Return a fresh stock policy without an optimiser, initialised as sb3-contrib does it from ``seed``."""
        with library_torch(), drawing_from(seed):
            return POLICIES[self.name](
                self.observation_space,
                self.action_space,
                lambda _: 0.0,
                optimizer_class=no_optimizer,  # type: ignore[arg-type]
                **self.policy_kwargs,
            )

    def init(self, seed: int) -> Params:
        """Return fresh tensors, float32."""
        return {name: tensor.detach().clone() for name, tensor in self.build(seed).named_parameters()}

    # ----------------------------------------------------------------------------------------------------------- acting
    def empty_memory(self, *rows: int, dtype: torch.dtype = torch.float32) -> Memory:
        """Return the memory at the beginning of trials: zeros."""
        n_layers, size = self.memory_shape
        return torch.zeros(n_layers, *rows, size, dtype=dtype), torch.zeros(n_layers, *rows, size, dtype=dtype)

    def step(self, params: Params, obs: torch.Tensor, memory: Memory) -> tuple[Distribution, Memory]:
        """Return the action distribution at ``obs``, and the memory after it.

        :param params: the tensors, each ``[…]`` or stacked ``[task, …]``.
        :param obs: ``[n, entry]`` or ``[task, n, entry]``.
        """
        lstm, tower = self._actor
        x, after = advance(lstm.cells(params), obs, memory)
        return from_heads(with_own_heads(tower(params, x), params)), after

    def actor(self, params: Params) -> Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]:
        """Return the policy at stacked ``params`` as a function ``(obs, noise) → actions``, for the steps of a trial.

        It begins with an empty memory, and keeps it from call to call. Without noise actions are the most likely ones.
        """
        lstm, tower = self._actor
        cells, last_layers, choose = lstm.cells(params), tower.at(params), chooser(params.get("log_std"))
        memory: Memory | None = None

        def act(obs: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
            nonlocal memory
            x, memory = advance(cells, obs, self.empty_memory(*obs.shape[:-1]) if memory is None else memory)
            return choose(last_layers(x), noise)

        return act

    def actions_to_env(self, actions: np.ndarray) -> np.ndarray:
        """Return actions as the environment takes them."""
        return actions + int(self.action_space.start) if isinstance(self.action_space, spaces.Discrete) else actions

    # --------------------------------------------------------------------------------------------------------- learning
    def outputs(self, params: Params, obs: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """Return the heads of the action distribution and the critic's values at every step of whole trials.

        :param params: one set of tensors.
        :param obs: ``[trial, time, entry]``; what follows on a step changes nothing of it, so padding may.
        :return: heads ``[trial, time, …]``, values ``[trial, time]``.
        """
        lstm, tower = self._actor
        x = obs.transpose(0, 1).contiguous()
        latent = lstm.over(params, x)
        if self._critic_lstm is not None:
            judged = self._critic_lstm.over(params, x)
        elif "critic.weight" in params:
            judged = torch.nn.functional.linear(x, params["critic.weight"], params["critic.bias"])
        else:  # the actor's memory, which the critic does not move
            judged = latent.detach()
        actions = _rows(tower, params, latent)
        heads = with_own_heads(actions.transpose(0, 1), params)
        return heads, _rows(self._critic, params, judged).squeeze(-1).transpose(0, 1)

    def differentiate(self, params: Params, obs: torch.Tensor, loss: LossOfHeads) -> tuple[torch.Tensor, Params]:
        """Return a loss on whole trials, through their memory, and its gradient.

        :param obs: ``[trial, time, entry]``.
        :param loss: of the distribution and the values at all steps, ``[trial · time, …]``.
        """
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in params.items()}
        with torch.enable_grad():
            (x, *others), values = self.outputs(leaves, obs)
            value = loss(from_heads((x.flatten(0, 1), *others)), values.flatten())
            found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
        gradient = {
            name: torch.zeros_like(tensor) if own is None else own
            for (name, tensor), own in zip(params.items(), found, strict=True)
        }
        return value.detach(), gradient


def _rows(tower: Tower, params: Params, x: torch.Tensor) -> torch.Tensor:
    """Return a tower's output for ``[time, trial, …]``."""
    return tower(params, x.flatten(0, 1)).view(*x.shape[:2], -1)


def _checked(observation_space: spaces.Space[Any], policy_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords of a recurrent policy, as sb3-contrib takes them."""
    given = dict(policy_kwargs)
    own = ("observation_space", "action_space", "lr_schedule")
    check_arguments(RecurrentActorCriticPolicy.__init__, given, "policy keyword", own)
    if given.pop("lstm_kwargs", None):
        raise ConfigError(f"lstm_kwargs={shorten(policy_kwargs['lstm_kwargs'])}: give lstm_hidden_size, n_lstm_layers")
    memory = {name: check(name, given.pop(name)) for name, check in _CHECKS.items() if name in given}
    memory.setdefault("lstm_hidden_size", HIDDEN_SIZE)
    if memory.get("shared_lstm"):
        if memory.setdefault("enable_critic_lstm", False):
            raise ConfigError("shared_lstm=True leaves the critic no memory of its own: enable_critic_lstm=False")
        if not given.get("share_features_extractor", True):
            raise ConfigError("shared_lstm=True is of one features extractor: share_features_extractor=True")
    return {**MlpNetwork.check(observation_space, sb3_policy_kwargs(given)), **memory}
