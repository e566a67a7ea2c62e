"""Imitation through a meta-wrapper: it learns from what an expert shows, and is scored in the expert's environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import metarl
from metarl.agents.sampling.collect import collect
from metarl.agents.sampling.one_env import collect_env
from metarl.envs import Oracle, make_family
from metarl.envs.tasks import one_task, take_tasks
from metarl.envs.views.single import SingleEnv
from metarl.errors import ConfigError
from metarl.meta.evaluation.report import Report
from metarl.meta.export import value_fit
from metarl.meta.export.finetune import finetune
from metarl.meta.export.sb3 import export_sb3, load_sb3, save_sb3
from metarl.params import expand
from metarl.streams import seed_sequence
from tests.contract.kinds import WalkHome

SMALL: dict[str, Any] = {"meta_batch_size": 2, "n_episodes": 4, "policy_kwargs": {"net_arch": [8]}, "n_threads": 1}


def make(name: str = "fomaml", env: Any = None, **kwargs: Any) -> Any:
    outer = {} if name in ("random", "reptile", "leap") else {"outer": "adam"}
    family = WalkHome() if env is None else env
    return metarl.ALGORITHMS[name]("MlpPolicy", family, **{"learner": "cloning", **outer, **SMALL, **kwargs})  # type: ignore[arg-type]


@pytest.mark.parametrize("learner", ["cloning", "vpg", "a2c"])
def test_the_score_is_the_return_in_the_real_family(learner: str) -> None:
    model = make(learner=learner)
    report = model.evaluate("test", 2, n_tasks=3, seed=5)
    real = model.family.real
    assert report.env == "WalkHome-v0"
    # Before adaptation: episodes of the real family with the initialisation.
    tasks, chosen = real.tasks("test", 3), model.adaptation.learner.deterministic
    seeds = [seed_sequence(5, "evaluate/test/scored", 0, task) for task in range(3)]
    params = {name: tensor.contiguous() for name, tensor in expand(model.theta, 3).items()}
    episodes = collect(real, model.policy, params, tasks, seeds, n_episodes=2, deterministic=chosen)
    np.testing.assert_array_equal(report.returns[0, :, 0], episodes.mean_returns)
    lengths = episodes.task_steps / 2
    np.testing.assert_array_equal(np.array(report.meta["ep_lengths"])[:, 0], lengths)
    assert lengths.max() > 1.0
    # The imitation reward is beside it, and adaptation costs the env steps of what was shown.
    assert report.learning_returns.shape == report.returns.shape
    assert (report.learning_returns < 0.0).all()
    np.testing.assert_array_equal(report.env_steps, [0, 4, 4] if chosen else [0, 4, 8])


def test_adaptation_is_better_in_the_real_family_when_it_imitates_better() -> None:
    family = Oracle(WalkHome())
    model = make("oracle", family, n_episodes=20, meta_batch_size=3, outer_kwargs={"learning_rate": 0.03})
    before = model.evaluate("validation", 0, n_tasks=5)
    model.learn(60 * 60)
    after = model.evaluate("validation", 0, n_tasks=5)
    assert after.learning_returns.mean() > 0.5 * before.learning_returns.mean()
    assert after.returns.mean() > before.returns.mean() + 1.0


def test_a_stock_learner_is_scored_in_the_real_family() -> None:
    model = make("reptile", learner="sb3_ppo", n_episodes=8)
    report = model.evaluate("test", 1, n_tasks=2)
    assert report.learning_returns is None
    assert np.array(report.meta["ep_lengths"]).max() > 1.0
    np.testing.assert_array_equal(report.env_steps, [0, 8])


def test_a_family_that_is_its_own_has_no_second_return() -> None:
    report = make(env=make_family("Sinusoid-v0")).evaluate("test", 1, n_tasks=2)
    assert report.learning_returns is None
    assert "learning_returns" not in report.to_json()
    assert "where it learns" not in str(report)


def test_the_report_keeps_both_returns(tmp_path: Path) -> None:
    reports = [make(seed=seed).evaluate("test", 1, n_tasks=2) for seed in (0, 1)]
    merged = Report.merge(reports)
    np.testing.assert_array_equal(merged.learning_returns, np.concatenate([each.learning_returns for each in reports]))
    merged.save(tmp_path / "report.json")
    again = Report.load(tmp_path / "report.json")
    np.testing.assert_array_equal(again.learning_returns, merged.learning_returns)
    columns = ("inner steps", "expert's states", "return", "gain", "mean squared error where it learns")
    assert again.table().columns == columns
    assert f"{-merged.learning_returns[:, :, 1].mean():.2f} [" in again.table().rows[1][4]
    with pytest.raises(ConfigError, match="learning_returns has shape"):
        Report(**{**vars(merged), "learning_returns": merged.learning_returns[:1]})


def test_the_oracle_sees_the_task_in_both_families() -> None:
    family = make_family("PointMassImitation-v0", oracle=True, n_tasks=4, n_demonstrations=1)
    report = make("oracle", family).evaluate("test", 0, n_tasks=2)
    assert report.returns.shape == (1, 2, 1)
    assert family.acts_in.observation_space == family.observation_space


def test_one_environment_of_expert_pairs_is_adapted_to_and_acted_in() -> None:
    model = make(inner_lr=0.3)
    task = one_task(model.family.tasks("test", 1), 0)
    adapted = model.adapt(SingleEnv(model.family, **task), n_inner_steps=5, n_episodes=20, seed=1)
    assert adapted.env_steps == 20
    env = SingleEnv(model.family.real, **task)
    obs, _ = env.reset(seed=0)
    action, _ = adapted.predict(obs, deterministic=True)
    env.step(action)
    with pytest.raises(ConfigError, match="has no 'target'"):
        model.adapt(env)  # nobody shows anything there


def test_one_environment_pays_for_what_is_said_and_clips_nothing() -> None:
    model = make(learner="vpg")
    env = SingleEnv(model.family, **one_task(model.family.tasks("test", 1), 0))
    episodes = collect_env(env, model.policy, model.theta, seed_sequence(0, "one"), 30, None, info=("target",))
    assert np.abs(episodes.actions).max() > 1.5
    expected = -np.square(episodes.actions - episodes.info["target"]).sum(-1)
    np.testing.assert_allclose(episodes.rewards, expected, rtol=1e-5)


# ------------------------------------------------------------------------------------------------------------- exports
@pytest.fixture
def quickly_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Value networks are fitted badly."""
    monkeypatch.setattr(value_fit, "ROUNDS", 2)


