"""Progressive networks: a column for each task, whose predecessors stay as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import metarl
from metarl import ProgressiveNets
from metarl.errors import MetaRLError
from metarl.params import HEADS
from tests.meta.algorithms.test_multi_task import Classes

POINTS = np.random.default_rng(0).uniform(-1.0, 1.0, (50, 2)).astype(np.float32)


def make(**kwargs: Any) -> ProgressiveNets:
    options: dict[str, Any] = {
        "learner": "supervised",
        "n_training_tasks": 3,
        "n_iterations_per_task": 60,
        "n_episodes": 30,
        "outer_kwargs": {"learning_rate": 0.03},
        "policy_kwargs": {"net_arch": [8, 8]},
    }
    return ProgressiveNets("MlpPolicy", Classes(), **{**options, **kwargs}, n_threads=1)


def outputs(model: ProgressiveNets, index: int) -> torch.Tensor:
    policy = model.policy_of(index)
    return policy.policy.distribution(policy.params, torch.from_numpy(POINTS)).heads[0].detach().clone()


def test_tasks_that_were_learnt_stay_bit_for_bit_while_others_are_learnt() -> None:
    model = make()
    before = outputs(model, 0)
    kept: list[torch.Tensor] = []
    for stage in range(3):
        assert model.stage == stage
        model.learn(60 * 30, reset_num_timesteps=False)
        assert all(torch.equal(outputs(model, index), earlier) for index, earlier in enumerate(kept))
        kept.append(outputs(model, stage))
    assert not torch.equal(kept[0], before)
    rng = np.random.default_rng(1)
    for index in range(3):
        task = {"index": model.training_tasks["index"][index : index + 1]}
        (x,), (y,) = model.family.examples(task, [rng], 200)  # type: ignore[attr-defined]
        assert (model.policy_of(index).predict(x, deterministic=True)[0] == y).mean() > 0.8


def test_a_column_sees_those_before_it_and_changes_none() -> None:
    model = make(n_iterations_per_task=1).learn(30)
    name = "policy/features_extractor.laterals.1.0.weight"
    before = outputs(model, 1), outputs(model, 0)
    model.params = {**model.params, name: model.params[name] + 1.0}
    assert not torch.equal(outputs(model, 1), before[0])
    assert torch.equal(outputs(model, 0), before[1])


def test_only_the_column_and_the_head_of_the_task_move_under_adam_too() -> None:
    model = make(n_iterations_per_task=2).learn(3 * 30)
    before = {name: tensor.clone() for name, tensor in model.params.items()}
    model.learn(30, reset_num_timesteps=False)
    moved = {name for name, tensor in before.items() if not torch.equal(model.params[name], tensor)}
    assert moved == {
        *(f"policy/features_extractor.layers.1.{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")),
        "policy/features_extractor.laterals.1.0.weight",
        f"{HEADS}1/action_net.weight",
        f"{HEADS}1/action_net.bias",
    }


def test_a_new_task_begins_with_a_further_column_and_leaves_the_others() -> None:
    model = make(n_iterations_per_task=1).learn(3 * 30)
    adapted = model.adapt(model.family, 3, inner_lr=0.5).params
    for name, tensor in model.theta.items():
        assert torch.equal(adapted[name], tensor), name
    drawn = model.adapt(model.family, 0).params
    new = {name for name in adapted if name not in model.theta}
    assert {name.split(".")[2] for name in new if "extractor" in name} == {"3"}
    assert all(not torch.equal(adapted[name], drawn[name]) for name in new)


def test_it_goes_on_from_a_file_in_the_middle_of_a_task(tmp_path: Path) -> None:
    model = make(n_iterations_per_task=2).learn(3 * 30)
    again = metarl.load(model.save(tmp_path / "model"), env=model.family)
    for each in (model, again):
        each.learn(30, reset_num_timesteps=False)
    assert all(torch.equal(tensor, again.params[name]) for name, tensor in model.params.items())


def test_images_have_columns_of_convolutions() -> None:
    model = ProgressiveNets(
        "FewShotCnnPolicy",
        "Omniglot-v0",
        learner="supervised",
        n_training_tasks=2,
        n_iterations_per_task=1,
        n_episodes=4,
        policy_kwargs={"features_extractor_kwargs": {"n_filters": 2}},
        n_threads=1,
    ).learn(4)
    (x,), _ = model.family.examples(model.family.tasks("test", 1), [np.random.default_rng(0)], 6)  # type: ignore[attr-defined]
    before = model.policy_of(0).predict(x, deterministic=True)[0]
    theta = dict(model.params)
    model.learn(4, reset_num_timesteps=False)
    np.testing.assert_array_equal(model.policy_of(0).predict(x, deterministic=True)[0], before)
    moved = {name for name, tensor in theta.items() if not torch.equal(tensor, model.params[name])}
    assert {name.split(".")[2] for name in moved if "extractor" in name} == {"1"}


def test_what_does_not_go_is_one_line() -> None:
    for kwargs, message in (
        ({"policy_kwargs": {"net_arch": {"pi": [4], "vf": [4]}}}, "actor and critic share columns"),
        ({"policy_kwargs": {"features_extractor_kwargs": {"n_filters": 4}}}, "unknown features extractor keyword"),
        ({"task_local": ["action_net"]}, "a column and a head are each task's own"),
        ({"n_iterations_per_task": 0}, "n_iterations_per_task=0 is not"),
        ({"learner": "sb3_ppo"}, "one head for all tasks"),
    ):
        with pytest.raises(MetaRLError, match=message):
            make(**kwargs)
    with pytest.raises(MetaRLError, match="policy='MlpLstmPolicy', which has no columns: use MlpPolicy or CnnPolicy"):
        ProgressiveNets("MlpLstmPolicy", Classes())
    with pytest.raises(MetaRLError, match="takes other observations"):
        ProgressiveNets("CnnPolicy", Classes())
