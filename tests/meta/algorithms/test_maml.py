"""MAML, FOMAML and the baselines on a small PointMass: what a meta-iteration does, and adaptation afterwards."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import metarl.envs  # noqa: F401  (registers the families)
from metarl.agents.learners.vpg import VPG
from metarl.agents.sampling.collect import collect
from metarl.agents.sampling.one_env import collect_env
from metarl.envs.registry import make_family
from metarl.envs.tasks import n_tasks
from metarl.errors import ConfigError, MetaRLError, NonFiniteError, UnknownNameError
from metarl.meta.algorithms.baselines import Oracle, Pretrain, RandomInit
from metarl.meta.algorithms.maml import FOMAML, MAML
from metarl.meta.blocks import derivatives
from metarl.meta.blocks.derivatives import BlockDerivatives
from metarl.meta.outer.sgd import SGD
from metarl.params import expand
from metarl.streams import seed_sequence, stream
from tests.agents.toys import Staircase
from tests.meta.problems import inner_path, local_objective
from tests.meta.small import SIZES, copy, equal, run_iterations, small

TRAINED = [MAML, FOMAML, Pretrain, Oracle]


@pytest.mark.parametrize("algorithm", TRAINED)
@pytest.mark.parametrize("outer", ["trpo", "adam", "sgd"])
def test_the_same_seed_gives_the_same_bits_on_any_number_of_threads(algorithm: Any, outer: str) -> None:
    models = [
        run_iterations(small(algorithm, outer=outer, chunk_size=1, n_threads=n_threads), 2) for n_threads in (1, 2, 1)
    ]
    assert equal(models[0].params, models[1].params)
    assert equal(models[0].params, models[2].params)
    assert not equal(models[0].params, small(algorithm).params)
    other = run_iterations(small(algorithm, outer=outer, chunk_size=1, seed=1), 2)
    assert not equal(models[0].params, other.params)


def test_results_do_not_depend_on_torchs_own_threads() -> None:
    before = torch.get_num_threads()
    sizes = {"net_arch": [128, 128]}
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            model = run_iterations(small(MAML, policy_kwargs=sizes, n_episodes=40), 1)
            report = model.evaluate(n_tasks=3, n_inner_steps=1, n_episodes=200)
            adapted = model.adapt(gym.make("PointMass-v0", goal=[0.3, 0.3], horizon=20), 1)
            assert torch.get_num_threads() == count
            results.append((model.params, report.returns, adapted.params))
    finally:
        torch.set_num_threads(before)
    assert equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])
    assert equal(results[0][2], results[1][2])


@pytest.mark.parametrize("algorithm", [MAML, FOMAML])
def test_a_meta_iteration_by_hand(algorithm: Any) -> None:
    """Tasks, support at θ, one step, query at φ, meta-gradient, SGD: each from its documented stream."""
    model = small(
        algorithm, outer="sgd", outer_kwargs={"learning_rate": 0.5}, inner_lr=[0.2, 0.1], n_inner_steps=2, seed=3
    )
    theta = copy(model.policy_params)
    run_iterations(model, 1)

    family, learner = make_family("PointMass-v0", horizon=20), VPG(model.policy)
    tasks = family.sample_tasks(stream(3, "tasks", 0), 4)
    params = {name: tensor.contiguous() for name, tensor in expand(theta, 4).items()}
    support, steps = [], 0
    for k, rate in enumerate([0.2, 0.1]):
        seeds = [seed_sequence(3, "train", 0, task, k) for task in range(4)]
        episodes = collect(family, model.policy, params, tasks, seeds, n_episodes=5)
        support.append(learner.process(episodes, params))
        _, params = inner_path(learner, params, support[-1:], [rate])
        steps += episodes.n_steps
    seeds = [seed_sequence(3, "train", 0, task, 2) for task in range(4)]
    episodes = collect(family, model.policy, params, tasks, seeds, n_episodes=5)
    query = learner.process(episodes, params)
    objective = local_objective(learner, theta, support, query, [0.2, 0.1], first_order=algorithm is FOMAML)
    expected = SGD(learning_rate=0.5).step(objective, theta).params
    for name, tensor in expected.items():
        torch.testing.assert_close(model.policy_params[name], tensor, rtol=1e-5, atol=1e-6)
    assert model.num_timesteps == steps + episodes.n_steps
    assert model.n_iterations == 1


def test_maml_and_fomaml_differ_by_the_derivative_of_adaptation_only() -> None:
    maml, fomaml = (run_iterations(small(algorithm, inner_lr=0.5), 1) for algorithm in (MAML, FOMAML))
    assert not equal(maml.params, fomaml.params)
    # Without inner steps there is nothing to differentiate.
    none = [run_iterations(small(algorithm, n_inner_steps=0), 1) for algorithm in (MAML, FOMAML, Pretrain)]
    assert equal(none[0].params, none[1].params)
    assert equal(none[0].params, none[2].params)


def test_pretrain_takes_no_inner_steps_in_training() -> None:
    model = small(Pretrain, n_inner_steps=3)
    stats = model.train()
    assert not any(key.startswith("inner/return_after_1") for key in stats)
    assert stats["meta/adapt_gain"] == 0.0
    assert model.num_timesteps <= 4 * 5 * 20
    report = model.evaluate(n_tasks=2)
    assert report.returns.shape == (1, 2, 4)


def test_random_initialisation_does_not_learn() -> None:
    model = small(RandomInit)
    before = copy(model.params)
    assert model.learn(1000) is model
    assert equal(model.params, before)
    assert model.num_timesteps == model.n_iterations == 0
    assert equal(before, small(FOMAML).params)
    assert model.evaluate(n_tasks=2, n_inner_steps=1).returns.shape == (1, 2, 2)


def test_the_oracle_sees_the_task() -> None:
    model = small(Oracle)
    assert model.observation_space.shape == (4,)
    assert model.env_kwargs == {"horizon": 20, "oracle": True}
    tasks = model.family.tasks("test", 2)
    _, obs = model.family.reset(tasks, [np.random.default_rng(0)] * 2, 1)
    np.testing.assert_allclose(obs[:, 0, 2:], tasks["goal"], rtol=1e-6)
    with pytest.raises(ConfigError, match="hides the task"):
        Oracle("MlpPolicy", make_family("PointMass-v0"))
    assert Oracle("MlpPolicy", make_family("PointMass-v0", oracle=True)).observation_space.shape == (4,)


def test_statistics_of_an_iteration() -> None:
    stats = small(MAML, n_inner_steps=2, inner_lr=0.3).train()
    returns = [stats[f"inner/return_after_{k}"] for k in range(3)]
    assert stats["meta/pre_adapt_rew"] == returns[0]
    assert stats["meta/post_adapt_rew"] == stats["rollout/ep_rew_mean"] == returns[2]
    assert stats["meta/adapt_gain"] == returns[2] - returns[0]
    assert 1.0 <= stats["rollout/ep_len_mean"] <= 20.0
    assert stats["train/std"] == pytest.approx(1.0, abs=0.2)
    assert stats["meta/second_order_share"] > 0.0
    for key in ("meta/meta_grad_norm", "train/kl_divergence_loss", "train/is_line_search_success", "time/sampling_fps"):
        assert np.isfinite(stats[key])
    assert "meta/second_order_share" not in small(FOMAML).train()


def test_sb3s_keys_of_an_update() -> None:
    model = run_iterations(small(outer="adam", outer_kwargs={"learning_rate": 0.03}), 2)
    stats = model.train()
    assert stats["train/n_updates"] == stats["meta/n_meta_iterations"] == 3
    assert stats["train/learning_rate"] == 0.03
    # A trust region has no step size of its own.
    assert "train/learning_rate" not in small(outer="trpo").train()


def test_batches_counted_in_transitions() -> None:
    family = Staircase(random=True)
    model = FOMAML(
        "MlpPolicy", family, meta_batch_size=3, n_transitions=30, policy_kwargs={"net_arch": [8]}, n_threads=1
    )
    run_iterations(model, 1)
    assert 2 * 3 * 30 <= model.num_timesteps < 2 * 3 * 37
    report = model.evaluate(n_inner_steps=1, n_tasks=3)
    assert 30 <= report.env_steps[1] < 37
    assert report.meta["n_transitions"] == 30
    assert report.meta["n_episodes"] is None


class Spoilt(Staircase):
    """Rewards become NaN for some tasks."""

    def __init__(self) -> None:
        super().__init__(bad_offset=2)


@pytest.mark.parametrize("outer", ["trpo", "adam"])
def test_a_nan_reward_stops_and_names_task_and_iteration(outer: str) -> None:
    model = FOMAML("MlpPolicy", Spoilt(), meta_batch_size=3, n_episodes=3, n_threads=1, outer=outer, seed=4)
    snapshots: list[Any] = []

    def watch(local: dict[str, Any], _: dict[str, Any]) -> bool:
        state = {name: tensor.clone() for name, tensor in model.outer_optimizer.state().items()}
        snapshots.append((copy(model.params), model.num_timesteps, state))
        return True

    pattern = r"meta-iteration (\d+): non-finite reward in Staircase-v0 task \d+ .*'offset': 2"
    with pytest.raises(NonFiniteError, match=pattern) as caught:
        model.learn(10**6, callback=watch)
    assert "\n" not in str(caught.value)
    assert model.n_iterations == len(snapshots)
    assert f"meta-iteration {len(snapshots) + 1}:" in str(caught.value)
    assert len(snapshots) > 0
    params, steps, state = snapshots[-1]
    assert equal(model.params, params)
    assert model.num_timesteps == steps
    assert equal(model.outer_optimizer.state(), state)


# --------------------------------------------------------------------------------------------------------- adaptation
def test_adaptation_equals_an_inner_step_by_hand() -> None:
    model = small(FOMAML, inner_lr=0.3)
    env = gym.make("PointMass-v0", goal=[0.3, -0.2], horizon=20)
    adapted = model.adapt(env, 1, seed=7)
    theta = model.policy_params
    episodes = collect_env(env, model.policy, theta, seed_sequence(7, "adapt", 0), 5)
    stacked = {name: tensor[None] for name, tensor in theta.items()}
    learner = VPG(model.policy)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in stacked.items()}
    gradient = torch.autograd.grad(
        learner.loss(leaves, learner.process(episodes, stacked)).sum(), list(leaves.values())
    )
    for (name, tensor), g in zip(theta.items(), gradient, strict=True):
        torch.testing.assert_close(adapted.params[name], tensor - 0.3 * g[0], rtol=1e-6, atol=1e-7)
    assert adapted.env_steps == episodes.n_steps
    assert adapted.returns == pytest.approx([float(episodes.mean_returns[0])])
    assert equal(model.adapt(env, 1, seed=7).params, adapted.params)
    assert not equal(model.adapt(env, 1, seed=8).params, adapted.params)
    assert equal(model.adapt(env, 0).params, theta)
    assert len(model.adapt(env).returns) == 1


def test_adaptation_steps_do_not_share_streams() -> None:
    kwargs = {"horizon": 20, "start_range": 0.2}
    model = small(FOMAML, env_kwargs=kwargs)
    env = gym.make("PointMass-v0", goal=[0.3, -0.2], **kwargs)
    env_steps = model.adapt(env, 3).env_steps
    assert env_steps <= 3 * 5 * 20
    firsts = [collect_env(env, model.policy, model.policy_params, seed_sequence(0, "adapt", k), 1) for k in range(2)]
    assert not np.array_equal(firsts[0].obs[0, 0, 0], firsts[1].obs[0, 0, 0])


def test_adaptation_takes_as_many_transitions_as_training_does() -> None:
    model = small(FOMAML, n_transitions=70, env_kwargs={"horizon": 20, "termination": "none"})
    env = gym.make("PointMass-v0", goal=[0.5, 0.5], horizon=20, termination="none")
    assert model.adapt(env, 1).env_steps == 80
    assert model.adapt(env, 1, n_episodes=2).env_steps == 40


def test_adaptation_refuses_other_spaces() -> None:
    with pytest.raises(ConfigError, match="action_space"):
        small().adapt(gym.make("PointMass-v0", goal=[0.3, -0.2], horizon=20, wrap_actions=False))
    with pytest.raises(UnknownNameError, match="did you mean 'n_episodes'"):
        small().adapt(gym.make("PointMass-v0", goal=[0.3, -0.2], horizon=20), n_episode=3)


class Wide(gym.Wrapper[Any, Any, Any, Any]):
    """The same environment in float64, as most people write theirs; it takes no action beyond its bounds."""

    def __init__(self, env: gym.Env[Any, Any], scale: float = 1.0) -> None:
        super().__init__(env)
        seen, does = (space for space in (env.observation_space, env.action_space))
        assert isinstance(seen, gym.spaces.Box)
        assert isinstance(does, gym.spaces.Box)
        self.observation_space = gym.spaces.Box(scale * float(seen.low[0]), float(seen.high[0]), (2,), np.float64)
        self.action_space = gym.spaces.Box(
            -round(float(does.high[0]), 3), round(float(does.high[0]), 3), (2,), np.float64
        )

    def reset(self, **kwargs: Any) -> Any:
        obs, info = self.env.reset(**kwargs)
        return obs.astype(np.float64), info

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        obs, *rest = self.env.step(action)
        return obs.astype(np.float64), *rest


@pytest.mark.parametrize("wrap_actions", [True, False])
def test_adaptation_takes_environments_in_float64(wrap_actions: bool) -> None:
    kwargs = {"horizon": 20, "wrap_actions": wrap_actions}
    model = small(env_kwargs=kwargs)
    env = gym.make("PointMass-v0", goal=[0.3, -0.2], **kwargs)
    ours, theirs = model.adapt(env, 1), model.adapt(Wide(env), 1)
    for name, tensor in ours.params.items():
        torch.testing.assert_close(theirs.params[name], tensor, rtol=1e-5, atol=1e-6)
    with pytest.raises(ConfigError, match=r"observation_space .* of the environment differs"):
        model.adapt(Wide(env, scale=1.01), 1)


def test_rates_at_test_time() -> None:
    model = small(MAML, inner_lr=[0.4, 0.2], n_inner_steps=2)
    assert model.test_rates(4) == [0.4, 0.2, 0.2, 0.2]
    assert model.test_rates(1) == [0.4]
    assert model.test_rates(3, "half_after_first") == [0.4, 0.2, 0.2]
    assert small(MAML, inner_lr=0.1).test_rates(3, "half_after_first") == [0.1, 0.05, 0.05]
    assert small(MAML).test_rates(0) == []
    with pytest.raises(ConfigError, match="inner_lr_rule='halve'"):
        model.test_rates(3, "halve")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"learner": "pg"}, "unknown learner 'pg': did you mean 'vpg'"),
        ({"learner": "ppo", "surrogate": "log_likelihood"}, "unknown argument of learner 'ppo': 'surrogate'"),
        ({"learner": "ppo", "outer": "trpo"}, "outer='trpo' with learner='ppo'"),
        ({"learner": "ppo", "learner_kwargs": {"n_epochs": 2}}, "n_epochs: maml differentiates plain"),
        ({"gamma": 0.9, "learner_kwargs": {"gamma": 0.8}}, "gamma=0.9 and learner_kwargs has gamma=0.8"),
        ({"learner_kwargs": {"normalize_advantage": "yes"}}, "normalize_advantage='yes'"),
        ({"inner_lr": 0.0}, "inner_lr=0.0"),
        ({"inner_lr": "0.1"}, "inner_lr='0.1'"),
        ({"inner_lr": [0.1, 0.2]}, "inner_lr has 2 rates for 1 inner steps"),
        ({"inner_lr": []}, "inner_lr has 0 rates"),
        ({"n_inner_steps": -1}, "n_inner_steps=-1"),
        ({"n_inner_steps": 1.5}, "n_inner_steps=1.5"),
        ({"n_episodes": 0}, "n_episodes=0"),
        ({"n_transitions": 0}, "n_transitions=0"),
        ({"meta_batch_size": 0}, "meta_batch_size=0"),
        ({"gamma": 1.1}, "gamma=1.1"),
        ({"gae_lambda": "1"}, "gae_lambda='1'"),
        ({"normalize_advantage": "yes"}, "normalize_advantage='yes'"),
        ({"surrogate": "ppo"}, "surrogate='ppo'"),
        ({"outer": "rmsprop"}, "unknown outer optimiser 'rmsprop'"),
        ({"outer_kwargs": {"max_kl": -1.0}}, "max_kl=-1.0"),
        ({"fisher_fraction": 0.0}, "fisher_fraction=0.0"),
        ({"kl_direction": "both"}, "kl_direction='both'"),
        ({"chunk_size": 0}, "chunk_size=0"),
        ({"seed": -1}, "seed=-1"),
        ({"n_threads": 0}, "n_threads=0"),
        ({"device": "cuda"}, "device='cuda'"),
        ({"env_kwargs": {"horizn": 3}}, "horizn"),
        ({"policy_kwargs": {"use_sde": True}}, "use_sde=True"),
    ],
)
def test_bad_arguments_are_named_in_one_line(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(MetaRLError, match=message) as caught:
        small(MAML, **kwargs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("method", "kwargs", "message"),
    [
        ("evaluate", {"n_tasks": 0}, "n_tasks=0"),
        ("evaluate", {"n_episodes": 0}, "n_episodes=0"),
        ("evaluate", {"n_transitions": -5}, "n_transitions=-5"),
        ("evaluate", {"n_inner_steps": -1}, "n_inner_steps=-1"),
        ("evaluate", {"seed": -1}, "seed=-1"),
        ("evaluate", {"split": "tests"}, "unknown split 'tests'"),
        ("evaluate", {"n_task": 3}, "did you mean 'n_tasks'"),
        ("evaluate", {"n_episodes": 2, "n_transitions": 5}, "either n_episodes or n_transitions"),
        ("adapt", {"n_episodes": 0}, "n_episodes=0"),
        ("adapt", {"seed": -1}, "seed=-1"),
        ("learn", {"total_timesteps": 0}, "total_timesteps=0"),
        ("learn", {"total_timesteps": 10, "log_interval": 0}, "log_interval=0"),
    ],
)
def test_bad_calls_are_named_in_one_line(method: str, kwargs: dict[str, Any], message: str) -> None:
    model = small(MAML)
    if method == "adapt":
        kwargs = {"env": gym.make("PointMass-v0", goal=[0.1, 0.1], horizon=20), **kwargs}
    with pytest.raises(MetaRLError, match=message) as caught:
        getattr(model, method)(**kwargs)
    assert "\n" not in str(caught.value)


def test_sizes_are_what_was_asked_for() -> None:
    model = small(FOMAML, meta_batch_size=6)
    assert n_tasks(model.family.sample_tasks(stream(0, "tasks", 0), model.meta_batch_size)) == 6
    model.train()
    assert model.num_timesteps <= 2 * 6 * SIZES["n_episodes"] * 20


@pytest.mark.parametrize(("free", "budget"), [(0, 200_000_000), (8_000_000_000, 2_000_000_000)])
def test_what_may_be_kept_goes_by_the_free_memory(free: int, budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(derivatives, "available_memory", lambda: free)
    assert derivatives.cache_budget() == budget
    assert derivatives.cache_budget(4) == budget // 4


@pytest.mark.parametrize("algorithm", [MAML, FOMAML])
def test_results_do_not_depend_on_the_free_memory(algorithm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(derivatives, "CACHE_BYTES", 0)
    models, kept = [], []
    for free in (0, 70_000, 10**12):
        monkeypatch.setattr(derivatives, "available_memory", lambda free=free: free)
        model = small(algorithm, chunk_size=1)
        build = model._derivatives
        model._derivatives = lambda *args, build=build: kept.append(build(*args)) or kept[-1]
        models.append(run_iterations(model, 1))
    assert [len(block._kept) for block in kept] == [0, {MAML: 1, FOMAML: 3}[algorithm], 4]
    assert equal(models[0].params, models[1].params)
    assert equal(models[0].params, models[2].params)


def test_what_the_trust_region_measures_with_is_what_was_asked_for() -> None:
    seen: list[BlockDerivatives] = []
    for kwargs in ({"fisher_fraction": 1.0}, {"fisher_fraction": 0.4, "kl_direction": "new_old", "chunk_size": 3}):
        model = small(MAML, **kwargs)
        build = model._derivatives
        model._derivatives = lambda *args, build=build: seen.append(build(*args)) or seen[-1]
        model.train()
    whole, part = seen
    assert (whole._bound.kl_direction, part._bound.kl_direction) == ("old_new", "new_old")
    assert (whole._query_part.counts == whole._query.counts).all()
    assert (part._query_part.counts == 2 * part._query.counts // 5).all()  # two of five episodes of equal length
    assert [chunk.stop - chunk.start for chunk in part._chunks] == [3, 1]