@pytest.mark.usefixtures("quickly_fitted")
def test_a_cloned_policy_is_exported_for_the_real_family(tmp_path: Path) -> None:
    model = make(env="PointMassImitation-v0", env_kwargs={"n_tasks": 4, "real_kwargs": {"horizon": 20}})
    stock = model.to_sb3("ppo", value_tasks=2, value_episodes=1)
    assert stock.n_steps == 2048
    obs = np.array([[0.1, -0.2], [0.0, 0.3]], np.float32)
    np.testing.assert_allclose(
        stock.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0], atol=1e-6
    )
    assert stock.get_env().family.id == "PointMass-v0"
    exported = export_sb3(model, value_tasks=2, value_episodes=1)
    assert exported.family.id == "PointMass-v0"
    assert exported.value_fit is not None
    assert exported.value_fit.env_steps > 2  # episodes, not pairs
    path = save_sb3(exported, tmp_path / "clone.zip")
    again = load_sb3(path)
    assert again.get_env().family.id == "PointMass-v0"
    assert again.get_env().family.horizon == 20
    with pytest.raises(ConfigError, match="no step of ppo repeats one of 'cloning'"):
        model.to_sb3("ppo", optimizer="sgd")


def test_what_learnt_by_the_score_function_repeats_no_step_elsewhere() -> None:
    with pytest.raises(ConfigError, match="no step of ppo repeats one of 'vpg'"):
        export_sb3(make(learner="vpg"), "ppo", optimizer="sgd", value_tasks=0)
    settings = export_sb3(make(learner="a2c"), value_tasks=0).settings
    assert settings.kind == "ppo"
    assert settings.arguments["policy_kwargs"]["optimizer_class"] is torch.optim.Adam


@pytest.mark.usefixtures("quickly_fitted")
def test_a_cloned_policy_goes_on_under_ppo_in_the_real_family() -> None:
    model = make()
    found = finetune(model, 80, optimizers=["adam"], n_tasks=2, n_envs=4, n_steps=8)
    (clone,) = found.exports
    assert clone.returns.shape == (2, 3)
    # The first rollout is the clone's: sampled episodes of 8 steps and not of one.
    family = model.family.real
    tasks = take_tasks(family.tasks("test", 2), slice(0, 2))
    np.testing.assert_array_equal(clone.tasks["side"], tasks["side"])
    assert (np.abs(clone.returns) > 1.0).any()
