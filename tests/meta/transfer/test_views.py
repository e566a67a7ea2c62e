"""Views hand on what is seen of a task: a wrapper that transfers learns on them as on the family inside."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metarl import MetaTransfer
from metarl.envs.checker.family import check_family
from metarl.envs.registry import make_family
from metarl.meta.adaptation.base import Request, Streams

SIZES: dict[str, Any] = {"meta_batch_size": 2, "n_support": 3, "n_query": 2, "policy_kwargs": {"net_arch": [8]}}


@pytest.mark.parametrize("view", [{"oracle": True}, {"trial_episodes": 2}], ids=["oracle", "trials"])
def test_a_view_of_a_family_is_seen_as_the_family_is(view: dict[str, Any]) -> None:
    arguments = {"horizon": 3, "support_noise": 0.5}
    family = make_family("PointMass-v0", **arguments, **view)
    assert family.support_family is not None
    assert family.support_family.id == "PointMass-v0/support"
    check_family(family, n=2, n_envs=2)
    inside = MetaTransfer(env="PointMass-v0", env_kwargs=arguments, encoder="mean", n_threads=1, **SIZES)
    model = MetaTransfer(env="PointMass-v0", env_kwargs={**arguments, **view}, encoder="mean", n_threads=1, **SIZES)
    model.learn(1, log_interval=None)
    ours, theirs = (each.adaptation.see(each.theta, _request(each), 0) for each in (model, inside))
    assert torch.equal(ours.obs, theirs.obs)


def _request(model: MetaTransfer) -> Any:
    tasks = model.family.tasks("test", 2)
    return Request(tasks, [1.0], Streams(0, "test"), {"n_episodes": 3, "n_transitions": None})
