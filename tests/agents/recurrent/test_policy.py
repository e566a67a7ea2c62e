"""The recurrent policy: equal to sb3-contrib's, step by step and over whole trials, and differentiated through time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib.common.recurrent.type_aliases import RNNStates

from metarl.agents.networks.distributions import Distribution, from_heads
from metarl.agents.recurrent.policy import RecurrentPolicy
from metarl.errors import MetaRLError
from metarl.params import Params, expand

SEEN = spaces.Box(-np.inf, np.inf, (3,), np.float32)
MOVES, CHOICES = spaces.Box(-1.0, 1.0, (2,), np.float32), spaces.Discrete(4, start=1)
KINDS: list[dict[str, Any]] = [
    {},
    {"n_lstm_layers": 2, "net_arch": [4]},
    {"shared_lstm": True},
    {"enable_critic_lstm": False, "net_arch": []},
]


def _policy(actions: spaces.Space[Any] = MOVES, **kwargs: Any) -> RecurrentPolicy:
    return RecurrentPolicy(
        "MlpLstmPolicy", SEEN, actions, {"lstm_hidden_size": 5, "net_arch": {"pi": [4], "vf": [3]}, **kwargs}
    )


def _obs(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, 3, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.mark.parametrize("kwargs", KINDS)
@pytest.mark.parametrize("actions", [MOVES, CHOICES])
def test_whole_trials_are_what_the_stock_policy_says_step_by_step(
    actions: spaces.Space[Any], kwargs: dict[str, Any]
) -> None:
    policy = _policy(actions, **kwargs)
    stock, params, obs = policy.build(seed=3), policy.init(seed=3), _obs(4, 6)
    n_layers, size = policy.memory_shape
    empty = (torch.zeros(n_layers, 4, size), torch.zeros(n_layers, 4, size))
    states, starts = RNNStates(empty, empty), torch.zeros(4)
    heads, values = policy.outputs(params, obs)
    act, memory = policy.actor(expand(params, 2)), policy.empty_memory(4)
    with torch.no_grad():
        for t in range(6):
            chosen, judged, log_prob, states = stock(obs[:, t], states, starts, deterministic=True)
            own = from_heads((heads[0][:, t], *heads[1:]))
            torch.testing.assert_close(own.mode(), chosen)
            torch.testing.assert_close(own.log_prob(chosen), log_prob)
            torch.testing.assert_close(values[:, t], judged[:, 0])
            stepped, memory = policy.step(params, obs[:, t], memory)
            torch.testing.assert_close(stepped.heads[0], own.heads[0])
            torch.testing.assert_close(memory, states.pi)
            # Two tasks of two copies each, whose memory the actor keeps by itself.
            torch.testing.assert_close(act(obs[:, t].reshape(2, 2, 3), None).reshape(chosen.shape), chosen)


@pytest.mark.parametrize("kwargs", KINDS)
def test_the_gradient_goes_through_the_memory(kwargs: dict[str, Any]) -> None:
    policy = _policy(**kwargs)
    params = {name: tensor.double() for name, tensor in policy.init(seed=2).items()}
    obs, actions = _obs(2, 5, dtype=torch.float64), torch.randn(10, 2, dtype=torch.float64)

    def loss(distribution: Distribution, values: torch.Tensor) -> torch.Tensor:
        return distribution.log_prob(actions).square().mean() + values.square().sum() + distribution.entropy().mean()

    value, gradient = policy.differentiate(params, obs, loss)
    torch.testing.assert_close(value, _by_steps(policy, params, obs, loss))
    assert gradient.keys() == params.keys()
    shared = "shared_lstm" in kwargs  # whose memory the critic does not move, so that differences see more
    rng, eps = np.random.default_rng(0), 1e-6
    for name, tensor in params.items():
        if shared and name.startswith("lstm_actor"):
            continue
        index = tuple(int(rng.integers(size)) for size in tensor.shape)
        sides = []
        for sign in (1.0, -1.0):
            moved = tensor.clone()
            moved[index] += sign * eps
            sides.append(float(policy.differentiate({**params, name: moved}, obs, loss)[0]))
        assert float(gradient[name][index]) == pytest.approx((sides[0] - sides[1]) / (2 * eps), rel=1e-5, abs=1e-7)
    # And of all entries: through a loop over steps.
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in params.items()}
    found = torch.autograd.grad(_by_steps(policy, leaves, obs, loss), list(leaves.values()), allow_unused=True)
    for name, own in zip(leaves, found, strict=True):
        torch.testing.assert_close(gradient[name], torch.zeros_like(params[name]) if own is None else own)


def _by_steps(policy: RecurrentPolicy, params: Params, obs: torch.Tensor, loss: Any) -> torch.Tensor:
    """Return a loss with heads and values of one step after another; values by the stock policy's order of modules."""
    memory, means, latents = policy.empty_memory(len(obs), dtype=obs.dtype), [], []
    for t in range(obs.shape[1]):
        distribution, memory = policy.step(params, obs[:, t], memory)
        means.append(distribution.heads[0])
        latents.append(memory[0][-1])
    if "lstm_critic.weight_ih_l0" in params:
        as_actor = {
            name.replace("lstm_critic", "lstm_actor"): t for name, t in params.items() if name.startswith("lstm_critic")
        }
        memory, latents = policy.empty_memory(len(obs), dtype=obs.dtype), []
        for t in range(obs.shape[1]):
            _, memory = policy.step({**params, **as_actor}, obs[:, t], memory)
            latents.append(memory[0][-1])
    elif "critic.weight" in params:
        latents = [obs[:, t] @ params["critic.weight"].T + params["critic.bias"] for t in range(obs.shape[1])]
    else:
        latents = [each.detach() for each in latents]
    x = torch.stack(latents, dim=1)
    numbers = sorted({name.split(".")[2] for name in params if name.startswith("mlp_extractor.value_net")})
    for number in numbers:
        name = f"mlp_extractor.value_net.{number}"
        x = torch.tanh(x @ params[f"{name}.weight"].T + params[f"{name}.bias"])
    values = (x @ params["value_net.weight"].T + params["value_net.bias"]).flatten()
    return loss(from_heads((torch.stack(means, dim=1).flatten(0, 1), params["log_std"])), values)


def test_what_comes_later_changes_nothing_before() -> None:
    policy, obs = _policy(), _obs(3, 6)
    params, other = policy.init(seed=0), obs.clone()
    other[:, 4:] = 7.0
    for ours, theirs in zip(policy.outputs(params, obs)[0][:1], policy.outputs(params, other)[0][:1], strict=True):
        torch.testing.assert_close(ours[:, :4], theirs[:, :4])
        assert not torch.allclose(ours[:, 4:], theirs[:, 4:])


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"lstm_hidden_size": 0}, "lstm_hidden_size=0"),
        ({"lstm_hidden": 8}, "lstm_hidden_size"),
        ({"lstm_kwargs": {"dropout": 0.1}}, "lstm_kwargs"),
        ({"shared_lstm": True, "enable_critic_lstm": True}, "enable_critic_lstm=False"),
        ({"use_sde": True}, "use_sde"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(kwargs: dict[str, Any], words: str) -> None:
    with pytest.raises(MetaRLError, match=words):
        _policy(**kwargs)


def test_policies_without_a_memory_are_none() -> None:
    with pytest.raises(MetaRLError, match="recurrent policy"):
        RecurrentPolicy("MlpPolicy", SEEN, MOVES)
