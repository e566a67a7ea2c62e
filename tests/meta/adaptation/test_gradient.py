"""Inner steps and products with their derivative, in float64 against torch's own differentiation."""

from __future__ import annotations

import pytest
import torch

from metarl.meta.adaptation.gradient import InnerStep, Rate
from metarl.params import Params, expand, join, scale, subtract
from tests.meta.problems import TASKS, inner_path, make_learner, make_params, make_samples

KINDS = ("gaussian", "categorical")


def random_like(params: Params, seed: int) -> Params:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(t.shape, generator=generator, dtype=torch.float64) for n, t in params.items()}


def rates_for(params: Params, elementwise: bool) -> Rate:
    if not elementwise:
        return 0.3
    return {name: tensor.abs() for name, tensor in random_like({n: t[0] for n, t in params.items()}, 8).items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("elementwise", [False, True])
def test_step_and_products_equal_torchs_jacobian(kind: str, elementwise: bool) -> None:
    learner = make_learner(kind)
    samples = make_samples(learner.policy, 1)
    stack = expand(make_params(learner.policy), TASKS)
    rate = rates_for(stack, elementwise)
    names = list(stack)

    def end(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        params = dict(zip(names, values, strict=True))
        gradient = torch.autograd.grad(learner.loss(params, samples).sum(), values, create_graph=True)
        rates = [rate[name] if isinstance(rate, dict) else rate for name in names]
        return tuple(value - r * g for value, r, g in zip(values, rates, gradient, strict=True))

    start = tuple(tensor.clone().requires_grad_() for tensor in stack.values())
    step = InnerStep(learner, stack, samples, rate, second_order=True)
    for name, value in zip(names, end(*start), strict=True):
        torch.testing.assert_close(step.end[name], value.detach(), rtol=1e-12, atol=1e-12)
        assert not step.end[name].requires_grad
    torch.testing.assert_close(step.losses, learner.loss(stack, samples))

    tangent, cotangent = random_like(stack, 3), random_like(stack, 4)
    _, forward = torch.autograd.functional.jvp(end, start, tuple(tangent.values()))
    _, backward = torch.autograd.functional.vjp(end, start, tuple(cotangent.values()))
    moved, pulled = step.forward(tangent), step.backward(cotangent)
    for name, f, b in zip(names, forward, backward, strict=True):
        torch.testing.assert_close(moved[name], f, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(pulled[name], b, rtol=1e-9, atol=1e-10)


def test_products_do_not_mix_tasks() -> None:
    learner = make_learner("gaussian")
    stack = expand(make_params(learner.policy), TASKS)
    step = InnerStep(learner, stack, make_samples(learner.policy, 1), 0.3, second_order=True)
    tangent = random_like(stack, 3)
    for tensor in tangent.values():
        tensor[1:] = 0.0
    for tensor in step.hessian_product(tangent).values():
        assert not tensor[1:].any()


def test_a_path_takes_each_step_from_where_the_last_one_ended() -> None:
    learner = make_learner("gaussian")
    batches = [make_samples(learner.policy, seed) for seed in (1, 2, 3)]
    params = expand(make_params(learner.policy), TASKS)
    steps, end = inner_path(learner, params, batches, [0.3, 0.2, 0.1])
    for batch, rate, step in zip(batches, [0.3, 0.2, 0.1], steps, strict=True):
        leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in params.items()}
        gradient = torch.autograd.grad(learner.loss(leaves, batch).sum(), list(leaves.values()))
        params = {n: t.detach() - rate * g for (n, t), g in zip(leaves.items(), gradient, strict=True)}
        for name in params:
            torch.testing.assert_close(step.end[name], params[name], rtol=1e-12, atol=1e-12)
    for name in params:
        assert torch.equal(end[name], steps[-1].end[name])
    assert inner_path(learner, params, [], []) == ([], params)


def test_a_step_leaves_its_start_alone() -> None:
    learner = make_learner("gaussian")
    params = make_params(learner.policy)
    before = {name: tensor.clone() for name, tensor in params.items()}
    InnerStep(learner, expand(params, TASKS), make_samples(learner.policy, 1), 0.3, second_order=True)
    for name, tensor in params.items():
        assert torch.equal(tensor, before[name])
        assert not tensor.requires_grad


def test_arithmetic_of_stacks() -> None:
    params = {"a": torch.arange(4.0).reshape(2, 2), "b": torch.ones(3)}
    stack = expand(params, 2)
    assert {name: tuple(tensor.shape) for name, tensor in stack.items()} == {"a": (2, 2, 2), "b": (2, 3)}
    assert stack["a"].data_ptr() == params["a"].data_ptr()
    both = join([stack, expand(params, 1)])
    assert both["b"].shape == (3, 3)
    assert scale(2.0, params)["a"].tolist() == [[0.0, 2.0], [4.0, 6.0]]
    assert scale({"a": torch.full((2, 2), 3.0), "b": torch.zeros(3)}, params)["b"].tolist() == [0.0] * 3
    assert not subtract(params, params)["a"].any()
