"""What a caller has set in PyTorch, threads and gradient mode, changes no bit of what the library computes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import metarl
from metarl.meta.export.sb3 import export_sb3
from tests.meta.small import equal, small
from tests.processes import Program

NETWORKS = """
import hashlib, json, sys
import torch
torch.set_num_threads(int(sys.argv[1]))
from metarl.agents.stock.learner import SB3Learner
from metarl.meta.export.sb3 import export_sb3
import metarl

def digest(tensors):
    parts = [tensors[name].detach().numpy().tobytes() for name in sorted(tensors)]
    return hashlib.sha256(b"".join(parts)).hexdigest()

# Without a switch the orthogonal weights between two hidden layers differ.
wide = {"net_arch": [64, 64]}
found = {name: digest(SB3Learner("PointMass-v0", name, policy_kwargs=wide).init(1)) for name in ("ppo", "a2c", "trpo")}
model = metarl.FOMAML("MlpPolicy", "PointMass-v0", policy_kwargs=wide, meta_batch_size=2, n_episodes=1)
export = export_sb3(model, value_tasks=0)
found["model"] = digest(model.params)
found["export"] = digest(export.tensors)
found["scratch"] = digest(dict(export.scratch(seed=2).policy.named_parameters()))
print(json.dumps(found))
"""


def test_networks_have_the_same_bits_on_one_and_on_two_torch_threads() -> None:
    processes = [Program(NETWORKS, str(n)) for n in (1, 2)]
    one, two = (json.loads(process.communicate(timeout=120)[0].splitlines()[-1]) for process in processes)
    assert one == two


MODES: dict[str, Callable[[], Any]] = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}
LEARNERS: dict[str, dict[str, Any]] = {
    "vpg": {},
    "ppo": {},
    "sb3_ppo": {"n_epochs": 2, "batch_size": 20},
    "sb3_td3": {"learning_starts": 20, "buffer_size": 200, "batch_size": 8, "train_freq": 20},
}


def everything(learner: str) -> tuple[list[dict[str, torch.Tensor]], np.ndarray]:
    """Do what computes, and return its numbers."""
    arguments = {"learner": learner, "learner_kwargs": LEARNERS[learner], "meta_batch_size": 2, "n_episodes": 2}
    model = small(metarl.Reptile if learner == "sb3_td3" else metarl.FOMAML, **arguments)
    model.learn(1)
    report = model.evaluate(n_tasks=2, n_inner_steps=1)
    env = gym.make("PointMass-v0", goal=[0.3, 0.2], horizon=20)
    adapted = model.adapt(env, n_episodes=2)
    exported = export_sb3(model, value_tasks=2, value_episodes=1)
    stock = dict(exported.on().policy.named_parameters())
    assert not any(tensor.is_inference() for tensor in (*model.params.values(), *stock.values()))
    model.learn(1)
    tensors = [model.params, adapted.params, exported.tensors, {name: t.detach() for name, t in stock.items()}]
    return tensors, report.returns


@pytest.mark.parametrize("learner", LEARNERS)
def test_calls_without_gradients_have_the_same_bits(learner: str) -> None:
    tensors, returns = everything(learner)
    for mode in MODES.values():
        with mode():
            others, other_returns = everything(learner)
            assert not torch.is_grad_enabled()
        assert all(map(equal, tensors, others))
        assert np.array_equal(returns, other_returns)


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("learner", ["ppo", "sb3_ppo"])
def test_what_was_made_without_gradients_can_be_used_with_them(learner: str, mode: Callable[[], Any]) -> None:
    with mode():
        model = small(learner=learner, learner_kwargs=LEARNERS[learner], meta_batch_size=2, n_episodes=2)
        stock = model.to_sb3(n_steps=20, batch_size=20)
    model.learn(1)
    stock.learn(20)
