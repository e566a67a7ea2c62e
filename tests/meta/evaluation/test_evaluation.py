"""Evaluation: fixed tasks, streams that pair algorithms, families that are small, the reference's test rule."""

from __future__ import annotations

import json
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from metarl.agents.learners.vpg import VPG
from metarl.agents.sampling.collect import collect
from metarl.envs.family import Family
from metarl.envs.registry import make_family
from metarl.envs.tasks import Tasks
from metarl.errors import ConfigError, TaskError
from metarl.meta.algorithms.baselines import Pretrain, RandomInit
from metarl.meta.algorithms.maml import FOMAML, MAML
from metarl.meta.evaluation.comparison import compare
from metarl.meta.evaluation.report import Report
from metarl.meta.evaluation.statistics import bootstrap_bands
from metarl.meta.evaluation.tasks import evaluation_tasks
from metarl.params import expand
from metarl.streams import seed_sequence
from tests.agents.toys import Staircase
from tests.meta.problems import inner_path
from tests.meta.small import equal, run_iterations, small


def test_the_tasks_of_a_split_are_fixed() -> None:
    family = make_family("PointMass-v0")
    tasks, strata, n_family = evaluation_tasks(family, "test", 7)
    assert strata is None
    assert n_family is None
    np.testing.assert_array_equal(tasks["goal"], make_family("PointMass-v0").tasks("test", 40)["goal"][:7])
    other = evaluation_tasks(family, "validation", 7).tasks
    shifted = evaluation_tasks(family, "shifted", 7).tasks
    assert not np.array_equal(tasks["goal"], other["goal"])
    assert (np.abs(shifted["goal"]).max(1) > 0.5).all()


class Few(Staircase):
    """Three tasks, with a shifted split that is continuous."""

    def finite_tasks(self) -> Tasks:
        return {"gain": np.array([-1.0, 0.5, 1.0]), "offset": np.array([0, 2, 4])}

    def __init__(self) -> None:
        super().__init__(random=True)
        self.shifted_space = spaces.Dict({"gain": spaces.Box(3.0, 4.0, (), np.float64), "offset": spaces.Discrete(7)})


def test_a_small_family_is_adapted_to_several_times_with_strata() -> None:
    tasks, strata, n_family = evaluation_tasks(Few(), "test", 7)
    assert n_family == 3
    assert strata == [0, 1, 2, 0, 1, 2, 0]
    np.testing.assert_array_equal(tasks["gain"], [-1.0, 0.5, 1.0, -1.0, 0.5, 1.0, -1.0])
    model = FOMAML("MlpPolicy", Few(), n_episodes=4, policy_kwargs={"net_arch": [4]}, n_threads=1)
    report = model.evaluate(n_tasks=6, n_inner_steps=1)
    assert report.strata is not None
    assert report.strata.tolist() == [0, 1, 2, 0, 1, 2]
    # Every adaptation has streams of its own.
    assert (report.returns[0, :3, 0] != report.returns[0, 3:, 0]).all()


def test_shifted_tasks_of_a_small_family_are_their_own_units() -> None:
    tasks, strata, n_family = evaluation_tasks(Few(), "shifted", 5)
    assert strata is None
    assert n_family is None
    assert len(np.unique(tasks["gain"])) == 5


class Twenty(Few):
    """Twenty tasks, of which a split holds four."""

    def finite_tasks(self) -> Tasks:
        return {"gain": np.linspace(-2.0, 2.0, 20), "offset": np.arange(20) % 7}


@pytest.mark.parametrize(
    ("n", "strata"),
    [(1, None), (4, None), (7, [0, 1, 2, 3, 0, 1, 2]), (8, [0, 1, 2, 3] * 2), (10, [0, 1, 2, 3] * 2 + [0, 1])],
)
def test_the_few_tasks_of_a_split_are_adapted_to_several_times(n: int, strata: list[int] | None) -> None:
    found = evaluation_tasks(Twenty(), "test", n)
    assert found.strata == strata
    assert found.n_family == 20
    gains = Twenty().tasks("test", 40)["gain"]
    assert len(gains) == 4
    expected = gains[:n] if strata is None else gains[strata]
    np.testing.assert_array_equal(found.tasks["gain"], expected)


