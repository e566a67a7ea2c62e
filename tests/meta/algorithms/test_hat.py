"""Hard attention to the task: how gates open, what is held, and what earlier tasks' policies keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

import metarl
from metarl import HAT
from metarl.agents.networks.continual.hard_attention import (
    compensated,
    embeddings_of,
    free_shares,
    free_weights,
    hardened,
    scale_at,
    sparsity,
    taken_name,
)
from metarl.agents.sampling.samples import Samples
from metarl.errors import MetaRLError
from metarl.params import HEADS, Params
from tests.meta.algorithms.test_multi_task import Classes

POINTS = np.random.default_rng(0).uniform(-1.0, 1.0, (50, 2)).astype(np.float32)
BLOCK = "features_extractor.blocks."


def make(**kwargs: Any) -> HAT:
    options: dict[str, Any] = {
        "learner": "supervised",
        "n_training_tasks": 3,
        "n_iterations_per_task": 40,
        "n_iterations_per_epoch": 20,
        "s_max": 150.0,
        "sparsity": 0.05,
        "n_episodes": 30,
        "outer_kwargs": {"learning_rate": 0.3},
        "policy_kwargs": {"net_arch": [24, 24]},
    }
    return HAT("MlpPolicy", Classes(), **{**options, **kwargs}, n_threads=1)


def learn(model: HAT, n: int) -> None:
    model.learn(n * 30, reset_num_timesteps=False)


def outputs(model: HAT, index: int) -> torch.Tensor:
    policy = model.policy_of(index)
    obs = torch.from_numpy(POINTS).to(policy.params["action_net.bias"].dtype)
    return policy.policy.distribution(policy.params, obs).heads[0].detach().clone()


# -------------------------------------------------------------------------------------------------------- the equations
def test_s_rises_from_one_by_its_maximum_to_its_maximum() -> None:
    assert [scale_at(k, 3, 4.0) for k in range(3)] == [0.25, 2.125, 4.0]
    assert scale_at(0, 1, 4.0) == 4.0


def test_the_gradient_of_embeddings_is_compensated_as_in_the_paper() -> None:
    generator, s_max = torch.Generator().manual_seed(0), 15.0
    e, slope = (torch.randn(5, generator=generator, dtype=torch.float64) for _ in range(2))
    for s in (1.0 / s_max, 1.0, 7.0, s_max):
        own = e.clone().requires_grad_()
        (q,) = torch.autograd.grad((slope * torch.sigmoid(s * own)).sum(), own)
        paper = s_max * (torch.cosh(s * e) + 1.0) / (s * (torch.cosh(e) + 1.0)) * q
        softer = (e * s / s_max).requires_grad_()
        (ours,) = torch.autograd.grad((slope * torch.sigmoid(s_max * softer)).sum(), softer)
        torch.testing.assert_close(compensated(ours, e, s), paper, rtol=1e-9, atol=0.0)
        torch.testing.assert_close(paper, slope * s_max / (2.0 * (torch.cosh(e) + 1.0)), rtol=1e-5, atol=0.0)


def test_the_share_of_free_units_has_the_gradient_of_autograd() -> None:
    generator = torch.Generator().manual_seed(1)
    e = [torch.randn(n, generator=generator, dtype=torch.float64).requires_grad_() for n in (3, 4)]
    taken = [torch.rand(n, generator=generator, dtype=torch.float64) for n in (3, 4)]
    gates = [torch.sigmoid(1.7 * own) for own in e]
    free = sum((1.0 - own).sum() for own in taken)
    share = sum((a * (1.0 - own)).sum() for a, own in zip(gates, taken, strict=True)) / free
    for found, expected in zip(sparsity(e, taken, 1.7), torch.autograd.grad(share, e), strict=True):
        torch.testing.assert_close(1.7 * found, expected)
    assert all(not bool(each.any()) for each in sparsity(e, [torch.ones(3), torch.ones(4)], 1.7))


def by_hand(model: HAT, own: Params, x: torch.Tensor, y: torch.Tensor, s: float, taken: list[torch.Tensor]) -> Params:
    """Return the gradient that one step of the authors' code goes down, by the names of the policy's tensors."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in own.items() if not name.startswith("statist")}
    gates = [torch.sigmoid(s * leaves[name]) for name in embeddings_of(leaves)]
    h = x
    for k, gate in enumerate(gates):
        h = functional.linear(h, leaves[f"{BLOCK}{k}.layer.weight"], leaves[f"{BLOCK}{k}.layer.bias"]).relu() * gate
    said = functional.linear(h, leaves["action_net.weight"], leaves["action_net.bias"])
    free = sum((1.0 - each).sum() for each in taken)
    reg = sum((gate * (1.0 - each)).sum() for gate, each in zip(gates, taken, strict=True)) / free
    loss = functional.cross_entropy(said, y) + model.sparsity * reg
    found = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    for k, each in enumerate(taken):
        before = torch.ones(x.shape[1]) if k == 0 else taken[k - 1]
        found[f"{BLOCK}{k}.layer.weight"] *= 1.0 - torch.minimum(each[:, None], before[None, :])
        found[f"{BLOCK}{k}.layer.bias"] *= 1.0 - each
    for name in embeddings_of(leaves):
        e = own[name]
        found[name] *= model.s_max / s * (torch.cosh((s * e).clamp(-50.0, 50.0)) + 1.0) / (torch.cosh(e) + 1.0)
    return found


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_step_is_that_of_the_authors_code(place: int) -> None:
    model = make(s_max=4.0, n_iterations_per_task=3, n_iterations_per_epoch=3)
    learn(model, 3 + place)
    assert (model.stage, model.scale) == (1, scale_at(place, 3, 4.0))
    taken, theta = model.attention(1), {**model.theta, **model.head(1)}
    before = dict(model.params)
    seen: list[Any] = []
    learn_block = model._learn_block

    def watched(*args: Any, **how: Any) -> Any:
        seen.append(learn_block(*args, **how))
        return seen[-1]

    vars(model)["_learn_block"] = watched
    scale = model.scale
    learn(model, 1)
    query = seen[0].query
    found = by_hand(model, theta, query.obs[0], query.target[0], scale, taken)
    for name, gradient in found.items():
        key = f"{HEADS}1/{name}" if name in model.head(1) else f"policy/{name}"
        expected = before[key] - 0.3 * gradient
        if name in embeddings_of(found):
            expected = expected.clamp(-6.0, 6.0)
        torch.testing.assert_close(model.params[key], expected, rtol=1e-4, atol=1e-6, msg=key)
        assert not torch.equal(model.params[key], before[key])


