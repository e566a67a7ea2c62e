"""Action distributions against torch's own, in float64."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import distributions as reference

from metarl.agents.networks.distributions import MIN_LOG_STD, Categorical, Distribution, Gaussian, draw_noise
from metarl.errors import ConfigError

LEADING = [(), (3,)]
KINDS = ["gaussian", "categorical"]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def make(kind: str, leading: tuple[int, ...], seed: int = 0) -> tuple[Distribution, reference.Distribution]:
    if kind == "categorical":
        logits = normal(*leading, 5, 4, seed=seed)
        return Categorical(logits), reference.Categorical(logits=logits)
    mean, log_std = normal(*leading, 5, 2, seed=seed), 0.5 * normal(*leading, 2, seed=seed + 1)
    std = log_std.exp().unsqueeze(-2).expand(mean.shape)
    return Gaussian(mean, log_std), reference.Independent(reference.Normal(mean, std), 1)


@pytest.mark.parametrize(("kind", "leading"), list(itertools.product(KINDS, LEADING)))
def test_arithmetic_equals_torch(kind: str, leading: tuple[int, ...]) -> None:
    (ours, theirs), (other, their_other) = make(kind, leading), make(kind, leading, seed=7)
    torch.manual_seed(0)
    actions = theirs.sample()
    assert ours.log_prob(actions).shape == (*leading, 5)
    torch.testing.assert_close(ours.log_prob(actions), theirs.log_prob(actions), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.entropy(), theirs.entropy(), rtol=1e-12, atol=1e-12)
    expected = reference.kl_divergence(theirs, their_other)
    torch.testing.assert_close(ours.kl(other), expected, rtol=1e-12, atol=1e-12)
    assert float(expected.min()) > 0.0
    assert float(ours.kl(ours).abs().max()) < 1e-15
    torch.testing.assert_close(ours.mode(), theirs.mode)


def test_log_probability_is_joint_over_action_dimensions() -> None:
    ours = Gaussian(torch.zeros(1, 3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))
    assert float(ours.log_prob(torch.zeros(1, 3, dtype=torch.float64))) == pytest.approx(-1.5 * math.log(2 * math.pi))


@pytest.mark.parametrize("kind", KINDS)
def test_a_stack_equals_its_members(kind: str) -> None:
    stack, theirs = make(kind, (3,))
    torch.manual_seed(0)
    actions = theirs.sample()
    for task in range(3):
        alone = type(stack)(*(head[task] for head in stack.heads))
        torch.testing.assert_close(stack.log_prob(actions)[task], alone.log_prob(actions[task]), rtol=0.0, atol=0.0)


def hessian_product(
    dist: Distribution, tangents: tuple[torch.Tensor, ...], weights: torch.Tensor
) -> list[torch.Tensor]:
    """Differentiate the weighted KL(dist ‖ moved) twice, at moved = dist."""
    leaves = [head.clone().requires_grad_() for head in dist.heads]
    value = (weights * dist.kl(type(dist)(*leaves))).sum()
    gradient = torch.autograd.grad(value, leaves, create_graph=True)
    return list(torch.autograd.grad(gradient, leaves, tangents))


@pytest.mark.parametrize(("kind", "leading"), list(itertools.product(KINDS, LEADING)))
def test_fisher_information_is_the_hessian_of_the_kl(kind: str, leading: tuple[int, ...]) -> None:
    dist, _ = make(kind, leading)
    weights = torch.rand(*leading, 5, dtype=torch.float64)
    weights = weights / weights.sum(-1, keepdim=True)
    weights[..., -1] = 0.0
    weights = weights / weights.sum(-1, keepdim=True)
    tangents = tuple(normal(*head.shape, seed=20 + i) for i, head in enumerate(dist.heads))
    for product, expected in zip(dist.fisher(tangents, weights), hessian_product(dist, tangents, weights), strict=True):
        torch.testing.assert_close(product, expected, rtol=1e-10, atol=1e-12)


def test_fisher_information_is_the_covariance_of_the_score() -> None:
    logits = normal(1, 4)
    dist = Categorical(logits)
    probs = torch.softmax(logits, -1)[0]
    score = torch.eye(4, dtype=torch.float64) - probs
    expected = torch.einsum("a,ai,aj->ij", probs, score, score)
    weights = torch.ones(1, dtype=torch.float64)
    rows = [dist.fisher((basis[None],), weights)[0][0] for basis in torch.eye(4, dtype=torch.float64)]
    torch.testing.assert_close(torch.stack(rows), expected, rtol=1e-12, atol=1e-12)


def test_below_the_floor_the_deviation_stands_still() -> None:
    mean = torch.zeros(3, 2, dtype=torch.float64)
    log_std = torch.tensor([MIN_LOG_STD - 1.0, 0.3], dtype=torch.float64, requires_grad=True)
    dist = Gaussian(mean, log_std)
    torch.testing.assert_close(dist.entropy(), Gaussian(mean, log_std.clamp(min=MIN_LOG_STD)).entropy())
    (gradient,) = torch.autograd.grad(dist.entropy().sum(), log_std)
    assert gradient.tolist() == [0.0, 3.0]
    weights = torch.full((3,), 1 / 3, dtype=torch.float64)
    frozen = Gaussian(mean, log_std.detach())
    tangents = (torch.zeros_like(mean), torch.ones(2, dtype=torch.float64))
    expected = hessian_product(frozen, tangents, weights)
    for product, value in zip(frozen.fisher(tangents, weights), expected, strict=True):
        torch.testing.assert_close(product, value)


def test_gaussian_samples_have_the_mean_and_deviation_asked_for() -> None:
    box = spaces.Box(-1.0, 1.0, (2,))
    noise = torch.from_numpy(draw_noise(box, np.random.default_rng(0), (2, 50_000)))
    assert noise.dtype == torch.float32
    dist = Gaussian(
        torch.tensor([[1.0, -2.0], [0.0, 3.0]])[:, None].expand(2, 50_000, 2), torch.tensor([[0.0, -1.0]] * 2)
    )
    actions = dist.sample(noise)
    torch.testing.assert_close(actions.mean(1), dist.mean[:, 0], atol=0.02, rtol=0.0)
    torch.testing.assert_close(actions.std(1), dist.log_std.exp(), atol=0.02, rtol=0.0)


def test_categorical_samples_have_the_frequencies_asked_for() -> None:
    n = 200_000
    probs = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.0, 0.97, 0.03, 0.0]])
    noise = torch.from_numpy(draw_noise(spaces.Discrete(4), np.random.default_rng(0), (2, n)))
    actions = Categorical(probs.log()[:, None].expand(2, n, 4)).sample(noise)
    for task in range(2):
        frequency = torch.bincount(actions[task], minlength=4) / n
        torch.testing.assert_close(frequency, probs[task], atol=0.005, rtol=0.0)
    # Impossible actions never come, not even at the ends of the unit interval.
    ends = torch.tensor([0.0, 1.0 - 2.0**-24])
    assert Categorical(probs[1:].log().expand(2, 4)).sample(ends).tolist() == [1, 2]
    # Probabilities that add up to a little less than 1 have a last action all the same.
    many = Categorical(torch.randn(1000, 60, generator=torch.Generator().manual_seed(0)))
    assert (many._log_probs.exp().cumsum(-1)[:, -1] < ends[1]).any()
    assert many.sample(ends[1].expand(1000)).max() == 59


def test_samples_of_a_stack_equal_those_of_its_members() -> None:
    for kind in KINDS:
        stack, _ = make(kind, (3,))
        space = spaces.Box(-1.0, 1.0, (2,)) if kind == "gaussian" else spaces.Discrete(4)
        noise = torch.from_numpy(draw_noise(space, np.random.default_rng(1), (3, 5))).double()
        actions = stack.sample(noise)
        for task in range(3):
            alone = type(stack)(*(head[task] for head in stack.heads)).sample(noise[task])
            assert torch.equal(actions[task], alone)


def test_an_unsupported_action_space_is_named() -> None:
    with pytest.raises(ConfigError, match="MultiDiscrete"):
        draw_noise(spaces.MultiDiscrete([2, 3]), np.random.default_rng(0), (1,))
