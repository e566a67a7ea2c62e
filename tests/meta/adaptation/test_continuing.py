"""The inner loop on episodes that go on: its segments, its streams, and what it reports."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import metarl
from metarl.agents.sampling.rollouts import Copies
from metarl.envs.registry import make_family
from metarl.envs.tasks import one_task
from metarl.envs.views.single import SingleEnv
from metarl.errors import ConfigError
from metarl.meta.adaptation import continuing
from metarl.meta.adaptation.base import Streams
from metarl.meta.algorithms.leap_watcher import LeapMetric, LeapWatcher
from metarl.meta.algorithms.maml import FOMAML
from metarl.meta.algorithms.reptile import Reptile
from metarl.meta.progress import Timer

OPTIONS: dict[str, Any] = {
    "learner": "a2c",
    "learner_kwargs": {"n_steps": 5, "n_envs": 2},
    "n_inner_steps": 2,
    "n_transitions": 35,
    "meta_batch_size": 2,
    "policy_kwargs": {"net_arch": [16]},
    "n_threads": 1,
}


def make(cls: Any = Reptile, **kwargs: Any) -> Any:
    return cls(env=make_family("PointMass-v0", horizon=8), **{**OPTIONS, **kwargs})


def test_an_inner_step_is_as_many_updates_as_its_env_steps_give() -> None:
    model = make()
    updates: list[int] = []
    update = model.adaptation.learner.update

    def counted(state: Any, samples: Any, *more: Any) -> Any:
        updates.append(len(samples))
        return update(state, samples, *more)

    vars(model.adaptation.learner)["update"] = counted
    stats = model.train()
    assert updates == [2] * 2 * 4  # 35 env steps of 10 an update
    assert model.num_timesteps == 2 * 2 * 40
    # Both copies of a task ended two episodes of 8 env steps in each segment of 20.
    assert stats["rollout/ep_len_mean"] == 8.0


@pytest.mark.parametrize("use", ["train", "evaluate", "adapt"])
def test_every_copy_and_every_update_has_a_stream_of_its_own(use: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(FOMAML)
    seen: list[Any] = []
    update, of, measured = model.adaptation.learner.update, Copies.of, []

    def watched(state: Any, samples: Any, rate: float, seeds: Any, *more: Any) -> Any:
        seen.extend(seeds)
        return update(state, samples, rate, seeds, *more)

    def copies(family: Any, policy: Any, tasks: Any, seeds: Any, n_envs: int, parallel: Any) -> Copies:
        (measured if n_envs == 20 else seen).extend(seeds)
        return of(family, policy, tasks, seeds, n_envs, parallel)

    vars(model.adaptation.learner)["update"] = watched
    monkeypatch.setattr(continuing.Copies, "of", copies)
    if use == "train":
        model.train()
    elif use == "evaluate":
        report = model.evaluate(n_inner_steps=2, n_tasks=2, n_episodes=20, seed=1)
        assert np.isfinite(report.returns).all()
        # The same episodes after every inner step.
        assert len(measured) == 2 * 3
        assert len({tuple(seed.generate_state(4)) for seed in measured}) == 2
    else:
        adapted = model.adapt(SingleEnv(model.family, **one_task(model.family.tasks("test", 1), 0)), 2)
        assert adapted.env_steps == 2 * 40
        assert len(adapted.returns) == 2
    n_updates = 16 if use == "evaluate" else 4  # of 160 env steps in whole episodes there
    expected = {"train": 2 * 2 * (1 + n_updates) + 2, "evaluate": 2 * 2 * (1 + n_updates), "adapt": 2 * n_updates}
    assert len(seen) == expected[use]
    assert len({tuple(seed.generate_state(4)) for seed in seen}) == len(seen)


def test_the_optimiser_goes_on_from_segment_to_segment() -> None:
    model = make(learner_kwargs={**OPTIONS["learner_kwargs"], "optimizer": "adam"})
    (block,) = model._blocks(
        model.family.tasks("test", 2), model.rates, Streams(0, "test"), model._amount(None, model.n_transitions)
    )
    walk, timer = block.adaptation.walk(model.theta, block.request), Timer()
    for n_segments in (1, 2):
        walk.work(timer)
        assert walk.state()["optimizer/step"].tolist() == [4 * n_segments] * 2


def test_what_leap_keeps_of_a_path_does_not_grow_with_it() -> None:
    model = make(n_inner_steps=4, task_local=["value_net"])
    (block,) = model._blocks(
        model.family.tasks("test", 2), model.rates, Streams(0, "test"), model._amount(None, model.n_transitions)
    )
    watcher, timer, sizes = LeapWatcher(LeapMetric("energy"), list(block.request.local)), Timer(), []
    walk = block.adaptation.walk(model.theta, block.request, watcher=watcher)
    for n_segments in (1, 2, 3):
        walk.work(timer)
        assert watcher.n_segments == 2 * (4 * n_segments - 1)  # each update of two tasks; the last ones wait
        kept = {name: tensor for name, tensor in walk.state().items() if not name.startswith("batch/")}
        sizes.append(sum(tensor.numel() for tensor in kept.values()))
    assert sizes[0] == sizes[1] == sizes[2]
    heads = [name for name in watcher.gradient() if name.startswith("value_net")]
    assert heads
    assert not any(watcher.gradient()[name].any() for name in heads)
    assert watcher.gradient()["action_net.weight"].any()


def test_maml_says_why_it_takes_whole_episodes() -> None:
    with pytest.raises(ConfigError, match="learner_kwargs has n_steps: maml differentiates plain gradient steps"):
        make(metarl.MAML)
