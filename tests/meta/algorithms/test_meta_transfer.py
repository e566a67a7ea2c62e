"""Meta-transfer as a whole: its derivative, its first-order form, Reptile's steps, and what is made of it."""

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

import metarl
from metarl.envs import check_family
from metarl.envs.maze.maze import Maze
from metarl.envs.views.single import SingleEnv
from metarl.errors import ConfigError, MetaRLError
from metarl.meta.adaptation.base import Streams
from metarl.meta.algorithms.meta_transfer import MetaTransfer
from metarl.meta.progress import Timer
from tests.contract.kinds import Bent, WalkHomeDiscrete

GRADIENTS = ("context", "nonlinear", "linear")
TANH: dict[str, Any] = {"net_arch": [6, 5], "activation_fn": "tanh"}


def build(encoder="linear", **kwargs):
    """Return a small model whose decoder is away from where it begins."""
    own = {} if encoder == "recurrent" else {"encoder_kwargs": TANH}
    if encoder == "deep_kernel":
        own = {"encoder_kwargs": {"width": 6, "activation_fn": "tanh"}}
    sizes = {"meta_batch_size": 3, "n_support": 4, "n_query": 5, "policy_kwargs": {"net_arch": [5]}, "n_threads": 1}
    model = MetaTransfer("MlpPolicy", **{"env": Bent(), "init": "naive", "encoder": encoder, **sizes, **own, **kwargs})
    return model


def batches(model):
    """Return meta-parameters and the batches of one meta-iteration in float64."""
    streams = Streams(model.seed, "train", 0)
    (block,) = model._blocks(model._sample_tasks(), model.rates, streams, model._amount(None, None))
    outcome = block.learn(model.theta, Timer(), query=True)
    meta = {name: tensor.double() for name, tensor in model.meta_params.items()}
    return meta, [each.to(torch.float64) for each in outcome.support], outcome.query.to(torch.float64)


def gradient(model, meta, *data):
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in meta.items()}
    losses = model.losses(leaves, *data)
    found = torch.autograd.grad(losses.sum(), list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


@pytest.mark.parametrize("env", [Bent, WalkHomeDiscrete])
@pytest.mark.parametrize("encoder", [*GRADIENTS, "mean", "max", "transformer", "recurrent", "deep_kernel"])
def test_the_meta_gradient_is_that_of_finite_differences(encoder, env):
    model = build(encoder, env=env())
    meta, *data = batches(model)
    found = gradient(model, meta, *data)
    generator = torch.Generator().manual_seed(0)
    way = {name: torch.randn(t.shape, generator=generator, dtype=torch.float64) for name, t in meta.items()}
    h = 1e-5
    ahead, behind = ({name: t + sign * h * way[name] for name, t in meta.items()} for sign in (1, -1))
    with torch.no_grad():
        expected = float((model.losses(ahead, *data) - model.losses(behind, *data)).sum()) / (2 * h)
    assert sum(float((found[name] * way[name]).sum()) for name in meta) == pytest.approx(expected, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("encoder", GRADIENTS)
def test_to_first_order_exactly_the_second_order_term_is_missing(encoder):
    whole, first = build(encoder), build(encoder, first_order=True, support_coef=0.0)
    meta, *data = batches(whole)
    second, constant = gradient(whole, meta, *data), gradient(first, meta, *data)
    # The term: the query loss's gradient in z, times the derivative of the support's gradient in what it is taken at.
    model, seen = whole.adaptation.model, whole.adaptation.model.seen(data[0])
    z = model.latent(meta, seen, second_order=False).detach().requires_grad_()
    psi = model.decode(meta, z)
    losses = whole.adaptation.learner.query_loss(model.policy.distribution(psi, data[1].obs), data[1])
    (of_z,) = torch.autograd.grad(losses.sum(), z)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in meta.items()}
    fixed = {**leaves, **{name: meta[name] for name in ("encoder/V",) if name in meta}}
    term = torch.autograd.grad((model.latent(fixed, seen) * of_z).sum(), list(leaves.values()), materialize_grads=True)
    for name, own in zip(leaves, term, strict=True):
        torch.testing.assert_close(second[name] - constant[name], own, rtol=1e-8, atol=1e-12)
    assert any(float(own.abs().max()) > 0.0 for own in term)


def test_to_first_order_the_encoders_learner_goes_down_its_own_loss():
    model, without = build("context", first_order=True), build("context", first_order=True, support_coef=0.0)
    meta, *data = batches(model)
    found, rest = gradient(model, meta, *data), gradient(without, meta, *data)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in meta.items()}
    inner = model.adaptation.model
    loss = inner.support_loss(leaves, inner.seen(data[0])).sum()
    own = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    for name, expected in zip(leaves, own, strict=True):
        torch.testing.assert_close(found[name] - rest[name], expected)
        assert name.startswith("decoder/") or float(rest[name].abs().max()) == 0.0


