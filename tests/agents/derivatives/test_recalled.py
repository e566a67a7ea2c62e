"""Gradients from what layers said, against those of the whole network."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from metarl.agents.networks.policy import FunctionalPolicy
from metarl.params import Params, expand
from tests.agents.derivatives.problems import normal, random_like

TASKS, N = 2, 3


def double() -> tuple[FunctionalPolicy, Params, torch.Tensor, Params]:
    """Return a policy of images in float64, its tensors, images, and what layers said of them."""
    space = spaces.Box(0, 255, (2, 36, 36), np.uint8)
    policy = FunctionalPolicy("CnnPolicy", space, spaces.Discrete(3), {"net_arch": [8]}, critic=True)
    params = {name: tensor.double() for name, tensor in expand(policy.init(0), TASKS).items()}
    noise = random_like(params, 1)
    params = {name: tensor + 0.01 * noise[name] for name, tensor in params.items()}
    obs = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (TASKS, N, 2, 36, 36), dtype=np.uint8))
    kept = {name: torch.empty(TASKS, N, *shape, dtype=torch.float64) for name, shape in policy.network.kept.items()}
    for task in range(TASKS):
        own = {name: tensor[task] for name, tensor in params.items()}
        policy.keeper(own)(obs[task], {name: tensor[task] for name, tensor in kept.items()})
    return policy, params, obs, kept


def loss(distribution: Any, values: torch.Tensor | None) -> torch.Tensor:
    assert values is not None
    actions = torch.arange(N).expand(TASKS, N)
    return distribution.log_prob(actions).mean(-1) - 0.1 * distribution.entropy().mean(-1) + values.square().mean(-1)


@pytest.mark.parametrize("given", [False, True])
def test_the_gradient_is_that_of_the_whole_network(given: bool) -> None:
    policy, params, obs, kept = double()
    whole = policy.differentiate(params, obs, loss)
    into = random_like(params, 2) if given else None
    found = policy.differentiate(params, obs, loss, kept=kept, into=into)
    assert len(kept) == 4
    assert list(found.gradient) == list(params)
    torch.testing.assert_close(found.losses, whole.losses, rtol=1e-12, atol=1e-14)
    for name, slope in whole.gradient.items():
        torch.testing.assert_close(found.gradient[name], slope, rtol=1e-9, atol=1e-14)
        assert slope.any()
        assert not found.gradient[name].requires_grad
        assert into is None or found.gradient[name] is into[name]


def test_no_forward_pass_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, params, obs, kept = double()
    monkeypatch.setattr(torch.nn.functional, "conv2d", None)
    policy.differentiate(params, obs, loss, kept=kept)
    with pytest.raises(TypeError):
        policy.differentiate(params, obs, loss)


def test_tensors_that_nothing_depends_on_have_a_gradient_of_zero() -> None:
    policy, params, obs, kept = double()
    others = {**params, "heads/0/action_net.bias": normal(TASKS, 3)}
    found = policy.differentiate(others, obs, loss, kept=kept)
    assert not found.gradient["heads/0/action_net.bias"].any()
    assert found.gradient["action_net.bias"].any()
