"""A trunk that tasks share, with heads of their own: what moves, and by how much."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

import metarl
from metarl import MultiTask
from metarl.envs import OneStep
from metarl.envs.tasks import Tasks
from metarl.errors import ConfigError
from metarl.meta.adaptation.base import Streams
from metarl.params import HEADS, Params, group
from tests.envs.families import Doors

ARCH: dict[str, Any] = {"policy_kwargs": {"net_arch": [8]}, "n_threads": 1}


class Classes(OneStep):
    """Classification of points by their angle: each of six tasks has as many classes as its number says."""

    loss = "cross_entropy"

    def __init__(self) -> None:
        self.id = "Classes-v0"
        self.task_space = spaces.Dict({"index": spaces.Discrete(6)})
        self.observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = spaces.Discrete(3)

    def finite_tasks(self) -> Tasks:
        return {"index": np.arange(6)}

    def examples(self, tasks: Tasks, rngs: Any, n: int) -> tuple[np.ndarray, np.ndarray]:
        angle = np.stack([rng.uniform(0.0, 2.0 * np.pi, n) for rng in rngs])
        target = ((angle / (2.0 * np.pi) * 3 + tasks["index"][:, None]) % 3).astype(np.int64)
        return np.stack([np.sin(angle), np.cos(angle)], -1).astype(np.float32), target


def make(**kwargs: Any) -> MultiTask:
    options: dict[str, Any] = {"learner": "supervised", "meta_batch_size": 3, "n_episodes": 6, **ARCH}
    return MultiTask("MlpPolicy", Classes(), **{**options, **kwargs})


def copied(model: MultiTask) -> Params:
    return {name: tensor.clone() for name, tensor in model.params.items()}


def test_a_step_is_sgd_on_the_mean_loss_of_the_tasks_in_the_batch() -> None:
    model = make(outer="sgd", outer_kwargs={"learning_rate": 0.5})
    before = copied(model)
    seen: list[Any] = []
    learn_block = model._learn_block

    def watched(block: Any, *args: Any, **how: Any) -> Any:
        seen.append((block.request.tasks["index"], learn_block(block, *args, **how)))
        return seen[-1][1]

    vars(model)["_learn_block"] = watched
    model.learn(1)
    ((indices, outcome),) = seen
    assert len(set(indices.tolist())) == 3
    learner = model.adaptation.learner  # type: ignore[attr-defined]
    params = {name: tensor.clone().requires_grad_() for name, tensor in before.items()}
    trunk = group(params, "policy/")
    loss = sum(
        learner.loss(
            {name: t.unsqueeze(0) for name, t in {**trunk, **group(params, f"{HEADS}{index}/")}.items()},
            outcome.query.tasks(slice(place, place + 1)),
        ).sum()
        for place, index in enumerate(indices)
    )
    (loss / 3).backward()
    for name, tensor in params.items():
        moved = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
        torch.testing.assert_close(model.params[name], before[name] - 0.5 * moved, rtol=1e-5, atol=1e-6)


def test_heads_of_tasks_that_were_not_met_stay_under_adam_too() -> None:
    model = make(meta_batch_size=1)
    model.learn(6 * 2)
    before = copied(model)
    model.learn(6, reset_num_timesteps=False)
    moved = {name for name, tensor in before.items() if not torch.equal(model.params[name], tensor)}
    assert len({name.split("/")[1] for name in moved if name.startswith(HEADS)}) == 1
    assert "policy/mlp_extractor.policy_net.0.weight" in moved


def test_each_training_task_is_learnt_by_its_own_head() -> None:
    model = make(meta_batch_size=6, n_episodes=20, outer_kwargs={"learning_rate": 0.03}).learn(20 * 6 * 80)
    rng = np.random.default_rng(0)
    for index in range(6):
        task = {"index": model.training_tasks["index"][index : index + 1]}
        (x,), (y,) = model.family.examples(task, [rng], 200)  # type: ignore[attr-defined]
        right = model.policy_of(index).predict(x, deterministic=True)[0] == y
        wrong = model.policy_of((index + 1) % 6).predict(x, deterministic=True)[0] == y
        assert right.mean() > 0.85 > 0.5 > wrong.mean()


def test_a_new_task_begins_with_a_head_that_is_drawn_anew() -> None:
    model = make()
    assert model.theta.keys() == {"mlp_extractor.policy_net.0.weight", "mlp_extractor.policy_net.0.bias"}
    drawn = model.adaptations.local(model.adaptation, Streams(0, "adapt"), 1)
    policy = model.adapt(model.family, 0)
    assert torch.equal(policy.params["action_net.weight"], drawn["action_net.weight"][0])
    with pytest.raises(ConfigError, match="tensors of each task's own"):
        model.predict(np.zeros(2, dtype=np.float32))


def test_groups_of_unequal_spaces_have_heads_of_their_own_sizes(tmp_path: Path) -> None:
    model = MultiTask("MlpPolicy", Doors(), meta_batch_size=4, n_episodes=2, n_training_tasks=8, **ARCH)
    shapes = {tuple(tensor.shape) for name, tensor in model.params.items() if name.endswith("action_net.weight")}
    assert len(shapes) > 1
    model.learn(1)
    again = metarl.load(model.save(tmp_path / "model"), env=model.family)
    for each in (model, again):
        each.learn(1, reset_num_timesteps=False)
    assert all(torch.equal(tensor, again.params[name]) for name, tensor in model.params.items())


def test_what_does_not_go_is_one_line() -> None:
    for kwargs, message in (
        ({"learner": "sb3_ppo"}, "one head for all tasks"),
        ({"outer": "trpo", "learner": "vpg"}, "no policy is shared by tasks"),
        ({"n_training_tasks": 0}, "n_training_tasks=0 is not"),
        ({"task_local": ["mlp_extractor", "action_net"]}, "leaves nothing that the tasks of Classes-v0 share"),
    ):
        with pytest.raises(ConfigError, match=message):
            make(**kwargs)
    with pytest.raises(ConfigError, match="index=6 is not"):
        make().policy_of(6)