def test_tasks_side_by_side_are_tasks_one_by_one():
    model = build("nonlinear")
    meta, support, query = batches(model)
    whole = model.losses(meta, support, query)
    for i in range(3):
        part = slice(i, i + 1)
        alone = model.losses(meta, [each.tasks(part) for each in support], query.tasks(part))
        torch.testing.assert_close(whole[part], alone, rtol=1e-12, atol=1e-12)


def test_reptile_moves_to_where_each_tasks_own_steps_lead():
    model = build("linear", n_reptile_steps=2, reptile_lr=0.1, outer="sgd", outer_kwargs={"learning_rate": 0.5})
    meta, support, query = batches(model)
    ends = []
    for i in range(3):
        own, part = meta, slice(i, i + 1)
        for _ in range(2):
            slope = gradient(model, own, [each.tasks(part) for each in support], query.tasks(part))
            own = {name: tensor - 0.1 * slope[name] for name, tensor in own.items()}
        ends.append(own)
    model.learn(1)
    for name, tensor in meta.items():
        mean = sum(end[name] for end in ends) / 3
        expected = tensor + 0.5 * (mean - tensor)
        torch.testing.assert_close(model.params[name].double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("encoder", ["linear", "max"])
def test_the_gradient_of_episodes_is_the_score_function_through_decoder_and_encoder(encoder):
    model = build(encoder, env=Maze(4), learner_kwargs={"normalize_advantage": False})
    assert model.learner == "vpg"
    meta, support, query = batches(model)
    found = gradient(model, meta, support, query)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in meta.items()}
    inner = model.adaptation.model
    psi = inner.tensors(leaves, inner.seen(support))
    expected = {name: torch.zeros_like(tensor) for name, tensor in meta.items()}
    for task, count in enumerate(query.counts):
        hidden = torch.tanh(
            query.obs[task] @ psi["mlp_extractor.policy_net.0.weight"][task].T
            + psi["mlp_extractor.policy_net.0.bias"][task]
        )
        logits = hidden @ psi["action_net.weight"][task].T + psi["action_net.bias"][task]
        for step in range(count):
            score = logits[step].log_softmax(-1)[int(query.actions[task, step])]
            slope = torch.autograd.grad(score, list(leaves.values()), retain_graph=True, materialize_grads=True)
            for name, each in zip(leaves, slope, strict=True):
                expected[name] -= query.weights[task, step] * query.advantages[task, step] * each
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-8, atol=1e-11)
    assert float(found["encoder/V" if encoder == "linear" else "decoder/psi.0.weight"].abs().max()) > 0.0


def test_mazes_are_adapted_to_by_episodes_alone():
    sizes = {"n_support": 12, "n_query": 10, "meta_batch_size": 6, "policy_kwargs": {"net_arch": [16]}}
    model = build(env=Maze(6), init="bias", encoder_kwargs={}, outer_kwargs={"learning_rate": 0.004}, **sizes)
    model.learn(60 * model.steps_per_iteration, log_interval=None)
    before, after = model.evaluate("test", n_tasks=6).returns.mean((0, 1))
    assert after > before + 0.1