def test_a_new_task_is_learnt_by_the_same_steps_and_leaves_what_is_taken() -> None:
    model = make(s_max=4.0, n_iterations_per_task=4, n_iterations_per_epoch=4)
    learn(model, 3 * 4)
    taken, names = model.attention(3), embeddings_of(model.head(0))
    assert all(torch.equal(model.theta[taken_name(name)], own) for name, own in zip(names, taken, strict=True))
    adaptation = model.adaptation
    heads = {name: torch.stack([model.head(k)[name] for k in (0, 1)]) for name in model.head(0)}
    state = adaptation.start(model.theta, 2, heads)  # type: ignore[attr-defined]
    rngs = [np.random.default_rng(i) for i in range(2)]
    x, y = map(torch.from_numpy, model.family.examples({"index": np.array([4, 5])}, rngs, 20))  # type: ignore[attr-defined]
    samples = Samples(x, y, None, torch.full((2, 20), 0.05), np.full(2, 20), np.full((2, 1), 20), target=y)
    for step in range(5):
        before = state.params
        state = adaptation.update(state, samples, 0.2, [])  # type: ignore[attr-defined]
        for i in range(2):
            own = {name: tensor[i] for name, tensor in before.items()}
            found = by_hand(model, own, x[i], y[i], scale_at(step % 4, 4, 4.0), taken)
            for name, gradient in found.items():
                expected = own[name] - 0.2 * gradient
                expected = expected.clamp(-6.0, 6.0) if name in names else expected
                torch.testing.assert_close(state.params[name][i], expected, rtol=1e-4, atol=1e-6, msg=name)


