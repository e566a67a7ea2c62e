"""Exact tests of meta-gradients and curvature, in float64."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from metarl.agents.learners.vpg import VPG
from metarl.agents.networks.distributions import MIN_LOG_STD
from metarl.agents.parallel import Parallel
from metarl.agents.sampling.samples import Samples, mean_weights
from metarl.errors import ConfigError
from metarl.params import Params, Rate, dot, expand, norm, scale
from tests.meta.problems import TASKS, inner_path, local_objective, make_learner, make_params, make_samples

RATES = [0.3, 0.2, 0.1]
KINDS = ("gaussian", "categorical")


def problem(kind: str, n_steps: int, surrogate: str = "log_likelihood") -> tuple[VPG, Params, list[Samples], Samples]:
    learner = make_learner(kind, surrogate)
    support = [make_samples(learner.policy, seed) for seed in range(1, n_steps + 1)]
    return learner, make_params(learner.policy), support, replace(make_samples(learner.policy, 99), log_prob=None)


def adapted(learner: VPG, params: Params, support: list[Samples], task: int) -> Params:
    """Adapt one task by itself, with the whole graph, through torch's own functions."""
    for batch, rate in zip(support, RATES, strict=False):
        alone = batch.tasks(slice(task, task + 1))
        loss = learner.loss(expand(params, 1), alone).sum()
        gradient = torch.autograd.grad(loss, list(params.values()), create_graph=True)
        params = {name: tensor - rate * g for (name, tensor), g in zip(params.items(), gradient, strict=True)}
    return params


def reference_loss(learner: VPG, params: Params, start: Params, support: list[Samples], query: Samples) -> torch.Tensor:
    """Compute the meta-objective task by task, sample by sample, without any of the code under test."""
    total = torch.zeros((), dtype=torch.float64)
    for task in range(TASKS):
        n = int(query.counts[task])
        phi, old = adapted(learner, params, support, task), adapted(learner, start, support, task)
        obs, actions = query.obs[task, :n], query.actions[task, :n]
        ratio = learner.policy.distribution(phi, obs).log_prob(actions) - (
            learner.policy.distribution(old, obs).log_prob(actions).detach()
        )
        total = total - (ratio.exp() * query.advantages[task, :n]).mean()
    return total / TASKS


def leaves(params: Params) -> Params:
    return {name: tensor.clone().requires_grad_() for name, tensor in params.items()}


