"""Supervised tasks through the meta-wrappers: one support batch, query batches, scores, saving, adapting, by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

import metarl
from metarl.agents.sampling.collect import collect
from metarl.envs.tasks import n_tasks
from metarl.errors import ConfigError
from metarl.meta.adaptation import batched
from metarl.params import expand
from metarl.streams import stream
from tests.envs.supervised.test_one_step import Halves
from tests.meta.small import ADAPTIVE, equal, run_iterations

SMALL: dict[str, Any] = {
    "learner": "supervised",
    "meta_batch_size": 4,
    "n_episodes": 5,
    "n_inner_steps": 3,
    "inner_lr": 0.01,
    "policy_kwargs": {"net_arch": [16], "activation_fn": "relu"},
    "n_threads": 1,
}
WRAPPERS = {name: metarl.ALGORITHMS[name] for name in ADAPTIVE if name != "random"}


def make(name: str = "maml", env: Any = "Sinusoid-v0", **kwargs: Any) -> Any:
    return metarl.ALGORITHMS[name]("MlpPolicy", env, **{**SMALL, **kwargs})


def by_hand(model: Any, n_query: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the next meta-iteration's objective and its gradient, by autograd through the whole inner loop."""
    tasks = model._sample_tasks()
    n = n_tasks(tasks)
    theta = {name: tensor.clone().requires_grad_() for name, tensor in model.policy_params.items()}
    learner = model.adaptation.learner
    total = torch.zeros(())
    for task in range(n):
        own = {name: value[task : task + 1] for name, value in tasks.items()}

        def examples(k: int, n_examples: int, own: Any = own, task: int = task) -> Any:
            seed = metarl.streams.seed_sequence(model.seed, "train", model.n_iterations, task, k)
            episodes = collect(
                model.family, model.policy, expand(model.policy_params, 1), own, [seed], n_episodes=n_examples,
                info=("target",), deterministic=True,
            )  # fmt: skip
            return learner.process(episodes, {})

        support, query = examples(0, model.n_episodes), examples(model.n_inner_steps, n_query)
        phi = {name: tensor[None] for name, tensor in theta.items()}
        for _ in range(model.n_inner_steps):
            names = [name for name in phi if name != "log_std"]
            loss = learner.loss(phi, support).sum()
            slopes = torch.autograd.grad(loss, [phi[name] for name in names], create_graph=True)
            phi = {**phi, **{name: phi[name] - 0.01 * g for name, g in zip(names, slopes, strict=True)}}
        total = total + learner.loss(phi, query).sum() / n
    gradient = torch.autograd.grad(total, list(theta.values()), materialize_grads=True)
    return total.detach(), dict(zip(theta, gradient, strict=True))


@pytest.mark.parametrize("n_query", [None, 9])
def test_maml_goes_down_the_query_loss_after_steps_on_one_support_batch(n_query: int | None) -> None:
    model = make(outer="sgd", outer_kwargs={"learning_rate": 1.0}, learner_kwargs={"n_query": n_query})
    before = {name: tensor.clone() for name, tensor in model.policy_params.items()}
    _, gradient = by_hand(model, n_query or 5)
    run_iterations(model, 1)
    for name, after in model.policy_params.items():
        torch.testing.assert_close(after, before[name] - gradient[name], rtol=1e-4, atol=1e-6, msg=name)
    assert model.num_timesteps == 4 * (5 + (n_query or 5)) == model.steps_per_iteration


@pytest.mark.parametrize("name", sorted(WRAPPERS))
@pytest.mark.parametrize("env", ["Sinusoid-v0", Halves()], ids=["box", "discrete"])
def test_every_wrapper_trains_saves_goes_on_and_evaluates(name: str, env: Any, tmp_path: Path) -> None:
    if name == "oracle" and not isinstance(env, str):
        env = metarl.envs.Oracle(env)
    model = make(name, env)
    run_iterations(model, 2)
    n_support = 0 if name in ("pretrain", "oracle", "multi_task", "progressive", "hat") else 1
    n_query = 0 if name in ("reptile", "leap") else 1
    expected = 2 * 4 * 5 * (n_support + n_query)
    if name in ("maltml", "oml"):  # families of tasks
        expected = 2 * model.steps_per_iteration
    assert model.num_timesteps == expected
    model.save(tmp_path / "model")
    again = metarl.load(tmp_path / "model", env=None if isinstance(env, str) else env)
    for each in (model, again):
        run_iterations(each, 1, reset_num_timesteps=False)
    assert equal(again.params, model.params)
    report = model.evaluate("test", 3, n_tasks=4)
    assert report.returns.shape == (1, 4, 4)
    assert np.isfinite(report.returns).all()
    np.testing.assert_array_equal(report.env_steps, [0, 5, 5, 5])
    low, high = (0.0, 1.0) if model.family.loss == "cross_entropy" else (-np.inf, 0.0)
    assert ((report.returns >= low) & (report.returns <= high)).all()