# ------------------------------------------------------------------------------------------------------- what is kept
@pytest.mark.parametrize(
    ("outer", "dtype"), [("sgd", torch.float32), ("sgd", torch.float64), ("adam", torch.float32)], ids=str
)
def test_with_hard_gates_tasks_that_were_learnt_stay_bit_for_bit(outer: str, dtype: torch.dtype) -> None:
    rate = {"sgd": 0.3, "adam": 0.03}[outer]
    model = make(harden=True, outer=outer, outer_kwargs={"learning_rate": rate})
    model.params = {name: tensor.to(dtype) for name, tensor in model.params.items()}
    kept: list[torch.Tensor] = []
    for stage in range(3):
        assert model.stage == stage
        trunk = dict(model.policy_params)
        learn(model, 40)
        assert model.is_hard(stage)
        assert all(torch.equal(outputs(model, index), earlier) for index, earlier in enumerate(kept))
        assert not torch.equal(model.policy_params[f"{BLOCK}1.layer.weight"], trunk[f"{BLOCK}1.layer.weight"])
        kept.append(outputs(model, stage))
        assert kept[-1].dtype == dtype
    assert 0.2 < float(torch.cat(model.attention(3)).mean()) < 1.0
    rng = np.random.default_rng(1)
    for index in range(3):
        task = {"index": model.training_tasks["index"][index : index + 1]}
        (x,), (y,) = model.family.examples(task, [rng], 200)  # type: ignore[attr-defined]
        assert (model.policy_of(index).predict(x, deterministic=True)[0] == y).mean() > 0.8


def test_without_rounding_too_where_no_gate_lies_in_between() -> None:
    model = make(n_training_tasks=2)
    first = {name: hardened(tensor) for name, tensor in model.head(0).items() if name in embeddings_of(model.head(0))}
    learn(model, 40)
    model.params = {**model.params, **{f"{HEADS}0/{name}": tensor for name, tensor in first.items()}}
    before = outputs(model, 0)
    learn(model, 20)
    assert torch.equal(outputs(model, 0), before)
    # One gate that is half open, and a policy that uses it: weights at it move by half of their gradient.
    name = f"{HEADS}0/{BLOCK}1.gate.weight"
    model.params[name][0] = 0.0
    assert not model.is_hard(0)
    before = outputs(model, 0)
    learn(model, 20)
    assert not torch.equal(outputs(model, 0), before)


def test_with_soft_gates_what_moves_is_what_attention_leaves() -> None:
    model = make(s_max=4.0)
    learn(model, 40)
    assert not model.is_hard(0)
    before, trunk = outputs(model, 0), dict(model.policy_params)
    shares = free_shares(trunk, model.attention(1))
    assert shares.keys() == {name for name in trunk if "layer" in name}
    learn(model, 20)
    drift = float((outputs(model, 0) - before).abs().max())
    assert drift > 0.0
    weight = f"{BLOCK}1.layer.weight"
    moved, share = (model.policy_params[weight] - trunk[weight]).abs(), shares[weight]
    assert moved[share < 0.1].mean() < 0.3 * moved[share > 0.5].mean()


def test_a_network_passes_on_the_share_of_gradients_that_is_free() -> None:
    model = make(s_max=4.0, n_training_tasks=1, n_iterations_per_task=20)
    policy, params = model.policy, {name: tensor.double() for name, tensor in {**model.theta, **model.head(0)}.items()}
    obs = torch.from_numpy(POINTS).double()
    taken = [torch.rand(24, generator=torch.Generator().manual_seed(k), dtype=torch.float64) for k in range(2)]
    held = {**params, **{taken_name(f"{BLOCK}{k}.gate.weight"): own for k, own in enumerate(taken)}}
    assert torch.equal(policy.distribution(held, obs).heads[0], policy.distribution(params, obs).heads[0])

    def gradient(own: Params) -> Params:
        stacked = {name: tensor.unsqueeze(0) for name, tensor in own.items()}
        return policy.differentiate(stacked, obs[None], lambda d, _: d.log_prob(torch.zeros(1, 50)).mean(1)).gradient

    plain, ours, shares = gradient(params), gradient(held), free_shares(params, taken)
    for name, tensor in plain.items():
        torch.testing.assert_close(ours[name], tensor * shares.get(name, 1.0), rtol=1e-12, atol=1e-15, msg=name)
    assert float(free_weights(taken[1], taken[0], 2)[3, 5]) == 1.0 - min(float(taken[1][3]), float(taken[0][5]))


