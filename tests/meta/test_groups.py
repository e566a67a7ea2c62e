"""Tasks of unequal spaces: heads of their own on a trunk that is shared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from stable_baselines3 import PPO

from metarl.envs.groups import group_tasks
from metarl.envs.views.single import SingleEnv
from metarl.errors import ConfigError, UnknownNameError
from metarl.meta.adaptation.base import Streams
from metarl.meta.algorithms.anil import ANIL
from metarl.meta.algorithms.baselines import Pretrain
from metarl.meta.algorithms.boil import BOIL
from metarl.meta.algorithms.cavia import CAVIA
from metarl.meta.algorithms.leap import Leap
from metarl.meta.algorithms.maml import FOMAML, MAML
from metarl.meta.algorithms.meta_sgd import MetaSGD
from metarl.meta.algorithms.reptile import Reptile
from metarl.meta.base import load
from metarl.meta.export.sb3 import export_sb3, load_sb3, save_sb3
from metarl.streams import stream
from tests.envs.families import Doors
from tests.envs.games import BUTTONS, Games
from tests.meta.small import copy, equal, small

KWARGS: dict[str, Any] = {"meta_batch_size": 6, "n_episodes": 4, "policy_kwargs": {"net_arch": [8]}}


def make(algorithm: Any, **kwargs: Any) -> Any:
    return algorithm("MlpPolicy", Doors(), **{**KWARGS, **kwargs})


@pytest.mark.parametrize("algorithm", [MAML, FOMAML, Reptile, Leap, Pretrain])
@pytest.mark.parametrize("learner", ["vpg", "ppo"])
def test_trunks_are_learnt_across_spaces_and_heads_by_each_task(algorithm: Any, learner: str) -> None:
    model = make(algorithm, learner=learner)
    before = copy(model.params)
    assert not any("action_net" in name for name in before)
    assert "policy/mlp_extractor.policy_net.0.weight" in before
    model.learn(1)
    moved = [name for name in before if not torch.equal(model.params[name], before[name])]
    assert "policy/mlp_extractor.policy_net.0.weight" in moved
    assert model.num_timesteps == model.steps_per_iteration
    report = model.evaluate("test", 1, n_tasks=9)
    assert report.returns.shape == (1, 9, 2)
    assert np.isfinite(report.returns).all()


def test_a_task_s_head_comes_from_its_own_stream_whatever_else_is_in_the_batch() -> None:
    model = make(FOMAML)
    tasks = Doors().sample_tasks(stream(0, "tasks"), 6)
    cut = lambda size: model.adaptations.cut(tasks, [0.1], Streams(0, "x"), {"n_episodes": 2}, size)  # noqa: E731
    whole = {i: block.request.local["action_net.weight"][k] for block in cut(64) for k, i in enumerate(block.indices)}
    assert sorted(whole) == list(range(6))
    for block in cut(1):
        (index,) = block.indices
        assert torch.equal(block.request.local["action_net.weight"][0], whole[index])
    assert len({float(weight.sum()) for weight in whole.values()}) == 6


def test_partitions_of_a_meta_batch_learn_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    learnt = []
    for size in (64, 2, 1):
        monkeypatch.setattr("metarl.meta.blocks.cut.BLOCK_TASKS", size)
        model = make(MAML, n_inner_steps=2, outer="sgd")
        model.learn(1)
        learnt.append(model.params)
    for other in learnt[1:]:
        for name, tensor in learnt[0].items():
            torch.testing.assert_close(other[name], tensor, rtol=1e-5, atol=1e-7)


def test_models_of_unequal_spaces_are_saved_and_adapt_to_one_task(tmp_path: Path) -> None:
    model = make(FOMAML)
    model.learn(1)
    path = model.save(tmp_path / "doors")
    again = load(path, env=Doors())
    assert equal(again.params, model.params)
    model.train(), again.train()
    assert equal(again.params, model.params)
    for group in group_tasks(Doors(), Doors().tasks("test")):
        task = {name: value[0] for name, value in group.tasks.items()}
        env = SingleEnv(Doors(), **task)
        adapted = model.adapt(env, 2, n_episodes=4)
        assert adapted.params["action_net.weight"].shape[0] == group.action_space.n
        assert adapted.predict(env.reset(seed=0)[0])[0] < group.action_space.n
    with pytest.raises(ConfigError, match=r"tensors of each task's own: adapt\(env\) returns a policy that acts"):
        model.predict(np.zeros(2, np.float32))


@pytest.mark.parametrize(
    ("algorithm", "trunk_moves", "head_moves"),
    [(ANIL, False, True), (BOIL, True, False), (CAVIA, False, True), (MetaSGD, True, True)],
)
def test_which_modules_inner_steps_move_holds_for_heads_of_tasks_own(
    algorithm: Any, trunk_moves: bool, head_moves: bool
) -> None:
    model = make(algorithm, n_inner_steps=2)
    model.learn(1)
    assert not any("action_net" in name for name in model.params)
    task = {name: value[0] for name, value in Doors().tasks("test").items()}
    start, end = (model.adapt(SingleEnv(Doors(), **task), n, n_episodes=4).params for n in (0, 2))
    trunk, head = "mlp_extractor.policy_net.0.weight", "action_net.weight"
    assert torch.equal(start[trunk], model.theta[trunk])
    assert torch.equal(start[trunk], end[trunk]) != trunk_moves
    assert torch.equal(start[head], end[head]) != head_moves


def test_heads_may_be_tasks_own_where_spaces_are_equal() -> None:
    model = small(FOMAML, task_local=["action_net"])
    assert "policy/action_net.weight" not in model.params
    before = copy(model.params)
    model.train()
    assert not equal(model.params, before)
    with pytest.raises(UnknownNameError, match="part of the policy 'head'"):
        small(FOMAML, task_local=["head"])
    with pytest.raises(ConfigError, match="leaves nothing"):
        small(FOMAML, task_local=["action_net", "log_std", "mlp_extractor"])
    with pytest.raises(ConfigError, match="task_local='action_net' is not a list of names"):
        small(FOMAML, task_local="action_net")


@pytest.mark.parametrize("algorithm", [FOMAML, Reptile, Leap])
def test_stock_algorithms_learn_heads_of_tasks_own(algorithm: Any) -> None:
    model = small(algorithm, learner="sb3_a2c", task_local=["action_net"], meta_batch_size=2, n_episodes=1)
    before = copy(model.params)
    assert "policy/action_net.weight" not in before
    model.train()
    assert not torch.equal(model.params["policy/log_std"], before["policy/log_std"])
    assert list(model.params) == list(before)
    assert np.isfinite(model.evaluate("test", 1, n_tasks=2, n_episodes=1).returns).all()
    first, second = (model.adapt("PointMass-v0", 0, seed=seed).params["action_net.weight"] for seed in (0, 1))
    assert not torch.equal(first, second)


def test_an_export_has_what_tasks_share_and_a_head_of_sb3_s_for_each_pair_of_spaces(tmp_path: Path) -> None:
    model = make(Reptile, learner="ppo")
    model.learn(1)
    exported = export_sb3(model)
    trunk, head = "mlp_extractor.policy_net.0.weight", "action_net.weight"
    assert head not in exported.tensors
    for group in group_tasks(Doors(), Doors().tasks("test")):
        env = SingleEnv(Doors(), **{name: value[0] for name, value in group.tasks.items()})
        stock = exported.on(env, seed=1)
        plain, scratch = stock.policy.state_dict(), exported.scratch(env, seed=1).policy.state_dict()
        assert torch.equal(plain[trunk], model.theta[trunk])
        assert plain[head].shape[0] == group.action_space.n
        assert torch.equal(plain[head], scratch[head])
        assert not torch.equal(plain[trunk], scratch[trunk])
        assert not torch.equal(plain[head], exported.on(env, seed=2).policy.state_dict()[head])
        path = save_sb3(exported, tmp_path / f"doors{group.action_space.n}", env=env)
        opened = PPO.load(path, env=env)
        assert torch.equal(opened.policy.state_dict()[trunk], model.theta[trunk])
        assert load_sb3(path, env).action_space == group.action_space
    with pytest.raises(ConfigError, match="action_space Discrete"):
        load_sb3(path, SingleEnv(Doors(), **{name: value[0] for name, value in Doors().tasks("test").items()}))
    with pytest.raises(ConfigError, match=r"observation_space Box of shape .* differs"):
        exported.on(gymnasium.make("PointMass-v0"))


def test_heads_of_tasks_own_are_sb3_s_in_an_export_where_spaces_are_equal_too() -> None:
    model = small(FOMAML, task_local=["action_net"])
    stock = model.to_sb3(value_tasks=2)
    scratch = export_sb3(model).scratch(seed=0)
    assert torch.equal(stock.policy.action_net.weight, scratch.policy.action_net.weight)
    assert torch.equal(stock.policy.log_std, model.theta["log_std"])


@pytest.mark.parametrize(
    ("algorithm", "learner", "options"),
    [
        (FOMAML, "sb3_a2c", {}),
        (FOMAML, "sb3_ppo", {"normalize": {"norm_obs": False}}),
        (Reptile, "sb3_a2c", {"segments": True}),
        (Leap, "sb3_ppo", {}),
        (Leap, "a2c", {"n_steps": 5, "n_envs": 2}),
    ],
)
def test_games_of_unequal_buttons_share_an_encoder_and_no_head_moves_it(
    algorithm: Any, learner: str, options: dict[str, Any]
) -> None:
    sizes = {"n_transitions": 20, "n_inner_steps": 2, "meta_batch_size": 6, "n_threads": 1}
    network = {"features_extractor_kwargs": {"features_dim": 16}}
    heads = {"action_net.weight", "action_net.bias", "value_net.weight", "value_net.bias"}
    model = algorithm(
        "CnnPolicy",
        Games(),
        learner=learner,
        learner_kwargs=options,
        policy_kwargs=network,
        task_local=["value_net"],
        **sizes,
    )
    assert heads.isdisjoint(model.theta)
    assert {adaptation.shape[0] for adaptation in _heads(model)} == set(BUTTONS)
    before = copy(model.params)
    model.train()
    assert list(model.params) == list(before)
    moved = [name for name in before if not torch.equal(model.params[name], before[name])]
    assert moved == [name for name in before if not name.startswith("statistics/obs")]
    report = model.evaluate("test", 1, n_tasks=3, n_episodes=1)
    assert np.isfinite(report.returns).all()
    adapted = model.adapt(SingleEnv(Games(), game=2), 1)
    assert adapted.params["action_net.weight"].shape == (BUTTONS[2], 16)
    assert heads.isdisjoint(model.theta)


def _heads(model: Any) -> list[torch.Tensor]:
    return [model.adaptations.of(*pair).init(0)["action_net.weight"] for pair in model.adaptations.pairs]


def test_stock_statistics_of_unequal_observations_are_each_task_s_own() -> None:
    class Wider(Doors):
        """Tasks of four doors observe a number more."""

        def spaces(self, task: Any) -> Any:
            seen, acted = super().spaces(task)
            return (seen, acted) if int(task["doors"]) < 4 else (Box(0.0, 1.0, (3,), np.float32), acted)

        def reset(self, tasks: Any, rngs: Any, n_envs: int) -> Any:
            state, obs = super().reset(tasks, rngs, n_envs)
            return state, self._wider(tasks, obs)

        def step(self, tasks: Any, state: Any, actions: Any, rngs: Any, active: Any = None) -> Any:
            step = super().step(tasks, state, actions, rngs, active)
            return step._replace(obs=self._wider(tasks, step.obs))

        @staticmethod
        def _wider(tasks: Any, obs: np.ndarray) -> np.ndarray:
            return np.concatenate([obs, obs[..., :1]], axis=-1) if (tasks["doors"] == 4).all() else obs

    model = Reptile(
        "MlpPolicy",
        Wider(),
        learner="sb3_ppo",
        learner_kwargs={"normalize": True},
        policy_kwargs={"net_arch": [8, 8]},
        n_transitions=16,
        n_inner_steps=1,
        meta_batch_size=4,
    )
    assert "statistics/obs_mean" not in model.theta
    assert "mlp_extractor.policy_net.2.weight" in model.theta
    before = copy(model.params)
    model.train()
    assert not torch.equal(model.params["statistics/return_count"], before["statistics/return_count"])
    assert np.isfinite(model.evaluate("test", 1, n_tasks=4).returns).all()
