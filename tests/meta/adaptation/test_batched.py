"""The inner loop around learners that are batched over tasks: where its random numbers come from."""

from __future__ import annotations

from typing import Any

import pytest

from metarl.envs.views.single import SingleEnv
from metarl.meta.adaptation import batched
from metarl.meta.algorithms.maml import FOMAML
from tests.meta.aim import Aim


@pytest.mark.parametrize("use", ["train", "evaluate", "adapt"])
def test_every_batch_and_every_update_of_every_task_has_a_stream_of_its_own(
    use: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: dict[str, Any] = {"n_inner_steps": 3, "n_episodes": 1, "meta_batch_size": 2, "n_threads": 1}
    model = FOMAML(env=Aim(), learner="ppo", policy_kwargs={"net_arch": [4]}, **sizes)
    seen: list[Any] = []
    update, collect, collect_env = model.adaptation.learner.update, batched.collect, batched.collect_env

    def watched_update(state: Any, samples: Any, rate: float, seeds: Any, *more: Any) -> Any:
        seen.extend(seeds)
        return update(state, samples, rate, seeds, *more)

    def watched_collect(family: Any, policy: Any, params: Any, tasks: Any, seeds: Any, **kwargs: Any) -> Any:
        seen.extend(seeds)
        return collect(family, policy, params, tasks, seeds, **kwargs)

    def watched_collect_env(env: Any, policy: Any, params: Any, seed: Any, *amount: Any, **kwargs: Any) -> Any:
        seen.append(seed)
        return collect_env(env, policy, params, seed, *amount, **kwargs)

    monkeypatch.setattr(model.adaptation.learner, "update", watched_update)
    monkeypatch.setattr(batched, "collect", watched_collect)
    monkeypatch.setattr(batched, "collect_env", watched_collect_env)
    if use == "train":
        model.train()
    elif use == "evaluate":
        model.evaluate(n_inner_steps=3, n_tasks=2)
    else:
        model.adapt(SingleEnv(model.family, target=0.5), 3)
    n_tasks, n_queries = (1, 0) if use == "adapt" else (2, 2)
    assert len(seen) == n_tasks * 3 * 2 + n_queries
    assert len({tuple(seed.generate_state(4)) for seed in seen}) == len(seen)


@pytest.mark.parametrize("learner", ["vpg", "a2c", "ppo"])
def test_an_episode_of_one_step_is_a_batch_without_a_warning(learner: str) -> None:
    model = FOMAML(env=Aim(), learner=learner, policy_kwargs={"net_arch": [4]}, n_episodes=1, n_threads=1)
    adapted = model.adapt(SingleEnv(model.family, target=0.5), 1)
    assert adapted.env_steps == model.family.horizon == 1
