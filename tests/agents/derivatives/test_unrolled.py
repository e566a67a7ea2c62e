"""Unrolled paths against chains of Hessian-vector products and finite differences, in float64."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from metarl.agents.derivatives.base import LossFunction
from metarl.agents.derivatives.unrolled import UnrolledPath, UnrolledRate
from metarl.agents.networks.policy import FunctionalPolicy
from metarl.params import Params, scale, subtract
from tests.agents.derivatives.problems import close, head_loss, normal, numeric_gradient, random_like
from tests.agents.derivatives.test_autograd import make

RATES = (0.3, 0.2, 0.1)


def problem(kind: str = "gaussian") -> tuple[FunctionalPolicy, Params, list[torch.Tensor]]:
    policy, params, obs = make(kind, critic=kind == "gaussian")
    return policy, params, [obs, *(normal(*obs.shape, seed=20 + i) for i in range(4))]


def losses_of(policy: FunctionalPolicy, batches: list[torch.Tensor], kind: str = "gaussian") -> list[LossFunction]:
    return [policy.loss_function(obs, head_loss(kind)) for obs in batches]


def gradient_of(loss: LossFunction, params: Params) -> Params:
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in params.items()}
    found = torch.autograd.grad(loss(leaves).sum(), list(leaves.values()), materialize_grads=True)
    return dict(zip(params, found, strict=True))


@pytest.mark.parametrize("elementwise", [False, True])
@pytest.mark.parametrize("n_steps", [1, 2, 3])
def test_its_derivative_is_the_chain_of_hessian_products(n_steps: int, elementwise: bool) -> None:
    policy, params, batches = problem()
    rates: list[float | Params] = list(RATES[:n_steps])
    if elementwise:
        rates = [{name: 0.1 * tensor.abs() for name, tensor in random_like(params, 40 + i).items()} for i in range(3)]
    loss = head_loss("gaussian")
    steps, theta = [], params
    for obs, rate in zip(batches, rates[:n_steps], strict=False):
        steps.append(policy.differentiate(theta, obs, loss, second_order=True))
        theta = subtract(theta, scale(rate, steps[-1].gradient))
    chain = policy.differentiate(theta, batches[4], loss).gradient
    for step, rate in zip(reversed(steps), reversed(rates[:n_steps]), strict=True):
        chain = subtract(chain, step.product(scale(rate, chain)))
    query = policy.loss_function(batches[4], loss)
    path = UnrolledPath(losses_of(policy, batches)[:n_steps], rates[:n_steps])
    close({name: tensor.detach() for name, tensor in path.end(params).items()}, theta)
    close(gradient_of(path.then(query), params), chain)


def test_the_loss_of_a_path_may_be_the_end_of_another() -> None:
    """Three levels: the gradient holds third derivatives of the innermost loss."""
    policy, params, batches = problem("categorical")
    first, second, query, test, _ = losses_of(policy, batches, "categorical")
    inner = UnrolledPath([first, second], [0.3, 0.2])
    outer = UnrolledPath([inner.then(query), inner.then(query)], [0.5, 0.5])
    found = gradient_of(outer.then(test), params)
    name = "mlp_extractor.policy_net.0.bias"

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        return outer.then(test)({**params, name: tensor}).sum().detach()

    close({name: found[name]}, {name: numeric_gradient(moved, params[name], 2e-4)}, 1e-6)
    # A path that did not reach through the inner one would find something else.
    shallow = UnrolledPath([query, query], [0.5, 0.5])
    other = gradient_of(shallow.then(test), params)[name]
    assert float((other - found[name]).norm()) > 0.01 * float(found[name].norm())


@pytest.mark.parametrize("n_steps", [1, 3])
def test_rates_are_differentiated_too(n_steps: int) -> None:
    policy, params, batches = problem()
    query, losses = losses_of(policy, batches)[4], losses_of(policy, batches)[:n_steps]
    name = "action_net.weight"

    def at(rate: UnrolledRate, start: Params = params) -> torch.Tensor:
        return UnrolledPath(losses, [rate] * n_steps).then(query)(start).sum()

    one = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(at(one), one)
    close({"": found}, {"": numeric_gradient(lambda r: at(r).detach(), one, 2e-4)}, 1e-7)
    each = {key: torch.full(tensor.shape[1:], 0.2, dtype=torch.float64) for key, tensor in params.items()}
    leaf = each[name].clone().requires_grad_()
    (found,) = torch.autograd.grad(at({**each, name: leaf}), leaf)
    expected = numeric_gradient(lambda r: at({**each, name: r}).detach(), leaf, 2e-4)
    close({"": found}, {"": expected}, 1e-7)
    # Of the last step's rate it is minus the step's gradient times the cotangent.
    before = UnrolledPath(losses[:-1], [0.2] * (n_steps - 1)).end(params)
    step = gradient_of(losses[-1], {key: tensor.detach() for key, tensor in before.items()})
    end = {key: tensor.detach() - 0.2 * step[key] for key, tensor in before.items()}
    last = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    loss = UnrolledPath(losses, [*([0.2] * (n_steps - 1)), last]).then(query)(params).sum()
    (found,) = torch.autograd.grad(loss, last)
    cotangent = gradient_of(query, end)
    inner = sum((step[key] * cotangent[key]).sum() for key in step)
    torch.testing.assert_close(found, -torch.as_tensor(inner), rtol=1e-9, atol=1e-12)


def test_tensors_without_a_rate_stay_and_are_still_differentiated() -> None:
    policy, params, batches = problem()
    losses = losses_of(policy, batches)
    name, stays = "action_net.bias", "action_net.weight"
    path = UnrolledPath(losses[:2], [{name: 0.4}] * 2)
    end = path.end(params)
    assert all(torch.equal(end[key], tensor) for key, tensor in params.items() if key != name)
    assert not torch.equal(end[name], params[name])
    found = gradient_of(path.then(losses[4]), params)

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        return path.then(losses[4])({**params, stays: tensor}).sum().detach()

    close({stays: found[stays]}, {stays: numeric_gradient(moved, params[stays], 2e-4)}, 1e-7)


def test_points_are_those_of_the_steps_and_need_no_gradient_mode() -> None:
    policy, params, batches = problem()
    losses = losses_of(policy, batches)
    path = UnrolledPath(losses[:3], RATES)
    with torch.no_grad():
        points = path.points(params)
    assert len(points) == 4
    for loss, rate, before, after in zip(losses, RATES, points, points[1:], strict=False):
        here = {name: tensor.detach() for name, tensor in before.items()}
        close({n: t.detach() for n, t in after.items()}, subtract(here, scale(rate, gradient_of(loss, here))))


def test_a_context_is_differentiated() -> None:
    """A loss may depend on tensors that are no parameters of the path."""
    policy, params, batches = problem()
    query = losses_of(policy, batches)[4]

    def end(context: torch.Tensor) -> torch.Tensor:
        shifted = partial(lambda obs, p: policy.loss_function(obs, head_loss("gaussian"))(p), batches[0] + context)
        return UnrolledPath([shifted], [0.3]).then(query)(params).sum()

    leaf = normal(3, seed=50).requires_grad_()
    (found,) = torch.autograd.grad(end(leaf), leaf)
    close({"": found}, {"": numeric_gradient(lambda c: end(c).detach(), leaf, 2e-4)}, 1e-7)


def test_a_step_that_is_too_long_is_shortened_over_all_tensors_of_its_task() -> None:
    start = {"a": torch.zeros(2, 2), "b": torch.zeros(2, 1)}
    slopes = {"a": torch.tensor([[3.0, 0.0], [0.3, 0.0]]), "b": torch.tensor([[4.0], [0.4]])}

    def loss(params: Params) -> torch.Tensor:
        return sum(((slopes[name] * params[name]).sum(1) for name in slopes), torch.zeros(2))

    end = UnrolledPath([loss], [1.0], longest=1.0).end(start)
    torch.testing.assert_close(end["a"].detach(), torch.tensor([[-0.6, 0.0], [-0.3, 0.0]]))
    torch.testing.assert_close(end["b"].detach(), torch.tensor([[-0.8], [-0.4]]))