def test_tasks_that_stand_for_others_stay_the_unit() -> None:
    model = FOMAML("MlpPolicy", Twenty(), n_episodes=4, policy_kwargs={"net_arch": [4]}, n_threads=1)
    report = model.evaluate(n_tasks=40, n_inner_steps=1)
    assert report.returns.shape == (1, 40, 2)
    assert (report.n_tasks, report.n_distinct, report.n_units) == (40, 4, 4)
    # Every adaptation has streams of its own; a few returns are equal by chance.
    assert len(np.unique(report.returns[0, :, 0])) > 30
    means = report.returns.reshape(1, 10, 4, 2).mean(1)
    for ours, theirs in zip(report.bands(), bootstrap_bands(means), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    text = str(report)
    assert "over 40 adaptations to 4 of 20 tasks, one run; too narrow with fewer than 20" in text
    assert json.loads(report.to_json())["summary"]["distinct_tasks"] == 4
    again = Report.from_json(report.to_json())
    assert (again.n_distinct, again.n_units) == (4, 4)
    # A family of three tasks is tested on all of them, so adaptations are the unit.
    model = FOMAML("MlpPolicy", Few(), n_episodes=4, policy_kwargs={"net_arch": [4]}, n_threads=1)
    few = model.evaluate(n_tasks=21, n_inner_steps=1)
    assert (few.n_tasks, few.n_distinct, few.n_units) == (21, 3, 21)
    assert "over 21 adaptations to 3 tasks, one run" in str(few)
    assert "too narrow" not in str(few)


@pytest.mark.parametrize("rule", ["constant", "half_after_first"])
def test_an_evaluation_by_hand(rule: str) -> None:
    model = run_iterations(small(MAML, inner_lr=0.3), 1)
    report = model.evaluate("validation", 2, n_tasks=3, n_episodes=6, inner_lr_rule=rule, seed=5)
    family, learner = make_family("PointMass-v0", horizon=20), VPG(model.policy)
    tasks = family.tasks("validation", 3)
    params = {name: tensor.contiguous() for name, tensor in expand(model.policy_params, 3).items()}
    steps = [0.0]
    for k in range(3):
        seeds = [seed_sequence(5, "evaluate/validation", 0, task, k) for task in range(3)]
        episodes = collect(family, model.policy, params, tasks, seeds, n_episodes=6)
        for task in range(3):
            expected = np.mean([episodes.rewards[task, e][episodes.mask[task, e]].sum() for e in range(6)])
            assert report.returns[0, task, k] == pytest.approx(expected, rel=1e-5)
            assert report.meta["ep_lengths"][task][k] == episodes.lengths[task].mean()
        steps.append(steps[-1] + episodes.n_steps / 3)
        rate = 0.3 if k == 0 or rule == "constant" else 0.15
        _, params = inner_path(learner, params, [learner.process(episodes, params)], [rate])
    np.testing.assert_allclose(report.env_steps, steps[:3])
    assert report.meta["inner_lr"] == [0.3, 0.3 if rule == "constant" else 0.15]
    assert report.meta["evaluation_seed"] == 5
    assert report.seeds == (0,)
    np.testing.assert_array_equal(report.tasks["goal"], tasks["goal"])


def test_rates_that_are_given_overrule_the_rule() -> None:
    model = small(MAML, inner_lr=0.3)
    report = model.evaluate("validation", 2, n_tasks=3, inner_lr=[0.3, 0.15])
    ruled = model.evaluate("validation", 2, n_tasks=3, inner_lr_rule="half_after_first")
    np.testing.assert_array_equal(report.returns, ruled.returns)
    assert (report.meta["inner_lr"], report.meta["inner_lr_rule"]) == ([0.3, 0.15], None)
    assert (ruled.meta["inner_lr"], ruled.meta["inner_lr_rule"]) == ([0.3, 0.15], "half_after_first")
    assert model.test_rates(3, "half_after_first", [0.1, 0.001]) == [0.1, 0.001, 0.001]
    assert model.test_rates(2, inner_lr=0.2) == [0.2, 0.2]
    assert model.test_rates(0, inner_lr=0.2) == []
    env = gym.make("PointMass-v0", goal=[0.3, -0.2], horizon=20)
    weak, strong = (model.adapt(env, 1, inner_lr=rate).params for rate in (1e-9, 0.3))
    assert torch.allclose(weak["log_std"], model.policy_params["log_std"], atol=1e-6)
    assert equal(strong, model.adapt(env, 1).params)
    # Each step has its own rate: a second one of next to nothing leaves what the first one made.
    rates: tuple[Any, ...] = ((1, 0.3), (2, [0.3, 1e-9]), (2, 0.3))
    once, same, twice = (model.adapt(env, n, inner_lr=rate).params for n, rate in rates)
    assert all(torch.allclose(same[name], once[name], atol=1e-6) for name in once)
    assert not torch.allclose(twice["log_std"], once["log_std"], atol=1e-4)
    trained = small(MAML, inner_lr=[0.3, 1e-9], n_inner_steps=2).adapt(env).params
    assert all(torch.allclose(trained[name], once[name], atol=1e-6) for name in once)
    for bad, message in (
        ([], "inner_lr has 0 rates for 2 inner steps"),
        ([0.1, 0.1, 0.1], "inner_lr has 3 rates for 2 inner steps"),
        ([0.1, -1.0], "inner_lr=-1.0"),
        ([float("nan")], "inner_lr=nan"),
    ):
        with pytest.raises(ConfigError, match=message):
            model.evaluate("validation", 2, n_tasks=3, inner_lr=bad)


def test_evaluation_changes_nothing_and_repeats() -> None:
    model = run_iterations(small(outer="adam"), 1)
    twin = run_iterations(small(outer="adam"), 1)
    first, again = (model.evaluate(n_tasks=3, n_inner_steps=1) for _ in range(2))
    np.testing.assert_array_equal(first.returns, again.returns)
    assert not np.array_equal(first.returns, model.evaluate(n_tasks=3, n_inner_steps=1, seed=1).returns)
    assert equal(model.params, twin.params)
    assert model.num_timesteps == twin.num_timesteps
    assert equal(run_iterations(model, 1).params, run_iterations(twin, 1).params)


def test_a_task_does_not_depend_on_how_many_there_are() -> None:
    model = small()
    few, many = (model.evaluate(n_tasks=n, n_inner_steps=1).returns for n in (2, 5))
    np.testing.assert_allclose(few[0], many[0, :2], rtol=1e-4)


def test_two_algorithms_share_tasks_and_streams() -> None:
    # The same initialisation, whatever the algorithm's name: the same numbers.
    reports = [small(a, seed=9).evaluate(n_tasks=3, n_inner_steps=2) for a in (RandomInit, FOMAML, MAML, Pretrain)]
    for report in reports[1:]:
        np.testing.assert_array_equal(report.returns, reports[0].returns)


def test_training_sizes_do_not_keep_runs_from_being_paired() -> None:
    small_batch, large_batch = small(n_episodes=2), small(n_episodes=6)
    by_transitions = small(n_transitions=90)
    reports = [
        m.evaluate(n_tasks=3, n_inner_steps=1, n_transitions=50) for m in (small_batch, large_batch, by_transitions)
    ]
    reports += []
    for report in reports[1:]:
        assert compare(report, reports[0]).returns.mean.tolist() == [0.0, 0.0]
        assert report.meta["n_episodes"] is None
        np.testing.assert_array_equal(report.returns, reports[0].returns)
    named = by_transitions.evaluate(n_tasks=3, n_inner_steps=1, n_episodes=6)
    np.testing.assert_array_equal(named.returns, large_batch.evaluate(n_tasks=3, n_inner_steps=1).returns)
    assert named.meta["n_transitions"] is None


def test_no_inner_steps_and_unknown_splits() -> None:
    report = small().evaluate(n_tasks=2, n_inner_steps=0)
    assert report.returns.shape == (1, 2, 1)
    assert report.env_steps.tolist() == [0.0]
    with pytest.raises(TaskError, match="unknown split 'tests': known: train, validation, test, shifted"):
        small().evaluate("tests")


def test_progress_is_told() -> None:
    calls: list[tuple[int, int]] = []
    small().evaluate(n_tasks=2, n_inner_steps=2, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_streams_of_training_and_evaluation_do_not_collide() -> None:
    """Every stream that learning, evaluating and adapting draw from at one seed is another one."""
    addresses: list[Any] = [("tasks", 0), ("policy",), ("get_env",)]
    for purpose in ("train", "evaluate/test", "evaluate/validation", "evaluate/shifted"):
        addresses += [(purpose, i, task, k) for i in range(3) for task in range(3) for k in range(3)]
    addresses += [("adapt", k) for k in range(3)] + [("tasks", i) for i in range(1, 5)]
    states = set()
    for purpose, *address in addresses:
        sequence = seed_sequence(0, purpose, *address)
        children = [np.random.SeedSequence(sequence.entropy, spawn_key=c) for c in ((), (0,), (1,), (2, 1))]
        states |= {tuple(child.generate_state(4).tolist()) for child in children}
    assert len(states) == 4 * len(addresses)


def test_adaptation_in_an_environment_improves_a_trained_model() -> None:
    """On an environment whose task is not named: see test_learns for the size of it."""
    model = small(FOMAML, inner_lr=0.5, meta_batch_size=10, n_episodes=10, outer_kwargs={"max_kl": 0.05})
    run_iterations(model, 12)
    goal = [0.4, -0.4]
    gains = []
    for seed in range(4):
        adapted = model.adapt(gym.make("PointMass-v0", goal=goal, horizon=20), 1, n_episodes=20, seed=seed)
        gains.append(mean_return(model.family, model, adapted.params, goal) - adapted.returns[0])
    assert min(gains) > 0.0


def mean_return(family: Family, model: Any, params: dict[str, torch.Tensor], goal: list[float]) -> float:
    stacked = {name: tensor[None] for name, tensor in params.items()}
    tasks = family.validate_tasks({"goal": [goal]})
    episodes = collect(family, model.policy, stacked, tasks, [seed_sequence(0, "held out")], n_episodes=200)
    return float(episodes.mean_returns[0])
