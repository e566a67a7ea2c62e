"""Context variables: the folded policy is the same, and derivatives are exact to second order, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from metarl.agents.derivatives.autograd import AutogradDerivatives, AutogradLinearized
from metarl.agents.derivatives.unrolled import UnrolledPath
from metarl.agents.networks.policy import FunctionalPolicy
from metarl.errors import ConfigError
from metarl.params import Params, expand
from tests.agents.derivatives.problems import COUNTS, TASKS, close, head_loss, normal, numeric_gradient, random_like

OBS = spaces.Box(-5.0, 5.0, (3,))
ACTIONS = {"box": spaces.Box(-1.0, 1.0, (2,)), "discrete": spaces.Discrete(2)}


def make(action: str = "box", critic: bool = True, context: int = 3, **kwargs: Any) -> FunctionalPolicy:
    kwargs = {"net_arch": [5, 4], "activation_fn": "tanh", **kwargs}
    return FunctionalPolicy("MlpPolicy", OBS, ACTIONS[action], kwargs, critic=critic, context=context)


def problem(policy: FunctionalPolicy) -> tuple[Params, torch.Tensor]:
    params = {name: tensor.double() for name, tensor in expand(policy.init(0), TASKS).items()}
    noise = random_like(params, 1)
    return {n: t + 0.5 * noise[n] for n, t in params.items()}, normal(TASKS, max(COUNTS), 3, seed=2)


def test_it_starts_as_the_plain_policy_with_matrices_like_sb3s_layers() -> None:
    policy, plain = make(), make(context=0)
    params, without = policy.init(4), plain.init(4)
    assert policy.names == list(params)
    own = ["mlp_extractor.policy_net.0.context", "mlp_extractor.value_net.0.context", "context/z"]
    assert [*plain.names, *own] == policy.names
    assert all(torch.equal(params[name], tensor) for name, tensor in without.items())
    assert [list(params[name].shape) for name in own] == [[5, 3], [5, 3], [3]]
    assert not params["context/z"].any()
    # SB3 initialises hidden layers orthogonally, with gain √2.
    matrix = params[own[0]]
    torch.testing.assert_close(matrix.T @ matrix, 2.0 * torch.eye(3), rtol=1e-5, atol=1e-5)
    assert not torch.equal(matrix, params[own[1]])
    obs = normal(4, 3).float()
    folded = policy.fold(params)
    assert list(folded) == plain.names
    assert torch.equal(policy.distribution(params, obs).mode(), plain.distribution(without, obs).mode())
    shallow = make(net_arch=[], critic=False)
    head = shallow.init(0)["action_net.context"]
    assert float(head.norm()) == pytest.approx(0.01 * 2**0.5, rel=1e-5)
    default = make(ortho_init=False).init(0)["mlp_extractor.policy_net.0.context"]
    assert float(default.abs().max()) <= 3**-0.5
    assert policy.init(4)["context/z"] is not policy.init(4)["context/z"]


@pytest.mark.parametrize("action", ACTIONS)
def test_the_folded_policy_is_the_same_and_is_sb3s(action: str) -> None:
    policy, plain = make(action), make(action, context=0)
    params, obs = problem(policy)
    expected = plain.distribution(policy.fold(params), obs)
    assert torch.equal(policy.distribution(params, obs).heads[0], expected.heads[0])
    assert torch.equal(policy.values(params, obs), plain.values(policy.fold(params), obs))
    own = {name: tensor[0].float() for name, tensor in params.items()}
    module = policy.build(0)
    module.load_state_dict(policy.fold(own), strict=True)
    x = obs[0].float()
    with torch.no_grad():
        # What the first layer computes is W x + b + C z.
        layer = "mlp_extractor.policy_net.0"
        z = own["context/z"]
        hidden = torch.tanh(x @ own[f"{layer}.weight"].T + own[f"{layer}.bias"] + own[f"{layer}.context"] @ z)
        rest = module.action_net(module.mlp_extractor.policy_net[2:](hidden))
        torch.testing.assert_close(policy.distribution(own, x).heads[0], rest, rtol=1e-5, atol=1e-5)
        mode = module.get_distribution(x).mode()
    torch.testing.assert_close(policy.distribution(own, x).mode(), mode, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("critic", [False, True])
@pytest.mark.parametrize("kind", ["gaussian", "categorical"])
@pytest.mark.parametrize("net_arch", [[], [5, 4]])
def test_derivatives_are_exact_to_second_order(kind: str, critic: bool, net_arch: list[int]) -> None:
    policy = make("box" if kind == "gaussian" else "discrete", critic, net_arch=net_arch)
    params, obs = problem(policy)
    loss, vector = head_loss(kind), random_like(params, 5)
    found = policy.differentiate(params, obs, loss, second_order=True)

    def outputs(p: Params) -> Any:
        values = (policy.values(p, obs),) if critic else ()
        return policy.distribution(p, obs).heads, values

    expected = AutogradDerivatives(outputs, params, loss, second_order=True)
    torch.testing.assert_close(found.losses, expected.losses, rtol=1e-12, atol=1e-14)
    close(found.gradient, expected.gradient)
    product = found.product(vector)
    close(product, expected.product(vector))
    close(found.product(vector), product, 0.0)
    linear, theirs = policy.linearize(params, obs), AutogradLinearized(outputs, params)
    for ours, other in zip(linear.jvp(vector), theirs.jvp(vector), strict=True):
        close({"": ours}, {"": other})
    cotangents = tuple(normal(*head.shape, seed=8) for head in linear.distribution.heads)
    close(linear.vjp(cotangents), theirs.vjp(cotangents))


def test_a_path_in_which_only_the_context_moves_has_the_right_gradient() -> None:
    """CAVIA: the inner loop moves the context, the outer one everything else, through the inner steps."""
    policy = make(critic=False)
    params, obs = problem(policy)
    params["context/z"] = torch.zeros_like(params["context/z"])
    loss = policy.loss_function(obs, head_loss("gaussian"))
    query = policy.loss_function(normal(*obs.shape, seed=11), head_loss("gaussian"))
    path = UnrolledPath([loss, loss], [{"context/z": 0.5}] * 2)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in params.items()}
    found = dict(zip(params, torch.autograd.grad(path.then(query)(leaves).sum(), list(leaves.values())), strict=True))
    end = path.end(params)
    assert [name for name in params if not torch.equal(end[name], params[name])] == ["context/z"]
    for name in ("mlp_extractor.policy_net.0.context", "mlp_extractor.policy_net.0.bias", "context/z"):

        def moved(tensor: torch.Tensor, name: str = name) -> torch.Tensor:
            return path.then(query)({**params, name: tensor}).sum().detach()

        close({name: found[name]}, {name: numeric_gradient(moved, params[name], 2e-4)}, 1e-7)


def test_convolutions_have_contexts_too() -> None:
    space = spaces.Box(0, 255, (1, 36, 36), np.uint8)
    kwargs = {"features_extractor_kwargs": {"features_dim": 4}}
    policy = FunctionalPolicy("CnnPolicy", space, ACTIONS["discrete"], kwargs, critic=True, context=2)
    params = {name: tensor.double() for name, tensor in expand(policy.init(0), 2).items()}
    params["context/z"] = normal(2, 2)
    assert [name for name in params if "context" in name] == ["features_extractor.cnn.0.context", "context/z"]
    loss, obs = head_loss("cross-entropy", counts=(3, 3)), torch.full((2, 3, 1, 36, 36), 100, dtype=torch.uint8)
    found = policy.differentiate(params, obs, loss).gradient
    function = policy.loss_function(obs, loss)
    for name in ("context/z",):

        def moved(tensor: torch.Tensor, name: str = name) -> torch.Tensor:
            return function({**params, name: tensor}).sum().detach()

        close({name: found[name]}, {name: numeric_gradient(moved, params[name], 1e-6)}, 1e-6)


@pytest.mark.parametrize("context", [-1, 1.5, "2", None, True])
def test_a_bad_size_is_refused(context: Any) -> None:
    with pytest.raises(ConfigError, match="context="):
        make(context=context)
