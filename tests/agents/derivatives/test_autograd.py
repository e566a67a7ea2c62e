"""The backend of any network against the one by hand, and its two ways of going through tasks."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from gymnasium import spaces

from metarl.agents.derivatives.autograd import AutogradDerivatives, AutogradLinearized, Outputs, batched
from metarl.agents.networks.policy import FunctionalPolicy
from metarl.params import Params, expand
from tests.agents.derivatives.problems import COUNTS, TASKS, close, head_loss, normal, random_like

KINDS = ("gaussian", "squared error", "categorical", "cross-entropy")


def make(kind: str, critic: bool, activation: str = "tanh") -> tuple[FunctionalPolicy, Params, torch.Tensor]:
    action = spaces.Box(-1.0, 1.0, (2,)) if kind in KINDS[:2] else spaces.Discrete(2)
    kwargs = {"net_arch": [5, 4], "activation_fn": activation}
    policy = FunctionalPolicy("MlpPolicy", spaces.Box(-1.0, 1.0, (3,)), action, kwargs, critic=critic)
    params = {name: tensor.double() for name, tensor in expand(policy.init(0), TASKS).items()}
    noise = random_like(params, 1)
    return policy, {n: t + 0.5 * noise[n] for n, t in params.items()}, normal(TASKS, max(COUNTS), 3, seed=2)


def outputs_of(policy: FunctionalPolicy, obs: torch.Tensor, side_by_side: bool, params: Params) -> Outputs:
    def one(own: Params, buffers: Params, seen: torch.Tensor) -> Outputs:
        values = (policy.values(own, seen),) if policy.has_critic else ()
        return policy.distribution(own, seen).heads, values

    return batched(one, params, {}, obs, side_by_side)


@pytest.mark.parametrize("side_by_side", [True, False])
@pytest.mark.parametrize("critic", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_both_backends_agree(kind: str, critic: bool, side_by_side: bool) -> None:
    for activation in ("tanh", "silu", "relu"):
        policy, params, obs = make(kind, critic, activation)
        loss, vector = head_loss(kind), random_like(params, 3)
        by_hand = policy.differentiate(params, obs, loss, second_order=True)
        outputs = partial(outputs_of, policy, obs, side_by_side)
        found = AutogradDerivatives(outputs, params, loss, second_order=True)
        torch.testing.assert_close(found.losses, by_hand.losses, rtol=1e-12, atol=1e-14)
        close(found.gradient, by_hand.gradient)
        product = found.product(vector)
        close(product, by_hand.product(vector))
        close(found.product(vector), product, 0.0)
        heads = zip(found.distribution.heads, by_hand.distribution.heads, strict=True)
        assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-14) and not a.requires_grad for a, b in heads)
        first = AutogradDerivatives(outputs, params, loss)
        close(first.gradient, found.gradient)
        with pytest.raises(AssertionError, match="second_order"):
            first.product(vector)


@pytest.mark.parametrize("side_by_side", [True, False])
@pytest.mark.parametrize("kind", ["gaussian", "categorical"])
def test_both_backends_linearize_alike(kind: str, side_by_side: bool) -> None:
    policy, params, obs = make(kind, critic=True)
    by_hand, tangents = policy.linearize(params, obs), random_like(params, 3)
    found = AutogradLinearized(partial(outputs_of, policy, obs, side_by_side), params)
    cotangents = tuple(normal(*head.shape, seed=8) for head in by_hand.distribution.heads)
    for _ in range(2):
        for ours, theirs in zip(found.jvp(tangents), by_hand.jvp(tangents), strict=True):
            close({"": ours}, {"": theirs})
        close(found.vjp(cotangents), by_hand.vjp(cotangents))
    alone = {name: tensor[0] for name, tensor in params.items()}
    single = AutogradLinearized(lambda p: (policy.distribution(p, obs[0]).heads, ()), alone)
    along = {name: tensor[0] for name, tensor in tangents.items()}
    for ours, theirs in zip(single.jvp(along), by_hand.jvp(tangents), strict=True):
        close({"": ours}, {"": theirs[0]})


def test_buffers_are_each_tasks_own_and_tensors_may_be_stepped_meanwhile() -> None:
    x, scales = normal(TASKS, 4, seed=1), normal(TASKS, seed=2)
    flat = normal(TASKS, 4, seed=3)
    params = {"w": flat[:, :3], "unused": flat[:, 3]}

    def one(own: Params, buffers: Params, seen: torch.Tensor) -> Outputs:
        return ((buffers["scale"] * seen[:3] * own["w"].square(),), ())

    for side_by_side in (True, False):

        def outputs(p: Params, side_by_side: bool = side_by_side) -> Outputs:
            return batched(one, p, {"scale": scales}, x, side_by_side)

        found = AutogradDerivatives(outputs, params, lambda d, _: d.heads[0].sum(-1), second_order=True)
        slope = 2.0 * scales[:, None] * x[:, :3]
        close(found.gradient, {"w": slope * params["w"], "unused": torch.zeros(TASKS, dtype=torch.float64)})
        flat += 1.0
        vector = random_like(params, 4)
        close(found.product(vector), {"w": slope * vector["w"], "unused": torch.zeros(TASKS, dtype=torch.float64)})


def test_tensors_that_nothing_depends_on_have_derivatives_of_zero() -> None:
    """Other groups of meta-parameters travel with the policy's."""
    policy, params, obs = make("gaussian", critic=True)
    others = {"rates/x": normal(TASKS, 3), "encoder/y": normal(TASKS)}
    loss, vector = head_loss("gaussian"), random_like({**params, **others}, 3)
    alone = policy.differentiate(params, obs, loss, second_order=True)
    found = policy.differentiate({**params, **others}, obs, loss, second_order=True)
    outputs = partial(outputs_of, policy, obs, False)
    by_autograd = AutogradDerivatives(outputs, {**params, **others}, loss, second_order=True)
    zeros = {name: torch.zeros_like(tensor) for name, tensor in others.items()}
    for each in (found, by_autograd):
        close(each.gradient, {**alone.gradient, **zeros})
        close(each.product(vector), {**alone.product(vector), **zeros})


def test_a_loss_that_is_linear_in_all_tensors_has_no_curvature() -> None:
    params, x = {"w": normal(TASKS, 3)}, normal(TASKS, 3, seed=1)
    found = AutogradDerivatives(
        lambda p: ((p["w"] * x,), ()), params, lambda d, _: d.heads[0].sum(-1), second_order=True
    )
    close(found.gradient, {"w": x})
    assert not found.product(params)["w"].any()
