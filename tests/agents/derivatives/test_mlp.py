"""Derivatives of losses, in float64 against torch's own differentiation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gymnasium import spaces

from metarl.agents.derivatives.base import Derivatives
from metarl.agents.derivatives.mlp import activation_derivatives
from metarl.agents.learners.vpg import VPG
from metarl.agents.networks.arguments import ACTIVATIONS
from metarl.agents.networks.distributions import Distribution
from metarl.agents.networks.policy import FunctionalPolicy
from metarl.agents.sampling.samples import Samples
from metarl.params import Params, expand
from tests.meta.problems import TASKS, make_params, make_samples


def problem(kind: str, net_arch: list[int], activation: str, surrogate: str) -> tuple[VPG, Params, Samples]:
    action = spaces.Box(-1.0, 1.0, (2,)) if kind == "gaussian" else spaces.Discrete(3)
    kwargs = {"net_arch": net_arch, "activation_fn": activation}
    policy = FunctionalPolicy("MlpPolicy", spaces.Box(-1.0, 1.0, (3,)), action, kwargs)
    return VPG(policy, surrogate=surrogate), make_params(policy), make_samples(policy, 1)


def random_like(params: Params, seed: int) -> Params:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(t.shape, generator=generator, dtype=torch.float64) for n, t in params.items()}


def derivatives(learner: VPG, params: Params, samples: Samples, second_order: bool = True) -> Derivatives:
    return learner.policy.differentiate(
        params,
        samples.obs,
        lambda distribution, values: learner.head_loss(distribution, samples, values),
        second_order,
    )


def loss(learner: VPG, params: Params, samples: Samples) -> torch.Tensor:
    policy = learner.policy
    values = policy.values(params, samples.obs) if policy.has_critic else None
    return learner.head_loss(policy.distribution(params, samples.obs), samples, values)


def check(learner: VPG, params: Params, samples: Samples) -> None:
    found = derivatives(learner, params, samples)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in params.items()}
    losses = loss(learner, leaves, samples)
    gradient = torch.autograd.grad(losses.sum(), list(leaves.values()), create_graph=True, materialize_grads=True)
    torch.testing.assert_close(found.losses, losses.detach(), rtol=1e-12, atol=1e-12)
    vector = random_like(params, 3)
    along = sum((g * v).sum() for g, v in zip(gradient, vector.values(), strict=True))
    product = torch.autograd.grad(along, list(leaves.values()), materialize_grads=True)
    ours = found.product(vector)
    assert list(found.gradient) == list(ours) == list(params)
    for name, g, p in zip(params, gradient, product, strict=True):
        torch.testing.assert_close(found.gradient[name], g.detach(), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(ours[name], p, rtol=1e-9, atol=1e-11)
    # A product changes nothing that the next one needs.
    for name, tensor in found.product(vector).items():
        assert torch.equal(tensor, ours[name])
    alone = derivatives(learner, params, samples, second_order=False)
    for name, tensor in found.gradient.items():
        torch.testing.assert_close(alone.gradient[name], tensor, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("kind", ["gaussian", "categorical"])
def test_gradient_and_products_equal_torchs(kind: str, activation: str) -> None:
    learner, params, samples = problem(kind, [5, 4], activation, "log_likelihood")
    # Different parameters for each task, and then one set for all of them, which is not copied.
    different = {
        name: tensor + 0.1 * random_like({name: tensor}, 7)[name] for name, tensor in expand(params, TASKS).items()
    }
    check(learner, different, samples)
    check(learner, expand(params, TASKS), samples)


@pytest.mark.parametrize("net_arch", [[], [4], [6, 5, 4]])
@pytest.mark.parametrize("surrogate", ["log_likelihood", "likelihood_ratio"])
def test_any_depth_and_surrogate(net_arch: list[int], surrogate: str) -> None:
    learner, params, samples = problem("gaussian", net_arch, "tanh", surrogate)
    check(learner, expand(params, TASKS), samples)


class WithCritic(VPG):
    """The policy's loss plus one of the critic that bends everywhere."""

    def head_loss(
        self, distribution: Distribution, samples: Samples, values: torch.Tensor | None = None
    ) -> torch.Tensor:
        assert values is not None
        value_loss = (samples.weights * torch.cosh(samples.advantages - values)).sum(-1)
        return super().head_loss(distribution, samples) + 0.5 * value_loss


@pytest.mark.parametrize("learner_class", [VPG, WithCritic])
@pytest.mark.parametrize("net_arch", [[], [5, 4], {"pi": [4], "vf": [6, 5, 3]}])
@pytest.mark.parametrize("kind", ["gaussian", "categorical"])
def test_a_critic_has_its_share(kind: str, net_arch: Any, learner_class: type[VPG]) -> None:
    action = spaces.Box(-1.0, 1.0, (2,)) if kind == "gaussian" else spaces.Discrete(3)
    kwargs = {"net_arch": net_arch, "activation_fn": "tanh"}
    policy = FunctionalPolicy("MlpPolicy", spaces.Box(-1.0, 1.0, (3,)), action, kwargs, critic=True)
    check(learner_class(policy), expand(make_params(policy), TASKS), make_samples(policy, 1))


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_activations_have_their_derivatives(activation: str) -> None:
    layer = ACTIVATIONS[activation]()
    x = torch.linspace(-2.0, 2.0, 40, dtype=torch.float64)
    eps = 1e-5
    y, slope, bend = activation_derivatives(layer, x.clone(), True)
    above, below = (activation_derivatives(layer, x + sign * eps, True) for sign in (1.0, -1.0))
    torch.testing.assert_close(y, layer(x))
    torch.testing.assert_close(slope, (above[0] - below[0]) / (2.0 * eps), rtol=1e-6, atol=1e-8)
    numeric = (above[1] - below[1]) / (2.0 * eps)
    torch.testing.assert_close(torch.zeros_like(x) if bend is None else bend, numeric, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_what_is_kept_takes_the_place_of_what_is_not(activation: str) -> None:
    x = torch.linspace(-2.0, 2.0, 40)
    y, _, _ = activation_derivatives(ACTIVATIONS[activation](), x, True)
    assert y.data_ptr() == x.data_ptr()


def test_products_need_to_be_asked_for() -> None:
    learner, params, samples = problem("gaussian", [4], "tanh", "log_likelihood")
    found = derivatives(learner, expand(params, TASKS), samples, second_order=False)
    with pytest.raises(AssertionError, match="second_order"):
        found.product(expand(params, TASKS))
