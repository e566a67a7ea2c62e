"""Functional policies against SB3's own module and torch.func."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from metarl.agents.networks.arguments import ACTIVATIONS
from metarl.agents.networks.distributions import Categorical, Gaussian
from metarl.agents.networks.policy import FunctionalPolicy
from metarl.errors import ConfigError, MetaRLError, UnknownNameError
from metarl.params import Params

BOX = spaces.Box(-1.0, 1.0, (2,), np.float32)
DISCRETE = spaces.Discrete(4)
OBS = spaces.Box(-5.0, 5.0, (3,), np.float32)
ACTION_SPACES = {"box": BOX, "discrete": DISCRETE}


def make(action: str = "box", **kwargs: Any) -> FunctionalPolicy:
    return FunctionalPolicy("MlpPolicy", OBS, ACTION_SPACES[action], {"net_arch": [6, 5], **kwargs})


def random_params(policy: FunctionalPolicy, seed: int, n_tasks: int | None = None) -> Params:
    generator = torch.Generator().manual_seed(seed)
    lead = () if n_tasks is None else (n_tasks,)
    return {
        name: torch.randn(*lead, *tensor.shape, generator=generator, dtype=torch.float64)
        for name, tensor in policy.init(0).items()
    }


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def load(policy: FunctionalPolicy, params: Params) -> ActorCriticPolicy:
    module = policy.build(seed=3)
    own = dict(module.named_parameters())
    with torch.no_grad():
        for name, tensor in params.items():
            own[name].copy_(tensor)
    return module


@pytest.mark.parametrize(("action", "activation"), list(itertools.product(ACTION_SPACES, ACTIVATIONS)))
def test_it_equals_the_stock_policy(action: str, activation: str) -> None:
    policy = make(action, activation_fn=activation, log_std_init=-0.5)
    params = policy.init(1)
    stock = load(policy, params)
    obs = normal(7, 3).float()
    actions = torch.from_numpy(np.stack([policy.action_space.sample() for _ in range(7)]))
    ours = policy.distribution(params, obs)
    with torch.no_grad():
        theirs = stock.get_distribution(obs)
        torch.testing.assert_close(ours.log_prob(actions), theirs.log_prob(actions), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(ours.entropy(), theirs.entropy(), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(ours.mode(), theirs.mode(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("action", ACTION_SPACES)
@pytest.mark.parametrize("net_arch", [[], [8], {"pi": [4, 3], "vf": [5]}, None])
def test_every_shape_of_network_equals_the_stock_policy(action: str, net_arch: Any) -> None:
    policy = make(action, net_arch=net_arch)
    params = policy.init(2)
    obs = normal(4, 3).float()
    with torch.no_grad():
        expected = load(policy, params).get_distribution(obs).mode()
    torch.testing.assert_close(policy.distribution(params, obs).mode(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("action", ACTION_SPACES)
@pytest.mark.parametrize("net_arch", [[], [8], {"pi": [4, 3], "vf": [9]}, None])
def test_with_a_critic_it_is_the_whole_stock_policy(action: str, net_arch: Any) -> None:
    policy = FunctionalPolicy("MlpPolicy", OBS, ACTION_SPACES[action], {"net_arch": net_arch}, critic=True)
    params = policy.init(2)
    assert list(params) == policy.names == [name for name, _ in policy.build(0).named_parameters()]
    assert policy.width == {"[]": 4 if action == "discrete" else 2, "[8]": 8, "None": 64}.get(str(net_arch), 9)
    obs = normal(4, 3).float()
    stock = load(policy, params)
    with torch.no_grad():
        torch.testing.assert_close(policy.values(params, obs), stock.predict_values(obs)[:, 0], rtol=1e-6, atol=1e-6)
        mode = stock.get_distribution(obs).mode()
    torch.testing.assert_close(policy.distribution(params, obs).mode(), mode, rtol=1e-6, atol=1e-6)
    # The actor is what it is without a critic.
    alone = FunctionalPolicy("MlpPolicy", OBS, ACTION_SPACES[action], {"net_arch": net_arch})
    for name, tensor in alone.init(2).items():
        assert torch.equal(tensor, params[name])
    stack = {name: torch.stack([tensor, 2.0 * tensor]) for name, tensor in params.items()}
    values = policy.values(stack, obs.expand(2, 4, 3))
    assert values.shape == (2, 4)
    torch.testing.assert_close(values[0], policy.values(params, obs), rtol=1e-6, atol=1e-6)
    gradient = policy.linearize(params, obs).vjp(policy.distribution(params, obs).heads)
    assert list(gradient) == policy.names
    assert all(not gradient[name].any() for name in policy.names if "value_net" in name)


@pytest.mark.parametrize("action", ACTION_SPACES)
@pytest.mark.parametrize(("n_tasks", "n"), [(None, 7), (3, 7), (3, 1), (1, 16)])
def test_a_policy_at_fixed_parameters_acts_to_the_bits_of_its_distribution(
    action: str, n_tasks: int | None, n: int
) -> None:
    lead = () if n_tasks is None else (n_tasks,)
    every: list[dict[str, Any]] = [{"net_arch": [64, 32]}, {"net_arch": []}, {"activation_fn": "relu"}]
    for kwargs in every:
        for context in (0, 4) if kwargs.get("net_arch") != [] else (0,):
            policy = FunctionalPolicy("MlpPolicy", OBS, ACTION_SPACES[action], kwargs, context=context)
            params = {name: tensor.float() for name, tensor in random_params(policy, 1, n_tasks).items()}
            obs, noise = normal(*lead, n, 3).float(), normal(*lead, n, 2, seed=1).float()
            noise = noise if action == "box" else noise[..., 0].abs() % 1.0
            act, distribution = policy.actor(params), policy.distribution(params, obs)
            assert torch.equal(act(obs, noise), distribution.sample(noise))
            assert torch.equal(act(obs, None), distribution.mode())


def test_values_need_a_critic() -> None:
    policy = make()
    with pytest.raises(ConfigError, match="critic=True"):
        policy.values(policy.init(0), normal(4, 3).float())


@pytest.mark.parametrize("action", ACTION_SPACES)
def test_a_stack_equals_vmap_over_the_stock_sub_networks(action: str) -> None:
    policy = make(action, activation_fn="tanh")
    params, obs = random_params(policy, 0, n_tasks=3), normal(3, 5, 3)
    module = policy.build(0).double()

    class Actor(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp_extractor, self.action_net = module.mlp_extractor, module.action_net

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.action_net(self.mlp_extractor.forward_actor(x))
            return out

    actor = Actor()
    tensors = {name: tensor for name, tensor in params.items() if name != "log_std"}
    heads = torch.func.vmap(lambda p, x: torch.func.functional_call(actor, p, (x,)))(tensors, obs)
    torch.testing.assert_close(policy.distribution(params, obs).heads[0], heads, rtol=1e-12, atol=1e-12)
    for task in range(3):
        own = {name: tensor[task] for name, tensor in params.items()}
        alone = policy.distribution(own, obs[task]).heads[0]
        torch.testing.assert_close(alone, heads[task], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("action", "activation", "n_tasks"), list(itertools.product(ACTION_SPACES, ACTIVATIONS, (None, 3)))
)
def test_linearization_equals_autograd(action: str, activation: str, n_tasks: int | None) -> None:
    policy = make(action, activation_fn=activation)
    params = random_params(policy, 0, n_tasks)
    tangents = random_params(policy, 1, n_tasks)
    obs = normal(*([] if n_tasks is None else [n_tasks]), 5, 3)
    names = list(params)

    def heads(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return policy.distribution(dict(zip(names, values, strict=True)), obs).heads

    linearization = policy.linearize(params, obs)
    along = tuple(tangents[name] for name in names)
    outputs, changes = torch.autograd.functional.jvp(heads, tuple(params.values()), along)
    for ours, theirs in zip(linearization.distribution.heads, outputs, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(linearization.jvp(tangents), changes, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    cotangents = tuple(normal(*output.shape, seed=9 + i) for i, output in enumerate(outputs))
    _, gradients = torch.autograd.functional.vjp(heads, tuple(params.values()), cotangents)
    product = linearization.vjp(cotangents)
    assert list(product) == names
    for name, theirs in zip(names, gradients, strict=True):
        torch.testing.assert_close(product[name], theirs, rtol=1e-10, atol=1e-10)
    # Products may be repeated: nothing is used up or overwritten.
    for ours, theirs in zip(linearization.jvp(tangents), changes, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    again = linearization.vjp(cotangents)
    assert all(torch.equal(again[name], product[name]) for name in names)


def test_linearization_of_a_policy_without_hidden_layers() -> None:
    policy = make(net_arch=[])
    params, tangents, obs = random_params(policy, 0), random_params(policy, 1), normal(5, 3)
    change = policy.linearize(params, obs).jvp(tangents)[0]
    torch.testing.assert_close(change, policy.distribution(tangents, obs).heads[0])


def test_initialisation_is_sb3s_and_leaves_the_global_generator_alone() -> None:
    policy = make()
    before = torch.random.get_rng_state()
    first, second, other = policy.init(5), policy.init(5), policy.init(6)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["action_net.weight"], other["action_net.weight"])
    torch.manual_seed(5)
    stock = ActorCriticPolicy(OBS, BOX, lambda _: 0.0, net_arch=[6, 5])
    for name, tensor in first.items():
        assert torch.equal(tensor, dict(stock.named_parameters())[name])
        assert not tensor.requires_grad
    assert not any("value" in name for name in first)


def test_observations_of_several_dimensions_are_flattened() -> None:
    space = spaces.Box(-5.0, 5.0, (2, 3), np.float32)
    policy = FunctionalPolicy("MlpPolicy", space, BOX, {"net_arch": [4]})
    params = policy.init(0)
    obs = normal(5, 2, 3).float()
    with torch.no_grad():
        expected = load(policy, params).get_distribution(obs).mode()
    torch.testing.assert_close(policy.distribution(params, obs).mode(), expected)
    stack = {name: tensor[None] for name, tensor in params.items()}
    torch.testing.assert_close(policy.distribution(stack, obs[None]).mode()[0], expected)


def test_kinds_of_distribution() -> None:
    for action, kind in (("box", Gaussian), ("discrete", Categorical)):
        policy = make(action)
        assert isinstance(policy.distribution(policy.init(0), normal(2, 3).float()), kind)


def test_discrete_actions_start_where_the_space_does() -> None:
    policy = FunctionalPolicy("MlpPolicy", OBS, spaces.Discrete(3, start=5))
    assert policy.actions_to_env(np.array([0, 2])).tolist() == [5, 7]


class Gated(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"use_sde": True}, "use_sde=True"),
        ({"squash_output": True}, "squash_output=True"),
        ({"activation_fn": "tanhh"}, "did you mean 'tanh'"),
        ({"activation_fn": nn.PReLU}, "activation_fn"),
        ({"activation_fn": 3}, "activation_fn"),
        ({"activation_fn": None}, "activation_fn=None is not supported"),
        ({"net_arch": [0]}, r"net_arch=\[0\]"),
        ({"net_arch": "64"}, "net_arch='64'"),
        ({"net_arch": [64.0]}, r"net_arch=\[64.0\]"),
        ({"net_arch": 64}, "net_arch=64"),
        ({"net_arch": {"pi": 64}}, "net_arch="),
        ({"net_arch": {"policy": [64]}}, "net_arch="),
        ({"net_arcg": [64]}, "did you mean 'net_arch'"),
        ({"features_extractor_class": Gated}, "features extractor"),
        ({"log_std_init": "zero"}, "log_std_init"),
        ({"log_std_init": True}, "log_std_init=True is not a finite number"),
        ({"ortho_init": 3}, "ortho_init=3 is not true or false"),
        ({"normalize_images": "no"}, "normalize_images='no' is not true or false"),
        ({"lr_schedule": 0.1}, "unknown policy keyword 'lr_schedule'"),
        ({"optimizer_class": "sgd"}, "optimizer_class='sgd' is not supported: gradient steps are the learner's own"),
        ({"optimizer_class": torch.optim.SGD}, "SGD'> is not supported: gradient steps are the learner's own"),
        ({"optimizer_kwargs": {"eps": 0.1}}, r"optimizer_kwargs=\{'eps': 0.1\} is not supported"),
        ({"optimizer_kwargs": 3}, "optimizer_kwargs=3 is not supported"),
        ({"features_extractor_kwargs": {"dim": 3}}, r"features_extractor_kwargs=\{'dim': 3\} is not supported"),
    ],
)
def test_bad_keywords_are_refused_in_one_line(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(MetaRLError, match=message) as caught:
        FunctionalPolicy("MlpPolicy", OBS, BOX, kwargs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("observation", "action"),
    [
        (spaces.Dict({"a": OBS}), BOX),
        (spaces.Discrete(3), BOX),
        (spaces.Box(0, 255, (36, 36, 3), np.uint8), BOX),
        (OBS, spaces.MultiDiscrete([2, 2])),
        (OBS, spaces.Box(-1.0, 1.0, (2, 2))),
        (OBS, spaces.Box(-1.0, 1.0, ())),
    ],
)
def test_spaces_that_are_not_supported_are_refused(observation: spaces.Space[Any], action: spaces.Space[Any]) -> None:
    with pytest.raises(ConfigError, match="space") as caught:
        FunctionalPolicy("MlpPolicy", observation, action)
    assert "\n" not in str(caught.value)


def test_unknown_policy() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'MlpPolicy'"):
        FunctionalPolicy("MlpPolicyy", OBS, BOX)
    with pytest.raises(UnknownNameError, match="known: CnnHardAttentionPolicy, CnnPolicy, CnnProgressivePolicy"):
        FunctionalPolicy([1], OBS, BOX)  # type: ignore[arg-type]
