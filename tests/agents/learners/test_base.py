"""What learners share: one update, the loss on a query batch, plain gradient steps on another's loss, and exports."""

from __future__ import annotations

import copy
import inspect
import pickle
from dataclasses import replace
from typing import Any

import pytest
import stable_baselines3
import torch

from metarl.agents import A2C, PPO, VPG, Learner, find_learner
from metarl.agents.learners.base import GradientSteps
from metarl.agents.learners.supervised import Supervised
from metarl.errors import ConfigError
from metarl.params import Params
from metarl.streams import seed_sequence
from tests.agents.learners.test_descent import TASKS, problem

NAMES = ("vpg", "a2c", "ppo")


def gradient(learner: Learner, params: Params, samples: Any, loss: Any = None) -> Params:
    """The gradient of a loss of every task, by autograd."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in params.items()}
    distribution = learner.policy.distribution(leaves, samples.obs)
    values = learner.policy.values(leaves, samples.obs) if learner.needs_critic else None
    losses = (loss or learner.head_loss)(distribution, samples, values)
    found = torch.autograd.grad(losses.sum(), list(leaves.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


def close(a: Params, b: Params) -> None:
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_plain_gradient_step_goes_down_the_learner_s_loss(name: str) -> None:
    learner, params, samples = problem(name)
    plain = learner.gradient_steps()
    assert (plain is learner) == (name == "vpg")
    assert plain.plain_steps
    assert plain.name == learner.name == name
    assert plain.gradient_steps() is plain
    state = plain.update(plain.start(params), samples, 0.01, [seed_sequence(0, "none", i) for i in range(TASKS)])
    slope = gradient(learner, params, samples)
    close(state.params, {key: tensor - 0.01 * slope[key] for key, tensor in params.items()})
    assert state.optimizer == {}


@pytest.mark.parametrize("name", NAMES)
def test_the_query_loss_is_that_of_the_learner_or_its_likelihood_ratio(name: str) -> None:
    learner, params, samples = problem(name)
    query = gradient(learner, params, samples, learner.query_loss)
    close(query, gradient(learner, params, samples))
    plain = learner.gradient_steps()
    close(query, gradient(plain, params, samples, plain.query_loss))


def test_the_query_loss_of_vpg_is_a_ratio_to_the_parameters_that_collected() -> None:
    learner, params, samples = problem("vpg")
    assert samples.log_prob is not None
    moved = {key: tensor + 0.05 for key, tensor in params.items()}
    distribution = learner.policy.distribution(moved, samples.obs)
    ratio = torch.exp(distribution.log_prob(samples.actions) - samples.log_prob)
    expected = -(samples.weights * ratio * samples.advantages).sum(-1)
    assert torch.equal(learner.query_loss(distribution, samples), expected)
    unknown = learner.query_loss(distribution, replace(samples, log_prob=None))
    torch.testing.assert_close(unknown, -(samples.weights * samples.advantages).sum(-1))
    assert not torch.allclose(unknown, expected)


def test_gradient_steps_show_the_learner_s_coefficients_and_are_copied_with_it() -> None:
    learner, params, samples = problem("ppo", ent_coef=0.01)
    plain: Any = learner.gradient_steps()
    assert isinstance(plain, GradientSteps)
    for each in (plain, copy.deepcopy(plain), pickle.loads(pickle.dumps(plain))):
        assert (each.ent_coef, each.n_epochs, each.needs_critic, each.max_grad_norm) == (0.01, 3, True, None)
        torch.testing.assert_close(each.loss(params, samples), learner.loss(params, samples))
    with pytest.raises(AttributeError):
        _ = plain.nothing
    with pytest.raises(ConfigError, match="ent_coef of a PPO is set when it is built"):
        learner.ent_coef = 1.0  # type: ignore[attr-defined]


def test_gradient_steps_are_on_the_batches_that_the_learner_declares() -> None:
    class Often(Supervised):
        plain_steps = False

    learner = Often(problem("vpg")[0].policy, n_query=7, n_eval=9)
    plain = learner.gradient_steps()
    assert isinstance(plain, GradientSteps)
    for name in ("info", "deterministic", "reuses_support", "n_query", "n_eval", "samples_type"):
        assert getattr(plain, name) == getattr(learner, name) is not None, name
    assert (plain.plain_steps, plain.steps_per_update) == (True, 1)


@pytest.mark.parametrize("cls", [A2C, PPO])
def test_a_learner_that_needs_a_critic_says_so(cls: Any) -> None:
    policy = problem("vpg")[0].policy
    with pytest.raises(ConfigError, match=rf"^{cls.__name__} needs a policy with a critic"):
        cls(policy)
    assert VPG(policy).needs_critic is False


@pytest.mark.parametrize("name", NAMES)
def test_exports_have_arguments_that_sb3_takes(name: str) -> None:
    learner = problem(name)[0]
    settings, plain = learner.sb3_settings(100), learner.gradient_steps().sb3_settings(100)
    assert settings is not None
    assert plain is not None
    stock = {"a2c": stable_baselines3.A2C, "ppo": stable_baselines3.PPO}[settings.kind]
    known = inspect.signature(stock.__init__).parameters.keys()
    assert known >= settings.loss.keys() | settings.update.keys()
    assert (plain.kind, plain.optimizer, plain.loss, plain.update) == (settings.kind, "sgd", settings.loss, {})
    assert bool(settings.update) != learner.plain_steps


@pytest.mark.parametrize("name", NAMES)
def test_options_are_the_arguments_that_wrappers_do_not_set(name: str) -> None:
    cls: Any = find_learner(name)
    parameters = inspect.signature(cls.__init__).parameters.keys()
    assert cls.options() == parameters - {"self", "policy", "parallel"}
    assert set(cls.update_options) <= cls.options()
    stock = find_learner("sb3_ppo").options()
    assert {"n_steps", "gamma", "n_envs", "normalize"} <= stock
    assert not {"policy", "env", "learning_rate", "seed", "self"} & stock
