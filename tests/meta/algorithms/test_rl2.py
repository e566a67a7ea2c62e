"""RL²: trials of all tasks, evaluation by episodes, adaptation by memory, exports, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.evaluation import evaluate_policy

import metarl
from metarl import RL2
from metarl.agents.sampling.collect import collect
from metarl.envs import TrialEnv, Trials, make_family
from metarl.errors import ConfigError, MetaRLError
from metarl.meta.adaptation.memory import by_episode
from metarl.meta.export.sb3 import export_sb3, load_sb3, save_sb3
from metarl.meta.progress import UnitCallback, Work
from metarl.params import expand
from tests.contract.kinds import KINDS

SMALL: dict[str, Any] = {
    "meta_batch_size": 3,
    "n_episodes": 2,
    "n_trials": 2,
    "n_epochs": 2,
    "batch_size": 4,
    "n_threads": 1,
    "policy_kwargs": {"lstm_hidden_size": 4, "net_arch": [4]},
}
KWARGS = {"horizon": 5, "goal_radius": 0.3}


def _model(**kwargs: Any) -> RL2:
    return RL2("MlpLstmPolicy", "PointMass-v0", **{"env_kwargs": KWARGS, **SMALL, **kwargs})


def _tensors(model: RL2) -> dict[str, torch.Tensor]:
    return model.state()[0]


def _trained(**kwargs: Any) -> RL2:
    model = _model(**kwargs)
    for _ in range(2):
        model.learn(1, reset_num_timesteps=False)
    return model


def test_threads_change_no_bit() -> None:
    one, two = _tensors(_trained(n_threads=1)), _tensors(_trained(n_threads=2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_file_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    first = _model()
    first.learn(1)
    again = metarl.load(first.save(tmp_path / "model"))
    again.learn(1, reset_num_timesteps=False)
    whole = _tensors(_trained())
    assert all(torch.equal(whole[name], tensor) for name, tensor in again.state()[0].items())


def test_a_meta_iteration_that_is_stopped_inside_goes_on_from_its_trials(tmp_path: Path) -> None:
    class Stop(UnitCallback):
        def on_unit(self, work: Work) -> bool:
            return False

        def _on_step(self) -> bool:
            return True

    model = _model()
    model.learn(1, Stop())
    assert (model.n_iterations, model.num_timesteps) == (0, 0)
    again = metarl.load(model.save(tmp_path / "model"))
    assert any(name.startswith("unfinished/0/trials/") for name in again.state()[0])
    again.learn(1)
    whole = _model()
    whole.learn(1)
    assert all(torch.equal(whole.params[name], tensor) for name, tensor in again.params.items())
    assert again.num_timesteps == whole.num_timesteps > 0


def test_a_meta_iteration_counts_the_env_steps_of_all_trials_and_logs_each_episode() -> None:
    model, seen = _model(), list[dict[str, float]]()
    model.learn(1, callback=lambda local, _: seen.append(local["stats"]) or False)
    assert 3 * 2 * 2 <= model.num_timesteps <= model.steps_per_iteration == 3 * 2 * 2 * 5
    assert {"inner/return_after_0", "inner/return_after_1", "meta/adapt_gain", "train/approx_kl"} <= set(seen[0])
    assert seen[0]["meta/post_adapt_rew"] == seen[0]["inner/return_after_1"]


def test_points_of_an_evaluation_are_the_episodes_of_a_trial() -> None:
    model = _trained()
    report = model.evaluate("test", 2, n_tasks=4, n_episodes=3)
    assert report.returns.shape == (1, 4, 3)
    assert report.point == "episode"
    family = Trials(make_family("PointMass-v0", **KWARGS), 3)
    seeds = [np.random.SeedSequence(0).spawn(1)[0] for _ in range(4)]
    trials = collect(
        family, model.trial_ppo.policy, expand(model.theta, 4), family.tasks("test", 4), seeds, n_episodes=3
    )
    returns, lengths = by_episode(trials, 3)
    np.testing.assert_allclose(returns.sum(-1), trials.returns, atol=1e-5)
    np.testing.assert_array_equal(lengths.sum(-1), trials.lengths)
    assert (lengths >= 1).all()
    assert lengths.max() == 5 > lengths.min()
    # One trial's env steps are what adaptation spends, whatever many of them a point is the mean of.
    once = model.evaluate("test", 2, n_tasks=4, n_episodes=1)
    for found in (report, once):
        assert found.env_steps[0] == 0
        assert 2 <= found.env_steps[2] <= 10


def test_adapting_plays_a_trial_and_the_policy_acts_on_as_in_its_next_episode() -> None:
    model = _trained()
    env = gymnasium.make("PointMass-v0", goal=[0.4, 0.4], horizon=5, goal_radius=0.01)
    adapted = model.adapt(env, 2, seed=7)
    assert (adapted.env_steps, len(adapted.returns)) == (10, 2)
    # By hand: the same actions, observed in a trial of three episodes.
    trial, step = TrialEnv(env, 3), model.adapt(env, 0)
    whole = model.adapt(trial, 2, seed=7)
    np.testing.assert_array_equal(whole.returns, adapted.returns)
    for ours, theirs in zip(whole.memory, adapted.memory, strict=True):
        assert torch.equal(ours, theirs)
    assert step.env_steps == 0
    # What comes next is told of adaptation's last step, and remembers it: not what the fresh policy does.
    obs, _ = TrialEnv(env).reset(seed=0)
    action, state = adapted.predict(obs, deterministic=True)
    seen = np.concatenate([obs[:2], adapted._before])
    assert seen[-1] == 1.0
    by_hand, memory = model.predict(seen, tuple(part.numpy() for part in adapted.memory), deterministic=True)
    np.testing.assert_array_equal(action, by_hand)
    np.testing.assert_array_equal(state, memory)
    assert not np.array_equal(action, model.predict(obs, deterministic=True)[0])


def test_its_predict_is_that_of_recurrent_policies() -> None:
    model = _trained()
    obs = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    first, state = model.predict(obs, deterministic=True)
    later, _ = model.predict(obs, state, deterministic=True)
    assert not np.allclose(first, later)
    anew, _ = model.predict(obs, state, np.array([True, False, True]), deterministic=True)
    np.testing.assert_array_equal(anew[[0, 2]], first[[0, 2]])
    np.testing.assert_array_equal(anew[1], later[1])
    alone, _ = model.predict(obs[1], tuple(part[:, 1:2] for part in state or ()), deterministic=True)
    np.testing.assert_allclose(alone, later[1], atol=1e-6)
    env = TrialEnv(gymnasium.make("PointMass-v0", goal=[0.2, 0.1], **KWARGS), 2)
    mean, spread = evaluate_policy(model, env, n_eval_episodes=2, warn=False)  # type: ignore[arg-type]
    assert np.isfinite(mean)
    assert spread >= 0.0
    with pytest.raises(ConfigError, match="state has the shapes"):
        model.predict(obs, tuple(part[:, :2] for part in state or ()))


@pytest.mark.parametrize("kwargs", [{}, {"shared_lstm": True}, {"enable_critic_lstm": False, "n_lstm_layers": 2}])
def test_an_export_acts_the_same_and_learns_on(kwargs: dict[str, Any], tmp_path: Path) -> None:
    model = _trained(policy_kwargs={**SMALL["policy_kwargs"], **kwargs})
    stock = load_sb3(save_sb3(export_sb3(model, n_envs=2), tmp_path / "export"), env=None, kind="ppo_lstm")
    assert isinstance(stock, RecurrentPPO)
    assert (stock.n_steps, stock.n_epochs, stock.gamma) == (10, 2, 0.99)
    states: list[Any] = [None, None]
    rng = np.random.default_rng(1)
    for _ in range(4):
        obs = rng.normal(size=(2, 6)).astype(np.float32)
        found = [
            each.predict(obs, state, deterministic=True) for each, state in zip((model, stock), states, strict=True)
        ]
        states = [state for _, state in found]
        np.testing.assert_allclose(found[0][0], found[1][0], atol=1e-6)
    stock.learn(10)


def _of_kind(kind: str, policy: str = "MlpLstmPolicy") -> RL2:
    return RL2(policy, KINDS[kind].make(), **SMALL)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: _model(n_episodes=1), "n_episodes=1 .*adapts from one episode of a trial to the next"),
        (lambda: RL2("MlpPolicy", "PointMass-v0"), "no memory to adapt by"),
        (lambda: _model(env_kwargs={"trial_episodes": 3}), "n_episodes says"),
        (lambda: _model(outer="trpo"), "trust region"),
        (lambda: _model(policy_kwargs={"lstm_hidden_size": 0}), "lstm_hidden_size=0"),
        (lambda: _model(batch_size=0), "batch_size=0"),
        (lambda: _model(learner="vpg"), "learner"),
        (lambda: _of_kind("unequal spaces"), "different spaces"),
        (lambda: _of_kind("images"), "a trial needs a vector"),
        (lambda: _of_kind("imitation"), "scored in another family"),
        (lambda: _model().evaluate(n_transitions=10), "whole trials"),
        (lambda: _model().evaluate(inner_lr=0.1), "adapts by its memory"),
        (lambda: _model().evaluate(inner_lr_rule="half_after_first"), "adapts by its memory"),
        (lambda: _model().to_sb3("ppo"), "ppo_lstm"),
        (lambda: _model().to_sb3(optimizer="sgd"), "goes on with Adam"),
        (lambda: _model().predict(np.zeros(2, np.float32)), "of trials"),
        (lambda: _model().adapt(gymnasium.make("CartPole-v1")), "observation_space"),
    ],
)
def test_what_it_does_not_go_with_is_said_in_one_line(make: Callable[[], object], words: str) -> None:
    with pytest.raises(MetaRLError, match=words) as found:
        make()
    assert "\n" not in str(found.value)


def test_a_memory_is_learnt_that_finds_out_the_task() -> None:
    # Two buttons, of which one pays: what is known after an episode is worth as much as can be had.
    model = RL2(
        "MlpLstmPolicy",
        _Buttons(),
        meta_batch_size=32,
        n_episodes=3,
        n_trials=1,
        n_epochs=4,
        policy_kwargs={"lstm_hidden_size": 8, "net_arch": []},
        outer_kwargs={"learning_rate": 0.02, "max_grad_norm": 0.5},
        outer="adam",
    )
    model.learn(32 * 3 * 60)
    first, *_, last = model.evaluate("test", 2, n_tasks=2, n_episodes=50).returns.mean((0, 1))
    assert first == pytest.approx(0.5, abs=0.15)
    assert last > 0.85


class _Buttons(metarl.envs.Family):
    """One of two buttons pays."""

    def __init__(self) -> None:
        self.id = "Buttons-v0"
        self.task_space = gymnasium.spaces.Dict({"pays": gymnasium.spaces.Discrete(2)})
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (1,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2)
        self.horizon = 1

    def finite_tasks(self) -> Any:
        return {"pays": np.arange(2)}

    def reset(self, tasks: Any, rngs: Any, n_envs: int) -> Any:
        obs = np.zeros((len(rngs), n_envs, 1), np.float32)
        return {"seen": obs}, obs.copy()

    def step(self, tasks: Any, state: Any, actions: np.ndarray, rngs: Any, active: Any = None) -> Any:
        reward = (actions == tasks["pays"][:, None]).astype(np.float64)
        return metarl.envs.Step(
            state, state["seen"].copy(), reward, np.ones(reward.shape, bool), {"reward_pay": reward}
        )
