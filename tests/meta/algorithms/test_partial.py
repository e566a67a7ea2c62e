"""ANIL, BOIL, Meta-SGD and CAVIA: what adapts, what is meta-learnt beside the policy, and exact gradients of both."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metarl.agents.learners.vpg import VPG
from metarl.agents.networks.context import CONTEXT
from metarl.agents.networks.policy import FunctionalPolicy
from metarl.errors import ConfigError, UnknownNameError
from metarl.meta.adaptation.gradient import InnerRule
from metarl.meta.algorithms.anil import ANIL
from metarl.meta.algorithms.boil import BOIL
from metarl.meta.algorithms.cavia import CAVIA
from metarl.meta.algorithms.maml import MAML
from metarl.meta.algorithms.meta_sgd import MetaSGD
from metarl.meta.base import load
from metarl.meta.blocks.derivatives import BlockDerivatives
from metarl.meta.outer.objective import BlockObjective
from metarl.params import RATES, Params, dot, group, grouped, meta_name
from tests.meta.problems import make_params, make_policy, make_samples
from tests.meta.small import copy, equal, run_iterations, small

HEAD = {"action_net.weight", "action_net.bias", "log_std"}


def objective(kind: str, params: Params, rule: InnerRule, context: bool, first_order: bool = False) -> BlockObjective:
    plain = make_policy(kind)
    policy = plain
    if context:
        kwargs = {"net_arch": [5, 4], "activation_fn": "tanh"}
        policy = FunctionalPolicy("MlpPolicy", plain.observation_space, plain.action_space, kwargs, context=2)
    learner = VPG(policy)
    support = [make_samples(plain, seed) for seed in range(1, len(rule.rates) + 1)]
    query = replace(make_samples(plain, 99), log_prob=None)
    return BlockObjective([BlockDerivatives(learner, params, support, query, rule, first_order=first_order)])


def meta_params(kind: str, context: bool, rates: bool) -> Params:
    policy = make_policy(kind)
    if context:
        kwargs = {"net_arch": [5, 4], "activation_fn": "tanh"}
        policy = FunctionalPolicy("MlpPolicy", policy.observation_space, policy.action_space, kwargs, context=2)
    theta = make_params(policy)
    params = {meta_name(name): tensor for name, tensor in theta.items()}
    if rates:
        generator = torch.Generator().manual_seed(3)
        own = {n: 0.2 + 0.1 * torch.randn(t.shape, generator=generator, dtype=torch.float64) for n, t in theta.items()}
        params |= grouped(own, RATES)
    return params


CASES = {
    "rates": (False, True, ()),
    "context": (True, False, ()),
    "rates of a context": (True, True, ()),
    "head": (False, False, ("mlp_extractor.policy_net.0.weight", "mlp_extractor.policy_net.0.bias")),
    "context only": (True, False, None),
}


@pytest.mark.parametrize("n_steps", [1, 2, 3])
@pytest.mark.parametrize("kind", ["gaussian", "categorical"])
@pytest.mark.parametrize("case", CASES)
def test_meta_gradients_equal_finite_differences(case: str, kind: str, n_steps: int) -> None:
    context, rates, stays = CASES[case]
    params = meta_params(kind, context, rates)
    names = InnerRule().start(params)
    frozen = frozenset(names) - {CONTEXT} if stays is None else frozenset(stays)
    rule = InnerRule([0.3, 0.2, 0.1][:n_steps], frozen, 0.3)
    gradient = objective(kind, params, rule, context).gradient().gradient
    assert list(gradient) == list(params)
    generator = torch.Generator().manual_seed(5)
    for part in ("policy/", RATES, "context/"):
        if not any(name.startswith(part) for name in params):
            continue
        direction = {
            n: torch.randn(t.shape, generator=generator, dtype=torch.float64) * float(n.startswith(part))
            for n, t in params.items()
        }

        def value(size: float, along: Params = direction) -> float:
            # Ratios are to the policies that collected, so the loss is that of log-probabilities at another start.
            moved = {name: tensor + size * along[name] for name, tensor in params.items()}
            return objective(kind, params, rule, context).evaluate(moved)[0]

        eps = 1e-4
        numeric = (-value(2 * eps) + 8 * value(eps) - 8 * value(-eps) + value(-2 * eps)) / (12 * eps)
        assert dot(gradient, direction) == pytest.approx(numeric, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_curvature_is_that_of_the_divergence(case: str) -> None:
    context, rates, stays = CASES[case]
    params = meta_params("gaussian", context, rates)
    frozen = frozenset(InnerRule().start(params)) - {CONTEXT} if stays is None else frozenset(stays)
    rule = InnerRule([0.3, 0.2], frozen, 0.3)
    own = objective("gaussian", params, rule, context)
    generator = torch.Generator().manual_seed(7)
    v = {n: torch.randn(t.shape, generator=generator, dtype=torch.float64) for n, t in params.items()}
    product = own.curvature_product(v)

    def kl(size: float) -> float:
        return own.evaluate({name: tensor + size * v[name] for name, tensor in params.items()})[1]

    eps = 1e-3
    numeric = (-kl(2 * eps) + 16 * kl(eps) - 30 * kl(0.0) + 16 * kl(-eps) - kl(-2 * eps)) / (12 * eps**2)
    assert dot(product, v) == pytest.approx(numeric, rel=1e-5)


def test_first_order_rates_have_their_gradients_without_curvature() -> None:
    params = meta_params("gaussian", False, True)
    one = objective("gaussian", params, InnerRule([0.3], base=0.3), False)
    first = objective("gaussian", params, InnerRule([0.3], base=0.3), False, first_order=True)
    a, b = one.gradient().gradient, first.gradient().gradient
    for name in group(a, RATES):  # with a single step there is nothing after it to be curved
        torch.testing.assert_close(a[RATES + name], b[RATES + name])
    assert not torch.allclose(a["policy/log_std"], b["policy/log_std"])


def test_first_order_rates_bend_the_divergence_too() -> None:
    params = meta_params("gaussian", False, True)
    own = objective("gaussian", params, InnerRule([0.3], base=0.3), False, first_order=True)
    generator = torch.Generator().manual_seed(7)
    # Along rates alone the end of one step moves by −r ∘ g, to first order too.
    v = {
        n: torch.randn(t.shape, generator=generator, dtype=torch.float64) * float(n.startswith(RATES))
        for n, t in params.items()
    }
    kl = [own.evaluate({n: t + size * v[n] for n, t in params.items()})[1] for size in (-2e-3, -1e-3, 0.0, 1e-3, 2e-3)]
    numeric = (-kl[0] + 16 * kl[1] - 30 * kl[2] + 16 * kl[3] - kl[4]) / 12e-6
    product = own.curvature_product(v)
    assert dot(product, v) == pytest.approx(numeric, rel=1e-5)
    w = {n: torch.randn(t.shape, generator=generator, dtype=torch.float64) for n, t in params.items()}
    assert dot(product, w) == pytest.approx(dot(own.curvature_product(w), v), rel=1e-9)


@pytest.mark.parametrize("outer", ["trpo", "adam"])
def test_rates_are_meta_learnt_to_first_order(outer: str) -> None:
    class FirstOrder(MetaSGD):
        first_order = True

    model = small(FirstOrder, outer=outer, n_inner_steps=2)
    before = copy(model.params)
    model.train()
    assert not torch.equal(model.params["rates/log_std"], before["rates/log_std"])


@pytest.mark.parametrize(("algorithm", "adapts"), [(ANIL, True), (BOIL, False)])
def test_the_rest_is_bit_identical_in_the_inner_loop(algorithm: Any, adapts: bool) -> None:
    model = small(algorithm, n_inner_steps=2)
    before = copy(model.params)
    adapted = model.adapt("PointMass-v0", 2)
    for name, tensor in model.theta.items():
        assert torch.equal(adapted.params[name], tensor) != ((name in HEAD) == adapts), name
    model.train()
    assert [name for name in before if torch.equal(before[name], model.params[name])] == []


def test_which_modules_adapt_is_said_by_module_for_any_network() -> None:
    model = small(ANIL, inner_modules=["mlp_extractor.policy_net.0"], learner="ppo")
    moves = {name for name in model.theta if name not in model.stays}
    assert moves == {"mlp_extractor.policy_net.0.weight", "mlp_extractor.policy_net.0.bias"}
    assert {"value_net.weight", "value_net.bias", *HEAD} == {
        n for n in model.theta if n not in small(ANIL, learner="ppo").stays
    }
    with pytest.raises(UnknownNameError, match="part of the policy 'head'"):
        small(ANIL, inner_modules=["head"])
    with pytest.raises(ConfigError, match="leaves nothing that adapts"):
        small(BOIL, inner_modules=[])


def test_rates_are_meta_learnt_and_begin_at_the_inner_rate() -> None:
    model = small(MetaSGD, inner_lr=0.2)
    plain = small(MAML, inner_lr=0.2)
    assert all(bool((rate == 0.2).all()) for rate in group(model.params, RATES).values())
    assert equal(model.adapt("PointMass-v0", 1).params, plain.adapt("PointMass-v0", 1).params)
    run_iterations(model, 2)
    assert not all(bool((rate == 0.2).all()) for rate in group(model.params, RATES).values())
    assert model.plain_rate == pytest.approx(0.2, abs=0.1)
    assert model.plain_rate != 0.2


def test_contexts_are_folded_into_biases(tmp_path: Path) -> None:
    model = small(CAVIA, n_context=3, outer="adam")
    run_iterations(model, 2)
    assert model.params[CONTEXT].shape == (3,)
    assert bool(model.params[CONTEXT].any())
    env = model.get_env()
    obs = env.reset()
    stock = model.to_sb3(value_tasks=0)
    folded, own = (each.predict(obs, deterministic=True)[0] for each in (stock, model))
    np.testing.assert_allclose(folded, own, atol=1e-6)
    with pytest.raises(ConfigError, match="n_context=100000000 is not an integer in"):
        small(CAVIA, n_context=10**8)
    again = load(model.save(tmp_path / "cavia"))
    model.train(), again.train()
    assert equal(again.params, model.params)
    adapted = model.adapt("PointMass-v0", 2)
    assert [n for n, t in model.theta.items() if not torch.equal(adapted.params[n], t)] == [CONTEXT]


def test_parameters_as_sb3_has_them_hold_the_context_too() -> None:
    model, other = (small(CAVIA, n_context=3, outer="adam", seed=seed) for seed in (0, 1))
    run_iterations(model, 2)
    other.set_parameters(model.get_parameters())
    assert bool(other.params[CONTEXT].any())
    assert equal(other.params, model.params)


def test_rates_at_test_time_are_in_proportion_to_the_one_they_began_with(tmp_path: Path) -> None:
    model = small(MetaSGD, inner_lr=0.1)
    path = model.save(tmp_path / "model")
    start = model.theta["log_std"]
    moved = model.adapt("PointMass-v0", 1).params["log_std"] - start
    twice = model.adapt("PointMass-v0", 1, inner_lr=0.2).params["log_std"] - start
    torch.testing.assert_close(twice, 2.0 * moved, rtol=1e-4, atol=1e-6)
    other = load(path, inner_lr=0.3)
    assert torch.equal(other.adapt("PointMass-v0", 1).params["log_std"] - start, moved)
