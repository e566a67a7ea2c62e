"""MAML++: exact gradients of losses at every step and of rates by tensor and step, and what anneals when."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from metarl.agents.learners.base import Learner
from metarl.agents.learners.supervised import Supervised
from metarl.agents.learners.vpg import VPG
from metarl.errors import ConfigError
from metarl.meta.adaptation.gradient import GradientPath
from metarl.meta.algorithms.maml import FOMAML, MAML
from metarl.meta.algorithms.maml_plus_plus import MAMLPlusPlus, MultiStepDerivatives, StepRates, loss_weights
from metarl.meta.base import load
from metarl.params import RATES, Params, dot, expand, group, grouped, meta_name
from tests.meta.problems import TASKS, make_params, make_policy, make_samples
from tests.meta.small import copy, equal, run_iterations, small

WEIGHTS = [0.3, 0.7]
RULE = StepRates([0.3, 0.2], bases=[0.3, 0.2])
SUPERVISED: dict[str, Any] = {"learner": "supervised", "outer": "adam", "n_inner_steps": 2}


def make_learner(name: str) -> Learner:
    policy = make_policy("gaussian")
    return VPG(policy) if name == "vpg" else Supervised(policy)


def batches(learner: Learner) -> tuple[list[Any], Any]:
    """Return the support batches of two steps, and a query."""

    def batch(seed: int) -> Any:
        samples = make_samples(learner.policy, seed)
        return replace(samples, target=samples.actions + 0.5)

    support = [batch(1)] * 2 if learner.reuses_support else [batch(1), batch(2)]
    return support, replace(batch(9), log_prob=None)


def meta_params() -> Params:
    theta = make_params(make_policy("gaussian"))
    generator = torch.Generator().manual_seed(3)
    rates = {name: 0.2 + 0.1 * torch.rand(3, generator=generator, dtype=torch.float64) for name in theta}
    return {meta_name(name): tensor for name, tensor in theta.items()} | grouped(rates, RATES)


def value(learner: Learner, params: Params) -> float:
    """Return Σ v_j L'(θ_j), written out."""
    support, query = batches(learner)
    path = GradientPath(learner, expand(RULE.start(params), TASKS), support, RULE.steps(params))
    asked = [query, query] if learner.reuses_support else [support[1], query]
    total = 0.0
    for weight, step, batch in zip(WEIGHTS, path.steps, asked, strict=True):
        distribution = learner.policy.distribution(step.end, batch.obs)
        # The gradient of a ratio at the policy that collected is that of the log-likelihood, here at another start.
        if isinstance(learner, VPG):
            score = distribution.log_prob(batch.actions) * batch.advantages
            losses = -(batch.weights * score).sum(-1)
        else:
            losses = learner.query_loss(distribution, batch, None)
        total += weight * float(losses.sum())
    return total


@pytest.mark.parametrize("name", ["supervised", "vpg"])
def test_gradients_of_all_steps_losses_equal_finite_differences(name: str) -> None:
    learner, params = make_learner(name), meta_params()
    support, query = batches(learner)
    if name == "vpg":
        support[1] = replace(support[1], log_prob=None)
    own = MultiStepDerivatives(learner, params, support, query, RULE, weights=WEIGHTS)
    gradient = own.gradient().gradient
    assert list(gradient) == list(params)
    generator = torch.Generator().manual_seed(5)
    for part in ("policy/", RATES):
        v = {
            n: torch.randn(t.shape, generator=generator, dtype=torch.float64) * float(n.startswith(part))
            for n, t in params.items()
        }
        at = [value(learner, {n: t + k * 1e-4 * v[n] for n, t in params.items()}) for k in (-2, -1, 1, 2)]
        numeric = (at[0] - 8 * at[1] + 8 * at[2] - at[3]) / 12e-4
        assert dot(gradient, v) == pytest.approx(numeric, rel=1e-6, abs=1e-9)
    # The rate of a third step has no part in two.
    assert all(bool((gradient[RATES + n][2] == 0.0).all()) for n in RULE.start(params))


def test_the_first_order_gradient_is_the_sum_of_the_slopes() -> None:
    learner, params = make_learner("supervised"), meta_params()
    support, query = batches(learner)
    first = MultiStepDerivatives(learner, params, support, query, RULE, weights=WEIGHTS, first_order=True).gradient()
    assert first.first_order is None
    path = GradientPath(learner, expand(RULE.start(params), TASKS), support, RULE.steps(params))
    loss = lambda d, v: learner.query_loss(d, query, v)  # noqa: E731
    slopes = [learner.policy.differentiate(step.end, query.obs, loss).gradient for step in path.steps]
    for name, tensor in group(first.gradient, "policy/").items():
        expected = sum(w * slope[name] for w, slope in zip(WEIGHTS, slopes, strict=True)).sum(0)
        torch.testing.assert_close(tensor, expected, rtol=1e-12, atol=1e-14)
    both = MultiStepDerivatives(learner, params, support, query, RULE, weights=WEIGHTS).gradient().first_order
    assert both is not None
    assert all(torch.equal(both[name], tensor) for name, tensor in first.gradient.items())