def test_a_score_is_minus_the_mse_of_examples_that_nothing_was_learnt_from(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(learner_kwargs={"n_eval": 50})
    seen: list[Any] = []

    def watched(*args: Any, **kwargs: Any) -> Any:
        seen.append(collect(*args, **kwargs))
        return seen[-1]

    monkeypatch.setattr(batched, "collect", watched)
    report = model.evaluate("test", 3, n_tasks=4)
    support = [each for each in seen if each.obs.shape[1] == 5]
    measured = [each for each in seen if each.obs.shape[1] == 50]
    assert (len(support), len(measured)) == (1, 4)
    for k, episodes in enumerate(measured):
        np.testing.assert_array_equal(episodes.obs, measured[0].obs)
        mse = np.square(episodes.actions - episodes.info["target"]).mean((1, 2, 3))
        np.testing.assert_allclose(report.returns[0, :, k], -mse, rtol=1e-5)
    assert not np.isin(support[0].obs, measured[0].obs).any()


def test_an_environment_is_adapted_to_from_one_batch() -> None:
    model = make()
    env = gymnasium.make("Sinusoid-v0", amplitude=3.0, phase=1.0)
    adapted = model.adapt(env, 20, n_episodes=10, seed=1)
    assert adapted.env_steps == 10
    x = np.linspace(-5, 5, 50, dtype=np.float32)[:, None]
    target = 3.0 * np.sin(x - 1.0)
    before, after = (np.square(policy.predict(x, deterministic=True)[0] - target).mean() for policy in (model, adapted))
    assert after < 0.9 * before


def test_joint_training_finds_what_can_be_known_without_a_task() -> None:
    """It is −1.62 cos x, and a score of -3.0; training that took no account of targets would stay at -4.25."""
    wide = {"net_arch": [32, 32], "activation_fn": "tanh"}
    outer = {"outer": "adam", "outer_kwargs": {"learning_rate": 0.02}}
    model = make("pretrain", meta_batch_size=50, n_episodes=10, policy_kwargs=wide, **outer)
    run_iterations(model, 120)
    report = model.evaluate("test", 0, n_tasks=100)
    tasks = model.family.tasks("test", 100)
    rngs = [stream(0, "x", task) for task in range(100)]
    state, obs = model.family.reset(tasks, rngs, 100)
    best = -np.square(-1.62 * np.cos(obs) - state["target"]).mean()
    assert report.returns.mean() == pytest.approx(best, abs=0.15)


def test_the_score_function_learns_the_same_family() -> None:
    for learner in ("vpg", "ppo"):
        model = make("fomaml", learner=learner, n_episodes=20, outer="adam", outer_kwargs={}, inner_lr=0.01)
        run_iterations(model, 2)
        assert np.isfinite(model.evaluate("test", 1, n_tasks=2).returns).all()


def test_families_without_targets_are_refused_in_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"^learner 'supervised' does not learn PointMass-v0: it takes families that"):
        make(env="PointMass-v0")


def test_an_evaluation_whose_steps_have_batches_of_their_own_reports_the_loss_of_each() -> None:
    model = make("reptile", learner_kwargs={"reuses_support": False})
    report = model.evaluate(n_tasks=3, n_inner_steps=4)
    losses = np.array(report.meta["losses"])
    assert losses.shape == (3, 4)
    # Nothing else is known of a batch here than its return, which is minus its squared error.
    np.testing.assert_allclose(losses, -report.returns[0, :, :4], rtol=1e-5)
    assert "losses" not in make("reptile").evaluate(n_tasks=3, n_inner_steps=1).meta
