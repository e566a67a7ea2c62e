"""Families of imitation: what they show, what they pay, and what their expert is held to."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box

from metarl.envs import Imitation, check_family, make_family
from metarl.envs.checker.family import FamilyCheckError
from metarl.envs.family import Family
from metarl.envs.imitation.expert import Expert
from metarl.envs.promises import broken_declaration
from metarl.envs.tasks import n_tasks, take_tasks
from metarl.envs.views.oracle import Oracle
from metarl.errors import ConfigError, MetaRLError, NonFiniteError
from metarl.streams import stream
from tests.contract.kinds import Homewards, WalkHome, WalkHomeDiscrete
from tests.meta.walk import Walk


def family(**kwargs: Any) -> Any:
    return make_family("PointMassImitation-v0", **{"n_tasks": 5, "n_demonstrations": 2, **kwargs})


@pytest.mark.parametrize(
    "make",
    [
        family,
        lambda: family(order="trajectory", action_noise=0.2, n_states=7),
        lambda: family(real_kwargs={"lineage": "promp_momentum"}),
        lambda: Oracle(family()),
        WalkHome,
        WalkHomeDiscrete,
    ],
    ids=["default", "arguments", "finite", "oracle", "box", "discrete"],
)
def test_it_keeps_the_promises_of_families(make: Any) -> None:
    check_family(make())


def test_tasks_and_spaces_are_those_of_the_real_family() -> None:
    ours = family()
    real = ours.real
    assert real.id == "PointMass-v0"
    assert (ours.observation_space, ours.action_space) == (real.observation_space, real.action_space)
    assert (ours.task_space, ours.shifted_space) == (real.task_space, real.shifted_space)
    for split in ("validation", "test", "shifted"):
        np.testing.assert_array_equal(ours.tasks(split, 3)["goal"], real.tasks(split, 3)["goal"])
    assert Oracle(ours).acts_in.observation_space == Oracle(real).observation_space
    with pytest.raises(MetaRLError, match="outside the task space"):
        ours.validate_tasks({"goal": np.array([[3.0, 0.0]])})


def test_training_tasks_are_a_pool_of_different_ones() -> None:
    ours = family(n_tasks=6)
    drawn = ours.sample_tasks(stream(0, "tasks"), 6)["goal"]
    assert len(np.unique(drawn, axis=0)) == 6
    more = ours.sample_tasks(stream(1, "tasks"), 50)["goal"]
    assert len(np.unique(np.concatenate([drawn, more]), axis=0)) == 6
    # A larger pool holds the smaller one.
    np.testing.assert_array_equal(family(n_tasks=9).pool["goal"][:6], ours.pool["goal"])


def test_it_shows_the_experts_way() -> None:
    ours = family(order="trajectory", acting_noise=0.0, n_demonstrations=1)
    tasks = {"goal": np.array([[0.25, -0.05]])}
    state, obs = ours.reset(tasks, [stream(0, "any")], 6)
    (pairs,) = ours.demonstrations.of(tasks)
    np.testing.assert_allclose(pairs.obs, [[0, 0], [0.1, -0.05], [0.2, -0.05]], atol=1e-7)
    np.testing.assert_allclose(pairs.actions, [[1, -0.5], [1, 0], [0.5, 0]], atol=1e-6)
    assert pairs.expert_return == pytest.approx(-0.15 - 0.05, abs=1e-6)
    first = int(np.argmin(np.linalg.norm(pairs.obs - obs[0, 0], axis=-1)))
    np.testing.assert_array_equal(obs[0], pairs.obs[(first + np.arange(6)) % 3])
    np.testing.assert_array_equal(state["target"][0], pairs.actions[(first + np.arange(6)) % 3])
    assert ours.expert_returns(tasks) == pytest.approx(pairs.expert_return)


def test_shuffled_pairs_are_drawn_one_by_one() -> None:
    ours = family(n_demonstrations=1)
    tasks = ours.tasks("test", 1)
    (pairs,) = ours.demonstrations.of(tasks)
    _, obs = ours.reset(tasks, [stream(0, "any")], 4000)
    places, times = np.unique(pairs.obs, axis=0, return_counts=True)  # it passes some places twice
    counts = np.array([(obs[0] == each).all(-1).sum() for each in places])
    assert counts.sum() == 4000
    np.testing.assert_allclose(counts / 4000, times / len(pairs.obs), atol=0.02)


def test_an_action_costs_what_it_says_wherever_it_lies() -> None:
    ours = family()
    tasks = ours.tasks("test", 2)
    state, _ = ours.reset(tasks, [stream(0, "a"), stream(0, "b")], 3)
    actions = np.full((2, 3, 2), 5.0, np.float32)
    step = ours.step(tasks, state, actions, [])
    np.testing.assert_allclose(step.reward, -np.square(actions - state["target"]).sum(-1))
    assert step.reward.max() < -30.0
    assert step.terminated.all()


def test_choices_are_paid_for_being_the_experts() -> None:
    ours = WalkHomeDiscrete()
    tasks = ours.tasks("test", 1)
    state, _ = ours.reset(tasks, [stream(0, "a")], 50)
    step = ours.step(tasks, state, np.full((1, 50), 2), [])
    np.testing.assert_array_equal(step.reward, state["target"] == 2)
    assert 0 < step.reward.sum() < 50


def test_noise_is_on_the_actions_that_are_shown_and_not_on_what_is_kept() -> None:
    plain, noisy = family(), family(action_noise=0.5)
    tasks = plain.tasks("test", 1)
    _, clean = plain.examples(tasks, [stream(0, "a")], 2000)
    _, shown = noisy.examples(tasks, [stream(0, "a")], 2000)
    assert np.std(shown - clean) == pytest.approx(0.5, rel=0.05)
    np.testing.assert_array_equal(*(f.demonstrations.of(tasks)[0].actions for f in (plain, noisy)))
    choices = WalkHomeDiscrete()
    choices.action_noise = 1.0
    _, shown = choices.examples(choices.tasks("test", 1), [stream(0, "a")], 3000)
    np.testing.assert_allclose(np.bincount(shown[0], minlength=3) / 3000, 1 / 3, atol=0.05)


def test_the_momentum_expert_brakes() -> None:
    ours = family(real_kwargs={"lineage": "promp_momentum", "reward": "distance", "horizon": 60}, acting_noise=0.0)
    tasks = ours.finite_tasks()
    (pairs, *_) = ours.demonstrations.of(take_tasks(tasks, slice(0, 1)))
    assert np.abs(pairs.obs[59, :2] - tasks["goal"][0]).max() < 0.02
    assert np.abs(pairs.obs[59, 2:]).max() < 0.02


# ---------------------------------------------------------------------------------------------------- what is refused
class Wrong(Expert):
    """Does whatever it is told to do."""

    fingerprint = "wrong"

    def __init__(self, actions: Any) -> None:
        self.actions = actions

    def act(self, tasks: Any, obs: np.ndarray) -> np.ndarray:
        return np.asarray(self.actions(obs))


@pytest.mark.parametrize(
    ("base", "actions", "error", "words"),
    [
        (WalkHome, lambda obs: obs[..., 0], ConfigError, r"Wrong of Walk-v0 does float32 \[1, 2\], not \[1, 2, 1\] in"),
        (
            WalkHome,
            lambda obs: np.full((1, 2, 1), np.nan),
            NonFiniteError,
            "Wrong of Walk-v0 does something that is not",
        ),
        (WalkHomeDiscrete, lambda obs: np.zeros((1, 2)), ConfigError, r"does float64 \[1, 2\], not \[1, 2\] in"),
        (WalkHomeDiscrete, lambda obs: np.full((1, 2), 3), ConfigError, "does 3, which Discrete"),
    ],
)
def test_an_expert_that_does_something_else_is_refused(base: Any, actions: Any, error: Any, words: str) -> None:
    class Taught(base):
        def make_expert(self, real: Family) -> Expert:
            return Wrong(actions)

    ours = Taught()
    with pytest.raises(error, match=words):
        ours.demonstrations.of(ours.tasks("test", 1))


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"n_tasks": 0}, "n_tasks=0"),
        ({"n_demonstrations": 1.5}, "n_demonstrations=1.5"),
        ({"n_states": 0}, "n_states=0"),
        ({"order": "sorted"}, "order='sorted'"),
        ({"acting_noise": -1.0}, "acting_noise=-1.0"),
        ({"real_kwargs": 3}, "real_kwargs=3"),
        ({"real_kwargs": {"horizons": 3}}, "'horizons'"),
        ({"n_demos": 3}, "'n_demos'"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(kwargs: dict[str, Any], words: str) -> None:
    with pytest.raises(MetaRLError, match=words) as error:
        make_family("PointMassImitation-v0", **kwargs)
    assert "\n" not in str(error.value)


def test_an_evaluation_family_has_the_same_tasks_and_spaces() -> None:
    ours = WalkHome()
    assert broken_declaration(ours) is None
    ours.evaluation_family = Walk(discrete=True)
    with pytest.raises(FamilyCheckError, match="evaluation_family Walk-v0 has another action_space"):
        check_family(ours)
    ours.evaluation_family = "Walk-v0"
    assert broken_declaration(ours) == "evaluation_family is a str, not a family"
    ours = WalkHome()
    ours.evaluation_episodes = 0
    assert broken_declaration(ours) == "evaluation_episodes=0: a number of episodes, at least 1"


def test_one_environment_of_it() -> None:
    env = gymnasium.make("PointMassImitation-v0", goal=[0.3, 0.0], acting_noise=0.0)
    obs, _ = env.reset(seed=0)
    assert isinstance(env.action_space, Box)
    _, reward, terminated, _, info = env.step(np.array([1.0, 0.0], np.float32))
    assert terminated
    assert obs in env.observation_space
    assert reward == pytest.approx(-np.square(info["target"] - [1.0, 0.0]).sum())


def test_a_base_without_an_expert_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="make_expert"):
        Imitation()  # type: ignore[abstract]
    assert Homewards(False).fingerprint
    assert n_tasks(WalkHome().pool) == 3