# ------------------------------------------------------------------------------------------------- what is made of it
def test_the_policy_of_a_task_acts_the_same_in_sb3():
    model = build()
    task = {name: value[0] for name, value in model.family.tasks("test", 1).items()}
    adapted = model.adapt(SingleEnv(model.family, **task))
    assert adapted.env_steps == 4
    obs = np.linspace(-1, 1, 9, dtype=np.float32)[:, None]
    ours, _ = adapted.predict(obs, deterministic=True)
    for params, expected in ((adapted.params, ours), (None, model.predict(obs, deterministic=True)[0])):
        stock = model.to_sb3(value_tasks=0, params=params)
        np.testing.assert_allclose(stock.predict(obs, deterministic=True)[0], expected, rtol=1e-5, atol=1e-6)
    assert not np.allclose(ours, model.predict(obs, deterministic=True)[0])


def test_what_is_seen_may_be_drawn_given_or_met_in_an_environment():
    model = build()
    slope = 1.2
    x = np.random.default_rng(0).uniform(-1, 1, (6, 2))
    y = slope * np.square(x).sum(-1, keepdims=True)
    given = model.adapt(support=(x, y))
    assert given.env_steps == 6
    shown = model.adapt(SingleEnv(model.family.support_family, slope=slope), n_episodes=6, seed=1)
    known = model.adapt(SingleEnv(model.family, slope=slope), n_episodes=6, seed=1)
    for name, tensor in shown.params.items():
        assert torch.equal(tensor, known.params[name])
    drawn = [model.adapt(model.family, n_inner_steps=2, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0].env_steps == 8
    assert torch.equal(drawn[0].params["action_net.weight"], drawn[1].params["action_net.weight"])
    assert not torch.equal(drawn[0].params["action_net.weight"], drawn[2].params["action_net.weight"])
    nothing = model.adapt(model.family, n_inner_steps=0)
    obs = np.array([0.5], np.float32)
    assert nothing.predict(obs, deterministic=True)[0] == model.predict(obs, deterministic=True)[0]


def test_evaluations_see_more_from_step_to_step_and_are_scored_on_the_same_examples():
    model = build()
    report = model.evaluate("test", 3, n_tasks=3)
    np.testing.assert_array_equal(report.env_steps, [0, 4, 8, 12])
    assert report.table().columns[0] == "batches seen"
    assert model.evaluate("test", n_tasks=3).returns.shape == (1, 3, 2)
    np.testing.assert_array_equal(model.evaluate("test", n_tasks=3).returns, report.returns[..., :2])
    alone = model.evaluate("test", 3, n_tasks=1)
    np.testing.assert_allclose(alone.returns[0, 0], report.returns[0, 0], rtol=1e-5)


def test_noise_is_an_argument_of_evaluations(tmp_path):
    sizes = {"n_support": 5, "meta_batch_size": 2, "policy_kwargs": {"net_arch": [6]}}
    model = MetaTransfer("MlpPolicy", "CosineSine-v0", init="naive", **sizes)
    path = model.save(tmp_path / "model")
    noisy = metarl.load(path, **{"env_kwargs.support_noise": 2.0})
    clean, other = (each.evaluate(n_tasks=4).returns[0] for each in (model, noisy))
    np.testing.assert_array_equal(clean[:, 0], other[:, 0])
    assert not np.allclose(clean[:, 1], other[:, 1])


def test_it_learns_to_transfer():
    check_family(Bent(), n=2)
    model = build(init="bias", encoder_kwargs={}, meta_batch_size=8, outer_kwargs={"learning_rate": 0.003})
    model.learn(80 * model.steps_per_iteration, log_interval=None)
    before, after = -model.evaluate("test", n_tasks=20).returns.mean((0, 1))
    assert after < 0.5 * before


# ------------------------------------------------------------------------------------------------------------ refusals
def adapt(**kwargs):
    return lambda: build().adapt(**kwargs)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: build(env="AntVel-v0"), "nothing that is supervised is seen of the tasks of AntVel-v0"),
        (lambda: build(encoder="linaer"), "unknown encoder 'linaer'.*'linear'"),
        (lambda: build(n_latent=0), "n_latent=0"),
        (lambda: build(n_support=-1), "n_support=-1"),
        (lambda: build("mean", first_order=True), "first_order=True with encoder='mean'"),
        (lambda: build("max", support_coef=0.5), "support_coef=0.5 with encoder='max'"),
        (lambda: build(learner="sb3_ppo"), "meta_transfer around 'sb3_ppo': a stock algorithm has no loss"),
        (lambda: build(outer="trpo"), "outer='trpo'"),
        (lambda: build(encoder_kwargs={"width": 3}), "argument of encoder 'linear': 'width'"),
        (lambda: build(decoder_kwargs={"width": 3}), "argument of the decoder"),
        (lambda: build(init="zeros"), "init='zeros'"),
        (lambda: build().evaluate(inner_lr=0.1), "inner_lr=0.1: meta_transfer takes no inner steps with a rate"),
        (adapt(), "adapt takes an environment in which the task is seen, or support"),
        (adapt(support=3), "support=3 is no pair"),
        (adapt(support=(np.zeros((4, 1)), np.zeros((4, 1)))), r"inputs of shape \[4, 1\]: Bend-v0 has \[n, 2\]"),
        (adapt(support=(np.zeros((4, 2)), np.zeros((4, 3)))), r"targets of shape \[4, 3\]: Bend-v0 has \[n, 1\]"),
        (adapt(support=(np.zeros((4, 2)), np.zeros((3, 1)))), "4 inputs and 3 targets"),
        (adapt(support=(np.full((4, 2), np.nan), np.zeros((4, 1)))), "finite"),
        (adapt(env=gymnasium.make("CartPole-v1")), "what is seen has Box"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(call, words):
    with pytest.raises(MetaRLError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_classes_that_the_support_has_not_are_refused():
    model = build(env=WalkHomeDiscrete())
    with pytest.raises(ConfigError, match="support has targets"):
        model.adapt(support=(np.zeros((2, 2)), np.array([0, 7])))
    assert model.adapt(support=(np.zeros((2, 2)), np.array([0, 2]))).env_steps == 2


# --------------------------------------------------------------------------------------------------------- deep kernel
def test_the_deep_kernel_compares_the_query_with_each_sample():
    model = build("deep_kernel")
    meta, support, query = batches(model)
    inner = model.adaptation.model
    psi = inner.tensors(meta, inner.seen(support))
    p = {name.split("/", 1)[1]: tensor.numpy() for name, tensor in meta.items()}

    def two(name, x):
        hidden = np.tanh(p[f"{name}.0.weight"] @ x + p[f"{name}.0.bias"])
        return p[f"{name}.1.weight"] @ hidden + p[f"{name}.1.bias"]

    for task in range(3):
        x, y = support[0].obs[task].numpy(), support[0].target[task].numpy()
        for obs, found in zip(
            query.obs[task].numpy(), inner.policy.distribution(psi, query.obs).mean[task], strict=True
        ):
            u = two("look/look", obs)
            k = [np.exp(-np.square(u - two("point", each)).sum() / 2) for each in x]
            each = [two("value", np.concatenate(pair)) for pair in zip(x, y, strict=True)]
            features = np.einsum("i,ij->j", k, each)
            hidden = p["mlp_extractor.policy_net.0.weight"] @ features + p["mlp_extractor.policy_net.0.bias"]
            expected = p["action_net.weight"] @ np.tanh(hidden) + p["action_net.bias"]
            np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-8, atol=1e-10)


def test_a_deep_kernel_adapts_evaluates_goes_on_and_is_not_exported(tmp_path):
    model = build("deep_kernel", n_reptile_steps=1).learn(1)
    again = metarl.load(model.save(tmp_path / "model"), env=model.family)
    report = again.evaluate("test", 2, n_tasks=2)
    np.testing.assert_array_equal(report.returns, model.evaluate("test", 2, n_tasks=2).returns)
    adapted = model.adapt(model.family)
    assert adapted.predict(np.zeros(1, np.float32), deterministic=True)[0].shape == (1,)
    with pytest.raises(ConfigError, match="nothing to export to"):
        model.to_sb3(value_tasks=0)
