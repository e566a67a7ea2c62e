"""Stock algorithms whose learning of a task is cut into segments."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from metarl.envs.registry import make_family
from metarl.envs.tasks import one_task
from metarl.envs.views.single import SingleEnv
from metarl.errors import MetaRLError
from metarl.meta.adaptation.base import Streams
from metarl.meta.adaptation.segments import SegmentedAdaptation, SegmentedWalk
from metarl.meta.algorithms.reptile import Reptile
from metarl.meta.progress import Timer


def make(learner: str = "sb3_ppo", **kwargs: Any) -> Any:
    sizes = {"n_inner_steps": 2, "n_transitions": 16, "meta_batch_size": 2, "policy_kwargs": {"net_arch": [8]}}
    options = {"segments": True, **kwargs}
    return Reptile(env=make_family("PointMass-v0", horizon=8), learner=learner, learner_kwargs=options, **sizes)


def begin(model: Any) -> SegmentedWalk:
    tasks = model.family.tasks("test", 2)
    (block,) = model.adaptations.cut(tasks, model.rates, Streams(0, "test"), model._amount(None, None), size=2)
    walk = block.adaptation.walk(model.theta, block.request)
    assert isinstance(walk, SegmentedWalk)
    return walk


@pytest.mark.parametrize("learner", ["sb3_ppo", "sb3_a2c", "sb3_trpo"])
def test_the_optimiser_goes_on_and_episodes_begin_anew(learner: str) -> None:
    model = make(learner)
    walk, timer = begin(model), Timer()
    walk.work(timer)
    first = walk.state()
    assert walk.n_done == 1
    assert walk.env_steps == 16 if learner != "sb3_a2c" else walk.env_steps == 20
    steps = {name: int(tensor) for name, tensor in first.items() if name.endswith("/step")}
    assert steps
    walk.work(timer)
    assert int(walk.state()["n_done"]) == 2
    assert not any(name.startswith("now/") for name in walk.state())
    walk.work(timer)
    assert walk.tasks["goal"].tolist() == model.family.tasks("test", 2)["goal"][1:].tolist()
    # A second segment takes as many steps as the first one, from where its optimiser stood.
    other = begin(model)
    other.load_state(first)
    run = model.adaptation.segment(other._phi, other._optimizers, other._request, 0, 1)
    assert {
        f"now/optimizers/{name}": int(tensor) for name, tensor in run.optimizers.items() if name.endswith("/step")
    } == {name: 2 * n for name, n in steps.items()}


def test_evaluations_and_exports_go_with_segments() -> None:
    model = make()
    assert isinstance(model.adaptation, SegmentedAdaptation)
    report = model.evaluate("test", 2, n_tasks=2)
    assert report.returns.shape == (1, 2, 3)
    assert report.env_steps.tolist() == [0.0, 16.0, 32.0]
    np.testing.assert_array_equal(report.returns, model.evaluate("test", 2, n_tasks=2).returns)
    adapted = model.adapt(SingleEnv(model.family, **one_task(model.family.tasks("test", 1), 0)), 2)
    assert adapted.env_steps == 32
    stock = model.to_sb3()
    assert torch.equal(stock.policy.log_std, model.policy_params["log_std"])


def test_off_policy_algorithms_have_no_segments() -> None:
    with pytest.raises(MetaRLError, match="unknown argument of SAC: 'segments'"):
        make("sb3_sac")
    with pytest.raises(MetaRLError, match="segments=2 is not true or false"):
        make(segments=2)
