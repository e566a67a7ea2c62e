"""Surrogates of the return on a small problem whose expectations are sums over all that can happen, in float64."""

from itertools import product

import pytest
import torch

from metarl.meta.transfer.exploring.surrogates import SURROGATES, surrogate_scores

FIRST = torch.tensor([1.0, -0.5], dtype=torch.float64)
SECOND = torch.tensor([[0.3, 2.0], [-1.0, 0.7]], dtype=torch.float64)
"""Rewards of two env steps with two actions each; the second state is the first action."""
THETA = torch.tensor([[0.2, -0.3], [0.7, 0.1], [-0.4, 0.6]], dtype=torch.float64)
"""Logits in the three states; all of them are shared by a factor, so that no second derivative is 0."""


def log_probs(theta, a, b):
    """Return the log-probabilities of the two actions of an episode."""
    logits = theta.reshape(3, 2) * (1.0 + 0.1 * theta.sum())
    return torch.stack([logits[0].log_softmax(-1)[a], logits[1 + a].log_softmax(-1)[b]])


def episodes():
    """Return all episodes: actions, and returns to go."""
    for a, b in product(range(2), range(2)):
        yield a, b, torch.stack([FIRST[a] + SECOND[a, b], SECOND[a, b]])


def expected_return(theta):
    return sum(log_probs(theta, a, b).sum().exp() * to_go[0] for a, b, to_go in episodes())


def expectation(of_episode):
    """Return the mean, over episodes, of a function of them."""
    theta = THETA.ravel()
    return sum(log_probs(theta, a, b).sum().exp() * of_episode(a, b, to_go) for a, b, to_go in episodes())


def surrogate(kind, a, b, to_go):
    old = log_probs(THETA.ravel(), a, b)[None]
    first = torch.zeros(1, 2, dtype=torch.int64)
    return lambda theta: (surrogate_scores(kind, log_probs(theta, a, b)[None], old, first)[0] * to_go).sum()


def slopes(a, b):
    """Return ∇ log π of each env step, ``[step, parameter]``."""
    return torch.autograd.functional.jacobian(lambda theta: log_probs(theta, a, b), THETA.ravel())


def by_score(a, b, to_go):
    """The term that a likelihood leaves out and its ratio has: A g gᵀ."""
    return sum(to_go[t] * torch.outer(g, g) for t, g in enumerate(slopes(a, b)))


def by_state(a, b, to_go):
    """The term that the ratio leaves out and DiCE has: A (g Gᵀ + G gᵀ)."""
    before, here = slopes(a, b)
    return to_go[1] * (torch.outer(here, before) + torch.outer(before, here))


@pytest.mark.parametrize("kind", SURROGATES)
def test_the_gradient_is_the_policy_gradient(kind):
    theta = THETA.ravel()
    found = expectation(lambda *each: torch.autograd.functional.jacobian(surrogate(kind, *each), theta))
    torch.testing.assert_close(found, torch.autograd.functional.jacobian(expected_return, theta), rtol=0, atol=1e-12)
    for a, b, to_go in episodes():
        own = torch.autograd.functional.jacobian(surrogate(kind, a, b, to_go), theta)
        torch.testing.assert_close(own, to_go @ slopes(a, b), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "missing"),
    [("dice", []), ("likelihood_ratio", [by_state]), ("log_likelihood", [by_score, by_state])],
)
def test_dices_second_derivative_is_unbiased_and_others_lack_known_terms(kind, missing):
    theta = THETA.ravel()
    whole = torch.autograd.functional.hessian(expected_return, theta)
    found = expectation(lambda *each: torch.autograd.functional.hessian(surrogate(kind, *each), theta))
    lacks = sum((expectation(term) for term in missing), torch.zeros_like(whole))
    torch.testing.assert_close(found + lacks, whole, rtol=0, atol=1e-12)
    if missing:
        assert float(lacks.abs().max()) > 0.05


def test_dice_begins_anew_with_each_episode():
    generator = torch.Generator().manual_seed(0)
    old, log_prob = torch.randn(2, 1, 7, generator=generator, dtype=torch.float64)
    first = torch.tensor([[0, 0, 0, 3, 3, 5, 5]])
    whole = surrogate_scores("dice", log_prob, old, first)
    parts = [slice(0, 3), slice(3, 5), slice(5, 7)]
    alone = [
        surrogate_scores("dice", log_prob[:, part], old[:, part], torch.zeros_like(first[:, part])) for part in parts
    ]
    torch.testing.assert_close(whole, torch.cat(alone, dim=1))