@pytest.mark.parametrize(("kind", "n_steps"), list(itertools.product(KINDS, (0, 1, 3))))
@pytest.mark.parametrize("surrogate", ["log_likelihood", "likelihood_ratio"])
def test_meta_gradient_equals_finite_differences(kind: str, n_steps: int, surrogate: str) -> None:
    learner, params, support, query = problem(kind, n_steps, surrogate)
    rates = RATES[:n_steps]
    gradient = local_objective(learner, params, support, query, rates).gradient().gradient
    generator = torch.Generator().manual_seed(5)
    for _ in range(4):
        direction = {n: torch.randn(t.shape, generator=generator, dtype=torch.float64) for n, t in params.items()}
        eps = 1e-5

        def value(sign: float, along: Params = direction, eps: float = eps) -> float:
            moved = leaves({name: tensor + sign * eps * along[name] for name, tensor in params.items()})
            return float(reference_loss(learner, moved, leaves(params), support, query).detach())

        numeric = (-value(2.0) + 8.0 * value(1.0) - 8.0 * value(-1.0) + value(-2.0)) / (12.0 * eps)
        assert dot(gradient, direction) == pytest.approx(numeric, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(("kind", "n_steps"), list(itertools.product(KINDS, (1, 3))))
def test_meta_gradient_equals_differentiation_of_the_whole(kind: str, n_steps: int) -> None:
    learner, params, support, query = problem(kind, n_steps)
    result = local_objective(learner, params, support, query, RATES[:n_steps]).gradient()
    theta = leaves(params)
    loss = reference_loss(learner, theta, theta, support, query)
    whole = dict(zip(theta, torch.autograd.grad(loss, list(theta.values())), strict=True))
    assert result.loss == pytest.approx(float(loss.detach()), rel=1e-12)
    for name, tensor in whole.items():
        torch.testing.assert_close(result.gradient[name], tensor, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("kind", "n_steps"), list(itertools.product(KINDS, (1, 3))))
def test_fomaml_is_maml_with_the_jacobian_replaced_by_the_identity(kind: str, n_steps: int) -> None:
    learner, params, support, query = problem(kind, n_steps)
    rates = RATES[:n_steps]
    first = local_objective(learner, params, support, query, rates, first_order=True).gradient()
    second = local_objective(learner, params, support, query, rates).gradient()
    identity: Params = {name: torch.zeros_like(tensor) for name, tensor in params.items()}
    chained: Params = {name: torch.zeros_like(tensor) for name, tensor in params.items()}
    for task in range(TASKS):
        theta = leaves(params)
        phi = adapted(learner, theta, support, task)
        n = int(query.counts[task])
        log_prob = learner.policy.distribution(phi, query.obs[task, :n]).log_prob(query.actions[task, :n])
        loss = -(torch.exp(log_prob - log_prob.detach()) * query.advantages[task, :n]).mean()
        outer = torch.autograd.grad(loss, list(phi.values()), retain_graph=True)
        through = torch.autograd.grad(list(phi.values()), list(theta.values()), outer)
        for name, g, t in zip(params, outer, through, strict=True):
            identity[name] += g / TASKS
            chained[name] += t / TASKS
    for name in params:
        torch.testing.assert_close(first.gradient[name], identity[name], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(second.gradient[name], chained[name], rtol=1e-9, atol=1e-12)
    gap = norm({name: chained[name] - identity[name] for name in params}) / norm(chained)
    assert second.second_order_share == pytest.approx(gap, rel=1e-6)
    assert gap > 1e-3
    assert first.second_order_share is None


@pytest.mark.parametrize(("kind", "n_steps"), list(itertools.product(KINDS, (0, 1, 3))))
@pytest.mark.parametrize("direction", ["old_new", "new_old"])
def test_curvature_product_equals_double_differentiation_of_the_kl(kind: str, n_steps: int, direction: str) -> None:
    learner, params, support, query = problem(kind, n_steps)
    objective = local_objective(learner, params, support, query, RATES[:n_steps], kl_direction=direction)
    theta = leaves(params)
    total = torch.zeros((), dtype=torch.float64)
    for task in range(TASKS):
        n = int(query.counts[task])
        old = learner.policy.distribution(
            {k: t.detach() for k, t in adapted(learner, leaves(params), support, task).items()}, query.obs[task, :n]
        )
        new = learner.policy.distribution(adapted(learner, theta, support, task), query.obs[task, :n])
        total = total + (old.kl(new) if direction == "old_new" else new.kl(old)).mean() / TASKS
    gradient = torch.autograd.grad(total, list(theta.values()), create_graph=True)
    vector = make_params(learner.policy, seed=7)
    double = torch.autograd.grad(gradient, list(theta.values()), list(vector.values()))
    product = objective.curvature_product(vector)
    for name, expected in zip(params, double, strict=True):
        torch.testing.assert_close(product[name], expected, rtol=1e-8, atol=1e-11)


def test_first_order_curvature_drops_the_jacobian_but_not_the_adaptation() -> None:
    learner, params, support, query = problem("gaussian", 1)
    objective = local_objective(learner, params, support, query, RATES[:1], first_order=True)
    vector = make_params(learner.policy, seed=7)
    expected: Params = {name: torch.zeros_like(tensor) for name, tensor in params.items()}
    for task in range(TASKS):
        n = int(query.counts[task])
        phi = {k: t.detach().requires_grad_() for k, t in adapted(learner, leaves(params), support, task).items()}
        old = learner.policy.distribution({k: t.detach() for k, t in phi.items()}, query.obs[task, :n])
        kl = old.kl(learner.policy.distribution(phi, query.obs[task, :n])).mean()
        gradient = torch.autograd.grad(kl, list(phi.values()), create_graph=True)
        double = torch.autograd.grad(gradient, list(phi.values()), list(vector.values()))
        for name, g in zip(params, double, strict=True):
            expected[name] += g / TASKS
    product = objective.curvature_product(vector)
    for name, tensor in expected.items():
        torch.testing.assert_close(product[name], tensor, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("first_order", [False, True])
def test_the_result_does_not_depend_on_chunks_caching_or_threads(first_order: bool) -> None:
    learner, params, support, query = problem("gaussian", 2)
    vector = make_params(learner.policy, seed=7)

    def results(chunk_size: int, cache_bytes: int, threads: int) -> list[Params | tuple[float, float]]:
        objective = local_objective(
            learner,
            params,
            support,
            query,
            RATES[:2],
            first_order=first_order,
            chunk_size=chunk_size,
            cache_bytes=lambda: cache_bytes,
            parallel=Parallel(threads),
        )
        moved = {name: tensor + 0.01 * vector[name] for name, tensor in params.items()}
        return [
            objective.gradient().gradient,
            objective.curvature_product(vector),
            objective.curvature_product(vector),
            objective.evaluate(moved),
        ]

    looped = results(1, 0, 1)
    for settings in ((1, 0, 2), (1, 10**9, 1), (1, 10**9, 2)):
        for ours, theirs in zip(results(*settings), looped, strict=True):
            if isinstance(ours, dict):
                assert isinstance(theirs, dict)
                assert all(torch.equal(ours[name], theirs[name]) for name in ours), settings
            else:
                assert ours == theirs, settings
    for chunk_size in (2, 3):
        for ours, theirs in zip(results(chunk_size, 10**9, 1), looped, strict=True):
            if isinstance(ours, dict):
                assert isinstance(theirs, dict)
                for name in ours:
                    torch.testing.assert_close(ours[name], theirs[name], rtol=1e-10, atol=1e-13)
            else:
                assert ours == pytest.approx(theirs, rel=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_stacked_losses_and_gradients_equal_vmapped_ones(kind: str) -> None:
    learner = make_learner(kind)
    samples = make_samples(learner.policy, 3)
    stack = {n: torch.stack([make_params(learner.policy, s)[n] for s in range(TASKS)]) for n in learner.policy.names}

    def one(
        params: Params, obs: torch.Tensor, actions: torch.Tensor, adv: torch.Tensor, w: torch.Tensor
    ) -> torch.Tensor:
        alone = Samples(obs, actions, adv, w, samples.counts, samples.episode_ends)
        return learner.loss(params, alone)

    data = (samples.obs, samples.actions, samples.advantages, samples.weights)
    vmapped = torch.func.vmap(torch.func.grad(one))(stack, *data)
    _, end = inner_path(learner, stack, [samples], [1.0])
    torch.testing.assert_close(torch.func.vmap(one)(stack, *data), learner.loss(stack, samples), rtol=1e-12, atol=1e-12)
    for name, tensor in vmapped.items():
        torch.testing.assert_close(stack[name] - end[name], tensor, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("direction", ["old_new", "new_old"])
def test_evaluate_adapts_again_and_is_exact_at_the_start(direction: str) -> None:
    learner, params, support, query = problem("gaussian", 2)
    objective = local_objective(learner, params, support, query, RATES[:2], first_order=True, kl_direction=direction)
    loss, kl = objective.evaluate(params)
    assert kl == pytest.approx(0.0, abs=1e-15)
    assert loss == pytest.approx(objective.gradient().loss, rel=1e-12)
    moved = {name: tensor + 0.05 for name, tensor in params.items()}
    loss, kl = objective.evaluate(moved)
    assert loss == pytest.approx(float(reference_loss(learner, leaves(moved), leaves(params), support, query).detach()))
    total = 0.0
    for task in range(TASKS):
        n = int(query.counts[task])
        old = learner.policy.distribution(adapted(learner, leaves(params), support, task), query.obs[task, :n])
        new = learner.policy.distribution(adapted(learner, leaves(moved), support, task), query.obs[task, :n])
        total += float((old.kl(new) if direction == "old_new" else new.kl(old)).mean().detach()) / TASKS
    assert kl == pytest.approx(total, rel=1e-9)


def uneven(learner: VPG, seed: int, lengths: list[list[int]]) -> Samples:
    """Samples of episodes of given lengths: 0 where a task has fewer episodes than others, as with transitions."""
    table = np.array(lengths)
    counts = table.sum(1)
    samples = make_samples(learner.policy, seed, len(table))
    rng = np.random.default_rng(seed)
    n = int(counts.max())
    shape = (len(table), n)
    return replace(
        samples,
        obs=torch.from_numpy(rng.standard_normal((*shape, 3))),
        actions=torch.from_numpy(
            rng.integers(0, 3, shape) if samples.actions.ndim == 2 else rng.standard_normal((*shape, 2))
        ),
        advantages=torch.from_numpy(rng.standard_normal(shape)),
        weights=mean_weights(counts, n, torch.float64),
        counts=counts,
        episode_ends=np.cumsum(table, axis=1),
        log_prob=None,
    )


def exact(
    learner: VPG, params: Params, support: list[Samples], query: Samples, rates: list[Rate]
) -> tuple[Params, Params, Params]:
    """Return a vector, the meta-gradient and the curvature times the vector, through torch's own functions."""

    def adapt(start: Params, task: int) -> Params:
        for batch, rate in zip(support, rates, strict=True):
            loss = learner.loss(expand(start, 1), batch.tasks(slice(task, task + 1))).sum()
            gradient = torch.autograd.grad(loss, list(start.values()), create_graph=True, materialize_grads=True)
            ours = scale(rate, dict(zip(start, gradient, strict=True)))
            start = {name: tensor - ours[name] for name, tensor in start.items()}
        return start

    theta = leaves(params)
    loss = kl = torch.zeros((), dtype=torch.float64)
    for task in range(len(query)):
        n = int(query.counts[task])
        obs, actions = query.obs[task, :n], query.actions[task, :n]
        new = learner.policy.distribution(adapt(theta, task), obs)
        phi = {name: tensor.detach() for name, tensor in adapt(leaves(params), task).items()}
        old = learner.policy.distribution(phi, obs)
        ratio = torch.exp(new.log_prob(actions) - old.log_prob(actions))
        loss = loss - (ratio * query.advantages[task, :n]).mean() / len(query)
        kl = kl + old.kl(new).mean() / len(query)
    first = torch.autograd.grad(loss, list(theta.values()), retain_graph=True, materialize_grads=True)
    slope = torch.autograd.grad(kl, list(theta.values()), create_graph=True, materialize_grads=True)
    vector = make_params(learner.policy, seed=7)
    curved = [(part, vector[name]) for name, part in zip(theta, slope, strict=True) if part.requires_grad]
    product = torch.autograd.grad(
        [part for part, _ in curved], list(theta.values()), [along for _, along in curved], materialize_grads=True
    )
    return vector, dict(zip(theta, first, strict=True)), dict(zip(theta, product, strict=True))


UNEVEN = [[6, 0, 0, 0], [1, 0, 0, 0], [3, 2, 5, 6], [1, 1, 1, 1], [6, 6, 6, 6]]
"""One episode beside four, a single env step beside 24; chunks of two tasks leave one over."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", ["numbers", "by parameter"])
def test_tasks_of_very_different_sizes(kind: str, rule: str) -> None:
    learner = make_learner(kind)
    params = make_params(learner.policy)
    support = [uneven(learner, seed, UNEVEN) for seed in (1, 2)]
    query = uneven(learner, 9, UNEVEN[::-1])
    rates: list[Rate] = list(RATES[:2])
    if rule == "by parameter":
        rates = [{name: 0.1 * tensor.abs() for name, tensor in make_params(learner.policy, s).items()} for s in (3, 4)]
    vector, gradient, product = exact(learner, params, support, query, rates)
    objective = local_objective(learner, params, support, query, rates, chunk_size=2)
    found = objective.gradient().gradient, objective.curvature_product(vector)
    for name in params:
        torch.testing.assert_close(found[0][name], gradient[name], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found[1][name], product[name], rtol=1e-8, atol=1e-11)
    # The smallest share is one whole episode of every task.
    part = query.episodes(1e-6)
    np.testing.assert_array_equal(part.counts, query.episode_ends[:, 0])
    np.testing.assert_allclose(part.weights.sum(-1).numpy(), 1.0)


@pytest.mark.parametrize("n_steps", [0, 1])
@pytest.mark.parametrize("log_std", [MIN_LOG_STD - 1.0, MIN_LOG_STD])
def test_standard_deviations_at_and_below_the_floor(log_std: float, n_steps: int) -> None:
    learner = make_learner("gaussian")
    params = make_params(learner.policy)
    params["log_std"] = torch.tensor([log_std, -0.5], dtype=torch.float64)
    # Actions are a million standard deviations from the mean: advantages this small keep inner steps moderate.
    batches = [uneven(learner, seed, UNEVEN) for seed in (1, 9)]
    support, query = (replace(batch, advantages=1e-13 * batch.advantages) for batch in batches)
    arguments = learner, params, [support][:n_steps], query
    vector, gradient, product = exact(*arguments, [0.3][:n_steps])
    objective = local_objective(*arguments, [0.3][:n_steps])
    found = objective.gradient().gradient, objective.curvature_product(vector)
    for name in params:
        torch.testing.assert_close(found[0][name], gradient[name], rtol=1e-9, atol=1e-20)
        torch.testing.assert_close(found[1][name], product[name], rtol=1e-8, atol=1e-3)
    # Below the floor the standard deviation does not move; at it, it can.
    assert (found[0]["log_std"][0] == 0.0) == (log_std < MIN_LOG_STD)


def test_padding_is_never_looked_at() -> None:
    learner, params, support, query = problem("gaussian", 1)
    before = local_objective(learner, params, support, query, RATES[:1]).gradient().gradient
    for batch in (*support, query):
        for task, count in enumerate(batch.counts):
            batch.obs[task, count:] = 1e3
            batch.actions[task, count:] = -7.0
            batch.advantages[task, count:] = 1e6
    after = local_objective(learner, params, support, query, RATES[:1]).gradient().gradient
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=1e-12, atol=1e-14)


def test_fisher_fraction_takes_whole_episodes() -> None:
    learner, params, support, query = problem("gaussian", 1)
    half = query.episodes(0.5)
    np.testing.assert_array_equal(half.counts, query.episode_ends[:, 1])
    np.testing.assert_allclose(half.weights.sum(-1).numpy(), 1.0)
    vector = make_params(learner.policy, seed=7)
    arguments = (learner, params, support, query, RATES[:1])
    for first_order in (True, False):
        product = local_objective(*arguments, first_order=first_order, fisher_fraction=0.5).curvature_product(vector)
        expected: Params = {name: torch.zeros_like(tensor) for name, tensor in params.items()}
        for task in range(TASKS):
            start = expand(params, 1)
            phi = inner_path(learner, start, [support[0].tasks(slice(task, task + 1))], RATES[:1])[1]
            part = support[0].episodes(0.5).tasks(slice(task, task + 1))
            steps = [] if first_order else inner_path(learner, start, [part], RATES[:1], second_order=True)[0]
            alone = half.tasks(slice(task, task + 1))
            linear = learner.policy.linearize(phi, alone.obs)
            tangent = expand(vector, 1)
            for step in steps:
                tangent = step.forward(tangent)
            cotangent = linear.vjp(linear.distribution.fisher(linear.jvp(tangent), alone.weights))
            for step in steps:
                cotangent = step.backward(cotangent)
            for name in expected:
                expected[name] += cotangent[name][0] / TASKS
        for name, tensor in expected.items():
            torch.testing.assert_close(product[name], tensor, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(
    ("name", "value"),
    [("fisher_fraction", 0.0), ("fisher_fraction", 1.5), ("fisher_fraction", True), ("kl_direction", "up")],
)
def test_bad_arguments_are_named(name: str, value: object) -> None:
    learner, params, support, query = problem("gaussian", 1)
    with pytest.raises(ConfigError, match=f"{name}={value!r}"):
        local_objective(learner, params, support, query, RATES[:1], **{name: value})  # type: ignore[arg-type]
