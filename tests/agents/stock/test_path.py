"""The path of a stock SB3 algorithm: every move is seen, whoever made it, in a storage that changes nothing."""

from __future__ import annotations

import pytest
import torch
from stable_baselines3 import A2C

from metarl.agents.stock import path as sb3_path
from metarl.agents.stock.path import FlatStorage
from metarl.agents.stock.reuse import named_parameters
from metarl.meta.algorithms.leap_watcher import LeapMetric, LeapWatcher
from tests.agents.stock.test_learner import GOAL, SEED, N, Recorder, make_learner, require_equal


class OneByOne:
    """Hides that a watcher takes several steps at once."""

    def __init__(self, watcher: LeapWatcher) -> None:
        self.segment = watcher.segment


@pytest.mark.parametrize("name", ["ppo", "trpo", "sac"])
@pytest.mark.parametrize("metric", [LeapMetric(), LeapMetric("energy", loss=False), LeapMetric(drop_last=True)])
@pytest.mark.parametrize("room", [3, 32])
def test_steps_at_once_are_the_same_as_one_by_one(monkeypatch, name, metric, room):
    monkeypatch.setattr(sb3_path, "_MOST_STEPS", room)
    excluded = ["log_std"] if name != "sac" else ["log_ent_coef"]
    together, alone = LeapWatcher(metric, excluded), LeapWatcher(metric, excluded)
    learner = make_learner(name)
    calls = []
    monkeypatch.setattr(together, "steps", lambda *a, told=together.steps: (calls.append(a[3]), told(*a)))
    for watcher in (together, OneByOne(alone)):
        run = learner.run(learner.init(3), GOAL, SEED, N, watcher=watcher)
    together.close(), alone.close()
    assert max(calls) <= room
    assert max(calls) > 1
    assert together.n_segments == alone.n_segments > 0
    assert together.distance == pytest.approx(alone.distance, rel=1e-5)
    expected = alone.gradient()
    torch.testing.assert_close(together.gradient(), expected, rtol=1e-4, atol=1e-6)
    assert any(tensor.any() for tensor in expected.values())
    assert set(expected) == set(learner.parameters) <= set(run.params)


@pytest.mark.parametrize("how", ["copy", "data", "swap"])
def test_a_move_between_two_steps_is_a_segment_of_its_own(monkeypatch, how):
    def train(self):
        for turn in range(3):
            self.policy.optimizer.zero_grad()
            self.policy.value_net.bias.grad = torch.ones(1)
            self.policy.optimizer.step()
            if turn == 1:
                log_std = self.policy.log_std
                with torch.no_grad():
                    if how == "copy":
                        log_std.add_(0.25)
                    elif how == "data":
                        # Leaves no mark on the tensor, as TRPO's line search.
                        log_std.data.copy_(log_std.data + 0.25)
                    else:
                        log_std.data = log_std.data + 0.25

    monkeypatch.setattr(A2C, "train", train)
    learner, watcher = make_learner("a2c"), Recorder()
    learner.run(learner.init(0), GOAL, SEED, 10, watcher=watcher)
    value = {"value_net.bias"}
    assert watcher.moved == [value, value, {"log_std"}, value] * 2
    assert [gradient is None for _, _, gradient in watcher.segments] == [False, False, True, False] * 2
    for before, after in zip(watcher.segments, watcher.segments[1:], strict=False):
        require_equal(before[1], after[0])


def test_storage_keeps_objects_values_and_alignment():
    model = A2C("MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": [3, 5]}, device="cpu")
    parameters = named_parameters(model)
    before = {name: tensor.detach().clone() for name, tensor in parameters.items()}
    storage = FlatStorage(parameters)
    require_equal(named_parameters(model), before)
    for name, tensor in named_parameters(model).items():
        assert tensor is parameters[name]
        assert tensor.is_leaf
        assert tensor.requires_grad
        assert tensor.data_ptr() % 64 == 0
        assert tensor.data_ptr() == storage.now[name].data_ptr()
    require_equal({name: tensor[0] for name, tensor in storage.now.items()}, before)


def test_storage_takes_in_again_what_left_it():
    model = A2C("MlpPolicy", "CartPole-v1", device="cpu")
    storage = FlatStorage(named_parameters(model))
    bias = model.policy.value_net.bias
    bias.data = bias.data + 2.0
    assert not torch.equal(storage.now["value_net.bias"][0], bias)
    assert storage.moved()
    assert bias.item() == 2.0
    bias.data.add_(1.0)
    assert storage.now["value_net.bias"].item() == 3.0


def test_storage_takes_in_parameters_that_exchanged_theirs():
    model = A2C("MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": {"pi": [4], "vf": [4]}}, device="cpu")
    storage = FlatStorage(named_parameters(model))
    a, b = model.policy.mlp_extractor.policy_net[0].weight, model.policy.mlp_extractor.value_net[0].weight
    before = a.detach().clone(), b.detach().clone()
    assert not torch.equal(*before)
    a.data, b.data = b.data, a.data
    assert storage.moved()
    require_equal({"a": a.detach(), "b": b.detach()}, {"a": before[1], "b": before[0]})
    require_equal({name: tensor[0] for name, tensor in storage.now.items()}, named_parameters(model))