# --------------------------------------------------------------------------------------------------------- what anneals
@pytest.mark.parametrize("n", [1, 2, 5])
def test_weights_sum_to_one_and_go_over_to_the_last_step(n: int) -> None:
    for share in (0.0, 0.3, 0.96, 0.98, 0.999, 1.0, 7.0):
        weights = loss_weights(n, share)
        assert sum(weights) == pytest.approx(1.0)
        assert len(weights) == n
    assert loss_weights(n, 0.0) == pytest.approx([1.0 / n] * n)
    assert loss_weights(n, 1.0) == [0.0] * (n - 1) + [1.0]
    # As the reference has it, with 100 epochs: 1/N − epoch/(100 N), at least 0.03/N.
    assert loss_weights(n, 0.4)[:-1] == pytest.approx([0.6 / n] * (n - 1))
    assert loss_weights(n, 0.99)[-1] == pytest.approx(1.0 - (n - 1) * 0.03 / n)


PLAIN: dict[str, Any] = {"learn_rates": False, "n_multi_step_iterations": 0, "outer": "adam", "outer_kwargs": {}}


@pytest.mark.parametrize("learner", ["supervised", "vpg"])
def test_without_its_changes_it_is_maml_to_the_bit(learner: str) -> None:
    sizes = {"learner": learner, "outer": "adam", "outer_kwargs": {}, "n_inner_steps": 2}
    ours, theirs = small(MAMLPlusPlus, **{**PLAIN, **sizes}), small(MAML, **sizes)
    run_iterations(ours, 2), run_iterations(theirs, 2)
    assert equal(ours.params, theirs.params)
    # One step has one loss, whatever anneals, and rates that are learnt beside θ change none of its gradient.
    one, plain = (small(cls, **{**sizes, "n_inner_steps": 1}) for cls in (MAMLPlusPlus, MAML))
    one.train(), plain.train()
    assert all(torch.allclose(one.params[name], tensor, atol=1e-6) for name, tensor in plain.params.items())
    assert one.params["rates/action_net.bias"].shape == (2,)


def test_the_order_of_derivatives_changes_at_its_meta_iteration() -> None:
    sizes = {**PLAIN, "n_inner_steps": 2}
    model, first = (
        small(MAMLPlusPlus, **sizes, n_first_order_iterations=1),
        small(FOMAML, n_inner_steps=2, outer="adam"),
    )
    run_iterations(model, 1), run_iterations(first, 1)
    assert all(torch.allclose(model.params[name], tensor, atol=1e-7) for name, tensor in first.params.items())
    seen = model.train(), first.train()
    assert "meta/second_order_share" in seen[0]
    assert "meta/second_order_share" not in seen[1]


def test_what_anneals_goes_by_the_counter_that_files_hold(tmp_path: Path) -> None:
    model = small(MAMLPlusPlus, **SUPERVISED, n_multi_step_iterations=4, n_first_order_iterations=1)
    assert model.loss_weights == [0.5, 0.5]
    run_iterations(model, 1)
    assert model.loss_weights == pytest.approx([0.375, 0.625])
    again = load(model.save(tmp_path / "model"))
    assert again.loss_weights == model.loss_weights
    first, second = model.train(), again.train()
    assert equal(again.params, model.params)
    assert first["meta/last_loss_weight"] == second["meta/last_loss_weight"] == pytest.approx(0.625)


# ---------------------------------------------------------------------------------------------------------------- rates
def test_every_tensor_and_step_has_a_rate_and_the_last_goes_on() -> None:
    model = small(MAMLPlusPlus, **SUPERVISED, inner_lr=[0.1, 0.05])
    expected = torch.tensor([0.1, 0.05, 0.05])
    assert all(torch.equal(rates, expected) for rates in group(model.params, RATES).values())
    assert equal(
        model.adapt("Sinusoid-v0", 3).params,
        small(MAML, **SUPERVISED, inner_lr=[0.1, 0.05]).adapt("Sinusoid-v0", 3).params,
    )
    before = copy(model.params)
    run_iterations(model, 2)
    moved = model.params["rates/action_net.bias"]
    assert bool((moved[:2] != before["rates/action_net.bias"][:2]).all())
    assert moved[2] == before["rates/action_net.bias"][2]
    assert model.plain_rate == pytest.approx(0.1, abs=0.05)
    assert model.plain_rate != 0.1
    # Half the rate at test time halves the step.
    start = model.theta["action_net.bias"]
    whole, half = (
        model.adapt("Sinusoid-v0", 1, inner_lr=rate).params["action_net.bias"] - start for rate in (0.1, 0.05)
    )
    torch.testing.assert_close(half, 0.5 * whole, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("learner", ["supervised", "vpg", "a2c"])
def test_threads_change_no_bit(learner: str) -> None:
    sizes = {"learner": learner, "n_inner_steps": 2, "chunk_size": 1}
    learnt = []
    for n_threads in (1, 3):
        model = small(MAMLPlusPlus, **{**sizes, "n_threads": n_threads})
        run_iterations(model, 2)
        learnt.append(model.params)
    assert equal(*learnt)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"outer": "trpo"}, "maml_plus_plus with outer='trpo': a trust region bounds the policy at the end of a path"),
        ({"n_multi_step_iterations": -1}, "n_multi_step_iterations=-1 is not"),
        ({"n_first_order_iterations": 0.5}, "n_first_order_iterations=0.5 is not"),
        ({"learn_rates": "yes"}, "learn_rates='yes' is not"),
        ({"learner": "sb3_ppo"}, "maml_plus_plus around 'sb3_ppo': a stock algorithm's steps cannot be differentiated"),
        ({"outer_kwargs": {"schedule": "exponential"}}, "schedule='exponential' is not"),
    ],
)
def test_bad_arguments_are_refused_in_a_line(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        small(MAMLPlusPlus, **kwargs)
    assert "\n" not in str(error.value)
