"""MALTML: exact gradients of third order, first-order updates, and what it takes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import metarl
from metarl import MALTML
from metarl.agents.derivatives.levels import gathered, spread, summed
from metarl.errors import ConfigError, MetaRLError
from metarl.meta.adaptation.base import Outcome
from metarl.meta.progress import Timer
from metarl.meta.two_levels.finetuning import task_losses
from metarl.params import Params, expand
from metarl.streams import stream
from tests.agents.derivatives.problems import close, numeric_gradient
from tests.meta.small import equal, run_iterations
from tests.meta.two_levels.nested import objective

NET = {"net_arch": [4, 3], "activation_fn": "tanh"}
RATES = (0.05, 0.02, 0.08)
SMALL: dict[str, Any] = {
    "env": "SinusoidFamilies-v0",
    "learner": "supervised",
    "policy_kwargs": NET,
    "inner_lr": RATES[0],
    "meta_lr": RATES[1],
    "goal_lr": RATES[2],
    "meta_batch_size": 3,
    "n_tasks": 3,
    "n_goal_tasks": 2,
    "n_episodes": 4,
    "n_threads": 1,
}


def make(**kwargs: Any) -> MALTML:
    return MALTML("MlpPolicy", **{**SMALL, **kwargs})


def learnt(model: MALTML) -> Any:
    """Return what a meta-iteration learns of all its families."""
    few, goals = model._draw(few=3, goals=2)
    with model._whole():
        return model._learn(slice(0, model.meta_batch_size), few, goals, Timer())


def in_double(outcome: Outcome) -> Outcome:
    assert outcome.query is not None
    support = [batch.to(torch.float64) for batch in outcome.support]
    return replace(outcome, support=support, query=outcome.query.to(torch.float64))


def examples(outcome: Outcome, n: int) -> list[list[Any]]:
    """Return supports and queries by family and task."""
    assert outcome.query is not None
    support, query = outcome.support[0], outcome.query
    assert support.target is not None
    assert query.target is not None
    pairs = [
        ((support.obs[i], support.target[i]), (query.obs[i], query.target[i])) for i in range(len(outcome.returns))
    ]
    return [pairs[i : i + n] for i in range(0, len(pairs), n)]


def doubled(model: MALTML) -> Params:
    return {name: tensor.double() for name, tensor in model.theta.items()}


@pytest.mark.parametrize(("n_inner_steps", "n_meta_steps"), [(1, 1), (2, 2)])
def test_the_gradient_of_third_order_is_that_of_finite_differences_and_of_nested_loops(
    n_inner_steps: int, n_meta_steps: int
) -> None:
    model = make(n_inner_steps=n_inner_steps, n_meta_steps=n_meta_steps)
    found = learnt(model)
    *few, goal = map(in_double, found.outcomes)
    for again in few[1:]:  # the few tasks have no examples beyond their first
        assert torch.equal(again.query.target, few[0].query.target)  # type: ignore[union-attr, arg-type]
    finetuning = model.meta_finetuning(3, n_meta_steps, RATES[1])
    goal_rates = [RATES[2]] * n_inner_steps

    def loss(theta: Params) -> torch.Tensor:
        stack = expand(theta, 3)
        for outcome in few:
            stack = finetuning.step(stack, outcome)
        return summed(task_losses(finetuning.learner, goal, goal_rates), 2)(stack).sum()

    theta = {name: tensor.requires_grad_() for name, tensor in doubled(model).items()}
    slopes = torch.autograd.grad(loss(theta), list(theta.values()), materialize_grads=True)
    exact = dict(zip(theta, slopes, strict=True))
    for name in ("mlp_extractor.policy_net.0.weight", "action_net.bias"):

        def moved(tensor: torch.Tensor, name: str = name) -> torch.Tensor:
            return loss({**doubled(model), name: tensor}).detach()

        close({name: exact[name]}, {name: numeric_gradient(moved, theta[name].detach(), 1e-3)}, 1e-7)
    plain = objective(theta, examples(few[0], 3), examples(goal, 2), RATES, n_inner_steps, n_meta_steps)
    value = float(plain.detach())
    assert float(loss(theta).detach()) == pytest.approx(value, rel=1e-12)
    nested = torch.autograd.grad(plain, list(theta.values()), materialize_grads=True)
    close(exact, dict(zip(theta, nested, strict=True)), 1e-10)
    # What training takes is the same in float32, and a gradient of lower order is another one.
    assert found.loss == pytest.approx(value, rel=1e-5)
    close({name: found.gradient[f"policy/{name}"].double() for name in exact}, exact, 1e-4)
    stack = {name: tensor.detach() for name, tensor in finetuning.step(expand(theta, 3), few[0]).items()}
    shallow = summed(task_losses(finetuning.learner, goal, goal_rates), 2)
    leaves = {name: tensor.requires_grad_() for name, tensor in stack.items()}
    first = torch.autograd.grad(shallow(leaves).sum(), list(leaves.values()), materialize_grads=True)
    away = sum(float((part.sum(0) - exact[name]).norm()) for part, name in zip(first, exact, strict=True))
    assert away > 0.01 * sum(float(part.norm()) for part in exact.values())


def test_policies_are_learnt_from_episodes_at_the_parameters_reached() -> None:
    sizes = {"env": "PointMassFamilies-v0", "learner": "vpg", "env_kwargs": {"horizon": 5}, "n_episodes": 2}
    model = make(**sizes, n_meta_steps=2)
    found = learnt(model)
    first, second, goal = map(in_double, found.outcomes)
    assert not torch.equal(first.support[0].obs, second.support[0].obs)
    assert found.n_steps == sum(outcome.n_steps for outcome in found.outcomes) == model.steps_per_iteration
    finetuning, theta = model.meta_finetuning(3, 2, RATES[1]), doubled(model)
    name = "action_net.bias"

    def loss(tensor: torch.Tensor) -> torch.Tensor:
        stack = expand({**theta, name: tensor}, 3)
        for outcome in (first, second):
            stack = finetuning.step(stack, outcome)
        return summed(task_losses(finetuning.learner, goal, [RATES[2]]), 2)(stack).sum()

    leaf = theta[name].clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(found.gradient[f"policy/{name}"].double(), slope, rtol=1e-3, atol=1e-5)


def test_parts_of_a_meta_batch_add_up_to_the_whole() -> None:
    whole, parts = make(), make(chunk_size=3)
    assert whole._parts(3) == [slice(0, 3)]
    assert parts._parts(3) == [slice(0, 1), slice(1, 2), slice(2, 3)]
    few, goals = whole._draw(few=3, goals=2)
    with whole._whole():
        known = [whole._learn(part, few, goals, Timer()) for part in (slice(0, 3), *parts._parts(3))]
    for name, tensor in known[0].gradient.items():
        torch.testing.assert_close(tensor, sum(each.gradient[name] for each in known[1:]), rtol=1e-4, atol=1e-5)
    run_iterations(whole, 1)
    run_iterations(parts, 1)
    for name, tensor in whole.params.items():
        torch.testing.assert_close(tensor, parts.params[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("update", ["first_order", "difference"])
def test_to_first_order_the_initialisation_moves_by_the_sum_of_what_families_moved(update: str) -> None:
    how = {"learning_rate": 0.3}
    model = make(update=update, n_meta_steps=3, n_inner_steps=2, outer="sgd", outer_kwargs=how)
    before, few = dict(model.theta), model._draw(few=3)[0]
    outcomes = learnt(model).outcomes
    assert len(outcomes) == 3
    stack = expand(before, 3)
    for outcome in outcomes:
        if update == "difference":
            moved = {name: outcome.params[name] - tensor for name, tensor in spread(stack, 3).items()}
        else:
            query = outcome.query
            assert query is not None
            leaves = {name: tensor.clone().requires_grad_() for name, tensor in outcome.params.items()}
            losses = model.adaptation.learner.loss(leaves, query)  # type: ignore[attr-defined]
            slopes = torch.autograd.grad(losses.sum(), list(leaves.values()), materialize_grads=True)
            moved = {name: -slope for name, slope in zip(leaves, slopes, strict=True)}
        stack = {name: tensor + RATES[1] * gathered(moved, 3)[name] for name, tensor in stack.items()}
    run_iterations(model, 1)
    for name, tensor in before.items():
        expected = tensor + 0.3 * (stack[name] - tensor).sum(0)
        torch.testing.assert_close(model.theta[name], expected, rtol=1e-5, atol=1e-6)
    assert model.num_timesteps == len(few["phase"]) * 8  # support and query once, and no goal tasks


def test_families_of_a_meta_iteration_share_what_their_tasks_share() -> None:
    model = make()
    few, goals = model._draw(few=3, goals=2)
    phases = few["phase"].reshape(3, 3)
    assert len(np.unique(phases)) == 3
    np.testing.assert_array_equal(goals["phase"].reshape(3, 2), phases[:, :2])
    assert len(np.unique([*few["amplitude"], *goals["amplitude"]])) == 15
    # A family of one level is all that there is.
    few, goals = make(env="Sinusoid-v0")._draw(few=3, goals=2)
    assert len(np.unique([*few["phase"], *goals["phase"]])) == 15
    assert stream(0, "tasks").random() != few["phase"][0]


def test_it_goes_on_from_a_file_and_meta_finetunes_as_it_was_trained(tmp_path: Any) -> None:
    model = run_iterations(make(), 2)
    assert model.num_timesteps == 2 * model.steps_per_iteration
    again = metarl.load(run_iterations(make(), 1).save(tmp_path / "model"))
    assert equal(run_iterations(again, 1, reset_num_timesteps=False).params, model.params)
    for name in ("update", "n_tasks", "meta_lr", "goal_lr", "n_goal_tasks", "n_meta_steps"):
        assert getattr(again, name) == getattr(model, name)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"update": "third"}, "update='third'"),
        ({"n_tasks": 0}, "n_tasks=0"),
        ({"meta_lr": -1.0}, "meta_lr=-1"),
        ({"goal_lr": 0.0}, "goal_lr=0"),
        ({"n_goal_tasks": 0}, "n_goal_tasks=0"),
        ({"n_meta_steps": 0}, "n_meta_steps=0"),
        ({"n_inner_steps": 0}, "n_inner_steps=0"),
        ({"learner": "sb3_ppo"}, "a stock algorithm learns one task at a time"),
        ({"task_local": ["action_net"]}, "share all tensors"),
        ({"outer": "trpo"}, "trust region"),
    ],
)
def test_what_it_does_not_take_is_one_line(kwargs: dict[str, Any], words: str) -> None:
    with pytest.raises(MetaRLError, match=words) as caught:
        make(**kwargs)
    assert "\n" not in str(caught.value)


def test_exact_steps_take_plain_gradient_steps() -> None:
    model = metarl.Reptile("MlpPolicy", "PointMassFamilies-v0", learner="ppo", n_episodes=2, meta_batch_size=2)
    assert model.meta_finetuning(2).update == "first_order"
    with pytest.raises(ConfigError, match="update='exact' around 'ppo'"):
        model.meta_finetuning(2, update="exact")