def test_adaptation_to_a_new_task_leaves_what_training_tasks_use() -> None:
    model = make(harden=True, learner_kwargs={"reuses_support": True})
    learn(model, 3 * 40)
    adapted = model.adapt(model.family, 20, inner_lr=0.3).params
    drawn = model.adapt(model.family, 0).params
    shares = free_shares(dict(model.policy_params), model.attention(3))
    for name, share in shares.items():
        before, after = model.theta[name], adapted[name]
        assert torch.equal(torch.where(share == 0.0, after, before), before), name
    assert any(not torch.equal(adapted[name], model.theta[name]) for name in shares)
    for name in ("action_net.weight", *embeddings_of(drawn)):
        assert not torch.equal(drawn[name], model.head(0)[name])
        assert not torch.equal(adapted[name], drawn[name])
    assert model.evaluate(n_tasks=2, n_inner_steps=2).returns.shape == (1, 2, 3)


def test_it_goes_on_from_a_file_in_the_middle_of_a_task(tmp_path: Path) -> None:
    model = make(n_iterations_per_task=4, n_iterations_per_epoch=2)
    learn(model, 5)
    again = metarl.load(model.save(tmp_path / "model"), env=model.family)
    for each in (model, again):
        learn(each, 6)  # type: ignore[arg-type]
    assert model.n_iterations == 11
    assert all(torch.equal(tensor, again.params[name]) for name, tensor in model.params.items())


def test_images_have_gated_convolutions() -> None:
    model = HAT(
        "FewShotCnnPolicy",
        "Omniglot-v0",
        learner="supervised",
        n_training_tasks=2,
        n_iterations_per_task=2,
        harden=True,
        n_episodes=4,
        policy_kwargs={"features_extractor_kwargs": {"n_filters": 4}},
        n_threads=1,
    ).learn(8)
    (x,), _ = model.family.examples(model.family.tasks("test", 1), [np.random.default_rng(0)], 6)  # type: ignore[attr-defined]
    assert model.is_hard(0)

    def said() -> torch.Tensor:
        policy = model.policy_of(0)
        return policy.policy.distribution(policy.params, torch.from_numpy(x)).heads[0]

    before, theta = said(), dict(model.params)
    model.learn(8, reset_num_timesteps=False)
    assert torch.equal(said(), before)
    moved = {name for name, tensor in theta.items() if not torch.equal(tensor, model.params[name])}
    assert {f"policy/{BLOCK}{k}.layer.weight" for k in range(4)} <= moved


def test_what_does_not_go_is_one_line() -> None:
    for kwargs, message in (
        ({"policy_kwargs": {"net_arch": {"pi": [4], "vf": [4]}}}, "actor and critic share gated layers"),
        ({"policy_kwargs": {"features_extractor_kwargs": {"n_filters": 4}}}, "unknown features extractor keyword"),
        ({"task_local": ["action_net"]}, "embeddings and a head are each task's own"),
        ({"n_iterations_per_epoch": 25}, "n_iterations_per_task=40 is no multiple of n_iterations_per_epoch=25"),
        ({"harden": True, "s_max": 4.0}, "s_max=4 with harden=True: gates are exactly 0 from 125 on"),
        ({"learner": "ppo"}, "from one plain gradient step to the next: use 'cloning' or 'supervised'"),
        ({"learner": "sb3_ppo"}, "one head for all tasks"),
    ):
        with pytest.raises(MetaRLError, match=message):
            make(**kwargs)
    with pytest.raises(MetaRLError, match="policy='MlpLstmPolicy', which has no gates: use MlpPolicy or CnnPolicy"):
        HAT("MlpLstmPolicy", Classes())
