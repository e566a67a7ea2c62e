"""Families with a support family of their own, under the wrappers that learn in the family itself."""

import numpy as np
import pytest

import metarl
from metarl.envs.registry import make_family

PAIRS = {
    "DoublePendulum-v0": ("supervised", {}),
    "PendulumParameters-v0": ("supervised", {}),
    "MazeTransfer-v0": ("cloning", {"width": 6, "n_eval_episodes": 1}),
    "AntLegTransfer-v0": (
        "cloning",
        {"n_tasks": 2, "n_states": 10, "n_eval_episodes": 1, "real_kwargs": {"horizon": 10}},
    ),
}


@pytest.mark.parametrize("algorithm", ["MAML", "FOMAML", "Reptile", "Leap", "Pretrain"])
@pytest.mark.parametrize("id", PAIRS)
def test_each_learns_in_the_family_itself(id, algorithm):
    learner, arguments = PAIRS[id]
    model = getattr(metarl, algorithm)(
        "MlpPolicy",
        make_family(id, **arguments),
        learner=learner,
        inner_lr=1e-4,
        meta_batch_size=2,
        n_episodes=3,
        policy_kwargs={"net_arch": [4]},
        seed=0,
    )
    before = {name: value.clone() for name, value in model.params.items()}
    model.learn(1)
    assert any(not np.array_equal(before[name], value) for name, value in model.params.items())
    report = model.evaluate("test", 1, n_tasks=2, n_episodes=3)
    assert report.env_steps.tolist() == [0, 3]
    assert np.isfinite(report.returns).all()
